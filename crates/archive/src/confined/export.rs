//! Writes trees below a root to archives.

use std::collections::HashMap;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;

use super::difference::{hides_all, is_deletion, keep_own_attributes};
use super::error::{Doing as _, ExportError};
use super::metadata::{Attributes, file_type, read_attributes};
use super::root::{LocateError, Root, mtime, open_child, proc_path};
use super::{Skips, walk};
use crate::copy_rules::means_contents;
use crate::entry::{Device, Entry, Kind, MODE_BITS};
use crate::filter::{FilterSpec, RenameError};
use crate::path::TreePath;
use crate::reader::Limits;
use crate::sparse::{Extent, SparseMap};
use crate::writer::Writer;

/// How a tree is written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExportOptions {
    /// Follow a symbolic link that is the path itself (`-L`). Links in the tree are written as links.
    pub follow: bool,
    /// Which attributes are read.
    pub attributes: Attributes,
    /// Write files as empty: only what there is, not what is in it.
    pub headers_only: bool,
    /// Write holes as zeros, for readers that do not know sparse files. Docker does.
    pub expand_holes: bool,
    /// Write times in whole seconds, as docker does.
    pub whole_seconds: bool,
    /// Write the directory, but nothing in it, where a file system is mounted that only shows what the kernel knows (`proc`,
    /// `sysfs`, `cgroup` …). A path that is in one is read nevertheless.
    pub skip_kernel: bool,
    /// The tree is the upper directory of an overlay: what it says about deletions is written as image layers say it, and
    /// attributes that mean something to the overlay only are left out.
    pub upper: bool,
}

/// What was written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExportReport {
    /// Entries.
    pub entries: u64,
    /// Bytes of content, holes not counted.
    pub bytes: u64,
    /// What was left out: sockets.
    pub skipped: Skips,
}

/// Writes what is at a path of the root, named as `docker cp` names it: a file or directory by its last element, `./` for the
/// contents (`dir/.`), and `/…` for the root.
///
/// # Errors
///
/// [`ExportError`]; code `archive.not-found` if there is nothing, `archive.not-a-directory` if the path says that it is one.
pub fn export<W: Write>(
    root: &Root,
    request: &[u8],
    out: &mut Writer<W>,
    options: &ExportOptions,
) -> Result<ExportReport, ExportError> {
    export_as(root, request, None, &FilterSpec::default(), out, options)
}

/// As [`export`], under another name (the root's path for the contents) and without what the filter leaves out. Its patterns
/// are relative to what is at the path; it renames nothing.
///
/// # Errors
///
/// As [`export`].
pub fn export_as<W: Write>(
    root: &Root,
    request: &[u8],
    name: Option<&TreePath>,
    filter: &FilterSpec,
    out: &mut Writer<W>,
    options: &ExportOptions,
) -> Result<ExportReport, ExportError> {
    let path = TreePath::of_request(request)?;
    let (fd, stat) = root
        .locate(request, options.follow)
        .map_err(|error| match error {
            LocateError::Path(error) => ExportError::Path(error),
            LocateError::System(error) => ExportError::System(error),
        })?;
    let contents = means_contents(request);
    let base = match (name, path.name()) {
        (Some(name), _) => name.clone(),
        (None, Some(name)) if !contents => TreePath::below(name)?,
        _ => TreePath::root(),
    };
    let spec = FilterSpec {
        include: filter.include.clone(),
        exclude: filter.exclude.clone(),
        strip: TreePath::root(),
        rebase: base,
    };
    let absolute = name.is_none() && path.is_root() && !contents;
    Walk::new(out, options, &spec, absolute).start(&fd, &stat)
}

/// Writes what of the tree goes along, under the names that the spec makes: one part of a request that was split.
///
/// # Errors
///
/// [`ExportError`].
pub fn export_element<W: Write>(
    root: &Root,
    spec: &FilterSpec,
    out: &mut Writer<W>,
    options: &ExportOptions,
) -> Result<ExportReport, ExportError> {
    let fd = root
        .directory(&TreePath::root())
        .doing("open the directory", b"/")?;
    let stat = rustix::fs::fstat(&fd).doing("look at", b"/")?;
    Walk::new(out, options, spec, false).start(&fd, &stat)
}

/// How much of a file is read at once.
const PART: usize = 262_144;

