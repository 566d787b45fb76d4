use super::*;

/// What comes out of a layer of these pieces, which should have the digest of `meant`.
fn checked(pieces: &[&[u8]], meant: &[u8]) -> (Vec<u8>, Option<EngineError>) {
    let (to_check, from_reader) = sync_channel(16);
    let (to_stream, mut out) = mpsc::channel(16);
    to_check.send(Message::LayerBegins).unwrap();
    for piece in pieces {
        to_check.send(Message::Bytes(piece.to_vec())).unwrap();
    }
    let end = Message::LayerEnds(Digest::of(meant), meant.len() as u64);
    to_check.send(end).unwrap();
    drop(to_check);
    check(&from_reader, &to_stream);
    drop(to_stream);
    let (mut bytes, mut error) = (Vec::new(), None);
    while let Some(item) = out.blocking_recv() {
        match item {
            Ok(piece) => bytes.extend_from_slice(&piece),
            Err(failed) => error = Some(failed),
        }
    }
    (bytes, error)
}

#[test]
fn nothing_is_read_on_for_nobody() {
    let (to_check, from_reader) = sync_channel(16);
    let (to_stream, out) = mpsc::channel(16);
    to_check.send(Message::LayerBegins).unwrap();
    for _ in 0..4 {
        to_check.send(Message::Bytes(b"abc".to_vec())).unwrap();
    }
    drop((to_check, out));
    check(&from_reader, &to_stream);
    assert_eq!(
        from_reader.iter().count(),
        2,
        "it ends with the first piece that goes out"
    );
}

#[test]
fn the_end_of_a_damaged_layer_is_not_given_out() {
    let (bytes, error) = checked(&[b"abc", b"def", b"ghi"], b"abcdefghi");
    assert!(error.is_none() && bytes == b"abcdefghi", "{error:?}");
    for pieces in [
        [&b"abc"[..], b"dXf", b"ghi"],
        [b"Xbc", b"def", b"ghi"],
        [b"abc", b"def", b"gh"],
        [b"abc", b"def", b"ghij"],
    ] {
        let (bytes, error) = checked(&pieces, b"abcdefghi");
        assert!(matches!(error, Some(EngineError::Corrupt { .. })), "{pieces:?}");
        assert!(bytes.len() <= 6, "{bytes:?}");
    }
}

