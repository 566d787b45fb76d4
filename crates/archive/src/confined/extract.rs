//! Unpacks archives below a root.

use std::hash::{BuildHasher as _, RandomState};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use tranship_core::fault::Fault;

use super::error::{Doing as _, ExtractError, SystemError};
use super::metadata::{Settings, apply, file_type, identity, set_mtime, type_of};
use super::options::{Devices, ExtractOptions, ExtractReport, Ownership, SetId};
use super::pending::{OpenFile, SmallFile, Unfinished, is_partial, partial_of};
use super::root::{Root, is_mount_point, look, open_child, proc_path};
use super::walk;
use crate::entry::{Entry, Kind, MODE_BITS};
use crate::fan_out::Sink;
use crate::path::{PathError, TreePath};
use crate::reader::{Names, Reader};

/// Bytes of a file that is kept in memory until it is complete.
const SMALL: u64 = 65_536;
/// How a file is made that is not there yet.
const NEW: OFlags = OFlags::WRONLY
    .union(OFlags::CREATE)
    .union(OFlags::EXCL)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Unpacks an archive into the directory `base` of the root, which must exist.
///
/// # Errors
///
/// [`ExtractError`]; what was unpacked until then stays.
pub fn extract<R: Read>(
    reader: &mut Reader<R>,
    root: &Root,
    base: &TreePath,
    options: ExtractOptions,
) -> Result<ExtractReport, ExtractError> {
    let mut extractor = Extractor::new(root, base.clone(), options)?;
    let mut buffer = vec![0; 65_536];
    while let Some(entry) = reader.next_entry()? {
        extractor.start(&entry)?;
        while let Some(extent) = reader.read_extent(&mut buffer)? {
            let length = usize::try_from(extent.length).unwrap_or(usize::MAX);
            extractor.write(extent.offset, buffer.get(..length).unwrap_or_default())?;
        }
    }
    extractor.end()
}

/// Unpacks entries one by one.
pub struct Extractor<'a> {
    root: &'a Root,
    base: TreePath,
    options: ExtractOptions,
    report: ExtractReport,
    file: Option<OpenFile>,
    /// A small file that is not made yet.
    small: Option<SmallFile>,
    /// Directories whose mode and time are set when everything in them is there.
    directories: Vec<Unfinished>,
    /// Symbolic links of this archive.
    links: Names,
    /// Entries that are called like the beginning of a file.
    partials: Names,
    /// The parent of the last entry: most entries have the same one as the entry before.
    parent: Option<(TreePath, Arc<OwnedFd>)>,
    /// An entry gave a directory an access control list that its children inherit.
    inherits: bool,
    random: RandomState,
    temporary: u64,
}

impl<'a> Extractor<'a> {
    /// Unpacks into the directory `base` of the root.
    ///
    /// # Errors
    ///
    /// [`ExtractError::NotADirectory`], or [`ExtractError::System`] if it cannot be opened.
    pub fn new(root: &'a Root, base: TreePath, options: ExtractOptions) -> Result<Self, ExtractError> {
        match root.directory(&base) {
            Ok(_) => {}
            Err(Errno::NOTDIR) => {
                return Err(ExtractError::NotADirectory { path: slashed(&base) });
            }
            Err(source) => Err(source).doing("open the directory", &slashed(&base))?,
        }
        Ok(Self {
            root,
            base,
            options,
            report: ExtractReport::default(),
            file: None,
            small: None,
            directories: Vec::new(),
            links: Names::new(),
            partials: Names::new(),
            parent: None,
            inherits: false,
            random: RandomState::new(),
            temporary: 0,
        })
    }

