//! containerd behind Docker, where it keeps the engine's images and the layers of its containers (`containerd-snapshotter`).
//!
//! The engine does not say where the files are, containerd does: the upper directory of a container is an option of the mount that
//! its snapshot would have, whether or not it runs, and blobs lie in files that are called by their digests. containerd is asked
//! over its own socket, as root; it is believed only where its root directory bears the id that it gives itself, since a socket may
//! lead to one in another namespace.
//!
//! ```text
//! io.containerd.grpc.v1.introspection/uuid                          its id
//! io.containerd.content.v1.content/blobs/sha256/DIGEST              blobs
//! io.containerd.snapshotter.v1.overlayfs/snapshots/NUMBER/fs        what a layer or a container holds
//! ```

mod archive;
mod blobs;
mod content;
mod guard;
mod proof;
mod proto;
mod rpc;

use std::path::{Path, PathBuf};

use serde_json::Value;
use tranship_core::ids::Digest;
use tranship_core::node::ImageStore;
use tranship_core::{ContainerId, EngineError};

pub(crate) use archive::OciArchive;
pub(crate) use content::{Content, Kept};
pub(crate) use guard::same_as_mounted;
use rpc::{CallError, Connection};

use crate::confined;
use crate::docker::{DockerEngine, Identity};
use crate::fault::Ask;
use crate::json::{at, flag, number, text};

/// Where containerd listens: the system's, and one that dockerd started for itself.
const SOCKETS: [&str; 2] = [
    "/run/containerd/containerd.sock",
    "/run/docker/containerd/containerd.sock",
];

/// The namespace of Docker's containers and images.
const NAMESPACE: &str = "moby";

/// The snapshotter whose layers are understood.
pub(crate) const SNAPSHOTTER: &str = "overlayfs";

/// The kind of plug-in that it is.
const SNAPSHOTS: &str = "io.containerd.snapshotter.v1";

/// containerd, as the engine uses it.
#[derive(Debug, Clone)]
pub(crate) struct Containerd {
    connection: Connection,
    /// The id that it gives itself.
    id: String,
    /// Its root directory, as the engine sees it.
    root: PathBuf,
    /// The same, as this process sees it.
    seen: PathBuf,
}

impl Containerd {
    /// The containerd at this socket, if it is one whose files are seen from here.
    async fn at(socket: &Path, namespace: &str, prefix: &Path) -> Result<Self, CallError> {
        let connection = Connection::to(socket, namespace).await?;
        let mut filter = Vec::new();
        proto::put_text(&mut filter, 1, "type==io.containerd.content.v1,id==content");
        let snapshots = format!("type=={SNAPSHOTS},id=={SNAPSHOTTER}");
        proto::put_text(&mut filter, 1, &snapshots);
        let plugins = connection
            .call(
                "containerd.services.introspection.v1.Introspection/Plugins",
                &filter,
            )
            .await?;
        let root = content_root(&plugins)?.ok_or(CallError::NotFound)?;
        let server = connection
            .call("containerd.services.introspection.v1.Introspection/Server", &[])
            .await?;
        let id = proto::text(&server, 1)?;
        let unseen = |why: String| CallError::Failed(format!("its files in {}: {why}", root.display()));
        let seen = confined::resolve(prefix, &root, false).map_err(|error| unseen(error.to_string()))?;
        let file = seen.join("io.containerd.grpc.v1.introspection/uuid");
        let here = std::fs::read_to_string(file).map_err(|error| unseen(error.to_string()))?;
        if id.is_empty() || here.trim() != id {
            return Err(unseen("they are another one's".into()));
        }
        // A snapshotter may be told to keep its files elsewhere: there, nothing proves whose they are.
        let own = plugin_root(&plugins, SNAPSHOTS)?;
        let below = format!("{SNAPSHOTS}.{SNAPSHOTTER}");
        if own != Some(root.join(&below)) {
            return Err(unseen(format!("its snapshots are elsewhere: {own:?}")));
        }
        let snapshots = confined::resolve(&seen, Path::new(&below).join("snapshots").as_path(), false);
        let snapshots = snapshots.map_err(|error| unseen(format!("its snapshots: {error}")))?;
        if let Err(error) = std::fs::read_dir(snapshots) {
            return Err(unseen(format!("its snapshots: {error}")));
        }
        Ok(Self {
            connection,
            id,
            root,
            seen,
        })
    }

    /// Whether a blob is there for the engine.
    pub(crate) async fn holds(&self, blob: &Digest) -> Result<bool, CallError> {
        Ok(self.size_of(blob).await?.is_some())
    }

    /// How long a blob is that is there for the engine, whatever became of its file; `None` if it is not there.
    pub(crate) async fn size_of(&self, blob: &Digest) -> Result<Option<u64>, CallError> {
        let mut message = Vec::new();
        proto::put_text(&mut message, 1, blob.as_str());
        match self
            .connection
            .call("containerd.services.content.v1.Content/Info", &message)
            .await
        {
            Ok(answer) => {
                let info = proto::each(&answer, 1)?.pop().unwrap_or_default();
                Ok(Some(proto::number(info, 2)?))
            }
            Err(CallError::NotFound) => Ok(None),
            Err(other) => Err(other),
        }
    }