pub(super) struct Walk<'a, W> {
    pub(super) out: &'a mut Writer<W>,
    options: &'a ExportOptions,
    pub(super) spec: &'a FilterSpec,
    absolute: bool,
    pub(super) report: ExportReport,
    /// The first name of each file that has several.
    names: HashMap<(u64, u64), Vec<u8>>,
}

impl<'a, W: Write> Walk<'a, W> {
    pub(super) fn new(
        out: &'a mut Writer<W>,
        options: &'a ExportOptions,
        spec: &'a FilterSpec,
        absolute: bool,
    ) -> Self {
        Self {
            out,
            options,
            spec,
            absolute,
            report: ExportReport::default(),
            names: HashMap::new(),
        }
    }

    fn start(mut self, fd: &OwnedFd, stat: &Stat) -> Result<ExportReport, ExportError> {
        self.visit(fd, stat, &TreePath::root(), (0, stat.st_dev))?;
        Ok(self.report)
    }

    /// Writes one file and, if it is a directory, everything in it.
    fn visit(
        &mut self,
        fd: &OwnedFd,
        stat: &Stat,
        path: &TreePath,
        (depth, device): (usize, u64),
    ) -> Result<(), ExportError> {
        if self.options.upper && is_deletion(stat) {
            return self.deleted(path);
        }
        if self.spec.includes(path) {
            self.write(fd, stat, path)?;
        }
        if file_type(stat) != FileType::Directory || !self.spec.descends_into(path) {
            return Ok(());
        }
        if self.options.upper && hides_all(fd).doing("look at", path.as_bytes())? {
            self.deleted_all(path)?;
        }
        if self.options.skip_kernel && stat.st_dev != device && shows_the_kernel(fd) {
            return Ok(());
        }
        if depth > walk::DEEPEST {
            return Err(ExportError::TooDeep {
                path: path.as_bytes().to_vec(),
                limit: walk::DEEPEST,
            });
        }
        let shown = path.as_bytes();
        let names = walk::names(
            reopen(fd, OFlags::DIRECTORY)
                .doing("open the directory", shown)?
                .as_fd(),
        )
        .doing("list the directory", shown)?;
        for name in names {
            let child = TreePath::below(&name)?.under(path);
            let opened = match open_child(fd.as_fd(), &name, OFlags::PATH) {
                // It was removed since the directory was listed.
                Err(Errno::NOENT) => continue,
                result => result.doing("open", child.as_bytes())?,
            };
            let child_stat = rustix::fs::fstat(&opened).doing("look at", child.as_bytes())?;
            self.visit(&opened, &child_stat, &child, (depth + 1, stat.st_dev))?;
        }
        Ok(())
    }

    pub(super) fn write(&mut self, fd: &OwnedFd, stat: &Stat, path: &TreePath) -> Result<(), ExportError> {
        let name = self.name(path, file_type(stat) == FileType::Directory)?;
        let kind = match file_type(stat) {
            FileType::RegularFile => match self.other_name(stat, &name) {
                Some(target) => Kind::HardLink { target },
                None => Kind::File,
            },
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink {
                target: rustix::fs::readlinkat(fd, "", Vec::new())
                    .doing("read the link", path.as_bytes())?
                    .into_bytes(),
            },
            FileType::Fifo => Kind::Fifo,
            FileType::CharacterDevice => Kind::CharacterDevice(device(stat)),
            FileType::BlockDevice => Kind::BlockDevice(device(stat)),
            FileType::Socket => {
                self.report.skipped.note(&name, "a socket");
                return Ok(());
            }
            _ => {
                self.report.skipped.note(&name, "a file of unknown type");
                return Ok(());
            }
        };
        let mut entry = Entry::new(name, kind, stat.st_mode & MODE_BITS);
        entry.uid = stat.st_uid;
        entry.gid = stat.st_gid;
        entry.mtime = mtime(stat);
        if self.options.whole_seconds {
            entry.mtime.nanoseconds = 0;
        }
        if !matches!(entry.kind, Kind::HardLink { .. }) {
            read_attributes(fd.as_fd(), &mut entry, &self.options.attributes)?;
            if self.options.upper {
                keep_own_attributes(&mut entry)?;
            }
        }
        self.report.entries += 1;
        if entry.kind == Kind::File && stat.st_size > 0 && !self.options.headers_only {
            self.write_file(fd, stat, entry, path)
        } else {
            Ok(self.out.start(&entry)?)
        }
    }

