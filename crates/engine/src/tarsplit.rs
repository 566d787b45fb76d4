//! The exact tar of a layer, put together again from what Docker kept of it.
//!
//! When Docker unpacks a layer, it keeps everything of the tar that is not the content of a file: headers, padding, the
//! end. `tar-split.json.gz` is that: gzip around one JSON document per line, each either a *segment* (type 2, raw bytes
//! in base64) or a *file* (type 1, name and size, whose content is on disk). In order they give the tar to the byte, so
//! that its digest is the layer's diff id (<https://github.com/vbatts/tar-split>).
//!
//! Names come from whoever built the image. Files are opened beneath the layer's directory by the kernel's own rule
//! (`openat2`), so no name leads out of it; and the caller compares the digest of what comes out.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::ops::Range;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::read::MultiGzDecoder;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use serde::Deserialize;

/// Longest line that is read: a segment may hold the headers of many small files, but Docker writes them one by one.
const LONGEST_LINE: u64 = 64 << 20;

const FILE: u8 = 1;
const SEGMENT: u8 = 2;

#[derive(Deserialize)]
struct Line<'a> {
    r#type: u8,
    #[serde(borrow, default)]
    name: Option<Cow<'a, str>>,
    /// The name in base64 where it is not UTF-8.
    #[serde(borrow, default)]
    name_raw: Option<Cow<'a, str>>,
    #[serde(default)]
    size: u64,
    /// The bytes of a segment, the checksum of a file.
    #[serde(borrow, default)]
    payload: Option<Cow<'a, str>>,
}

/// Where the bytes of a layer go.
pub(crate) trait Sink {
    /// Takes in some bytes.
    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Takes in exactly these bytes of `file`, fails if it ends before them.
    fn file(&mut self, file: &OwnedFd, part: Range<u64>) -> io::Result<()>;
}

/// Reads through `tar_split` and calls `each` for every line.
fn lines(tar_split: &Path, mut each: impl FnMut(Line<'_>) -> io::Result<()>) -> io::Result<()> {
    let gzip = MultiGzDecoder::new(BufReader::with_capacity(64 << 10, File::open(tar_split)?));
    let mut reader = BufReader::with_capacity(256 << 10, gzip);
    let mut text = Vec::new();
    loop {
        text.clear();
        let read = (&mut reader).take(LONGEST_LINE).read_until(b'\n', &mut text)?;
        if read == 0 {
            return Ok(());
        }
        if text.trim_ascii().is_empty() {
            continue;
        }
        let line = serde_json::from_slice(&text).map_err(|error| {
            damaged(format!(
                "tar-split.json.gz has a line that is not understood: {error}"
            ))
        })?;
        each(line)?;
    }
}

fn damaged(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// Length of the layer's tar in bytes.
pub(crate) fn length(tar_split: &Path) -> io::Result<u64> {
    let mut total = 0_u64;
    lines(tar_split, |line| {
        let more = match line.r#type {
            SEGMENT => decoded_length(line.payload.as_deref().unwrap_or_default()),
            _ => line.size,
        };
        total = further(total, more)?;
        Ok(())
    })?;
    Ok(total)
}

fn further(at: u64, by: u64) -> io::Result<u64> {
    at.checked_add(by)
        .ok_or_else(|| damaged("sizes beyond all measure".into()))
}

/// Bytes that padded base64 text stands for.
fn decoded_length(text: &str) -> u64 {
    let padding = text.bytes().rev().take_while(|b| *b == b'=').count();
    (text.len() as u64 / 4 * 3).saturating_sub(padding as u64)
}

/// Writes the layer's tar from the byte `offset` on into `sink`, and returns the length of the whole. Files that end before `offset` are
/// not even opened: the record knows how long they are.
pub(crate) fn assemble(tar_split: &Path, files: &Path, offset: u64, sink: &mut impl Sink) -> io::Result<u64> {
    let root = rustix::fs::open(
        files,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let (mut buffer, mut at) = (Vec::new(), 0_u64);
    lines(tar_split, |line| match line.r#type {
        SEGMENT => {
            buffer.clear();
            let payload = line.payload.as_deref().unwrap_or_default();
            STANDARD
                .decode_vec(payload, &mut buffer)
                .map_err(|error| damaged(format!("tar-split.json.gz: {error}")))?;
            let unwanted = usize::try_from(offset.saturating_sub(at)).unwrap_or(usize::MAX);
            at = further(at, buffer.len() as u64)?;
            match buffer.get(unwanted..) {
                Some(wanted) => sink.bytes(wanted),
                None => Ok(()),
            }
        }
        FILE => {
            let unwanted = offset.saturating_sub(at);
            at = further(at, line.size)?;
            if unwanted >= line.size {
                return Ok(());
            }
            let name: Cow<'_, [u8]> = match (&line.name, &line.name_raw) {
                (Some(name), _) => Cow::Borrowed(name.as_bytes()),
                (None, Some(raw)) => Cow::Owned(
                    STANDARD
                        .decode(raw.as_bytes())
                        .map_err(|error| damaged(format!("tar-split.json.gz: {error}")))?,
                ),
                (None, None) => return Err(damaged("tar-split.json.gz has a file without a name".into())),
            };
            let name = relative(&name);
            let context =
                |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", name.display()));
            let file = open_beneath(&root, name).map_err(context)?;
            sink.file(&file, unwanted..line.size).map_err(context)
        }
        other => Err(damaged(format!(
            "tar-split.json.gz has a line of unknown type {other}"
        ))),
    })?;
    Ok(at)
}

