//! Which volume is which, wherever it goes: a GUID per volume, kept by the agent, since engines cannot label a volume that
//! exists.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tranship_core::storage::VolumeSpec;

/// Label by which a volume may bring its GUID along by itself.
pub const LABEL: &str = "tranship.guid";

/// One volume that has a GUID.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    guid: String,
    /// What tells the volume from a later one of the same name.
    birth: String,
}

/// The GUIDs of this node's volumes, in one file of the state directory.
#[derive(Debug)]
pub struct Guids {
    file: PathBuf,
    known: Mutex<BTreeMap<String, Known>>,
}

impl Guids {
    /// Reads the file. One that is missing or cannot be read is an empty one: a volume then gets a new GUID, and the next
    /// copy of it cannot make use of an older one.
    #[must_use]
    pub fn open(directory: &Path) -> Self {
        let file = directory.join("volumes.json");
        let known = std::fs::read(&file)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        Self {
            file,
            known: Mutex::new(known),
        }
    }

    /// The GUID of a volume; a new one if it has none.
    #[must_use]
    pub fn of(&self, volume: &VolumeSpec) -> String {
        if let Some(guid) = volume.labels.get(LABEL).filter(|g| is_guid(g)) {
            return guid.clone();
        }
        {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(known) = known.get(&volume.name)
                && known.birth == birth(volume)
            {
                return known.guid.clone();
            }
        }
        let mut random = [0u8; 16];
        if rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).is_err() {
            return String::new();
        }
        let guid = tranship_core::ids::hex(&random);
        self.set(volume, &guid);
        guid
    }

    /// Notes the GUID that a volume came with.
    pub fn set(&self, volume: &VolumeSpec, guid: &str) {
        if !is_guid(guid) {
            return;
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(
            volume.name.clone(),
            Known {
                guid: guid.to_owned(),
                birth: birth(volume),
            },
        );
        let Ok(bytes) = serde_json::to_vec_pretty(&*known) else {
            return;
        };
        if let Err(error) = crate::store::write_durably(&self.file, &bytes) {
            tracing::warn!("the GUIDs of volumes were not saved: {error}");
        }
    }
}

/// What tells a volume from a later one of the same name. The engine's own `CreatedAt` is the time of the last change of the volume's
/// directory (moby, `volume/local`), so the directory's inode and time of birth are better, where they can be had.
pub(crate) fn birth(volume: &VolumeSpec) -> String {
    use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
    let directory = volume.mountpoint.as_deref().and_then(Path::parent);
    let flags = StatxFlags::BTIME | StatxFlags::INO;
    let known = directory.and_then(|d| statx(CWD, d, AtFlags::SYMLINK_NOFOLLOW, flags).ok());
    match known {
        Some(s) if StatxFlags::from_bits_retain(s.stx_mask).contains(StatxFlags::BTIME) => {
            format!("{} {}.{:09}", s.stx_ino, s.stx_btime.tv_sec, s.stx_btime.tv_nsec)
        }
        _ => volume.created_at.clone(),
    }
}

/// A GUID names a directory, so it is nothing but letters, digits and `-`.
pub(crate) fn is_guid(text: &str) -> bool {
    (8..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_keeps_its_guid_and_a_later_one_of_its_name_gets_another() {
        let directory = std::env::temp_dir().join(format!("tranship-guids-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let mut volume = VolumeSpec {
            name: "data".into(),
            created_at: "2026-01-01T00:00:00Z".into(),
            ..VolumeSpec::default()
        };
        let first = Guids::open(&directory).of(&volume);
        assert!(is_guid(&first));
        assert_eq!(Guids::open(&directory).of(&volume), first);
        volume.created_at = "2026-01-02T00:00:00Z".into();
        assert_ne!(Guids::open(&directory).of(&volume), first);
        volume.labels.insert(LABEL.into(), "../../etc".into());
        assert!(is_guid(&Guids::open(&directory).of(&volume)));
        volume.labels.insert(LABEL.into(), "0123-4567".into());
        assert_eq!(Guids::open(&directory).of(&volume), "0123-4567");
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
