//! A round whose source is read while it is written: the sink has to be equal to it, and little travels.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use tranship_content::scan::{Excludes, Nested};
use tranship_content::sink::{self, SinkOptions};
use tranship_content::source::{Source, SourceError, SourceOptions};
use tranship_core::storage::{Compression, RoundOptions, RoundReport};

const FROZEN: RoundOptions = RoundOptions {
    frozen: true,
    durable: false,
};

/// Bytes of which none is like another.
fn noise(length: usize) -> Vec<u8> {
    let mut out = vec![0; length];
    blake3::Hasher::new().finalize_xof().fill(&mut out);
    out
}

fn open(place: &Path) -> Source {
    Source::open(SourceOptions {
        root: place.join("source"),
        overlay: false,
        work: place.join("source.work"),
        excludes: Excludes::default(),
        nested: Nested::default(),
        compression: Compression::None,
        limit_rate: None,
        threads: 0,
    })
    .unwrap()
}

/// One round with a sink, spoken by `talk`.
fn spoken(
    place: &Path,
    talk: impl FnOnce(UnixStream) -> Result<RoundReport, SourceError>,
) -> (RoundReport, RoundReport) {
    let (a, b) = UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        let taking = scope.spawn(move || {
            let options = SinkOptions {
                root: place.join("sink"),
                work: place.join("sink.work"),
                overlay: false,
            };
            sink::round(b.try_clone().unwrap(), b, &options, &|_| ()).unwrap()
        });
        let sent = talk(a).unwrap();
        (sent, taking.join().unwrap())
    })
}

#[test]
fn what_is_read_while_it_is_written_arrives_as_it_is_in_the_end() {
    for more in [0, 5 << 20] {
        let place = tempfile::tempdir().unwrap();
        let place = place.path();
        let file = place.join("source/pages-1.img");
        fs::create_dir(place.join("source")).unwrap();
        fs::create_dir(place.join("sink")).unwrap();
        let mut content = noise(80 << 20);
        fs::write(&file, &content).unwrap();
        fs::write(place.join("source/small"), b"one").unwrap();
        let mut source = open(place);
        spoken(place, |a| {
            source.round(a.try_clone().unwrap(), a, FROZEN, &|_| ())
        });

        for at in (0..content.len()).step_by(400 << 10) {
            content[at..at + 8].copy_from_slice(b"changed!");
        }
        content.extend(&noise(more)[..]);
        let (sent, taken) = spoken(place, |a| {
            let mut begun = source.begin(a.try_clone().unwrap(), a, FROZEN);
            source.meet(&mut begun)?;
            source.foresee(&mut begun)?;
            fs::remove_file(&file).unwrap();
            let (reading, over) = (&source, &AtomicBool::new(false));
            let begun = std::thread::scope(|scope| {
                let following = scope.spawn(move || {
                    reading.follow(&begun, over);
                    begun
                });
                let mut written = File::create(&file).unwrap();
                for part in content.chunks(1 << 20) {
                    written.write_all(part).unwrap();
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
                fs::write(place.join("source/small"), b"two").unwrap();
                over.store(true, Ordering::Relaxed);
                following.join().unwrap()
            });
            source.go(begun, &|_| ())
        });
        assert_eq!(sent.tree, taken.tree);
        assert!(fs::read(place.join("sink/pages-1.img")).unwrap() == content);
        assert_eq!(fs::read(place.join("sink/small")).unwrap(), b"two");
        // A block or two for each of two hundred changes, and what is new.
        let most = (256 << 10) + more as u64 + (more as u64 / 4);
        assert!(sent.literal_bytes <= most, "{}", sent.literal_bytes);
    }
}