/// The name without what makes it absolute.
fn relative(name: &[u8]) -> &Path {
    let start = name.iter().take_while(|b| **b == b'/').count();
    Path::new(OsStr::from_bytes(&name[start..]))
}

/// Opens a regular file at `name` beneath `root`, whatever the name says.
fn open_beneath(root: &OwnedFd, name: &Path) -> io::Result<OwnedFd> {
    // NONBLOCK: should a pipe be there, opening must not wait for its other end.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let open = |resolve| rustix::fs::openat2(root.as_fd(), name, flags, Mode::empty(), resolve);
    let file = match open(ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS) {
        // A layer may reach a directory through a link of its own (`lib` → `usr/lib`): then within this directory.
        Err(rustix::io::Errno::LOOP) => open(ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)?,
        other => other?,
    };
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
    if kind != FileType::RegularFile {
        return Err(damaged("not a regular file".into()));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::CWD;
    use std::io::Write as _;
    use std::os::unix::fs::FileExt as _;

    #[derive(Default)]
    struct Collect(Vec<u8>);

    impl Sink for Collect {
        fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
            self.0.extend_from_slice(bytes);
            Ok(())
        }
        fn file(&mut self, file: &OwnedFd, part: Range<u64>) -> io::Result<()> {
            let mut bytes = vec![0; usize::try_from(part.end - part.start).unwrap()];
            File::from(file.try_clone()?).read_exact_at(&mut bytes, part.start)?;
            self.bytes(&bytes)
        }
    }

    fn split(dir: &Path, lines: &[&str]) -> std::path::PathBuf {
        let path = dir.join("tar-split.json.gz");
        let mut gzip =
            flate2::write::GzEncoder::new(File::create(&path).unwrap(), flate2::Compression::fast());
        gzip.write_all(lines.join("\n").as_bytes()).unwrap();
        gzip.finish().unwrap();
        path
    }

    #[test]
    fn segments_and_files_alternate() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("diff/usr/lib")).unwrap();
        std::os::unix::fs::symlink("usr/lib", dir.path().join("diff/lib")).unwrap();
        std::fs::write(dir.path().join("diff/usr/lib/x"), b"content").unwrap();
        let raw = STANDARD.encode("./lib/x");
        let path = split(
            dir.path(),
            &[
                r#"{"type":2,"payload":"aGVhZA==","position":0}"#,
                r#"{"type":1,"name":"/usr/lib/x","size":7,"payload":"AAAAAAAAAAA=","position":1}"#,
                r#"{"type":1,"name":"usr/","payload":null,"position":2}"#,
                &format!(r#"{{"type":1,"name_raw":"{raw}","size":7,"payload":"AA==","position":2}}"#),
                r#"{"type":2,"payload":"AAA=","position":3}"#,
            ],
        );
        let whole = b"headcontentcontent\0\0";
        assert_eq!(length(&path).unwrap(), whole.len() as u64);
        for offset in 0..=whole.len() + 2 {
            let mut out = Collect::default();
            let total = assemble(&path, &dir.path().join("diff"), offset as u64, &mut out).unwrap();
            assert_eq!(out.0, whole.get(offset..).unwrap_or_default(), "from {offset}");
            assert_eq!(total, whole.len() as u64);
        }
    }

    #[test]
    fn no_name_leads_out() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("diff")).unwrap();
        std::fs::write(dir.path().join("secret"), b"secret!").unwrap();
        std::os::unix::fs::symlink("../secret", dir.path().join("diff/final")).unwrap();
        std::os::unix::fs::symlink("..", dir.path().join("diff/up")).unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("diff/abs")).unwrap();
        rustix::fs::mknodat(CWD, dir.path().join("diff/pipe"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        for name in [
            "../secret",
            "a/../../secret",
            "final",
            "up/secret",
            "abs/secret",
            "pipe",
            "",
        ] {
            let path = split(
                dir.path(),
                &[&format!(
                    r#"{{"type":1,"name":"{name}","size":7,"payload":null}}"#
                )],
            );
            let mut out = Collect::default();
            let result = assemble(&path, &dir.path().join("diff"), 0, &mut out);
            assert!(
                result.is_err() && out.0.is_empty(),
                "{name:?} was read: {result:?}"
            );
        }
    }

    #[test]
    fn damage_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        for line in [
            "{",
            r#"{"type":7}"#,
            r#"{"type":2,"payload":"%"}"#,
            r#"{"type":1,"size":3}"#,
        ] {
            let path = split(dir.path(), &[line]);
            let mut out = Collect::default();
            assert!(assemble(&path, dir.path(), 0, &mut out).is_err(), "{line}");
        }
        let path = split(dir.path(), &[r#"{"type":1,"name":"x","size":9}"#]);
        std::fs::write(dir.path().join("x"), b"short").unwrap();
        assert!(assemble(&path, dir.path(), 0, &mut Collect::default()).is_err());
    }
}
