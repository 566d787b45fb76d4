//! The same archives, read and written by GNU tar, bsdtar and Python: everybody must see the same.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that panics has failed"
)]

mod common;

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;

use common::generate::{self, Abilities};
use common::{Random, describe, is_root, setting};
use tempfile::TempDir;
use tranship_archive::TreePath;
use tranship_archive::confined::{Devices, ExtractOptions, Links, Ownership, Root, extract};
use tranship_archive::entry::{Entry, Kind};
use tranship_archive::reader::{ReadOptions, Reader};
use tranship_archive::writer::Writer;

/// Archives per comparison.
fn rounds() -> u64 {
    setting("TRANSHIP_TEST_ARCHIVES", 40)
}

fn written(entries: &[(Entry, Vec<u8>)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (entry, data) in entries {
        writer.append(entry, &mut &data[..]).unwrap();
    }
    writer.finish().unwrap()
}

fn unpack(bytes: &[u8], to: &Path) {
    let root = Root::open(to, Links::Refuse).unwrap();
    let options = ExtractOptions {
        devices: Devices::Create,
        ownership: if is_root() {
            Ownership::Archive
        } else {
            Ownership::Caller
        },
        ..ExtractOptions::default()
    };
    let mut reader = Reader::new(bytes, ReadOptions::strict());
    let report = extract(&mut reader, &root, &TreePath::root(), options).unwrap();
    assert_eq!(report.skipped.count, 0, "{:?}", report.skipped);
}

/// Fails with the lines that differ.
fn alike(ours: &Path, theirs: &Path, what: &str) {
    let (ours, theirs) = (describe(&ours.join("top")), describe(&theirs.join("top")));
    let only = |these: &[String], those: &[String]| {
        let lines = these.iter().filter(|line| !those.contains(line));
        lines.map(|line| format!("\n  {line:.900}")).collect::<String>()
    };
    assert!(
        ours == theirs,
        "only ours:{}\nonly theirs:{}\n{what:.600}",
        only(&ours, &theirs),
        only(&theirs, &ours)
    );
}

fn run(program: &str, arguments: &[&OsStr]) -> std::process::Output {
    Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C.UTF-8")
        .output()
        .unwrap()
}

fn has(program: &str) -> bool {
    let there = Command::new(program).arg("--version").output().is_ok();
    if !there {
        eprintln!("SKIPPED: {program} is not installed");
    }
    there
}

fn os(text: &str) -> &OsStr {
    OsStr::new(text)
}

/// Unpacks generated archives with a program and with ours, and compares the trees.
fn compare_unpacked(program: &str, arguments: &[&str], abilities: Abilities, seed: u64) {
    for round in 0..rounds() {
        let mut random = Random(seed * 1_000_000 + round);
        let entries = generate::entries(&mut random, abilities, 25);
        let bytes = written(&entries);
        let work = TempDir::new().unwrap();
        let (ours, theirs, file) = (
            work.path().join("ours"),
            work.path().join("theirs"),
            work.path().join("a.tar"),
        );
        fs::create_dir(&ours).unwrap();
        fs::create_dir(&theirs).unwrap();
        fs::write(&file, &bytes).unwrap();
        let mut all: Vec<&OsStr> = arguments.iter().map(|text| os(text)).collect();
        all.extend([os("-C"), theirs.as_os_str(), os("-xpf"), file.as_os_str()]);
        let output = run(program, &all);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "round {round}: {message}");
        unpack(&bytes, &ours);
        alike(&ours, &theirs, &format!("{program} round {round}: {message}"));
    }
}

#[test]
fn gnu_tar_unpacks_what_we_write() {
    let arguments = [
        "--xattrs",
        "--xattrs-include=*",
        "--acls",
        "--numeric-owner",
        "--warning=no-unknown-keyword",
    ];
    compare_unpacked("tar", &arguments, Abilities::ALL, 1);
}

