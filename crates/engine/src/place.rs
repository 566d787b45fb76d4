//! Where storage elements are: a directory that this process may read and write as it is, or a path of a container that
//! the engine's archive API reaches.
//!
//! Directly only as root, where the engine does not shift user ids, and where its data root is proved to be the one that
//! is seen from here: a socket may lead to an engine in another namespace, whose directories have the same names.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tranship_core::storage::{ElementAt, ElementPlace, VolumeSpec};
use tranship_core::{ContainerId, Engine as _, EngineError};

use crate::cgroups;
use crate::confined;
use crate::containerd::storage_of;
use crate::docker::{DockerEngine, Identity};
use crate::fault::Ask;
use crate::json::{at, entries, flag, items, number, text};
use crate::raw::escape;

/// Label of the containers that only give access to a volume.
pub(crate) const HELPER: &str = "tranship.helper";

/// Where such a container has it.
const HELPER_PATH: &str = "/tranship-volume";

/// What a helper mounts.
enum Mounted<'a> {
    Volume(&'a str),
    Bind(&'a str),
}

impl DockerEngine {
    pub(crate) async fn place_of(&self, element: &ElementAt) -> Result<ElementPlace, EngineError> {
        match element {
            ElementAt::Layer { container } => self.place_of_layer(container).await,
            ElementAt::Volume { name } => self.place_of_volume(name).await,
            ElementAt::Bind { path } => self.place_of_bind(path).await,
            ElementAt::Tmpfs { container, path } => self.place_of_tmpfs(container, path).await,
            ElementAt::Memory { container, bytes } => Ok(ElementPlace::Directory {
                path: self.place_of_memory(container, *bytes).await?,
                overlay: false,
            }),
        }
    }

    /// Whether files are reached without the engine here.
    ///
    /// # Errors
    /// As [`tranship_core::Engine::facts`].
    pub async fn reaches_files_directly(&self) -> Result<bool, EngineError> {
        self.is_local(&self.identity().await?).await
    }

    /// Whether the engine's data root is the one that this process sees, and it may work there.
    async fn is_local(&self, identity: &Identity) -> Result<bool, EngineError> {
        if !self.wants_direct() || identity.shifts_ids {
            return Ok(false);
        }
        let root = self.seen(&identity.root);
        match std::fs::read_to_string(root.join("engine-id")) {
            Ok(id) => return Ok(id.trim() == identity.id),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(_) => return Ok(false),
        }
        if self.podman && self.shares_mounts().await {
            return Ok(true);
        }
        // Docker before 23, and Podman: any container will do, as nobody else has its id.
        Ok(self.containers().await?.iter().any(|container| {
            let id = container.id.as_str();
            root.join("containers").join(id).is_dir() || root.join("overlay-containers").join(id).is_dir()
        }))
    }

    /// A path of the engine's file system as this process sees it. Symbolic links on it are not looked at.
    fn seen(&self, path: &Path) -> PathBuf {
        self.root_prefix.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The directory of the host, if it is one that may be read.
    fn directory(&self, path: &Path) -> Option<PathBuf> {
        let found = confined::resolve(&self.root_prefix, path, false).ok()?;
        std::fs::read_dir(&found).is_ok().then_some(found)
    }

    async fn place_of_layer(&self, container: &ContainerId) -> Result<ElementPlace, EngineError> {
        let document = self.document(container.as_str()).await?;
        let driver = storage_of(&document);
        let upper = PathBuf::from(text(&document, &["GraphDriver", "Data", "UpperDir"]));
        let identity = self.identity().await?;
        if self.podman && self.is_local(&identity).await? {
            let upper = self.podman_layer(&identity, container).await?;
            let path = self.directory(&upper).ok_or_else(|| EngineError::NotFound {
                what: "file",
                name: upper.display().to_string(),
            })?;
            return Ok(ElementPlace::Directory { path, overlay: true });
        }
        let upper = match driver.as_str() {
            "overlay2" if !upper.as_os_str().is_empty() => Some(upper),
            "overlayfs" => self.snapshot_of(&identity, container, &document).await?,
            _ => None,
        };
        if let Some(upper) = upper
            && self.is_local(&identity).await?
            && let Some(path) = self.directory(&upper)
        {
            return Ok(ElementPlace::Directory { path, overlay: true });
        }
        if driver == "overlayfs" && self.wants_direct() && !identity.shifts_ids {
            return Err(EngineError::Unsupported {
                message: format!(
                    "the layer of {container} is kept by containerd, and is not found among its files; `docker cp` would give its volumes as well"
                ),
            });
        }
        Ok(ElementPlace::Archive {
            container: container.clone(),
            path: "/".into(),
        })
    }

    async fn place_of_volume(&self, name: &str) -> Result<ElementPlace, EngineError> {
        let volume = self.volume(name).await?;
        let files = files_of(&volume)?;
        if let Some(files) = files
            && self.is_local(&self.identity().await?).await?
            && let Some(path) = self.directory(&files)
        {
            return Ok(ElementPlace::Directory { path, overlay: false });
        }
        self.helper(&Mounted::Volume(name)).await
    }

    async fn place_of_bind(&self, path: &str) -> Result<ElementPlace, EngineError> {
        if !path.starts_with('/') || path.contains('\0') {
            return Err(EngineError::Unsupported {
                message: format!("{path:?} is not an absolute path of the host"),
            });
        }
        if self.is_local(&self.identity().await?).await?
            // It may be what has yet to come.
            && let Ok(path) = confined::resolve(&self.root_prefix, Path::new(path), true)
        {
            return Ok(ElementPlace::Directory { path, overlay: false });
        }
        self.helper(&Mounted::Bind(path)).await
    }

    /// A tmpfs is seen only through a process of the container. The engine's archive API does not show it.
    async fn place_of_tmpfs(&self, container: &ContainerId, path: &str) -> Result<ElementPlace, EngineError> {
        let unsupported = |why: &str| EngineError::Unsupported {
            message: format!("the tmpfs at {path} cannot be reached: {why}"),
        };
        let document = self.document(container.as_str()).await?;
        let process = number(&document, &["State", "Pid"]);
        if !flag(&document, &["State", "Running"]) || process <= 0 {
            return Err(unsupported("its container does not run, so it is not there"));
        }
        if !self.wants_direct() {
            return Err(unsupported("that takes root on the node"));
        }
        if self.identity().await?.shifts_ids {
            return Err(unsupported("the engine shifts user ids"));
        }
        let process = self.seen(&PathBuf::from(format!("/proc/{process}")));
        // The number may mean another process here, or by now.
        let groups = std::fs::read_to_string(process.join("cgroup")).unwrap_or_default();
        if !cgroups::are_of(&groups, container.as_str()) {
            return Err(unsupported("the container's process is not seen from here"));
        }
        let found = confined::resolve(&process.join("root"), Path::new(path), false)
            .map_err(|error| unsupported(&error.to_string()))?;
        let system = rustix::fs::statfs(&found).map_err(|error| unsupported(&error.to_string()))?;
        if system.f_type != TMPFS_MAGIC {
            return Err(unsupported("there is no tmpfs at this path"));
        }
        Ok(ElementPlace::Directory {
            path: found,
            overlay: false,
        })
    }

    /// Makes a container that mounts the thing and is never started: the archive API reaches it through that.
    async fn helper(&self, mounted: &Mounted<'_>) -> Result<ElementPlace, EngineError> {
        let (kind, source) = match *mounted {
            Mounted::Volume(name) => ("volume", name),
            Mounted::Bind(path) => ("bind", path),
        };
        let ask = Ask::new("reach the files of", kind, source);
        let (image, config) = self.any_image(mounted).await?;
        let mut mounts = vec![json!({ "Type": kind, "Source": source, "Target": HELPER_PATH })];
        if let Mounted::Volume(_) = mounted {
            mounts[0]["VolumeOptions"] = json!({ "NoCopy": true });
        }
        // Otherwise the engine makes volumes for these, which nobody needs and somebody has to remove.
        mounts.extend(
            entries(&config, &["Volumes"]).map(|(path, _)| json!({ "Type": "tmpfs", "Target": path })),
        );
        let mut random = [0u8; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| ask.failed(error))?;
        let name = format!("tranship-helper-{}", tranship_core::ids::hex(&random));
        let body = json!({
            "Image": image,
            "Entrypoint": ["/tranship-helper-is-never-started"],
            "Cmd": [],
            "Healthcheck": { "Test": ["NONE"] },
            "NetworkDisabled": true,
            "Labels": { HELPER: format!("{kind} {source}") },
            "HostConfig": {
                "Mounts": mounts,
                "NetworkMode": "none",
                "RestartPolicy": { "Name": "no" },
                "LogConfig": { "Type": "none" },
            },
        });
        let made = self
            .raw
            .post(&format!("/containers/create?name={}", escape(&name)), &body, &ask)
            .await;
        let id = match made {
            Ok(answer) => ContainerId::new(text(&answer, &["Id"])).map_err(|error| ask.uncertain(error)),
            Err(EngineError::Failed { message, .. })
                if kind == "bind" && message.contains("source path does not exist") =>
            {
                return Err(EngineError::NotFound {
                    what: "file",
                    name: source.to_owned(),
                });
            }
            Err(error) => Err(error),
        };
        match id {
            Ok(container) => Ok(ElementPlace::Archive {
                container,
                path: HELPER_PATH.into(),
            }),
            Err(error) => {
                // The name is random: what bears it is ours.
                if matches!(error, EngineError::Uncertain { .. })
                    && let Ok(document) = self.document(&name).await
                    && let Ok(id) = ContainerId::new(text(&document, &["Id"]))
                    && let Err(left) = self.remove_container_only(&id).await
                {
                    tracing::error!(container = %name, error = %left, "a helper container could not be removed");
                }
                Err(error)
            }
        }
    }

    /// The image of a container that uses the thing, or any other, with its configuration.
    async fn any_image(&self, mounted: &Mounted<'_>) -> Result<(String, Value), EngineError> {
        let ask = Ask::new("list", "containers", "");
        let containers = self.raw.get("/containers/json?all=1", &ask).await?;
        let uses = |container: &&Value| {
            items(container, &["Mounts"]).iter().any(|mount| match *mounted {
                Mounted::Volume(name) => text(mount, &["Name"]) == name,
                Mounted::Bind(path) => text(mount, &["Source"]) == path,
            })
        };
        let mut candidates: Vec<String> = items(&containers, &[])
            .iter()
            .filter(uses)
            .chain(items(&containers, &[]))
            .map(|container| text(container, &["ImageID"]))
            .collect();
        let ask = Ask::new("list", "images", "");
        let images = self.raw.get("/images/json", &ask).await?;
        candidates.extend(items(&images, &[]).iter().map(|image| text(image, &["Id"])));
        for id in candidates {
            match self.image_document(&id).await {
                Ok(document) => return Ok((id, at(&document, &["Config"]).clone())),
                // Removed by force while its container lives, or meanwhile.
                Err(EngineError::NotFound { .. }) => {}
                Err(other) => return Err(other),
            }
        }
        Err(EngineError::Unsupported {
            message:
                "files are reached through a container here, and the engine has no image to make one from"
                    .into(),
        })
    }

    pub(crate) async fn release_place(&self, place: &ElementPlace) -> Result<(), EngineError> {
        let ElementPlace::Archive { container, .. } = place else {
            return Ok(());
        };
        let document = match self.document(container.as_str()).await {
            Err(EngineError::NotFound { .. }) => return Ok(()),
            other => other?,
        };
        if at(&document, &["Config", "Labels", HELPER]).is_null() {
            return Ok(());
        }
        // Without its volumes: what it mounts is what it was made for.
        self.remove_container_only(container).await
    }
}

/// `TMPFS_MAGIC` of `linux/magic.h`.
const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;

/// The directory with a volume's files whether or not it is mounted; `None` where only the engine can say.
fn files_of(volume: &VolumeSpec) -> Result<Option<PathBuf>, EngineError> {
    if volume.driver != "local" {
        return Ok(None);
    }
    let option = |key: &str| volume.options.get(key).map_or("", String::as_str);
    if option("type") == "tmpfs" {
        return Err(EngineError::Unsupported {
            message: format!(
                "volume {} is kept in memory and is gone when nobody mounts it: its files do not travel",
                volume.name
            ),
        });
    }
    let device = option("device");
    if device.is_empty() {
        return Ok(volume.mountpoint.clone());
    }
    let bind = option("o")
        .split(',')
        .any(|word| matches!(word, "bind" | "rbind"));
    // The mountpoint holds something only while it is mounted.
    Ok((bind && device.starts_with('/')).then(|| device.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(options: &[(&str, &str)]) -> VolumeSpec {
        VolumeSpec {
            name: "v".into(),
            driver: "local".into(),
            mountpoint: Some("/m/_data".into()),
            options: options
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
            ..VolumeSpec::default()
        }
    }

    #[test]
    fn where_the_files_of_a_volume_are() {
        let files = |options: &[(&str, &str)]| files_of(&volume(options)).unwrap();
        assert_eq!(files(&[]), Some("/m/_data".into()));
        assert_eq!(files(&[("o", "size=1g")]), Some("/m/_data".into()));
        let bind = [("type", "none"), ("o", "rw,bind"), ("device", "/srv/data")];
        assert_eq!(files(&bind), Some("/srv/data".into()));
        assert_eq!(
            files(&[("type", "nfs"), ("o", "addr=x"), ("device", ":/x")]),
            None
        );
        assert_eq!(files(&[("type", "ext4"), ("device", "/dev/sdb1")]), None);
        let memory = files_of(&volume(&[("type", "tmpfs"), ("device", "tmpfs")]));
        assert!(matches!(memory, Err(EngineError::Unsupported { .. })));
        let mut other = volume(&[]);
        other.driver = "elsewhere".into();
        assert_eq!(files_of(&other).unwrap(), None);
    }
}
