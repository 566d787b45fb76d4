//! How archives are unpacked.

use super::Skips;
use super::metadata::Attributes;

/// Whose the files become.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ownership {
    /// The archive's numbers.
    #[default]
    Archive,
    /// One owner for all.
    Fixed {
        /// User.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// Whoever runs this.
    Caller,
}

/// What becomes of device nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Devices {
    /// They are an error.
    #[default]
    Refuse,
    /// They are left out, and reported.
    Skip,
    /// They are made.
    Create,
}

/// What becomes of setuid and setgid bits of files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SetId {
    /// They are set.
    #[default]
    Keep,
    /// They are left out.
    Strip,
    /// They are an error.
    Refuse,
}

/// How an archive is unpacked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExtractOptions {
    /// Neither replace a directory by something else nor the other way round, as `docker cp` asks for.
    pub no_overwrite_dir_non_dir: bool,
    /// Whose the files become.
    pub ownership: Ownership,
    /// What becomes of device nodes.
    pub devices: Devices,
    /// What becomes of setuid and setgid bits of files.
    pub setid: SetId,
    /// Which attributes are set.
    pub attributes: Attributes,
    /// Follow symbolic links that the archive itself made, as far as the root's rules go. Otherwise an entry below one is an error.
    pub through_own_links: bool,
    /// Refuse names that begin with `.wh.`, which delete files where layers are unpacked.
    pub refuse_whiteouts: bool,
    /// Refuse absolute names. Otherwise they are taken as relative to the destination.
    pub refuse_absolute: bool,
    /// Keep the beginning of a large file that was broken off, where [`super::partial_of`] says, until the whole one is there.
    pub keep_partial: bool,
    /// The archive's entry for the destination itself sets the destination's metadata. Docker leaves it alone.
    pub root_metadata: bool,
}

/// What was unpacked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExtractReport {
    /// Entries.
    pub entries: u64,
    /// Bytes of content, holes not counted.
    pub bytes: u64,
    /// What was left out.
    pub skipped: Skips,
}
