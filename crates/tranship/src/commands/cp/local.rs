//! This machine's own end of a copy.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use tranship_archive::copy_rules::{CopyRuleError, Present, asserts_directory, cleaned};
use tranship_core::{Fault, FaultKind};

use super::rule;

/// As many links as the kernel follows on one path.
const MOST_LINKS: usize = 40;

/// Something of this machine that is copied.
pub struct LocalSource {
    /// The path from the root, with the slash or dot that it ends with.
    pub path: Vec<u8>,
    /// It is a directory.
    pub is_directory: bool,
}

fn failed(doing: &str, path: &[u8], error: &std::io::Error) -> Fault {
    let words = match error.kind() {
        std::io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        std::io::ErrorKind::NotADirectory => "not a directory".to_owned(),
        _ => error.to_string(),
    };
    Fault::new(
        "file.local",
        FaultKind::Environment,
        format!("{doing} {}: {words}", String::from_utf8_lossy(path)),
    )
}

fn os(path: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(path))
}

fn absolute(path: &[u8]) -> Result<Vec<u8>, Fault> {
    if path.starts_with(b"/") {
        return Ok(cleaned(path));
    }
    let here = std::env::current_dir().map_err(|e| failed("find", b".", &e))?;
    Ok(cleaned(&[here.as_os_str().as_bytes(), b"/", path].concat()))
}

impl LocalSource {
    /// Looks at a path.
    ///
    /// # Errors
    /// `file.local` if there is nothing.
    pub fn find(path: &[u8], follow: bool) -> Result<Self, Fault> {
        let whole = absolute(path)?;
        let found = if follow || asserts_directory(&whole) {
            std::fs::metadata(os(&whole))
        } else {
            std::fs::symlink_metadata(os(&whole))
        };
        let found = found.map_err(|e| failed("lstat", &whole, &e))?;
        Ok(Self {
            path: whole,
            is_directory: found.is_dir(),
        })
    }
}

/// Where a copy goes on this machine: the path with links at its end followed, and what is there.
///
/// # Errors
/// [`CopyRuleError::NotRegular`]; what the system says.
pub fn destination(path: &[u8]) -> Result<(Vec<u8>, Present), Fault> {
    let mut path = absolute(path)?;
    for _ in 0..MOST_LINKS {
        // With a slash at the end, as docker has it, a link is what it leads to or nothing.
        let Ok(link) = std::fs::read_link(os(&path)) else {
            break;
        };
        let target: PathBuf = os(&path).parent().unwrap_or(Path::new(".")).join(link);
        path = target.into_os_string().as_encoded_bytes().to_vec();
    }
    match std::fs::metadata(os(&path)) {
        Ok(found) if found.is_dir() => Ok((path, Present::Directory)),
        Ok(found) if found.is_file() || found.file_type().is_fifo() => Ok((path, Present::File)),
        Ok(_) => Err(rule(&CopyRuleError::NotRegular { path })),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let trimmed = path.strip_suffix(b"/").unwrap_or(&path);
            let parent = match os(trimmed).parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent.is_dir(),
                _ => true,
            };
            Ok((path, Present::Nothing { parent }))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory && path.ends_with(b"/") => {
            Ok((path, Present::File))
        }
        Err(error) => Err(failed("stat", &path, &error)),
    }
}