    /// Makes what an entry says; the content of a file follows through [`Self::write`].
    ///
    /// # Errors
    ///
    /// [`ExtractError`].
    pub fn start(&mut self, entry: &Entry) -> Result<(), ExtractError> {
        self.complete_file()?;
        let path = self.checked_path(&entry.path)?;
        self.report.entries += 1;
        let Some(name) = path.name().map(<[u8]>::to_vec) else {
            return self.start_base(entry);
        };
        if self.options.keep_partial && is_partial(&name) {
            self.partials.insert(path.as_bytes());
        }
        if self.options.refuse_whiteouts && name.starts_with(b".wh.") {
            return Err(ExtractError::Whiteout {
                path: entry.path.clone(),
            });
        }
        let device = matches!(entry.kind, Kind::CharacterDevice(_) | Kind::BlockDevice(_));
        match self.options.devices {
            Devices::Refuse if device => {
                return Err(ExtractError::Device {
                    path: entry.path.clone(),
                });
            }
            Devices::Skip if device => {
                self.report.skipped.note(&entry.path, "a device node");
                return Ok(());
            }
            _ => {}
        }
        let parent = self.parent_of(&path)?;
        if entry.kind == Kind::File && entry.sparse.is_none() && entry.size <= SMALL {
            // Checks the policy before anything is made.
            self.settings(entry)?;
            self.links.remove(path.as_bytes());
            self.small = Some(SmallFile {
                parent,
                name,
                path,
                entry: entry.clone(),
                content: Vec::with_capacity(usize::try_from(entry.size).unwrap_or(0)),
            });
            return Ok(());
        }
        if !self.make_room(&parent, &name, &path, entry)? {
            self.directory(&parent, &name, &path, entry)?;
            return Ok(());
        }
        self.links.remove(path.as_bytes());
        match &entry.kind {
            Kind::File => self.open_file(parent, name, &path, entry)?,
            Kind::Directory => {
                rustix::fs::mkdirat(&parent, &name, Mode::RWXU).doing("make the directory", &entry.path)?;
                self.directory(&parent, &name, &path, entry)?;
            }
            Kind::HardLink { target } => self.hard_link(&parent, &name, entry, target)?,
            Kind::Symlink { target } => {
                rustix::fs::symlinkat(target.as_slice(), &parent, &name)
                    .doing("make the link", &entry.path)?;
                self.links.insert(path.as_bytes());
                self.finish_node(&parent, &name, entry)?;
            }
            Kind::Fifo | Kind::CharacterDevice(_) | Kind::BlockDevice(_) => {
                let number = match entry.kind {
                    Kind::CharacterDevice(device) | Kind::BlockDevice(device) => {
                        rustix::fs::makedev(device.major, device.minor)
                    }
                    _ => 0,
                };
                let kind = type_of(&entry.kind);
                rustix::fs::mknodat(&parent, &name, kind, Mode::RUSR | Mode::WUSR, number)
                    .doing("make the node", &entry.path)?;
                self.finish_node(&parent, &name, entry)?;
            }
        }
        Ok(())
    }

