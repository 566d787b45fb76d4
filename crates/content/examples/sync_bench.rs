//! Measures scans, rescans and whole rounds over a local socket.
//!
//! ```text
//! cargo run --release -p tranship-content --example sync_bench -- DIRECTORY [CASE...]
//! ```
//!
//! `DIRECTORY` is made if need be and holds the trees; not in memory, where times say nothing about content. Cases: `big` (a random file
//! of 2 GiB), `small` (100,000 files of 4 KiB), `tree=PATH` (a copy of some directory), `changed` (1 % of the bytes in 10 % of the
//! files), `pages` (10 MiB in scattered pages of a file of 1 GiB). Without cases: all but `tree`.

#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)] // A program for people at a terminal.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

use tranship_content::scan::{Base, Excludes, ScanOptions, scan};
use tranship_content::sink::{self, SinkOptions};
use tranship_content::source::{Source, SourceOptions};
use tranship_core::storage::{Compression, RoundOptions, RoundReport};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(arguments.next().unwrap_or_else(|| panic!("which directory?")));
    let mut cases: Vec<String> = arguments.collect();
    if cases.is_empty() {
        cases = ["big", "small", "changed", "pages"].map(String::from).to_vec();
    }
    for case in cases {
        let place = directory.join(case.split('=').next().unwrap());
        let _ = fs::remove_dir_all(&place);
        fs::create_dir_all(&place).unwrap();
        println!("== {case}");
        let bench = Bench::new(place);
        match case.split_once('=') {
            None if case == "big" => big(&bench),
            None if case == "small" => small(&bench),
            None if case == "changed" => changed(&bench),
            None if case == "pages" => pages(&bench),
            Some(("tree", path)) => {
                let copied = std::process::Command::new("cp")
                    .args(["-a", "-x", "--"])
                    .arg(format!("{path}/."))
                    .arg(&bench.source)
                    .status();
                assert!(copied.unwrap().success());
                bench.fresh_and_unchanged();
            }
            _ => panic!("no such case: {case}"),
        }
        println!("   most memory: {} MiB", high_water() / 1024);
    }
}

struct Bench {
    place: PathBuf,
    source: PathBuf,
    sink: PathBuf,
}

impl Bench {
    fn new(place: PathBuf) -> Self {
        let (source, sink) = (place.join("source"), place.join("sink"));
        fs::create_dir(&source).unwrap();
        fs::create_dir(&sink).unwrap();
        Self { place, source, sink }
    }

    fn open(&self) -> Source {
        Source::open(SourceOptions {
            root: self.source.clone(),
            overlay: false,
            work: self.place.join("source.work"),
            excludes: Excludes::default(),
            nested: tranship_content::scan::Nested::default(),
            compression: Compression::Auto,
            limit_rate: None,
            threads: 0,
        })
        .unwrap()
    }

    fn round(&self, what: &str, source: &mut Source, frozen: bool) -> RoundReport {
        let (a, b) = UnixStream::pair().unwrap();
        let options = SinkOptions {
            root: self.sink.clone(),
            work: self.place.join("sink.work"),
            overlay: false,
        };
        let (began, processors) = (Instant::now(), processor_seconds());
        let report = std::thread::scope(|scope| {
            let taken = scope.spawn(move || {
                let output = b.try_clone().unwrap();
                sink::round(b, output, &options, &|_| ())
            });
            let output = a.try_clone().unwrap();
            let options = RoundOptions {
                frozen,
                durable: false,
            };
            let report = source.round(a, output, options, &|_| ());
            let taken = taken.join().unwrap();
            match (report, taken) {
                (Ok(report), Ok(_)) => report,
                (report, taken) => panic!("source: {report:?}\nsink: {taken:?}"),
            }
        });
        println!(
            "   {what:<28} {:>8.3} s {:>8.2} s of processors {:>12} bytes sent  {:>12} literal  {:>8} changed",
            began.elapsed().as_secs_f64(),
            processor_seconds() - processors,
            report.wire_bytes,
            report.literal_bytes,
            report.changed_entries
        );
        report
    }

    fn scans(&self) {
        let time = |what: &str, base: Option<&Base>, name: &str| {
            let tree = self.place.join(format!("{name}.tree"));
            let facts = self.place.join(format!("{name}.facts"));
            let (began, processors) = (Instant::now(), processor_seconds());
            let outcome = scan(
                &self.source,
                &ScanOptions::default(),
                base,
                (&tree, &facts),
                &self.place,
            )
            .unwrap();
            println!(
                "   {what:<28} {:>8.3} s {:>8.2} s of processors {:>12} entries  {:>12} read",
                began.elapsed().as_secs_f64(),
                processor_seconds() - processors,
                outcome.tree.entries,
                outcome.read
            );
            Base {
                id: outcome.tree.id,
                tree,
                facts: Some(facts),
            }
        };
        let base = time("scan", None, "one");
        time("rescan", Some(&base), "two");
    }

