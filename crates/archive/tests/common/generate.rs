//! Archives that differ in every way that trees can differ, the same in every run.

use tranship_archive::acl::Acl;
use tranship_archive::entry::{Device, Entry, Kind, Time};
use tranship_archive::sparse::{Extent, SparseMap};

use crate::common::{Random, is_root};

/// What the reader or writer that is compared can do.
#[derive(Clone, Copy)]
pub struct Abilities {
    pub nanoseconds: bool,
    pub before_1970: bool,
    pub attributes: bool,
    pub acls: bool,
    pub large_ids: bool,
    pub long_names: bool,
    /// Names that are no UTF-8.
    pub binary_names: bool,
    /// Names that are no ASCII.
    pub accents: bool,
    pub sparse: bool,
    pub devices: bool,
    pub hard_links: bool,
    pub pipes: bool,
}

impl Abilities {
    pub const ALL: Self = Self {
        nanoseconds: true,
        before_1970: true,
        attributes: true,
        acls: true,
        large_ids: true,
        long_names: true,
        binary_names: true,
        accents: true,
        sparse: true,
        devices: true,
        hard_links: true,
        pipes: true,
    };
}

/// Entries with their content (of sparse files only the data), parents before children.
pub fn entries(random: &mut Random, abilities: Abilities, count: u64) -> Vec<(Entry, Vec<u8>)> {
    let mut entries: Vec<(Entry, Vec<u8>)> = Vec::new();
    let mut directories: Vec<Vec<u8>> = vec![b"top".to_vec()];
    let mut files: Vec<Vec<u8>> = Vec::new();
    let mut top = Entry::new("top/", Kind::Directory, 0o755);
    dress(random, abilities, &mut top);
    entries.push((top, Vec::new()));
    for number in 0..count {
        let mut path = random.pick(&directories).clone();
        path.push(b'/');
        path.extend(name(random, abilities, number));
        if path.len() > if abilities.long_names { 1500 } else { 99 } {
            continue;
        }
        let mut content = Vec::new();
        let kind = match random.below(20) {
            0..=4 => Kind::Directory,
            5..=7 => Kind::Symlink {
                target: match random.below(4) {
                    0 if abilities.long_names => vec![b'x'; 20 + random.below(800) as usize],
                    1 => b"/absolute/./path//".to_vec(),
                    2 if abilities.binary_names => b"..\xff/\xfe".to_vec(),
                    _ => b"../relative".to_vec(),
                },
            },
            8..=9 if abilities.hard_links && !files.is_empty() => Kind::HardLink {
                target: random.pick(&files).clone(),
            },
            10 if abilities.pipes => Kind::Fifo,
            11 if abilities.devices && is_root() => Kind::CharacterDevice(Device {
                major: 1,
                minor: random.below(1 << 18) as u32,
            }),
            12 if abilities.devices && is_root() => Kind::BlockDevice(Device {
                major: 1 + random.below(4000) as u32,
                minor: 1,
            }),
            _ => Kind::File,
        };
        if kind.is_directory() {
            directories.push(path.clone());
            path.push(b'/');
        }
        let mut entry = Entry::new(
            path.clone(),
            kind,
            *random.pick(&[0o644, 0o600, 0o755, 0o4711, 0o2755, 0o1777, 0o400]),
        );
        if entry.kind.is_directory() {
            entry.mode |= 0o700;
        }
        if entry.kind == Kind::File {
            let length = *random.pick(&[0, 1, 511, 512, 513, 4096, 10_000]);
            content = random.bytes(length);
            entry.size = length as u64;
            if abilities.sparse && random.chance(20) {
                content = sparse(random, &mut entry);
            }
            files.push(path);
        }
        if matches!(entry.kind, Kind::Symlink { .. }) {
            entry.mode = 0o777;
        }
        dress(random, abilities, &mut entry);
        if let Kind::HardLink { target } = &entry.kind {
            // All names of a file are one file.
            let of = &entries.iter().find(|(other, _)| other.path == *target).unwrap().0;
            (entry.mode, entry.uid, entry.gid, entry.mtime) = (of.mode, of.uid, of.gid, of.mtime);
            (entry.xattrs, entry.acl_access, entry.acl_default) = Default::default();
        }
        entries.push((entry, content));
    }
    in_order(entries)
}

