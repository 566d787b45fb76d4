//! Paths that must not lead out of a directory, whatever symbolic links are on them.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2, readlinkat};

/// As many links as the kernel itself follows on one path.
const MOST_LINKS: usize = 40;

/// Where `inside` leads when `root` is the root directory: a path below `root` on which no component is a symbolic link.
/// What does not exist yet is taken as it is written if `missing` allows it.
///
/// Links are read one by one and start over at `root` where they are absolute; each step is taken by `openat2` with
/// `RESOLVE_IN_ROOT`, so that a directory which becomes a link meanwhile is an error, not a way out.
///
/// # Errors
/// What the kernel says; `ELOOP` for too many links.
pub(crate) fn resolve(root: &Path, inside: &Path, missing: bool) -> io::Result<PathBuf> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let top = open(root, flags | OFlags::DIRECTORY, Mode::empty())?;
    let mut todo: Vec<OsString> = Vec::new();
    push(&mut todo, inside);
    let mut done = PathBuf::new();
    let mut links = 0;
    while let Some(part) = todo.pop() {
        if part == ".." {
            done.pop();
            continue;
        }
        let next = done.join(&part);
        let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let opened = match openat2(&top, &next, flags | OFlags::NOFOLLOW, Mode::empty(), how) {
            Ok(opened) => opened,
            Err(rustix::io::Errno::NOENT) if missing && todo.iter().all(|part| part != "..") => {
                done = next;
                done.extend(todo.iter().rev());
                break;
            }
            Err(error) => return Err(error.into()),
        };
        if FileType::from_raw_mode(fstat(&opened)?.st_mode) != FileType::Symlink {
            done = next;
            continue;
        }
        links += 1;
        if links > MOST_LINKS {
            return Err(rustix::io::Errno::LOOP.into());
        }
        let target = readlinkat(&opened, "", Vec::new())?;
        let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
        if target.is_absolute() {
            done.clear();
        }
        push(&mut todo, &target);
    }
    Ok(root.join(done))
}

/// Puts the components of `path` on the pile, the first one on top.
fn push(todo: &mut Vec<OsString>, path: &Path) {
    todo.extend(path.components().rev().filter_map(|component| match component {
        Component::Normal(part) => Some(part.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("real/deep")).unwrap();
        std::fs::create_dir_all(dir.path().join("out")).unwrap();
        symlink("/real", root.join("absolute")).unwrap();
        symlink("../../../../real/deep", root.join("real/up")).unwrap();
        symlink(dir.path().join("out"), root.join("escape")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        symlink("absolute/deep/../up", root.join("chain")).unwrap();
        let at = |inside: &str| resolve(&root, Path::new(inside), false);
        assert_eq!(at("/real/deep").unwrap(), root.join("real/deep"));
        assert_eq!(at("/absolute/deep").unwrap(), root.join("real/deep"));
        assert_eq!(at("real/up").unwrap(), root.join("real/deep"));
        assert_eq!(at("/chain").unwrap(), root.join("real/deep"));
        assert_eq!(at("/../../real").unwrap(), root.join("real"));
        assert_eq!(at("/").unwrap(), root.join(""));
        assert_eq!(at("/escape").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(
            at("/loop").unwrap_err().raw_os_error(),
            Some(rustix::io::Errno::LOOP.raw_os_error())
        );
        assert_eq!(at("/none/x").unwrap_err().kind(), io::ErrorKind::NotFound);
        let later = |inside: &str| resolve(&root, Path::new(inside), true);
        assert_eq!(later("/absolute/new/x").unwrap(), root.join("real/new/x"));
        assert!(later("/none/../x").is_err());
    }
}
