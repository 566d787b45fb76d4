//! Through the engine's own archive API.

use std::io::{BufWriter, Read, Seek as _};

use futures_util::StreamExt as _;
use tranship_archive::copy_rules::means_contents;
use tranship_archive::filter::{FilterSpec, Pattern};
use tranship_archive::glob::Glob;
use tranship_archive::path::TreePath;
use tranship_core::engine::{ByteStream, ImportOptions};
use tranship_core::fault::FaultKind;
use tranship_core::{ContainerId, Engine, EngineError, Fault};

use super::bridge::{self, Pieces};
use super::spool;
use super::{Holder, PathRequest, RemoteStat, Unpacked, blocking, no_file, rewrite};

/// The engine's path for a path of the holder.
fn whole(prefix: &str, path: &[u8]) -> Result<String, Fault> {
    let text = std::str::from_utf8(path).map_err(|_| {
        Fault::new(
            "file.name",
            FaultKind::Environment,
            "the engine's API takes only paths in UTF-8",
        )
        .with_hint("start the container, or work as root")
    })?;
    if prefix.is_empty() {
        return Ok(text.to_owned());
    }
    // What is above the prefix is not the holder's: no `..` goes along.
    let below = TreePath::of_request(path)?;
    let below = String::from_utf8_lossy(below.as_bytes()).into_owned();
    let end = if means_contents(path) || below.is_empty() {
        "/."
    } else if text.ends_with('/') {
        "/"
    } else {
        ""
    };
    Ok(format!("{prefix}/{below}").trim_end_matches('/').to_owned() + end)
}

/// The engine's own words where it has some.
fn told(error: EngineError, path: &[u8], holder: &Holder) -> Fault {
    match error {
        EngineError::NotFound { what: "file", .. } => no_file(path, holder),
        EngineError::Failed { message, .. } if message.contains("marked read-only") => {
            Fault::new("file.read-only", FaultKind::Environment, message)
        }
        EngineError::Failed { message, .. } if message.contains("not a directory") => {
            Fault::new("archive.not-a-directory", FaultKind::Environment, message)
        }
        EngineError::Failed { message, .. } if message.contains("cannot overwrite") => {
            Fault::new("archive.overwrite-directory", FaultKind::Environment, message)
        }
        other => other.into(),
    }
}

pub(super) async fn stat(
    engine: &dyn Engine,
    container: &ContainerId,
    prefix: &str,
    path: &[u8],
    holder: &Holder,
) -> Result<RemoteStat, Fault> {
    let header = engine.path_stat(container, &whole(prefix, path)?).await;
    let mut stat = match header {
        Ok(header) => RemoteStat::from_header(&header)?,
        // An answer without a body says nothing but its status.
        Err(EngineError::Failed { status: 500, .. }) if path.ends_with(b"/") => {
            return Err(Fault::new(
                "archive.not-a-directory",
                FaultKind::Environment,
                format!("{}: not a directory", String::from_utf8_lossy(path)),
            ));
        }
        Err(error) => return Err(told(error, path, holder)),
    };
    if let Some(inside) = stat.link_target.strip_prefix(prefix) {
        stat.link_target = inside.to_owned();
    }
    Ok(stat)
}

pub(super) async fn find(
    engine: &dyn Engine,
    container: &ContainerId,
    prefix: &str,
    glob: Glob,
    holder: &Holder,
) -> Result<Vec<TreePath>, Fault> {
    let (above, _) = glob.literal();
    let path = [b"/", above.as_bytes(), b"/."].concat();
    let archive = match engine.export_path(container, &whole(prefix, &path)?).await {
        Ok(archive) => archive,
        Err(EngineError::NotFound { what: "file", .. }) => return Ok(Vec::new()),
        Err(error) => return Err(told(error, &path, holder)),
    };
    let reader = bridge::reader(archive);
    blocking(move || Ok(glob.in_archive(&mut rewrite::open(reader)?)?)).await
}

pub(super) async fn pack(
    engine: &dyn Engine,
    container: &ContainerId,
    prefix: &str,
    asked: &PathRequest,
    stat: &RemoteStat,
    holder: &Holder,
) -> Result<Pieces, Fault> {
    let mut path = asked.path.clone();
    let mut name = asked.base()?;
    let own = TreePath::of_request(&path)?.name().map(<[u8]>::to_vec);
    if asked.follow && stat.is_link() {
        path = stat.link_target.clone().into_bytes();
        if name.is_none() {
            name = own.as_deref().map(TreePath::below).transpose()?;
        }
    }
    let filter = asked.filter()?;
    let archive = engine
        .export_path(container, &whole(prefix, &path)?)
        .await
        .map_err(|e| told(e, &path, holder))?;
    // What the engine calls it.
    let base = match TreePath::of_request(&path)?.name() {
        Some(base) if !means_contents(&path) => TreePath::below(base)?,
        _ => TreePath::root(),
    };
    let name = name.unwrap_or_else(|| base.clone());
    if filter.is_empty() && name == base {
        return Ok(Box::pin(archive.map(|piece| piece.map_err(Fault::from))));
    }
    let under = |patterns: &[Pattern]| -> Result<Vec<Pattern>, Fault> {
        let moved = patterns.iter().map(|pattern| {
            let text = [base.as_bytes(), b"/", &pattern.to_bytes()].concat();
            let text = text.strip_prefix(b"/").unwrap_or(&text);
            let whole = pattern.to_bytes().is_empty();
            let text = if whole {
                text.strip_suffix(b"/").unwrap_or(text)
            } else {
                text
            };
            Ok(Pattern::parse(text)?)
        });
        moved.collect()
    };
    let spec = FilterSpec {
        include: under(&filter.include)?,
        exclude: under(&filter.exclude)?,
        strip: base,
        rebase: name,
    };
    let reader = bridge::reader(archive);
    bridge::writer(move |out| rewrite::rewrite(reader, out, &spec, None).map(|_| ())).await
}

pub(super) async fn unpack(
    engine: &dyn Engine,
    container: &ContainerId,
    prefix: &str,
    asked: &PathRequest,
    spool_directory: std::path::PathBuf,
    holder: &Holder,
    archive: impl Read + Send + 'static,
) -> Result<Unpacked, Fault> {
    let path = whole(prefix, &asked.path)?;
    let owner = asked.owner;
    let (file, done) = blocking(move || {
        let failed = |e: std::io::Error| spool::cannot_keep(&spool_directory, &e);
        let mut file = spool::nameless(&spool_directory).map_err(failed)?;
        let out = BufWriter::with_capacity(262_144, &mut file);
        let done = rewrite::rewrite(archive, out, &FilterSpec::default(), owner)?;
        file.rewind().map_err(failed)?;
        Ok((file, done))
    })
    .await?;
    let archive: ByteStream = Box::pin(
        tokio_util::io::ReaderStream::with_capacity(tokio::fs::File::from_std(file), 262_144).map(|piece| {
            piece.map_err(|e| EngineError::Uncertain {
                action: "read the archive".into(),
                message: e.to_string(),
            })
        }),
    );
    let options = ImportOptions {
        no_overwrite_dir_non_dir: asked.no_overwrite_dir_non_dir,
        copy_uid_gid: asked.copy_uid_gid,
    };
    engine
        .import_path_with(container, &path, options, archive)
        .await
        .map_err(|e| told(e, &asked.path, holder))?;
    Ok(done)
}