/// A layer as Docker keeps it, its tar, and where in that something begins or ends.
struct Kept {
    directory: tempfile::TempDir,
    tar: Vec<u8>,
    /// The files in order: their names, and where their content lies.
    files: Vec<(&'static str, Range<usize>)>,
}

impl Kept {
    fn new() -> Self {
        use base64::Engine as _;
        use base64::engine::general_purpose::STANDARD;
        use std::io::Write as _;
        let directory = tempfile::tempdir().unwrap();
        let files = directory.path().join("diff");
        std::fs::create_dir_all(files.join("usr/share")).unwrap();
        let gzip = std::fs::File::create(directory.path().join("tar-split.json.gz")).unwrap();
        let mut record = flate2::write::GzEncoder::new(gzip, flate2::Compression::fast());
        let (mut tar, mut pending, mut found) = (Vec::new(), Vec::new(), Vec::new());
        let long = "usr/share/a-name-that-does-not-fit-into-the-hundred-bytes-of-a-header-and-so-has-an-entry-of-its-own-before-its-file";
        for (name, size) in [
            ("first", 1),
            ("empty", 0),
            ("block", BLOCK as usize),
            ("more", BLOCK as usize + 1),
            (long, 777),
            ("usr/share/large", BUFFER * 2 + 77),
            ("usr/share/exact", BUFFER),
            ("last", 3),
        ] {
            let content: Vec<u8> = (0..size).map(|n| ((n + size) % 251) as u8).collect();
            let mut one = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_gnu();
            header.set_size(size as u64);
            header.set_mode(0o644);
            one.append_data(&mut header, name, &content[..]).unwrap();
            let mut entry = one.into_inner().unwrap();
            entry.truncate(entry.len() - 2 * BLOCK as usize);
            let padding = size.next_multiple_of(BLOCK as usize) - size;
            let head = entry.len() - padding - size;
            // Docker writes what is between two contents as one segment or as several.
            pending.extend_from_slice(&entry[..head]);
            for segment in pending.chunks(1000) {
                let payload = STANDARD.encode(segment);
                writeln!(record, r#"{{"type":2,"payload":"{payload}"}}"#).unwrap();
            }
            writeln!(
                record,
                r#"{{"type":1,"name":"{name}","size":{size},"payload":null}}"#
            )
            .unwrap();
            pending = entry[head + size..].to_vec();
            found.push((name, tar.len() + head..tar.len() + head + size));
            tar.extend_from_slice(&entry);
            std::fs::write(files.join(name), &content).unwrap();
        }
        pending.extend_from_slice(&[0; 2 * BLOCK as usize]);
        tar.extend_from_slice(&[0; 2 * BLOCK as usize]);
        let payload = STANDARD.encode(&pending);
        writeln!(record, r#"{{"type":2,"payload":"{payload}"}}"#).unwrap();
        record.finish().unwrap();
        Self {
            directory,
            tar,
            files: found,
        }
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join("diff").join(name)
    }

    /// What is given out from `offset` on.
    async fn from(&self, offset: usize) -> (Vec<u8>, Option<EngineError>) {
        let layer = StoredLayer {
            diff_id: Digest::of(&self.tar),
            tar_split: self.directory.path().join("tar-split.json.gz"),
            files: self.directory.path().join("diff"),
        };
        let length = tarsplit::length(&layer.tar_split).unwrap();
        assert_eq!(length, self.tar.len() as u64);
        gathered(layer_stream(layer, length, offset as u64)).await
    }

    /// Bytes to begin at: about everything that begins or ends, and some between.
    fn offsets(&self) -> Vec<usize> {
        let edges = self.files.iter().flat_map(|(_, content)| {
            let padded = content.end.next_multiple_of(BLOCK as usize);
            [content.start - 300, content.start, content.end, padded]
        });
        let near = edges.flat_map(|edge| [edge.saturating_sub(1), edge, edge + 1]);
        let between = (0..self.tar.len()).step_by(99_991);
        let mut all: Vec<usize> = near.chain(between).filter(|at| *at <= self.tar.len()).collect();
        all.extend([1, self.tar.len() - 1, self.tar.len()]);
        all
    }
}

async fn gathered(mut stream: ByteStream) -> (Vec<u8>, Option<EngineError>) {
    use futures_util::StreamExt as _;
    let (mut bytes, mut error) = (Vec::new(), None);
    while let Some(item) = stream.next().await {
        match item {
            Ok(piece) => bytes.extend_from_slice(&piece),
            Err(failed) => error = Some(failed),
        }
    }
    (bytes, error)
}

#[tokio::test]
async fn a_layer_is_given_from_any_byte_on() {
    let kept = Kept::new();
    for offset in kept.offsets() {
        let (bytes, error) = kept.from(offset).await;
        assert!(error.is_none(), "from {offset}: {error:?}");
        assert!(bytes == kept.tar[offset..], "from {offset}");
    }
}

#[tokio::test]
async fn files_before_the_first_byte_that_is_wanted_are_not_looked_at() {
    let kept = Kept::new();
    for (index, (name, content)) in kept.files.iter().enumerate() {
        // Whoever looked would fail: those before are gone, and this one ends before the last byte of it.
        if let Some((before, _)) = index.checked_sub(1).and_then(|before| kept.files.get(before)) {
            std::fs::remove_file(kept.file(before)).unwrap();
        }
        if content.is_empty() {
            continue;
        }
        let whole = std::fs::read(kept.file(name)).unwrap();
        std::fs::write(kept.file(name), &whole[..whole.len() - 1]).unwrap();
        for offset in [content.end, content.end + 1, kept.tar.len()] {
            let (bytes, error) = kept.from(offset).await;
            assert!(error.is_none(), "from {offset}, behind {name}: {error:?}");
            assert!(bytes == kept.tar[offset..], "from {offset}, behind {name}");
        }
        for offset in [content.start, content.end - 1] {
            let (bytes, error) = kept.from(offset).await;
            assert!(
                matches!(error, Some(EngineError::Corrupt { .. })),
                "from {offset} of {name}"
            );
            assert!(bytes.len() < content.end - offset, "from {offset} of {name}");
        }
        std::fs::write(kept.file(name), &whole).unwrap();
        // Within it, only what is wanted of it is read.
        let offset = content.end - 1;
        let (bytes, error) = kept.from(offset).await;
        assert!(
            error.is_none() && bytes == kept.tar[offset..],
            "from {offset} of {name}"
        );
    }
}

#[tokio::test]
async fn only_a_whole_layer_is_compared() {
    let kept = Kept::new();
    let (_, content) = kept.files.iter().find(|(name, _)| *name == "more").unwrap();
    std::fs::write(kept.file("more"), vec![b'X'; content.len()]).unwrap();
    let (bytes, error) = kept.from(0).await;
    assert!(matches!(error, Some(EngineError::Corrupt { .. })), "{error:?}");
    assert!(bytes.len() < kept.tar.len());
    let (bytes, error) = kept.from(content.start).await;
    assert!(error.is_none(), "{error:?}");
    assert!(bytes.len() == kept.tar.len() - content.start && bytes[0] == b'X');
    assert!(bytes[content.len()..] == kept.tar[content.end..]);
}

/// What comes of a part of a file with `kept` in it, by the digest of `meant`.
async fn read_part(kept: &[u8], meant: &[u8], part: Range<u64>) -> (Vec<u8>, Option<EngineError>) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), kept).unwrap();
    let opened = OwnedFd::from(std::fs::File::open(file.path()).unwrap());
    let size = meant.len() as u64;
    gathered(blob_stream(opened, Digest::of(meant), size, part)).await
}