    /// Content of the file that was started last, at an offset of it.
    ///
    /// # Errors
    ///
    /// [`ExtractError::System`]; a full disk has the code `archive.no-space`.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ExtractError> {
        if let Some(small) = &mut self.small {
            // In order, and no more than was announced: whoever calls this without a reader may do otherwise.
            let end = offset.saturating_add(bytes.len() as u64);
            if offset == small.content.len() as u64 && end <= small.entry.size {
                small.content.extend_from_slice(bytes);
                self.report.bytes += bytes.len() as u64;
                return Ok(());
            }
            self.make_small(true)?;
        }
        self.write_open(offset, bytes)?;
        self.report.bytes += bytes.len() as u64;
        Ok(())
    }

    fn write_open(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ExtractError> {
        let file = self.file.as_mut().ok_or(ExtractError::NoEntry)?;
        let (mut offset, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let written = match rustix::io::pwrite(&file.fd, rest, offset) {
                Err(Errno::INTR) => continue,
                // A file system that takes nothing without saying why.
                Ok(0) => Err(Errno::NOSPC),
                result => result,
            };
            // A beginning that is kept would take the space that the whole file needs.
            if let Err(Errno::NOSPC | Errno::DQUOT) = written {
                file.forget_partial();
                file.keep_partial = false;
            }
            let written = written.doing("write", &file.entry.path)?;
            offset += written as u64;
            rest = rest.get(written..).unwrap_or_default();
        }
        Ok(())
    }

    /// Makes the small file that was kept: under its own name if that is free, else as any other.
    fn make_small(&mut self, unfinished: bool) -> Result<(), ExtractError> {
        let Some(small) = self.small.take() else {
            return Ok(());
        };
        let SmallFile {
            parent,
            name,
            path,
            entry,
            content,
        } = small;
        let made = match unfinished {
            false => rustix::fs::openat(&*parent, &name, NEW, Mode::RUSR | Mode::WUSR),
            true => Err(Errno::EXIST),
        };
        match made {
            Ok(fd) => {
                let temporary = name.clone();
                self.file = Some(OpenFile {
                    fd,
                    parent,
                    temporary,
                    name,
                    entry,
                    keep_partial: self.keeps_partial(&path),
                });
            }
            Err(Errno::EXIST) => {
                self.make_room(&parent, &name, &path, &entry)?;
                self.open_file(parent, name, &path, &entry)?;
            }
            Err(source) => Err(source).doing("make the file", &entry.path)?,
        }
        self.write_open(0, &content)
    }

    /// Completes the last file and gives all directories their modes and times.
    ///
    /// # Errors
    ///
    /// [`ExtractError::System`].
    pub fn end(mut self) -> Result<ExtractReport, ExtractError> {
        self.conclude()?;
        Ok(std::mem::take(&mut self.report))
    }

    fn conclude(&mut self) -> Result<(), ExtractError> {
        self.complete_file()?;
        // Children first: what is done in a directory must not need the rights that its own mode takes away.
        while let Some(directory) = self.directories.pop() {
            let path = slashed(&directory.path);
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            let fd = match self.root.resolve(&directory.path, flags) {
                Ok(fd) if identity(fd.as_fd()).doing("look at", &path)? == directory.identity => fd,
                // It is not there any more, or another one is.
                _ => continue,
            };
            let now = rustix::fs::fstat(&fd).doing("look at", &path)?.st_mode & MODE_BITS;
            let kept = if directory.acl { 0o070 } else { 0 };
            let mode = (directory.mode & !kept) | (now & kept);
            if mode != now {
                let mode = Mode::from_raw_mode(mode);
                rustix::fs::chmodat(rustix::fs::CWD, proc_path(fd.as_fd()), mode, AtFlags::empty())
                    .doing("change the mode of", &path)?;
            }
            set_mtime(fd.as_fd(), directory.mtime).doing("set the time of", &path)?;
        }
        Ok(())
    }

    /// The entry's path below the base, with policy applied.
    fn checked_path(&self, name: &[u8]) -> Result<TreePath, ExtractError> {
        let path = if self.options.refuse_absolute {
            TreePath::of_relative_entry(name)?
        } else {
            TreePath::of_entry(name)?
        };
        if !self.options.through_own_links {
            let mut above = path.parent();
            while let Some(directory) = above {
                if !directory.is_root() && self.links.contains(directory.as_bytes()) {
                    return Err(ExtractError::ThroughLink { path: name.to_vec() });
                }
                above = directory.parent();
            }
        }
        Ok(path)
    }

    /// The entry for the destination itself.
    fn start_base(&mut self, entry: &Entry) -> Result<(), ExtractError> {
        if !entry.kind.is_directory() {
            return Err(ExtractError::OverwriteDirectory {
                path: slashed(&self.base),
                destination: slashed(&self.base),
            });
        }
        if !self.options.root_metadata {
            return Ok(());
        }
        let fd = self
            .root
            .directory(&self.base)
            .doing("open the directory", &slashed(&self.base))?;
        self.note_directory(&fd, self.base.clone(), entry)
    }

    /// The directory that an entry goes to; what is missing of it is made, mode 0755.
    fn parent_of(&mut self, path: &TreePath) -> Result<Arc<OwnedFd>, ExtractError> {
        let parent = path.parent().unwrap_or_default();
        if let Some((known, fd)) = &self.parent
            && *known == parent
        {
            return Ok(Arc::clone(fd));
        }
        let whole = parent.under(&self.base);
        let fd = Arc::new(self.directory_or_new(&whole)?);
        self.parent = Some((parent, Arc::clone(&fd)));
        Ok(fd)
    }

    fn directory_or_new(&self, path: &TreePath) -> Result<OwnedFd, SystemError> {
        let mut missing = Vec::new();
        let mut above = path.clone();
        let mut fd = loop {
            match self.root.directory(&above) {
                Err(Errno::NOENT) if !above.is_root() => {
                    missing.push(above.name().unwrap_or_default().to_vec());
                    above = above.parent().unwrap_or_default();
                }
                result => break result.doing("open the directory", &slashed(&above))?,
            }
        };
        while let Some(name) = missing.pop() {
            let making = "make the directory";
            match rustix::fs::mkdirat(&fd, &name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(source) => Err(source).doing(making, &slashed(path))?,
            }
            // What is there now may be a link that leads nowhere, or that somebody just put there: both are not followed.
            fd = open_child(fd.as_fd(), &name, OFlags::PATH | OFlags::DIRECTORY)
                .doing(making, &slashed(path))?;
            let mode = Mode::from_raw_mode(0o755);
            rustix::fs::chmodat(rustix::fs::CWD, proc_path(fd.as_fd()), mode, AtFlags::empty())
                .doing("change the mode of", &slashed(path))?;
        }
        Ok(fd)
    }

    /// Removes what is in the way of an entry. False if it is a directory over a directory, which are merged. What is in the
    /// way of a file stays until the new one is complete.
    fn make_room(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        path: &TreePath,
        entry: &Entry,
    ) -> Result<bool, ExtractError> {
        let Some(there) = look(parent.as_fd(), name).doing("look at", &entry.path)? else {
            return Ok(true);
        };
        let is_directory = file_type(&there) == FileType::Directory;
        let full = || slashed(&path.under(&self.base));
        if (is_directory, entry.kind.is_directory()) != (true, true)
            && is_mount_point(parent.as_fd(), name).doing("look at", &entry.path)?
        {
            return Err(Errno::BUSY).doing("replace", &full())?;
        }
        match (is_directory, entry.kind.is_directory()) {
            (true, true) => return Ok(false),
            (true, false) if self.options.no_overwrite_dir_non_dir => {
                return Err(ExtractError::OverwriteDirectory {
                    path: full(),
                    destination: slashed(&self.base),
                });
            }
            (false, true) if self.options.no_overwrite_dir_non_dir => {
                return Err(ExtractError::OverwriteNonDirectory {
                    path: full(),
                    destination: slashed(&self.base),
                });
            }
            (false, false) if matches!(entry.kind, Kind::File | Kind::HardLink { .. }) => return Ok(true),
            _ => {}
        }
        self.parent = None;
        match walk::remove(parent.as_fd(), name, 0) {
            Err(Errno::NAMETOOLONG) => Err(ExtractError::TooDeep {
                path: full(),
                limit: walk::DEEPEST,
            }),
            result => Ok(result.doing("replace", &full()).map(|()| true)?),
        }
    }

    /// A directory that is there, new or old.
    fn directory(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        path: &TreePath,
        entry: &Entry,
    ) -> Result<(), ExtractError> {
        let fd = open_child(parent.as_fd(), name, OFlags::PATH | OFlags::DIRECTORY)
            .doing("open the directory", &entry.path)?;
        self.note_directory(&fd, path.under(&self.base), entry)
    }

    fn note_directory(&mut self, fd: &OwnedFd, path: TreePath, entry: &Entry) -> Result<(), ExtractError> {
        let mut settings = self.settings(entry)?;
        let mode = settings.mode;
        settings.mode |= 0o700;
        settings.mtime = None;
        self.apply(fd, entry, &settings)?;
        self.inherits |= entry.acl_default.is_some();
        self.directories.push(Unfinished {
            identity: identity(fd.as_fd()).doing("look at", &entry.path)?,
            path,
            mode,
            mtime: entry.mtime,
            acl: entry.acl_access.is_some(),
        });
        Ok(())
    }

    /// Opens a new file beside the one that it may replace; only when it is complete it gets its name.
    fn open_file(
        &mut self,
        parent: Arc<OwnedFd>,
        name: Vec<u8>,
        path: &TreePath,
        entry: &Entry,
    ) -> Result<(), ExtractError> {
        // Checks the policy before anything is made.
        self.settings(entry)?;
        let (fd, temporary) = loop {
            let temporary = self.temporary_name();
            match rustix::fs::openat(&*parent, &temporary, NEW, Mode::RUSR | Mode::WUSR) {
                Err(Errno::EXIST) => {}
                result => break (result.doing("make the file", &entry.path)?, temporary),
            }
        };
        let file = OpenFile {
            fd,
            parent,
            temporary,
            name,
            entry: entry.clone(),
            keep_partial: self.keeps_partial(path),
        };
        if entry.sparse.is_some() {
            rustix::fs::ftruncate(&file.fd, entry.size).doing("make the file", &entry.path)?;
        }
        self.file = Some(file);
        Ok(())
    }

    fn complete_file(&mut self) -> Result<(), ExtractError> {
        self.make_small(false)?;
        let Some(mut file) = self.file.take() else {
            return Ok(());
        };
        // One that has its owner and mode is no beginning any more.
        let keeps = std::mem::take(&mut file.keep_partial);
        let settings = self.settings(&file.entry)?;
        self.apply(&file.fd, &file.entry, &settings)?;
        if file.temporary != file.name {
            rustix::fs::renameat(&*file.parent, &file.temporary, &*file.parent, &file.name)
                .doing("replace", &file.entry.path)?;
        }
        file.temporary.clear();
        file.keep_partial = keeps;
        file.forget_partial();
        Ok(())
    }

    fn hard_link(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        entry: &Entry,
        target: &[u8],
    ) -> Result<(), ExtractError> {
        let target = self.checked_path(target)?;
        let Some(target_name) = target.name() else {
            return Err(PathError::Empty.into());
        };
        let whole = target.parent().unwrap_or_default().under(&self.base);
        let directory = self
            .root
            .directory(&whole)
            .doing("open the directory", &slashed(&whole))?;
        let doing = "make the hard link";
        let temporary = loop {
            let temporary = self.temporary_name();
            match rustix::fs::linkat(&directory, target_name, parent, &temporary, AtFlags::empty()) {
                Err(Errno::EXIST) => {}
                result => break result.doing(doing, &entry.path).map(|()| temporary)?,
            }
        };
        let renamed = rustix::fs::renameat(parent, &temporary, parent, name);
        // Between two names of one file the system renames nothing, and both stay.
        match rustix::fs::unlinkat(parent, &temporary, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(renamed.doing(doing, &entry.path)?),
            Err(source) => Ok(Err(source).doing(doing, &entry.path)?),
        }
    }

    /// Beginnings are kept, and the archive has no file of its own where that of this one would be.
    fn keeps_partial(&self, path: &TreePath) -> bool {
        self.options.keep_partial
            && partial_of(path).is_some_and(|partial| !self.partials.contains(partial.as_bytes()))
    }

    fn temporary_name(&mut self) -> Vec<u8> {
        self.temporary += 1;
        format!(".tranship-{:016x}", self.random.hash_one(self.temporary)).into_bytes()
    }

    /// Sets the metadata of what was just made, if it is still what was made.
    fn finish_node(&mut self, parent: &OwnedFd, name: &[u8], entry: &Entry) -> Result<(), ExtractError> {
        let fd = open_child(parent.as_fd(), name, OFlags::PATH).doing("open", &entry.path)?;
        let stat = rustix::fs::fstat(&fd).doing("look at", &entry.path)?;
        if file_type(&stat) != type_of(&entry.kind) {
            return Err(Errno::AGAIN).doing("set the metadata of", &entry.path)?;
        }
        let settings = self.settings(entry)?;
        self.apply(&fd, entry, &settings)
    }

    fn apply(&mut self, fd: &OwnedFd, entry: &Entry, settings: &Settings) -> Result<(), ExtractError> {
        let skips = &mut self.report.skipped;
        let attributes = &self.options.attributes;
        Ok(apply(
            fd.as_fd(),
            entry,
            settings,
            attributes,
            self.inherits,
            skips,
        )?)
    }

    fn settings(&self, entry: &Entry) -> Result<Settings, ExtractError> {
        let mut mode = entry.mode;
        if entry.kind == Kind::File && mode & 0o6000 != 0 {
            match self.options.setid {
                SetId::Keep => {}
                SetId::Strip => mode &= !0o6000,
                SetId::Refuse => {
                    return Err(ExtractError::SetId {
                        path: entry.path.clone(),
                    });
                }
            }
        }
        let owner = match self.options.ownership {
            Ownership::Archive => Some((entry.uid, entry.gid)),
            Ownership::Fixed { uid, gid } => Some((uid, gid)),
            Ownership::Caller => None,
        };
        Ok(Settings {
            owner,
            mode,
            mtime: Some(entry.mtime),
        })
    }
}

impl Sink for Extractor<'_> {
    fn entry(&mut self, entry: &Entry) -> Result<(), Fault> {
        Ok(self.start(entry)?)
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Fault> {
        Ok(self.write(offset, bytes)?)
    }

    fn finish(&mut self) -> Result<(), Fault> {
        Ok(self.conclude()?)
    }
}

fn slashed(path: &TreePath) -> Vec<u8> {
    [b"/", path.as_bytes()].concat()
}