#[test]
fn bsdtar_unpacks_what_we_write() {
    if has("bsdtar") {
        // It reads an attribute's name as it stands, so those that have to be escaped come out escaped.
        // And fractions of seconds before 1970 it counts the wrong way.
        let abilities = Abilities {
            attributes: false,
            before_1970: false,
            binary_names: false,
            ..Abilities::ALL
        };
        compare_unpacked("bsdtar", &["--acls", "--xattrs", "--numeric-owner"], abilities, 2);
    }
}

/// A program packs a tree; what we unpack must be that tree.
fn compare_packed(program: &str, arguments: &[&str], abilities: Abilities, seed: u64) {
    for round in 0..rounds() / 4 + 1 {
        let mut random = Random(seed * 1_000_000 + round);
        let work = TempDir::new().unwrap();
        let (tree, back, file) = (
            work.path().join("tree"),
            work.path().join("back"),
            work.path().join("a.tar"),
        );
        fs::create_dir(&tree).unwrap();
        fs::create_dir(&back).unwrap();
        unpack(&written(&generate::entries(&mut random, abilities, 25)), &tree);
        let mut all: Vec<&OsStr> = arguments.iter().map(|text| os(text)).collect();
        if program == "python3" {
            all.extend([os("-c"), os(PYTHON_PACK), file.as_os_str(), tree.as_os_str()]);
        } else {
            all.extend([os("-C"), tree.as_os_str(), os("-cf"), file.as_os_str(), os("top")]);
        }
        let output = run(program, &all);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?} round {round}: {message}");
        unpack(&fs::read(&file).unwrap(), &back);
        alike(&back, &tree, &format!("{arguments:?} round {round}: {message}"));
    }
}

/// What ustar and the GNU formats cannot say.
const OLD: Abilities = Abilities {
    nanoseconds: false,
    before_1970: false,
    attributes: false,
    acls: false,
    large_ids: false,
    long_names: false,
    ..Abilities::ALL
};

const GNU: Abilities = Abilities {
    before_1970: true,
    large_ids: true,
    long_names: true,
    ..OLD
};

const NO_ATTRIBUTES: Abilities = Abilities {
    attributes: false,
    acls: false,
    ..Abilities::ALL
};

#[test]
fn we_unpack_what_gnu_tar_writes() {
    let full = [
        "--format=posix",
        "--xattrs",
        "--xattrs-include=*",
        "--acls",
        "--numeric-owner",
    ];
    compare_packed("tar", &full, Abilities::ALL, 10);
    compare_packed("tar", &["--format=ustar"], OLD, 11);
    compare_packed("tar", &["--format=gnu"], GNU, 12);
    compare_packed("tar", &["--format=oldgnu"], GNU, 13);
    compare_packed("tar", &["--format=gnu", "--sparse"], GNU, 14);
    for version in ["0.0", "0.1", "1.0"] {
        let sparse = format!("--sparse-version={version}");
        compare_packed("tar", &["--format=posix", "--sparse", &sparse], NO_ATTRIBUTES, 15);
    }
    let v7 = Abilities {
        devices: false,
        pipes: false,
        ..OLD
    };
    compare_packed("tar", &["--format=v7"], v7, 18);
}

#[test]
fn we_unpack_what_bsdtar_writes() {
    if has("bsdtar") {
        // Its PAX records hold UTF-8 only, and a name that is none becomes another one.
        let text = Abilities {
            binary_names: false,
            before_1970: false,
            ..Abilities::ALL
        };
        compare_packed(
            "bsdtar",
            &["--format=pax", "--acls", "--xattrs", "--numeric-owner"],
            text,
            20,
        );
        compare_packed(
            "bsdtar",
            &["--format=gnutar", "--numeric-owner"],
            Abilities {
                binary_names: false,
                before_1970: false,
                ..GNU
            },
            21,
        );
        compare_packed(
            "bsdtar",
            &["--format=ustar", "--numeric-owner"],
            Abilities {
                binary_names: false,
                accents: false,
                ..OLD
            },
            22,
        );
    }
}

