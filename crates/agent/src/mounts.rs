//! What is mounted on this node below a directory: files of other file systems, which do not belong to the element that the
//! directory is.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

/// The places below a directory, relative to it, at which something else is mounted. None where the kernel does not say.
pub(crate) fn below(directory: &Path) -> Vec<String> {
    let Ok(directory) = directory.canonicalize() else {
        return Vec::new();
    };
    std::fs::read(MOUNTS)
        .map(|table| listed_below(&table, &directory))
        .unwrap_or_default()
}

/// The mounts that this process sees; `proc_pid_mountinfo(5)`.
const MOUNTS: &str = "/proc/self/mountinfo";

fn listed_below(table: &[u8], directory: &Path) -> Vec<String> {
    let mut found: Vec<String> = table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(plain)
        .filter_map(|place| {
            let inside = place.strip_prefix(directory).ok()?;
            (!inside.as_os_str().is_empty()).then(|| inside.to_string_lossy().into_owned())
        })
        .collect();
    found.sort();
    found.dedup();
    found
}

/// A path of the table as it is: spaces, tabs, ends of lines and backslashes are written as a backslash and three octal digits.
fn plain(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..3).filter(|_| *first == b'\\').and_then(|digits| {
            digits.iter().try_fold(0u8, |code, digit| {
                let digit = digit.checked_sub(b'0').filter(|digit| *digit < 8)?;
                code.checked_mul(8)?.checked_add(digit)
            })
        });
        match code {
            Some(code) => {
                bytes.push(code);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_below_a_directory_and_not_beside_it() {
        let table = b"22 1 254:0 / / rw shared:1 - ext4 /dev/vda rw\n\
            30 22 0:40 / /srv/data rw - tmpfs tmpfs rw\n\
            31 30 0:41 / /srv/data/a\\040b rw - tmpfs tmpfs rw\n\
            32 22 0:42 / /srv/data2/c rw - tmpfs tmpfs rw\n\
            33 30 0:43 / /srv/data/d rw - tmpfs tmpfs rw\n\
            34 33 0:44 / /srv/data/d rw - tmpfs tmpfs rw\n\
            no line at all\n";
        assert_eq!(listed_below(table, Path::new("/srv/data")), ["a b", "d"]);
        assert_eq!(listed_below(table, Path::new("/srv/other")), [""; 0]);
        assert_eq!(plain(b"/x\\134\\9"), Path::new("/x\\\\9"));
    }
}