#[tokio::test]
async fn a_blob_is_given_in_parts_and_compared_as_a_whole() {
    let meant: Vec<u8> = (0..BUFFER * 2 + 77).map(|n| (n % 251) as u8).collect();
    let size = meant.len();
    let mut damaged = meant.clone();
    damaged[5] ^= 1;
    for part in [
        0..size,
        5..size,
        BUFFER..size,
        size..size,
        0..1,
        3..BUFFER + 9,
        BUFFER..BUFFER,
    ] {
        let wanted = part.start as u64..part.end as u64;
        let (bytes, error) = read_part(&meant, &meant, wanted.clone()).await;
        assert!(error.is_none(), "{part:?}: {error:?}");
        assert!(bytes == meant[part.clone()], "{part:?}");
        let (bytes, error) = read_part(&damaged, &meant, wanted.clone()).await;
        if part == (0..size) {
            assert!(matches!(error, Some(EngineError::Corrupt { .. })), "{part:?}");
            assert!(bytes.len() < part.len(), "{part:?}");
        } else {
            assert!(error.is_none() && bytes == damaged[part.clone()], "{part:?}");
        }
        // One that became shorter than it was.
        let (bytes, error) = read_part(&meant[..part.end.saturating_sub(1)], &meant, wanted).await;
        if !part.is_empty() {
            assert!(error.is_some() && bytes.len() < part.len(), "{part:?}");
        }
        // What lies before the part is not read.
        let mut other = damaged.clone();
        other[..part.start].fill(0);
        if part.start > 5 {
            let (bytes, error) = read_part(&other, &meant, part.start as u64..part.end as u64).await;
            assert!(error.is_none() && bytes == meant[part.clone()], "{part:?}");
        }
    }
    let (bytes, error) = read_part(b"", b"", 0..0).await;
    assert!(bytes.is_empty() && error.is_none());
}