    /// How many of these blobs, from the first one on, are there.
    pub(crate) async fn first_held(&self, blobs: &[Digest]) -> Result<usize, CallError> {
        for (index, blob) in blobs.iter().enumerate() {
            if !self.holds(blob).await? {
                return Ok(index);
            }
        }
        Ok(blobs.len())
    }

    /// The directory that a container writes into, as the engine sees it; `None` where containerd does not know the container, or
    /// keeps it in another form than that of overlay file systems.
    async fn upper_directory(&self, container: &ContainerId) -> Result<Option<PathBuf>, CallError> {
        let mut message = Vec::new();
        proto::put_text(&mut message, 1, SNAPSHOTTER);
        proto::put_text(&mut message, 2, container.as_str());
        let method = "containerd.services.snapshots.v1.Snapshots/Mounts";
        let mounts = match self.connection.call(method, &message).await {
            Err(CallError::NotFound) => return Ok(None),
            other => other?,
        };
        let Some(upper) = upper_of(&mounts)? else {
            return Ok(None);
        };
        // It says where it keeps snapshots: anything else would be another directory than the one meant.
        let snapshots = self.root.join(format!("{SNAPSHOTS}.{SNAPSHOTTER}/snapshots"));
        Ok(guard::is_snapshot(&snapshots, &upper).then_some(upper))
    }

    /// Its root directory, as the engine sees it.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The blobs.
    pub(crate) fn content(&self) -> Content {
        Content::below(&self.seen)
    }
}

/// containerd's root directory, from what its content store says of itself.
fn content_root(plugins: &[u8]) -> Result<Option<PathBuf>, CallError> {
    let Some(path) = plugin_root(plugins, "io.containerd.content.v1")? else {
        return Ok(None);
    };
    let root = path.parent().filter(|root| root.is_absolute());
    let usual = path
        .file_name()
        .is_some_and(|name| name == "io.containerd.content.v1.content");
    Ok(root.filter(|_| usual).map(Path::to_owned))
}

/// Where the first plug-in of a kind says that it keeps its files.
fn plugin_root(plugins: &[u8], kind: &str) -> Result<Option<PathBuf>, CallError> {
    for plugin in proto::each(plugins, 1)? {
        if proto::text(plugin, 1)? != kind {
            continue;
        }
        for export in proto::each(plugin, 5)? {
            if proto::text(export, 1)? == "root" {
                return Ok(Some(PathBuf::from(proto::text(export, 2)?)));
            }
        }
    }
    Ok(None)
}

/// The upper directory of the one overlay mount that an answer names.
fn upper_of(mounts: &[u8]) -> Result<Option<PathBuf>, CallError> {
    let mounts = proto::each(mounts, 1)?;
    let [mount] = mounts.as_slice() else {
        return Ok(None);
    };
    if proto::text(mount, 1)? != "overlay" {
        return Ok(None);
    }
    let mut upper = None;
    for option in proto::each(mount, 4)? {
        let option = std::str::from_utf8(option).map_err(|_| proto::Malformed)?;
        if let Some(path) = option.strip_prefix("upperdir=")
            && upper.replace(PathBuf::from(path)).is_some()
        {
            return Ok(None);
        }
    }
    Ok(upper.filter(|path| path.is_absolute()))
}

impl DockerEngine {
    /// The containerd of an engine that keeps its images there, if this process may ask it and sees its files.
    pub(crate) async fn containerd(&self, identity: &Identity) -> Option<Containerd> {
        if identity.store != ImageStore::Containerd || !self.wants_direct() || identity.shifts_ids {
            return None;
        }
        // Docker 27 and later say it; before, only one of them can be theirs.
        let info = self
            .raw
            .get("/info", &Ask::new("describe", "engine", ""))
            .await
            .ok()?;
        let told = text(&info, &["Containerd", "Address"]);
        let namespace = match text(&info, &["Containerd", "Namespaces", "Containers"]) {
            namespace if namespace.is_empty() => NAMESPACE.to_owned(),
            namespace => namespace,
        };
        let sockets: Vec<&str> = match told.as_str() {
            "" => SOCKETS.to_vec(),
            told => vec![told],
        };
        let mut found: Vec<Containerd> = Vec::new();
        for socket in sockets {
            let Ok(path) = confined::resolve(&self.root_prefix, Path::new(socket), false) else {
                continue;
            };
            match Containerd::at(&path, &namespace, &self.root_prefix).await {
                // Two paths may lead to one.
                Ok(containerd) if found.iter().any(|other| other.id == containerd.id) => {}
                Ok(containerd) => match self.is_behind(identity, &containerd).await {
                    Ok(true) => found.push(containerd),
                    Ok(false) => tracing::debug!(socket, "this containerd has nothing of this engine"),
                    Err(error) => tracing::debug!(socket, %error, "this containerd is not used"),
                },
                Err(error) => tracing::debug!(socket, ?error, "this containerd is not used"),
            }
        }
        // Which of several it is would be a guess.
        let one = found.pop()?;
        found.is_empty().then_some(one)
    }

