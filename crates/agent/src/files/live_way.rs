//! Straight through a directory.

use std::collections::BTreeSet;
use std::io::Read;
use std::sync::Arc;

use futures_util::StreamExt as _;
use tranship_archive::confined::{
    Attributes, Devices, ExportOptions, ExtractOptions, Extractor, LocateError, Ownership, Root, export_as,
};
use tranship_archive::filter::Pattern;
use tranship_archive::path::TreePath;
use tranship_archive::writer::Writer;
use tranship_core::Fault;
use tranship_core::fault::{Explain as _, FaultKind};

use super::bridge::{self, Pieces};
use super::{Holder, Opened, PathRequest, RemoteStat, Unpacked, blocking, names, no_file, rewrite};

/// The only attribute that docker writes to archives.
const CAPABILITY: &[u8] = b"security.capability";

fn located(error: &LocateError, path: &[u8], holder: &Holder) -> Fault {
    match error.code() {
        "archive.not-found" => no_file(path, holder),
        code @ "archive.not-a-directory" => Fault::new(
            code,
            FaultKind::Environment,
            format!("{}: not a directory", String::from_utf8_lossy(path)),
        ),
        _ => Fault::of(error),
    }
}

pub(super) async fn stat(root: &Arc<Root>, path: &[u8], holder: &Holder) -> Result<RemoteStat, Fault> {
    let (root, path, holder) = (Arc::clone(root), path.to_vec(), holder.clone());
    blocking(move || match root.stat(&path) {
        Ok(stat) => Ok(stat.into()),
        Err(error) => Err(located(&error, &path, &holder)),
    })
    .await
}

pub(super) async fn pack(root: Arc<Root>, asked: PathRequest, holder: &Holder) -> Result<Pieces, Fault> {
    let mut filter = asked.filter()?;
    let name = asked.base()?;
    if matches!(holder, Holder::Container(_)) && TreePath::of_request(&asked.path)?.is_root() {
        // Device nodes in memory, which every engine makes anew at each start.
        filter.exclude.push(Pattern::parse(b"dev/")?);
    }
    let options = ExportOptions {
        follow: asked.follow,
        attributes: if asked.rich {
            Attributes::All
        } else {
            Attributes::Only(vec![CAPABILITY.to_vec()])
        },
        headers_only: asked.headers_only,
        expand_holes: !asked.rich,
        whole_seconds: true,
        skip_kernel: matches!(holder, Holder::Container(_)),
        upper: false,
    };
    let holder = holder.clone();
    bridge::writer(move |out| {
        let mut writer = Writer::new(out);
        let done = export_as(&root, &asked.path, name.as_ref(), &filter, &mut writer, &options);
        match done {
            Ok(_) => {}
            Err(error) if error.code() == "archive.not-found" => {
                return Err(no_file(&asked.path, &holder));
            }
            Err(error) => return Err(Fault::of(&error)),
        }
        writer.finish()?;
        Ok(())
    })
    .await
}

pub(super) async fn unpack(
    root: Arc<Root>,
    asked: PathRequest,
    opened: &Opened,
    archive: impl Read + Send + 'static,
) -> Result<Unpacked, Fault> {
    let holder = opened.holder.clone();
    let mut user = String::new();
    let mut mounts = BTreeSet::new();
    if let Some(spec) = &opened.spec {
        mounts.extend(spec.mounts.iter().map(|mount| mount.destination.clone()));
        if asked.copy_uid_gid {
            let named = spec
                .document
                .pointer("/Config/User")
                .and_then(|user| user.as_str());
            named.unwrap_or_default().clone_into(&mut user);
        }
    }
    blocking(move || {
        let base = TreePath::of_request(&asked.path)?;
        match root.is_read_only(&asked.path) {
            Ok(false) => {}
            Ok(true) => return Err(read_only(&root, &asked.path, &mounts)),
            Err(error) if error.code() == "archive.not-a-directory" => {
                return Err(Fault::new(
                    "archive.not-a-directory",
                    FaultKind::Environment,
                    format!(
                        "extraction point is not a directory: {}",
                        String::from_utf8_lossy(&asked.path)
                    ),
                ));
            }
            Err(error) => return Err(located(&error, &asked.path, &holder)),
        }
        let ownership = match asked.owner {
            Some(owner) => Ownership::Fixed {
                uid: owner.uid,
                gid: owner.gid,
            },
            None if !user.is_empty() => {
                let owner = names::owner_of(&root, &user)?;
                Ownership::Fixed {
                    uid: owner.uid,
                    gid: owner.gid,
                }
            }
            None => Ownership::Archive,
        };
        let options = ExtractOptions {
            no_overwrite_dir_non_dir: asked.no_overwrite_dir_non_dir,
            ownership,
            devices: Devices::Create,
            through_own_links: true,
            keep_partial: asked.partial,
            ..ExtractOptions::default()
        };
        let mut reader = rewrite::open(archive)?;
        let mut extractor = Extractor::new(&root, base, options)?;
        let mut buffer = vec![0; 262_144];
        while let Some(entry) = reader.next_entry()? {
            extractor.start(&entry)?;
            while let Some(extent) = reader.read_extent(&mut buffer)? {
                let length = usize::try_from(extent.length).unwrap_or(usize::MAX);
                extractor.write(extent.offset, buffer.get(..length).unwrap_or_default())?;
            }
        }
        Ok(extractor.end()?.into())
    })
    .await
}

/// Docker's two texts: it tells a mount from the container's own layer.
fn read_only(root: &Root, path: &[u8], mounts: &BTreeSet<String>) -> Fault {
    let real = root.real_path(path).unwrap_or_else(|_| path.to_vec());
    let real = TreePath::of_request(&real).unwrap_or_default();
    let mounted = mounts.iter().any(|mount| {
        TreePath::of_request(mount.as_bytes()).is_ok_and(|mount| !mount.is_root() && real.is_within(&mount))
    });
    let what = if mounted {
        "mounted volume is marked read-only"
    } else {
        "container rootfs is marked read-only"
    };
    Fault::new("file.read-only", FaultKind::Environment, what)
        .with_hint("copy to a volume of it that can be written to, or into memory (--tmpfs)")
}

/// The stream, and something that is done when it ended or was dropped.
pub(crate) fn then(pieces: Pieces, end: impl Future<Output = ()> + Send + 'static) -> Pieces {
    struct AtEnd(Option<std::pin::Pin<Box<dyn Future<Output = ()> + Send>>>);
    impl Drop for AtEnd {
        fn drop(&mut self) {
            if let (Some(end), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
                runtime.spawn(end);
            }
        }
    }
    let end = AtEnd(Some(Box::pin(end)));
    Box::pin(futures_util::stream::unfold(
        (pieces, end),
        |(mut pieces, end)| async move { pieces.next().await.map(|piece| (piece, (pieces, end))) },
    ))
}