/// As a walk of the tree gives them: GNU tar sets the times of a directory when it leaves it.
fn in_order(mut entries: Vec<(Entry, Vec<u8>)>) -> Vec<(Entry, Vec<u8>)> {
    entries.sort_by_cached_key(|(entry, _)| {
        let components = entry
            .path
            .split(|&byte| byte == b'/')
            .filter(|part| !part.is_empty());
        components.map(<[u8]>::to_vec).collect::<Vec<_>>()
    });
    // The first name of a file has its content, whichever it is now.
    for at in 0..entries.len() {
        let Kind::HardLink { target } = entries[at].0.kind.clone() else {
            continue;
        };
        let of = entries
            .iter()
            .position(|(entry, _)| entry.path == target)
            .unwrap();
        if of < at {
            continue;
        }
        let (first, later) = entries.split_at_mut(of);
        std::mem::swap(&mut first[at], &mut later[0]);
        std::mem::swap(&mut first[at].0.path, &mut later[0].0.path);
        let name = first[at].0.path.clone();
        for (entry, _) in &mut entries {
            if entry.kind
                == (Kind::HardLink {
                    target: target.clone(),
                })
            {
                entry.kind = Kind::HardLink { target: name.clone() };
            }
        }
    }
    entries
}

fn name(random: &mut Random, abilities: Abilities, number: u64) -> Vec<u8> {
    let mut name = format!("{number}").into_bytes();
    match random.below(8) {
        0 if abilities.long_names => name.extend(vec![b'n'; 90 + random.below(150) as usize]),
        1 if abilities.accents => name.extend("é日本".bytes()),
        2 if abilities.binary_names => name.extend(b"\xff\xc3("),
        3 => name.extend(b" a\tb"),
        4 => name.extend(b"\\n-x*?"),
        5 if abilities.long_names => name.extend(b"new\nline"),
        _ => name.extend(b".txt"),
    }
    name
}

fn dress(random: &mut Random, abilities: Abilities, entry: &mut Entry) {
    let ids = [
        0,
        1,
        1000,
        65_534,
        if abilities.large_ids {
            4_000_000_000
        } else {
            200_000
        },
    ];
    if is_root() {
        entry.uid = *random.pick(&ids);
        entry.gid = *random.pick(&ids);
    }
    entry.mtime = Time {
        seconds: match random.below(10) {
            0 if abilities.before_1970 => -(random.below(1_000_000) as i64),
            _ => random.below(2_000_000_000) as i64,
        },
        nanoseconds: if abilities.nanoseconds && random.chance(60) {
            *random.pick(&[1, 999_999_999, 500_000_000, 123_456_789, 120_000_000])
        } else {
            0
        },
    };
    let plain = matches!(entry.kind, Kind::File | Kind::Directory);
    if abilities.attributes && plain && random.chance(25) {
        let length = random.below(300) as usize;
        let name = *random.pick(&["user.a", "user.with=equals", "user.with%3Dpercent", "user.é"]);
        entry.xattrs.insert(name.into(), random.bytes(length));
    }
    if abilities.acls && plain && random.chance(15) {
        // The mask is what the mode shows as the group's rights.
        let group = (entry.mode >> 3) & 7;
        let rights = |bits: u32| {
            let letter = |bit: u32, letter| if bits & bit == 0 { '-' } else { letter };
            [letter(4, 'r'), letter(2, 'w'), letter(1, 'x')]
                .iter()
                .collect::<String>()
        };
        let text = format!(
            "user::{},user:1000:r-x,group::r--,group:77:-w-,mask::{},other::{}",
            rights(entry.mode >> 6),
            rights(group),
            rights(entry.mode)
        );
        entry.acl_access = Acl::parse(text.as_bytes());
        if entry.kind.is_directory() && random.chance(50) {
            entry.acl_default = Acl::parse(b"user::rwx,user:7:r--,group::r-x,mask::r-x,other::---");
        }
    }
}

fn sparse(random: &mut Random, entry: &mut Entry) -> Vec<u8> {
    let mut extents = Vec::new();
    let mut at = 0;
    let mut stored = 0;
    for _ in 0..random.below(30) {
        at += random.below(8) * 4096;
        let length = 4096 * (1 + random.below(2));
        extents.push(Extent { offset: at, length });
        at += length;
        stored += length;
    }
    entry.size = at + random.below(3) * 4096 + if random.chance(30) { 4096 } else { 0 };
    let map = SparseMap::new(extents, entry.size).unwrap();
    if !map.is_dense(entry.size) {
        entry.sparse = Some(map);
    } else {
        entry.size = stored;
    }
    random.bytes(stored as usize)
}