const PYTHON_PACK: &str = "
import sys, tarfile
with tarfile.open(sys.argv[1], 'w', format=tarfile.PAX_FORMAT) as t:
    t.add(sys.argv[2] + '/top', 'top')
";

#[test]
fn we_unpack_what_python_writes() {
    // It writes times as binary fractions.
    let abilities = Abilities {
        nanoseconds: false,
        ..NO_ATTRIBUTES
    };
    compare_packed("python3", &[], abilities, 30);
}

/// Lists archives: one line per entry, or one that says that it could not be read.
const PYTHON_LIST: &str = "
import hashlib, os, sys, tarfile
for name in sys.argv[1:]:
    print('archive', os.path.basename(name))
    try:
        with tarfile.open(name, 'r:', encoding='utf-8', errors='surrogateescape') as t:
            for m in t:
                kind = 'f' if m.isreg() else m.type.decode()
                digest = hashlib.sha256(t.extractfile(m).read()).hexdigest() if m.isreg() else ''
                print(os.fsencode(m.name.strip('/')).hex(), kind, m.mode & 0o7777, m.uid, m.gid, m.size,
                      repr(float(m.mtime)), os.fsencode(m.linkname).hex() if m.islnk() or m.issym() else '', digest[:16])
            # A bad header after the first is an end without a word.
            t.fileobj.seek(t.offset)
            if t.fileobj.read(512) != bytes(512):
                print('error stopped')
    except Exception as e:
        print('error', type(e).__name__, e)
";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What we see in an archive, in the form of [`PYTHON_LIST`] without the digests; none if we refuse it.
fn listed(bytes: &[u8]) -> Option<Vec<Vec<String>>> {
    let mut reader = Reader::new(bytes, ReadOptions::strict());
    let mut lines = Vec::new();
    loop {
        let entry = match reader.next_entry() {
            Ok(Some(entry)) => entry,
            Ok(None) => return Some(lines),
            Err(_) => return None,
        };
        let mut content = Vec::new();
        // A mutation may announce terabytes of holes.
        if entry.size > 1 << 24 {
            return None;
        }
        std::io::Read::read_to_end(&mut reader.data(), &mut content).ok()?;
        let (kind, target) = match &entry.kind {
            Kind::File => ("f", &b""[..]),
            Kind::HardLink { target } => ("1", &target[..]),
            Kind::Symlink { target } => ("2", &target[..]),
            Kind::CharacterDevice(_) => ("3", &b""[..]),
            Kind::BlockDevice(_) => ("4", &b""[..]),
            Kind::Directory => ("5", &b""[..]),
            Kind::Fifo => ("6", &b""[..]),
        };
        let trimmed: &[u8] = {
            let start = entry
                .path
                .iter()
                .position(|&byte| byte != b'/')
                .unwrap_or(entry.path.len());
            let end = entry
                .path
                .iter()
                .rposition(|&byte| byte != b'/')
                .map_or(start, |last| last + 1);
            &entry.path[start..end]
        };
        let size = content.len();
        let digest = sha256(&content, kind == "f");
        lines.push(vec![
            hex(trimmed),
            kind.to_owned(),
            entry.mode.to_string(),
            entry.uid.to_string(),
            entry.gid.to_string(),
            size.to_string(),
            format!(
                "{:?}",
                entry.mtime.seconds as f64 + f64::from(entry.mtime.nanoseconds) / 1e9
            ),
            hex(target),
            digest,
        ]);
    }
}

fn sha256(content: &[u8], wanted: bool) -> String {
    use sha2::Digest as _;
    if !wanted {
        return String::new();
    }
    hex(&sha2::Sha256::digest(content))[..16].to_owned()
}

