//! The nodes' shared root file system: built once per recipe, then used read-only by every node.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use sha2::{Digest, Sha256};

use super::error::{AtPath, Error, Result};
use super::mirror;
use super::paths::{Dirs, Lock, make_dir};
use super::run::{HOST, checked, host, output};

/// The Debian release in the nodes and the test images.
const SUITE: &str = "trixie";

/// The release after it, and what nodes have of that one.
const NEXT_SUITE: &str = "forky";
const NEXT_PACKAGES: [&str; 2] = ["criu", "libcriu2"];

/// What nodes need beyond a bare system.
const PACKAGES: [&str; 28] = [
    "aardvark-dns",
    "busybox-static",
    "ca-certificates",
    "conmon",
    "containerd",
    "criu",
    "crun",
    "curl",
    "docker-cli",
    "docker-registry",
    "docker.io",
    "iproute2",
    "iptables",
    "iputils-ping",
    "jq",
    "libcriu2",
    "netavark",
    "nftables",
    "openssh-client",
    "openssh-server",
    "passt",
    "podman",
    "procps",
    "rsync",
    "runc",
    "skopeo",
    "tini",
    "zstd",
];

/// Packages of the test images by layer.
const IMAGE_PACKAGES: [&str; 5] = [
    "runtime:python3,busybox-static",
    "server:nginx-light",
    "state:postgresql-17,redis-server,acl,attr,libcap2-bin",
    "later:tree,nano",
    "languages:nodejs,openjdk-21-jre-headless,ecj",
];

const BUILD_SCRIPT: &str = include_str!("scripts/build-tree.sh");

/// A finished tree in the cache.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    path: PathBuf,
    hash: String,
}

impl Tree {
    /// The tree of the present recipe, built now if the cache has none: that takes a minute or two and needs the
    /// mirror. Two processes don't build at once.
    pub fn ensure(dirs: &Dirs, mirror: Option<&str>) -> Result<Self> {
        let hash = recipe_hash();
        let tree = Self {
            path: dirs.cache.join(format!("tree-{hash}")),
            hash,
        };
        if tree.path.exists() {
            return Ok(tree);
        }
        let _lock = Lock::take(&dirs.cache.join("tree.lock"))?;
        if !tree.path.exists() {
            tree.build(dirs, mirror)?;
        }
        Ok(tree)
    }

    /// The root directory to be shared.
    pub fn root(&self) -> PathBuf {
        self.path.join("root")
    }

    /// A bare Debian as a tar archive.
    pub fn base_archive(&self) -> PathBuf {
        self.path.join("base.tar")
    }

    /// The directory with the Debian packages of one image layer.
    pub fn packages(&self, group: &str) -> PathBuf {
        self.path.join("debs").join(group)
    }

    /// Names the recipe.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    fn build(&self, dirs: &Dirs, mirror: Option<&str>) -> Result<()> {
        let begin = Instant::now();
        let mirror = match mirror {
            Some(mirror) => mirror.to_owned(),
            None => mirror::find(Path::new("/etc/apt"))?,
        };
        tracing::info!("building the nodes' root file system: Debian {SUITE} from {mirror}, once per recipe");
        remove_leftovers(&dirs.cache)?;
        let work = dirs.cache.join("building");
        make_dir(&work)?;
        let log_path = dirs.cache.join("build.log");
        let log = File::create(&log_path).at("create", &log_path)?;
        let errors = log.try_clone().at("share", &log_path)?;
        let script = work.join("build-tree.sh");
        fs::write(&script, BUILD_SCRIPT).at("write", &script)?;
        let mut command = host("unshare");
        command
            .args([
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "--propagation",
                "private",
                "sh",
            ])
            .arg(&script)
            .env("TB_DIR", &work)
            .env("TB_MIRROR", &mirror)
            .env("TB_SUITE", SUITE)
            .env("TB_NEXT_SUITE", NEXT_SUITE)
            .env("TB_NEXT_PACKAGES", NEXT_PACKAGES.join(" "))
            .env("TB_PACKAGES", PACKAGES.join(" "))
            .env("TB_IMAGE_PACKAGES", IMAGE_PACKAGES.join(" "))
            .stdout(Stdio::from(log))
            .stderr(Stdio::from(errors));
        let mut result = output(HOST, &mut command)?;
        if !result.success() {
            result.stderr = tail(&log_path, 40);
            return Err(super::run::failed(HOST, "build-tree.sh", result));
        }
        fs::rename(&work, &self.path).at("rename into place", &self.path)?;
        tracing::info!("root file system built in {:.0} s", begin.elapsed().as_secs_f64());
        Ok(())
    }
}

/// Removes what a build that was cut off left behind; the lock on builds is held.
fn remove_leftovers(cache: &Path) -> Result<()> {
    let path = cache.join("building");
    match fs::symlink_metadata(&path) {
        Ok(_) => checked(
            HOST,
            host("rm").args(["-rf", "--one-file-system", "--"]).arg(&path),
        )
        .map(drop),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::Io {
            action: "look at",
            path,
            source,
        }),
    }
}

fn recipe_hash() -> String {
    let mut recipe = Sha256::new();
    for part in [SUITE, NEXT_SUITE, BUILD_SCRIPT]
        .iter()
        .chain(&PACKAGES)
        .chain(&NEXT_PACKAGES)
        .chain(&IMAGE_PACKAGES)
    {
        recipe.update(part.len().to_le_bytes());
        recipe.update(part);
    }
    short_hex(&recipe.finalize())
}

/// The first six bytes in hexadecimal: enough to tell recipes apart.
pub(crate) fn short_hex(bytes: &[u8]) -> String {
    bytes.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// The last lines of a log, or nothing where there is none.
pub(crate) fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
