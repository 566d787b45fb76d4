//! Test images, built here because there is no registry to pull from, and kept as archives.
//!
//! - `tranship-test/busybox:1`: one layer of 2 MB from scratch, a static busybox; serves a page on port 8080.
//! - `tranship-test/web:1`: a dozen layers, about 200 MB: Debian, Python, nginx, an application, configuration.
//!   Serves on port 8080, says where it runs under `/host`, has a health check, runs as a user of its own.
//! - `tranship-test/web:2`: the same and one more layer of 8 MiB that doesn't compress.
//! - `tranship-test/state:1`: what keeps state, on the first three layers of `web:1`: PostgreSQL 17 (`run-postgres`), Redis
//!   (`redis-server`), and under `/opt/later` Debian packages to be installed while it runs. Sleeps unless told otherwise.
//! - `tranship-test/python:1`: one small layer from scratch: busybox, Python, the tools for ACLs, attributes and capabilities,
//!   and a service that appends lines with fsync (`append-service`). Sleeps unless told otherwise.
//! - `tranship-test/node:1`, `tranship-test/java:1`: one layer each from scratch: busybox, Node or a headless Java, and a program that
//!   counts (`/opt/counting.js`, `/opt/Counting.class`). Sleep unless told otherwise.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use sha2::{Digest, Sha256};

use super::bed::Bed;
use super::error::{AtPath, Error, Result};
use super::node::Node;
use super::options::Options;
use super::paths::{Dirs, Lock, make_dir};
use super::run::{HOST, checked, host};
use super::tree::{Tree, short_hex};
use super::{Testbed, host as machine};

/// The names [`Node::load_image`] takes.
pub const IMAGES: [&str; 7] = ["busybox", "web:1", "web:2", "state:1", "python", "node", "java"];

const BUILD_SCRIPT: &str = include_str!("scripts/build-images.sh");

/// Programs of the images, by name.
const PROGRAMS: [(&str, &str); 4] = [
    ("append-service", include_str!("scripts/append-service.py")),
    ("run-postgres", include_str!("scripts/run-postgres.sh")),
    ("counting.js", include_str!("scripts/counting.js")),
    ("Counting.java", include_str!("scripts/Counting.java")),
];

/// Where nodes see the image cache.
const IN_NODE: &str = "/images";

/// Builds the test images unless the cache has them, which takes a minute; returns the directory with their
/// archives (`busybox-1.tar`, `web-1.tar`, `web-2.tar`, `state-1.tar`, `python-1.tar`, `node-1.tar`, `java-1.tar`, as `docker save`
/// writes them).
///
/// # Errors
///
/// As [`Testbed::up`], and what building meets.
pub fn ensure_images(dirs: &Dirs, mirror: Option<&str>) -> Result<PathBuf> {
    machine::prepare(dirs)?;
    let tree = Tree::ensure(dirs, mirror)?;
    let finished = dirs.images().join(recipe_hash(&tree));
    if finished.exists() {
        return Ok(finished);
    }
    let _lock = Lock::take(&dirs.cache.join("images.lock"))?;
    if !finished.exists() {
        build(dirs, &tree, &finished)?;
    }
    Ok(finished)
}

/// Loads an image into a node and returns its full name.
pub(crate) fn load(bed: &Bed, node: &Node, name: &str) -> Result<String> {
    let file = archive(name)?;
    let directory = ensure_images(&bed.dirs, None)?;
    let hash = directory
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let path = format!("{IN_NODE}/{hash}/{file}");
    let said = node.exec_ok([node.engine().client(), "load", "--input", &path])?;
    let reference = said
        .lines()
        .rev()
        .find_map(|line| line.split_once("Loaded image: "))
        .map(|(_, name)| name);
    Ok(reference.unwrap_or_default().trim().to_owned())
}

fn archive(name: &str) -> Result<&'static str> {
    match name {
        "busybox" | "busybox:1" => Ok("busybox-1.tar"),
        "web" | "web:1" => Ok("web-1.tar"),
        "web:2" => Ok("web-2.tar"),
        "state" | "state:1" => Ok("state-1.tar"),
        "python" | "python:1" => Ok("python-1.tar"),
        "node" | "node:1" => Ok("node-1.tar"),
        "java" | "java:1" => Ok("java-1.tar"),
        other => Err(Error::NoImage(other.to_owned())),
    }
}

fn build(dirs: &Dirs, tree: &Tree, finished: &Path) -> Result<()> {
    let begin = Instant::now();
    tracing::info!("building the test images, once per recipe");
    let bed = Testbed::up(Options {
        nodes: 1,
        dirs: dirs.clone(),
        ..Options::default()
    })?;
    let [node] = bed.array();
    let workshop = node.root()?.join("root/build");
    make_dir(&workshop)?;
    let base = workshop.join("base.tar");
    fs::copy(tree.base_archive(), &base).at("copy a file to", &base)?;
    for group in ["runtime", "server", "state", "later", "languages"] {
        let to = workshop.join("debs").join(group);
        make_dir(&to)?;
        checked(HOST, host("cp").arg("-rT").arg(tree.packages(group)).arg(&to))?;
    }
    let programs = workshop.join("programs");
    make_dir(&programs)?;
    for (name, text) in PROGRAMS {
        let file = programs.join(name);
        fs::write(&file, text).at("write", &file)?;
    }
    let script = workshop.join("build-images.sh");
    fs::write(&script, BUILD_SCRIPT).at("write", &script)?;
    node.exec_ok(["sh", "/root/build/build-images.sh"])?;

    let unfinished = dirs.images().join("building");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).at("remove", &unfinished)?;
    }
    checked(
        HOST,
        host("cp").arg("-rT").arg(workshop.join("out")).arg(&unfinished),
    )?;
    fs::rename(&unfinished, finished).at("rename into place", finished)?;
    bed.down()?;
    tracing::info!("test images built in {:.0} s", begin.elapsed().as_secs_f64());
    Ok(())
}

fn recipe_hash(tree: &Tree) -> String {
    let mut recipe = Sha256::new();
    recipe.update(tree.hash());
    recipe.update(BUILD_SCRIPT);
    for (name, text) in PROGRAMS {
        recipe.update(name);
        recipe.update(text);
    }
    short_hex(&recipe.finalize())
}