/// Both say the same, but for times, which Python has in less detail.
fn same(ours: &[Vec<String>], theirs: &[&str]) -> bool {
    ours.len() == theirs.len()
        && ours.iter().zip(theirs).all(|(ours, theirs)| {
            let theirs: Vec<&str> = theirs.split(' ').collect();
            ours.len() == theirs.len()
                && ours
                    .iter()
                    .zip(&theirs)
                    .enumerate()
                    .all(|(column, (ours, theirs))| {
                        let close = || {
                            let (ours, theirs): (f64, f64) = (ours.parse().unwrap(), theirs.parse().unwrap());
                            (ours - theirs).abs() <= ours.abs().max(1e3) * 1e-6
                        };
                        ours == theirs || (column == 6 && close())
                    })
        })
}

/// Changes a byte or two and makes the checksums of headers right again, as an attacker would.
fn mutate(random: &mut Random, bytes: &[u8]) -> Vec<u8> {
    let is_header = |block: &[u8]| block.len() == 512 && block[257..262] == *b"ustar";
    let headers: Vec<usize> = (0..bytes.len() / 512)
        .filter(|&at| is_header(&bytes[at * 512..at * 512 + 512]))
        .collect();
    let mut mutated = bytes.to_vec();
    for _ in 0..1 + random.below(2) {
        let header = *random.pick(&headers);
        // Headers and the records right after them are what tars are misread by.
        let at = (header * 512 + random.below(700) as usize).min(bytes.len() - 1);
        mutated[at] = *random.pick(&[
            0, b'0', b'1', b'7', b'8', b' ', b'/', b'=', b'x', b'L', b'S', b'\n', 0x80, 0xff, b'-', b'.',
        ]);
    }
    for header in headers {
        let block = &mut mutated[header * 512..header * 512 + 512];
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    mutated
}

#[test]
fn python_sees_what_we_see_even_in_mutated_archives() {
    let work = TempDir::new().unwrap();
    let mut random = Random(77);
    let mut archives = Vec::new();
    let abilities = Abilities {
        before_1970: false,
        ..Abilities::ALL
    };
    for round in 0..rounds() {
        let bytes = written(&generate::entries(&mut Random(40_000_000 + round), abilities, 12));
        let mutations: Vec<Vec<u8>> = (0..25).map(|_| mutate(&mut random, &bytes)).collect();
        archives.push(bytes);
        archives.extend(mutations);
    }
    let (mut refused, mut agreed, mut stricter) = (0, 0, 0);
    for (batch, archives) in archives.chunks(500).enumerate() {
        let mut paths = Vec::new();
        for (number, bytes) in archives.iter().enumerate() {
            let path = work.path().join(format!("{batch}-{number}.tar"));
            fs::write(&path, bytes).unwrap();
            paths.push(path);
        }
        let mut arguments = vec![os("-c"), os(PYTHON_LIST)];
        arguments.extend(paths.iter().map(|path| path.as_os_str()));
        let output = run("python3", &arguments);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let text = String::from_utf8(output.stdout).unwrap();
        let sections: Vec<Vec<&str>> = text
            .split("archive ")
            .skip(1)
            .map(|section| section.lines().skip(1).collect())
            .collect();
        assert_eq!(sections.len(), archives.len());
        for ((bytes, theirs), path) in archives.iter().zip(&sections).zip(&paths) {
            let failed = theirs.iter().any(|line| line.starts_with("error"));
            match listed(bytes) {
                None if failed => refused += 1,
                None => stricter += 1,
                Some(ours) if same(&ours, theirs) => agreed += 1,
                Some(ours) => {
                    let kept = std::env::temp_dir().join("tranship-differs.tar");
                    fs::copy(path, &kept).unwrap();
                    let lines: Vec<String> = ours.iter().map(|line| line.join(" ")).collect();
                    let differ = lines.iter().zip(theirs).find(|(ours, theirs)| ours != theirs);
                    panic!(
                        "{} and {} lines, {differ:?}: {}",
                        lines.len(),
                        theirs.len(),
                        kept.display()
                    );
                }
            }
        }
    }
    eprintln!("{agreed} seen alike, {refused} refused by both, {stricter} refused by us only");
    assert!(agreed as u64 > rounds());
}