    /// Where a container's own layer is, as the engine sees it. `None` where that cannot be told for certain.
    pub(crate) async fn snapshot_of(
        &self,
        identity: &Identity,
        container: &ContainerId,
        document: &Value,
    ) -> Result<Option<PathBuf>, EngineError> {
        let Some(containerd) = self.containerd(identity).await else {
            return Ok(None);
        };
        let ask = Ask::new("find the layer of", "container", container.as_str());
        let upper = containerd.upper_directory(container).await;
        let upper = upper.map_err(|error| ask.uncertain(explain(error)))?;
        let Some(upper) = upper else { return Ok(None) };
        if let Err(error) = self.compare_mounted(container, &upper, document) {
            // It may have ended meanwhile, or have started again.
            let now = self.document(container.as_str()).await?;
            self.compare_mounted(container, &upper, &now).map_err(|_| error)?;
        }
        Ok(Some(upper))
    }

    /// While a container runs, the kernel knows as well where its layer is.
    fn compare_mounted(
        &self,
        container: &ContainerId,
        upper: &Path,
        document: &Value,
    ) -> Result<(), EngineError> {
        let process = number(document, &["State", "Pid"]);
        if !flag(document, &["State", "Running"]) || process <= 0 {
            return Ok(());
        }
        let directory = self.root_prefix.join(format!("proc/{process}"));
        let read = |name: &str| std::fs::read_to_string(directory.join(name));
        same_as_mounted("containerd", container, upper, read("cgroup"), read("mountinfo"))
    }
}

/// An error of containerd's for people.
pub(crate) fn explain(error: CallError) -> String {
    match error {
        CallError::NotFound => "containerd does not know it".into(),
        CallError::Failed(message) => format!("containerd: {message}"),
    }
}

/// The name of the storage that an engine has a container in: `GraphDriver`, in Docker 29 and later `Storage` for containerd's.
pub(crate) fn storage_of(document: &Value) -> String {
    match text(at(document, &["GraphDriver"]), &["Name"]) {
        name if name.is_empty() => text(document, &["Storage", "RootFS", "Snapshot", "Name"]),
        name => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(parts: &[(u64, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (field, part) in parts {
            // Whatever is in it, what a field of bytes looks like is the same.
            let text = std::str::from_utf8(part).unwrap();
            proto::put_text(&mut bytes, *field, text);
        }
        bytes
    }

    #[test]
    fn the_upper_directory_is_that_of_one_overlay_mount() {
        let overlay = message(&[
            (1, b"overlay"),
            (2, b"overlay"),
            (4, b"index=off"),
            (4, b"upperdir=/r/snapshots/3/fs"),
            (4, b"lowerdir=/r/snapshots/2/fs"),
        ]);
        let answer = message(&[(1, &overlay)]);
        assert_eq!(upper_of(&answer), Ok(Some("/r/snapshots/3/fs".into())));
        let two = message(&[(1, &overlay), (1, &overlay)]);
        assert_eq!(upper_of(&two), Ok(None));
        let bind = message(&[(
            1,
            &message(&[(1, b"bind"), (2, b"/r/snapshots/3/fs"), (4, b"rw")]),
        )]);
        assert_eq!(upper_of(&bind), Ok(None));
        let view = message(&[(
            1,
            &message(&[(1, b"overlay"), (4, b"lowerdir=/r/snapshots/2/fs")]),
        )]);
        assert_eq!(upper_of(&view), Ok(None));
        assert_eq!(upper_of(b""), Ok(None));
    }

    #[test]
    fn the_root_is_where_the_content_store_is() {
        let plugin = |kind: &[u8], path: &[u8]| {
            let export = message(&[(1, b"root"), (2, path)]);
            message(&[(1, kind), (2, b"content"), (5, &export)])
        };
        let answer = |plugin: &[u8]| content_root(&message(&[(1, plugin)])).unwrap();
        let kind = b"io.containerd.content.v1";
        let usual = plugin(kind, b"/r/io.containerd.content.v1.content");
        assert_eq!(answer(&usual), Some("/r".into()));
        let snapshots = plugin(SNAPSHOTS.as_bytes(), b"/r/elsewhere");
        let both = message(&[(1, &usual), (1, &snapshots)]);
        assert_eq!(content_root(&both), Ok(Some("/r".into())));
        assert_eq!(plugin_root(&both, SNAPSHOTS), Ok(Some("/r/elsewhere".into())));
        assert_eq!(plugin_root(&message(&[(1, &usual)]), SNAPSHOTS), Ok(None));
        assert_eq!(answer(&plugin(kind, b"/elsewhere")), None);
        assert_eq!(answer(&plugin(kind, b"io.containerd.content.v1.content")), None);
        assert_eq!(
            answer(&plugin(b"x", b"/r/io.containerd.content.v1.content")),
            None
        );
    }
}
