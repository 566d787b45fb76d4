//! Archives that come from files and go to them, for whatever is exported and imported.

use std::fs::{File, Permissions};
use std::io::{self, IsTerminal as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tranship_core::{Fault, FaultKind};

use crate::interrupts::Interrupts;

/// Bytes read at a time.
const PIECE: usize = 256 << 10;

/// What becomes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// It takes the place of one that is there, and others read it as the umask has it.
    Shared,
    /// It is a new one, and nobody else can read it before or after.
    Private,
}

/// A file that cannot be read or written.
pub fn file_fault(path: &Path, error: &io::Error) -> Fault {
    let path = path.display().to_string();
    let mut fault = Fault::new(
        "archive.file",
        FaultKind::Environment,
        format!("{path} cannot be used: {error}"),
    );
    fault.path = Some(path);
    fault
}

/// Whether an archive goes to a file; else to standard output.
///
/// # Errors
/// `usage.export` if that is a terminal.
pub fn goes_to_file(output: &Path) -> Result<bool, Fault> {
    let to_file = output.as_os_str() != "-";
    if !to_file && io::stdout().is_terminal() {
        return Err(Fault::new(
            "usage.export",
            FaultKind::Usage,
            "an archive is not written to a terminal",
        )
        .with_hint("--output FILE, or send standard output somewhere"));
    }
    Ok(to_file)
}

/// That there is such a file.
///
/// # Errors
/// `archive.exists`.
pub fn is_new(path: &Path) -> Result<(), Fault> {
    match path.symlink_metadata() {
        Ok(_) => Err(there(path)),
        Err(_) => Ok(()),
    }
}

fn there(path: &Path) -> Fault {
    let mut fault = file_fault(path, &io::ErrorKind::AlreadyExists.into());
    fault.code = "archive.exists".into();
    fault.with_hint("choose another --output, or remove that file; - writes to standard output")
}

/// Writes an archive to a file, which has its name only once it is whole and on the disk, or to standard output. Says how many bytes it
/// has. What ends it before its end leaves nothing.
///
/// # Errors
/// `archive.file`, `archive.exists`, `archive.aborted`; what the parts say.
pub async fn write(
    parts: impl Stream<Item = Result<Bytes, Fault>>,
    output: &Path,
    keep: Keep,
    show: impl FnMut(u64),
) -> Result<u64, Fault> {
    let to_file = goes_to_file(output)?;
    let mut signals = Interrupts::unless_ignored()?;
    let written = async {
        if to_file {
            to_its_name(parts, output, keep, show).await
        } else {
            copy(parts, &mut tokio::io::stdout(), output, show).await
        }
    };
    tokio::select! {
        written = written => written,
        () = signals.next() => {
            let fault = Fault::new("archive.aborted", FaultKind::RolledBack, "the export was aborted on request");
            Err(if to_file {
                fault
            } else {
                fault.with_hint("what was written to standard output may be cut off")
            })
        }
    }
}

async fn to_its_name(
    parts: impl Stream<Item = Result<Bytes, Fault>>,
    path: &Path,
    keep: Keep,
    show: impl FnMut(u64),
) -> Result<u64, Fault> {
    let unused = |error: io::Error| file_fault(path, &error);
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mode = match keep {
        Keep::Shared => 0o666,
        Keep::Private => 0o600,
    };
    // Its name is one that nobody can foresee, and it goes if this ends before its end.
    let file = tempfile::Builder::new()
        .prefix(".tranship-")
        .suffix(".part")
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(directory)
        .map_err(unused)?;
    let mut out = tokio::fs::File::from_std(file.as_file().try_clone().map_err(unused)?);
    let bytes = copy(parts, &mut out, path, show).await?;
    out.sync_all().await.map_err(unused)?;
    let named = match keep {
        Keep::Shared => file.persist(path),
        Keep::Private => file.persist_noclobber(path),
    };
    named.map_err(|error| match error.error {
        error if error.kind() == io::ErrorKind::AlreadyExists => there(path),
        error => unused(error),
    })?;
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(unused)?;
    Ok(bytes)
}