    fn fresh_and_unchanged(&self) -> Source {
        // What was written just now is not trusted.
        std::thread::sleep(std::time::Duration::from_millis(2100));
        self.scans();
        let mut source = self.open();
        self.round("fresh", &mut source, false);
        self.round("unchanged", &mut source, false);
        self.round("unchanged, frozen", &mut source, true);
        source
    }
}

/// Random bytes.
struct Noise(blake3::OutputReader);

impl Noise {
    fn new(seed: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes());
        Self(hasher.finalize_xof())
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.0.fill(&mut bytes);
        bytes
    }

    fn below(&mut self, most: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes) % most
    }
}

fn write_big(path: &Path, length: u64) {
    let file = File::create(path).unwrap();
    let mut noise = Noise::new(length);
    let mut at = 0;
    while at < length {
        let bytes = noise.bytes((length - at).min(8 << 20) as usize);
        file.write_all_at(&bytes, at).unwrap();
        at += bytes.len() as u64;
    }
    file.sync_all().unwrap();
}

fn big(bench: &Bench) {
    write_big(&bench.source.join("file"), 2 << 30);
    let mut source = bench.fresh_and_unchanged();
    // An insertion near the beginning.
    let path = bench.source.join("file");
    let mut content = fs::read(&path).unwrap();
    content.splice(1_000_000..1_000_000, Noise::new(9).bytes(1000));
    fs::write(&path, content).unwrap();
    bench.round("1000 bytes inserted", &mut source, true);
}

fn small(bench: &Bench) {
    let mut noise = Noise::new(1);
    for directory in 0..100 {
        let path = bench.source.join(format!("directory-{directory}"));
        fs::create_dir(&path).unwrap();
        for file in 0..1000 {
            fs::write(path.join(format!("file-{file}")), noise.bytes(4096)).unwrap();
        }
    }
    let mut source = bench.fresh_and_unchanged();
    fs::rename(bench.source.join("directory-5"), bench.source.join("renamed")).unwrap();
    bench.round("a directory renamed", &mut source, true);
}

/// 1 % of all bytes, in 10 % of the files, so 10 % of each: in one piece, or in several.
fn changed(bench: &Bench) {
    let mut noise = Noise::new(2);
    let sizes = [4096, 20_000, 100_000, 1_000_000, 10_000_000];
    for (kind, size) in sizes.iter().enumerate() {
        for file in 0..(40_000_000 / size) {
            fs::write(bench.source.join(format!("{kind}-{file}")), noise.bytes(*size)).unwrap();
        }
    }
    let mut source = bench.fresh_and_unchanged();
    for pieces in [1, 5] {
        for (kind, size) in sizes.iter().enumerate() {
            let mut bytes = 0;
            for file in (0..(40_000_000 / size)).step_by(10) {
                let path = bench.source.join(format!("{kind}-{file}"));
                let file = File::options().write(true).open(path).unwrap();
                let length = size / 10 / pieces;
                for _ in 0..pieces {
                    let at = noise.below((size - length) as u64);
                    file.write_all_at(&noise.bytes(length), at).unwrap();
                    bytes += length as u64;
                }
            }
            let what = format!("{size}: {pieces} of {} B", size / 10 / pieces);
            let report = bench.round(&what, &mut source, true);
            println!(
                "{:>32} {:.3} of the changed bytes",
                "",
                report.wire_bytes as f64 / bytes as f64
            );
        }
    }
}

fn pages(bench: &Bench) {
    let path = bench.source.join("file");
    write_big(&path, 1 << 30);
    let mut source = bench.fresh_and_unchanged();
    let mut noise = Noise::new(3);
    let file = File::options().write(true).open(&path).unwrap();
    for _ in 0..4 {
        for _ in 0..2560 {
            let at = noise.below((1 << 30) / 4096) * 4096;
            file.write_all_at(&noise.bytes(4096), at).unwrap();
        }
        bench.round("10 MiB in pages", &mut source, true);
    }
    file.write_all_at(&noise.bytes(10 << 20), 300 << 20).unwrap();
    bench.round("10 MiB in one piece", &mut source, true);
    file.write_all_at(&noise.bytes(10 << 20), 1 << 30).unwrap();
    bench.round("10 MiB appended", &mut source, true);
}

/// Time of processors that this process took so far, in seconds: what counts where others use them too.
fn processor_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<f64>().unwrap();
    (ticks(11) + ticks(12)) / 100.0
}

/// Most memory that this process had, in KiB.
fn high_water() -> u64 {
    fs::read_to_string("/proc/self/status")
        .unwrap()
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
        .unwrap()
}
