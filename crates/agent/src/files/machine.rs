//! Files of the machine itself, outside of containers and volumes: the other end of most copies.

use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tranship_archive::confined::{
    Devices, ExportOptions, ExtractOptions, Links, Ownership, Root, export_as, extract,
};
use tranship_archive::path::TreePath;
use tranship_archive::reader::{ReadOptions, Reader};
use tranship_archive::writer::Writer;
use tranship_core::Fault;
use tranship_core::fault::FaultKind;

use super::bridge::{self, Pieces};
use super::{Owner, PathRequest, Unpacked};

/// What decides which files a process sees, what it may do with them, and whose those become that it makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Its mount namespace.
    mounts: String,
    /// Device and number of its root directory.
    root: (u64, u64),
    /// Its user namespace.
    users: String,
    /// The group of files that it makes, its capabilities, and its other groups where those decide anything, as `/proc` writes them.
    rights: Vec<String>,
}

impl View {
    /// Of the process of this number, or of this one: `self`.
    ///
    /// # Errors
    /// What `/proc` says.
    pub fn of(process: &str) -> std::io::Result<Self> {
        use std::os::unix::fs::MetadataExt as _;
        let place = Path::new("/proc").join(process);
        let namespace = |name: &str| {
            let link = std::fs::read_link(place.join("ns").join(name))?;
            Ok::<_, std::io::Error>(link.to_string_lossy().into_owned())
        };
        let root = std::fs::metadata(place.join("root"))?;
        let status = std::fs::read_to_string(place.join("status"))?;
        Ok(Self {
            mounts: namespace("mnt")?,
            root: (root.dev(), root.ino()),
            users: namespace("user")?,
            rights: rights(&status),
        })
    }

    /// Files that either makes are the same, and so is what it may do.
    fn may_do_the_same(&self, other: &Self) -> bool {
        self.users == other.users && self.rights == other.rights
    }
}

/// What a process may do with files, of its `/proc/PID/status`.
fn rights(status: &str) -> Vec<String> {
    /// `CAP_CHOWN`, `CAP_DAC_OVERRIDE` and `CAP_FSETID`: who has them needs no group.
    const ALL_FILES: u64 = 1 | 1 << 1 | 1 << 4;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default().trim().to_owned()
    };
    let capabilities = field("CapEff:");
    let known = u64::from_str_radix(&capabilities, 16).unwrap_or_default();
    // Real, effective, saved, and that of files.
    let group = field("Gid:")
        .split_whitespace()
        .last()
        .unwrap_or_default()
        .to_owned();
    let mut rights = vec![group, capabilities];
    if known & ALL_FILES != ALL_FILES {
        rights.push(field("Groups:"));
    }
    rights
}

/// The root directory as a process sees it, which may have mounted, or changed its root to, what others have not.
///
/// # Errors
/// `files.caller` if there is no such process, if it is not the one that said what it sees, or if this one may do other things.
pub(crate) fn seen_by(process: i32, said: &View) -> Result<Root, Fault> {
    let refused = |why: String| {
        let text = format!("the files of process {process} are out of the agent's reach: {why}");
        Fault::new("files.caller", FaultKind::Environment, text)
    };
    let path = format!("/proc/{process}/root");
    let root = Root::open(Path::new(&path), Links::InRoot).map_err(|error| refused(error.to_string()))?;
    let seen = View::of(&process.to_string()).map_err(|error| refused(error.to_string()))?;
    let own = View::of("self").map_err(|error| refused(error.to_string()))?;
    if seen != *said {
        return Err(refused("it is another one here".to_owned()));
    }
    if !own.may_do_the_same(&seen) {
        return Err(refused("it has other rights".to_owned()));
    }
    Ok(root)
}

/// What is at a path below a root, as an archive with everything that the file system says about its files, times in whole
/// seconds as docker has them.
///
/// # Errors
/// What the file system says before the first bytes; what it says later ends the stream.
pub async fn pack(root: Root, asked: PathRequest) -> Result<Pieces, Fault> {
    let (filter, name) = (asked.filter()?, asked.base()?);
    bridge::writer(move |out| {
        let options = ExportOptions {
            follow: asked.follow,
            whole_seconds: true,
            headers_only: asked.headers_only,
            ..ExportOptions::default()
        };
        let mut writer = Writer::new(out);
        export_as(&root, &asked.path, name.as_ref(), &filter, &mut writer, &options)?;
        writer.finish()?;
        Ok(())
    })
    .await
}

/// Unpacks an archive below a root. Without an owner the files are those of whoever runs this. With `partial`, the beginning of a
/// large file that is broken off is kept.
///
/// # Errors
/// What is wrong with the archive; what the file system says.
pub fn unpack(
    archive: impl Read,
    root: &Root,
    owner: Option<Owner>,
    partial: bool,
) -> Result<Unpacked, Fault> {
    let buffered = std::io::BufReader::with_capacity(262_144, archive);
    let mut reader = Reader::new(buffered, ReadOptions::strict());
    let options = ExtractOptions {
        no_overwrite_dir_non_dir: true,
        ownership: owner.map_or(Ownership::Caller, |owner| Ownership::Fixed {
            uid: owner.uid,
            gid: owner.gid,
        }),
        devices: Devices::Create,
        keep_partial: partial,
        ..ExtractOptions::default()
    };
    Ok(extract(&mut reader, root, &TreePath::root(), options)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_count_where_capabilities_do_not_make_up_for_them() {
        let status = |groups: &str, capabilities: &str| {
            rights(&format!(
                "Uid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t7\nGroups:\t{groups}\nCapEff:\t{capabilities}\n"
            ))
        };
        assert_eq!(status("0 4", "000001ffffffffff"), ["7", "000001ffffffffff"]);
        assert_eq!(status("0 4", "000001ffffffffff"), status("", "000001ffffffffff"));
        assert_eq!(status("4", "0000000000000001"), ["7", "0000000000000001", "4"]);
    }

    #[test]
    fn only_the_process_itself_is_taken_for_what_it_says() {
        let own = View::of("self").unwrap();
        let process = i32::try_from(std::process::id()).unwrap();
        assert!(own.rights.len() >= 2 && seen_by(process, &own).is_ok());
        for other in [
            View {
                mounts: "mnt:[1]".to_owned(),
                ..own.clone()
            },
            View {
                root: (own.root.0, own.root.1 + 1),
                ..own.clone()
            },
        ] {
            assert_eq!(seen_by(process, &other).unwrap_err().code, "files.caller");
        }
        // One that says the truth, but may do less.
        let mut less = own.clone();
        less.rights.pop();
        assert!(!own.may_do_the_same(&less));
        assert_eq!(seen_by(0, &own).unwrap_err().code, "files.caller");
    }
}