async fn copy(
    parts: impl Stream<Item = Result<Bytes, Fault>>,
    out: &mut (impl AsyncWrite + Unpin),
    path: &Path,
    mut show: impl FnMut(u64),
) -> Result<u64, Fault> {
    let unwritten = |error: io::Error| file_fault(path, &error);
    let mut parts = std::pin::pin!(parts);
    let mut total = 0u64;
    while let Some(part) = parts.next().await {
        let part = part?;
        out.write_all(&part).await.map_err(unwritten)?;
        total += part.len() as u64;
        show(total);
    }
    out.flush().await.map_err(unwritten)?;
    Ok(total)
}

/// Opens an archive, or standard input for `-`.
///
/// # Errors
/// `archive.file`.
pub async fn open(input: &Path) -> Result<Box<dyn AsyncRead + Unpin + Send>, Fault> {
    if input == Path::new("-") {
        return Ok(Box::new(tokio::io::stdin()));
    }
    let file = tokio::fs::File::open(input).await;
    Ok(Box::new(file.map_err(|error| file_fault(input, &error))?))
}

/// How far an archive was read.
#[derive(Default)]
pub struct Progress {
    bytes: AtomicU64,
    ended: AtomicBool,
}

impl Progress {
    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether its end was read.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }
}

/// An archive in parts, counted.
pub fn parts_of(
    input: impl AsyncRead + Unpin + Send,
    read: Arc<Progress>,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    futures_util::stream::unfold(Some((input, read)), |state| async move {
        let (mut input, read) = state?;
        let mut buffer = bytes::BytesMut::with_capacity(PIECE);
        match input.read_buf(&mut buffer).await {
            Ok(0) => {
                // Noted before anybody else can know it.
                read.ended.store(true, Ordering::Relaxed);
                None
            }
            Ok(got) => {
                read.bytes.fetch_add(got as u64, Ordering::Relaxed);
                Some((Ok(buffer.freeze()), Some((input, read))))
            }
            Err(error) => Some((Err(error), None)),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(whole: bool) -> impl Stream<Item = Result<Bytes, Fault>> {
        let failed = Fault::new("test.failed", FaultKind::Environment, "no");
        let end = (!whole).then_some(Err(failed));
        let parts = ["arch", "ive"].map(|part| Ok(Bytes::from_static(part.as_bytes())));
        futures_util::stream::iter(parts.into_iter().chain(end))
    }

    // Not by `write`, which hears the signals that another test sends to this process.
    #[tokio::test]
    async fn a_file_has_its_name_only_once_it_is_whole() {
        let at = tempfile::tempdir().unwrap();
        let names = || std::fs::read_dir(at.path()).unwrap().count();
        let path = at.path().join("archive");
        for keep in [Keep::Shared, Keep::Private] {
            let failed = to_its_name(parts(false), &path, keep, |_| ()).await.unwrap_err();
            assert_eq!((failed.code.as_str(), names()), ("test.failed", 0));
        }
        let mode = || path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(
            to_its_name(parts(true), &path, Keep::Private, |_| ())
                .await
                .unwrap(),
            7
        );
        assert_eq!(mode(), 0o600);
        let failed = to_its_name(parts(true), &path, Keep::Private, |_| ())
            .await
            .unwrap_err();
        assert_eq!(failed.code, "archive.exists");
        std::fs::write(&path, "older").unwrap();
        assert_eq!(
            to_its_name(parts(true), &path, Keep::Shared, |_| ())
                .await
                .unwrap(),
            7
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "archive");
        let usual = at.path().join("usual");
        std::fs::write(&usual, "").unwrap();
        assert_eq!(mode(), usual.metadata().unwrap().permissions().mode() & 0o777);
        assert_eq!(names(), 2);
    }

    #[tokio::test]
    async fn the_end_is_noted_when_it_was_read() {
        let read = Arc::new(Progress::default());
        let mut parts = Box::pin(parts_of(&b"archive"[..], Arc::clone(&read)));
        assert_eq!(parts.next().await.unwrap().unwrap(), "archive");
        assert!(!read.has_ended());
        assert!(parts.next().await.is_none());
        assert!(read.has_ended());
        assert_eq!(read.bytes(), 7);
    }
}