    fn write_file(
        &mut self,
        fd: &OwnedFd,
        stat: &Stat,
        mut entry: Entry,
        path: &TreePath,
    ) -> Result<(), ExportError> {
        // The descriptor pins the file: what is opened is what was looked at, never a device that took its name.
        let file = reopen(fd, OFlags::empty()).doing("open", path.as_bytes())?;
        entry.size = u64::try_from(stat.st_size).unwrap_or(0);
        let holes = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512) < entry.size;
        if holes && !self.options.expand_holes {
            let map = extents(&file, entry.size).doing("find the holes of", path.as_bytes())?;
            entry.sparse = map.filter(|map| !map.is_dense(entry.size));
        }
        let extents = match &entry.sparse {
            Some(map) => map.extents().to_vec(),
            None => vec![Extent {
                offset: 0,
                length: entry.size,
            }],
        };
        self.out.start(&entry)?;
        let largest = extents.iter().map(|extent| extent.length).max().unwrap_or(0);
        let mut buffer = vec![0; usize::try_from(largest).unwrap_or(PART).min(PART)];
        for extent in extents {
            let mut at = extent.offset;
            while at < extent.end() {
                let want = buffer
                    .len()
                    .min(usize::try_from(extent.end() - at).unwrap_or(usize::MAX));
                let got = match rustix::io::pread(&file, buffer.get_mut(..want).unwrap_or_default(), at) {
                    Err(Errno::INTR) => continue,
                    result => result.doing("read", path.as_bytes())?,
                };
                if got == 0 {
                    return Err(crate::writer::WriteError::Content {
                        path: entry.path,
                        what: "shorter",
                    }
                    .into());
                }
                self.out.write_data(buffer.get(..got).unwrap_or_default())?;
                at += got as u64;
                self.report.bytes += got as u64;
            }
        }
        Ok(())
    }

    /// The name in the archive.
    fn name(&self, path: &TreePath, directory: bool) -> Result<Vec<u8>, RenameError> {
        let renamed = self.spec.rename(path)?;
        if !self.absolute {
            return Ok(renamed.to_entry(directory));
        }
        let mut name = b"/".to_vec();
        if !renamed.is_root() {
            name.extend(renamed.to_entry(directory));
        }
        Ok(name)
    }

    /// The name under which a file with several went along already.
    fn other_name(&mut self, stat: &Stat, name: &[u8]) -> Option<Vec<u8>> {
        if stat.st_nlink < 2 {
            return None;
        }
        match self.names.entry((stat.st_dev, stat.st_ino)) {
            std::collections::hash_map::Entry::Occupied(known) => Some(known.get().clone()),
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(name.to_vec());
                None
            }
        }
    }
}

/// Opens for reading what a descriptor pins.
pub(super) fn reopen(fd: &OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(proc_path(fd.as_fd()), flags, Mode::empty())
}

/// File systems of `linux/magic.h` that hold no files of anybody.
const KERNEL: [rustix::fs::FsWord; 9] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x27_e0eb,   // cgroup
    0x6367_7270, // cgroup2
    0x1cd1,      // devpts
    0x1980_0202, // mqueue
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0xcafe_4a11, // bpf
];

fn shows_the_kernel(fd: &OwnedFd) -> bool {
    rustix::fs::fstatfs(fd).is_ok_and(|system| KERNEL.contains(&system.f_type))
}

fn device(stat: &Stat) -> Device {
    Device {
        major: rustix::fs::major(stat.st_rdev),
        minor: rustix::fs::minor(stat.st_rdev),
    }
}

/// Where a file has data; none if the file system does not say or the map would be larger than readers take.
fn extents(file: &OwnedFd, size: u64) -> Result<Option<SparseMap>, Errno> {
    let most = Limits::default().extents;
    let mut extents = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            // No data after this.
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL) => return Ok(None),
            Err(error) => return Err(error),
        };
        if start >= size {
            break;
        }
        let end = rustix::fs::seek(file, SeekFrom::Hole(start))?.min(size);
        if end <= start || extents.len() + 1 >= most {
            return Ok(None);
        }
        extents.push(Extent {
            offset: start,
            length: end - start,
        });
        at = end;
    }
    Ok(SparseMap::new(extents, size).ok())
}
