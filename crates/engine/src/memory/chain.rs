//! Dumps that belong together: each in a directory of its own, named by its number from 1 on, with the pages that were written since the one
//! before. The newest has everything else as well. One that stands alone has no such directory: its images lie there themselves.
//!
//! CRIU finds the one before by a link, [`PARENT`]. Links that came from elsewhere are not believed: they are made anew from the numbers.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// CRIU's name for the dump before (`CR_PARENT_LINK` in `criu/include/image.h`).
pub(super) const PARENT: &str = "parent";
/// How the names of files with pages begin.
const PAGES: &[u8] = b"pages-";
/// More than that no migration has rounds, and CRIU keeps images of each open.
const MOST: u32 = 1000;

/// The directory of one of them.
pub(super) fn link(images: &Path, number: u32) -> PathBuf {
    images.join(number.to_string())
}

/// The way from the directory of the one after it.
pub(super) fn from_the_next(number: u32) -> String {
    format!("../{number}")
}

/// How many there are; none if what is there stands alone.
///
/// # Errors
/// The directory cannot be read, or holds directories with other names, or some of them are missing.
pub(super) fn length(images: &Path) -> io::Result<u32> {
    let mut numbers = Vec::new();
    let mut files = false;
    for entry in std::fs::read_dir(images)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            files = true;
            continue;
        }
        let number = number(&entry.file_name()).filter(|number| *number <= MOST);
        numbers.push(number.ok_or_else(|| strange("a directory in it has another name"))?);
    }
    if numbers.is_empty() {
        return Ok(0);
    }
    numbers.sort_unstable();
    if files
        || numbers
            .iter()
            .zip(1..)
            .any(|(number, expected)| *number != expected)
    {
        return Err(strange("one of them is missing, or there is more than them"));
    }
    Ok(numbers.last().copied().unwrap_or_default())
}

/// Where the images are that a restore begins with.
///
/// # Errors
/// As [`length`].
pub(super) fn newest(images: &Path) -> io::Result<PathBuf> {
    Ok(match length(images)? {
        0 => images.to_owned(),
        number => link(images, number),
    })
}

/// Bytes of all images in one directory.
///
/// # Errors
/// It cannot be read.
pub(super) fn bytes_in(directory: &Path) -> io::Result<u64> {
    Ok(lengths(directory, b"")?.into_iter().fold(0, u64::saturating_add))
}

/// Lengths in bytes of all that hold pages, of whichever dump of them.
///
/// # Errors
/// As [`length`].
pub(super) fn all_pages(images: &Path) -> io::Result<Vec<u64>> {
    let mut all = Vec::new();
    for number in 1..=length(images)? {
        all.extend(lengths(&link(images, number), PAGES)?);
    }
    all.extend(lengths(images, PAGES)?);
    Ok(all)
}

fn lengths(directory: &Path, begins: &[u8]) -> io::Result<Vec<u64>> {
    let mut lengths = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().as_bytes().starts_with(begins) {
            lengths.push(entry.metadata()?.len());
        }
    }
    Ok(lengths)
}

fn number(name: &OsStr) -> Option<u32> {
    let text = name.to_str()?;
    let number = text.parse().ok()?;
    // No sign, and no zeros before it.
    (number > 0 && text == format!("{number}")).then_some(number)
}

fn strange(why: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("what should be one dump, or several that belong together, is not: {why}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_the_last_of_an_unbroken_row() {
        let root = tempfile::tempdir().unwrap();
        let images = root.path();
        assert_eq!(length(images).unwrap(), 0);
        assert_eq!(newest(images).unwrap(), images);
        for number in 1..=11 {
            std::fs::create_dir(link(images, number)).unwrap();
        }
        assert_eq!(length(images).unwrap(), 11);
        assert_eq!(newest(images).unwrap(), images.join("11"));
        assert_eq!(link(images, 11).join(from_the_next(10)), images.join("11/../10"));
        std::fs::remove_dir(link(images, 3)).unwrap();
        assert!(length(images).is_err());
    }

    #[test]
    fn what_is_neither_one_nor_several_is_refused() {
        for name in ["0", "01", "+1", "-1", "2", "x", "1001", "99999999999"] {
            let root = tempfile::tempdir().unwrap();
            std::fs::create_dir(root.path().join(name)).unwrap();
            assert!(newest(root.path()).is_err(), "{name}");
        }
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("1")).unwrap();
        std::fs::write(root.path().join("core-1.img"), b"").unwrap();
        assert!(newest(root.path()).is_err());
    }

    #[test]
    fn pages_are_counted_wherever_they_lie() {
        let root = tempfile::tempdir().unwrap();
        for (name, length) in [("pages-1.img", 5), ("pagemap-1.img", 7)] {
            std::fs::write(root.path().join(name), vec![0; length]).unwrap();
        }
        assert_eq!(bytes_in(root.path()).unwrap(), 12);
        assert_eq!(all_pages(root.path()).unwrap(), [5]);
        let several = tempfile::tempdir().unwrap();
        for (number, length) in [(1, 8), (2, 3)] {
            std::fs::create_dir(link(several.path(), number)).unwrap();
            std::fs::write(link(several.path(), number).join("pages-1.img"), vec![0; length]).unwrap();
        }
        let mut all = all_pages(several.path()).unwrap();
        all.sort_unstable();
        assert_eq!(all, [3, 8]);
    }
}
