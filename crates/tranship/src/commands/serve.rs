//! `tranship image serve`: this machine's images as a registry, until it is told to end.

use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tranship_agent::NodeEngine;
use tranship_agent::oci::{RegistryHandler, images};
use tranship_core::engine::Engine as _;
use tranship_core::node::{EngineFacts, ImageStore};
use tranship_core::{Fault, FaultKind};
use tranship_oci::{Credentials, Limits, Registry};
use tranship_wire::http::{HttpServer, ServerKey};

use super::Context;
use super::agent::engine_socket;
use crate::cli::ImageServeArgs;

/// How often what nobody asks for any more is looked for.
const SWEEP: Duration = Duration::from_secs(60);

/// Largest file of certificates, keys or credentials, in bytes.
const LARGEST: u64 = 1 << 20;

/// Serves in the foreground until SIGINT or SIGTERM.
pub async fn run(context: &Context, args: &ImageServeArgs) -> Result<(), Fault> {
    let key = match (&args.tls_cert, &args.tls_key) {
        (Some(certificate), Some(key)) => Some(
            ServerKey::from_pem(&read(certificate, Secret::No)?, &read(key, Secret::Yes)?)
                .map_err(|error| at(Fault::from(error), certificate))?,
        ),
        _ => None,
    };
    let access = match &args.credentials {
        Some(path) => {
            let text = String::from_utf8_lossy(&read(path, Secret::Yes)?).into_owned();
            Some(Credentials::parse(&text).map_err(|error| at(Fault::from(error), path))?)
        }
        None => None,
    };
    let local = args.listen.ip().is_loopback();
    if !local && (key.is_none() || access.is_none()) {
        let text = format!(
            "{} can be reached from other machines: without TLS and credentials nothing is served there",
            args.listen
        );
        return Err(Fault::new("registry.open", FaultKind::Usage, text).with_hint(
            "give --tls-cert, --tls-key and --credentials, or leave out --listen: 127.0.0.1 is reached from this machine alone",
        ));
    }
    let guarded = access.is_some();
    let engine = Arc::new(NodeEngine::at(engine_socket(context, args.engine.as_deref())));
    // Whoever starts this sees what is wrong, and not those who pull from it later.
    servable(&engine.facts().await?, rustix::process::geteuid().is_root())?;
    let images = images(engine);
    let registry = if args.read_only {
        Registry::reading(images, access)
    } else {
        let spool = context.environment.state_directory.join("registry");
        let registry =
            tokio::task::block_in_place(|| Registry::writing(images, access, &spool, Limits::default()));
        registry.map_err(|error| at(Fault::from(error), &spool))?
    };
    let stop = stop()?;
    let secure = key.is_some();
    let server = HttpServer::bind(args.listen, key).await.map_err(Fault::from)?;
    let address = server.address();
    if context.ui.json {
        context
            .ui
            .json(&serde_json::json!({ "address": address.to_string(), "tls": secure }))?;
    } else {
        let scheme = if secure { "https" } else { "http" };
        context.ui.say(&format!(
            "serving this machine's images at {scheme}://{address}/v2/"
        ));
    }
    if !guarded {
        let what = if args.read_only {
            "pull from it"
        } else {
            "pull from it and push to it"
        };
        context.ui.warn(&format!(
            "without --credentials everybody on this machine may {what}"
        ));
    }
    let handler = Arc::new(RegistryHandler { registry });
    let swept = Arc::clone(&handler);
    let sweeper = tokio::spawn(async move {
        loop {
            tokio::time::sleep(SWEEP).await;
            let handler = Arc::clone(&swept);
            // Its failure would be that of the next one as well.
            let _ = tokio::task::spawn_blocking(move || handler.registry.sweep()).await;
        }
    });
    server.serve(handler, stop).await;
    sweeper.abort();
    Ok(())
}

/// That the images of an engine can be read here.
fn servable(engine: &EngineFacts, root: bool) -> Result<(), Fault> {
    let refused = |text: &str, hint: &str| {
        Err(Fault::new("registry.storage", FaultKind::Environment, text).with_hint(hint))
    };
    match engine.image_store {
        ImageStore::Podman => refused(
            "images of Podman cannot be served",
            "`podman push` and `skopeo copy` bring them to a registry",
        ),
        _ if !root => refused(
            "layers are read from the engine's storage, and this process is not root",
            "run it as root",
        ),
        ImageStore::Classic if engine.storage_driver != "overlay2" => refused(
            &format!(
                "layers are read from the engine's storage, and that of {:?} is not known",
                engine.storage_driver
            ),
            "overlay2 and containerd's image store are",
        ),
        ImageStore::Containerd if !engine.containerd_seen => refused(
            "the engine keeps images in containerd, and its socket cannot be reached from here",
            "look whether containerd runs, and run this where its socket is",
        ),
        ImageStore::Classic | ImageStore::Containerd => Ok(()),
    }
}

/// Cancelled by SIGINT or SIGTERM.
fn stop() -> Result<CancellationToken, Fault> {
    use tokio::signal::unix::{SignalKind, signal};
    let failed = |e: std::io::Error| Fault::new("signal.failed", FaultKind::Bug, e.to_string());
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let token = CancellationToken::new();
    let stop = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        stop.cancel();
    });
    Ok(token)
}

fn at(mut fault: Fault, path: &Path) -> Fault {
    fault.path = Some(path.display().to_string());
    fault
}

/// Whether others may see a file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Secret {
    Yes,
    No,
}

/// Reads a small file. One that is secret must be closed: its owner may do all, its group may read.
fn read(path: &Path, secret: Secret) -> Result<Vec<u8>, Fault> {
    let failed = |code: &str, text: String| at(Fault::new(code, FaultKind::Environment, text), path);
    let unreadable = |e: std::io::Error| failed("file.unreadable", format!("a file cannot be read: {e}"));
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if secret == Secret::Yes && metadata.mode() & 0o027 != 0 {
        let text = "the file holds a secret, and is open to others".to_owned();
        return Err(failed("file.open-to-others", text).with_hint("`chmod 600` closes it"));
    }
    let mut bytes = Vec::new();
    let read = file
        .take(LARGEST + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if read as u64 > LARGEST {
        return Err(failed(
            "file.too-large",
            format!("the file is larger than {LARGEST} bytes"),
        ));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_served_is_not() {
        let said = |image_store, driver: &str, containerd_seen, root| {
            let engine = EngineFacts {
                storage_driver: driver.into(),
                image_store,
                containerd_seen,
                ..tranship_testkit::memory::facts()
            };
            let refused = servable(&engine, root).err();
            refused.map_or_else(String::new, |fault| fault.to_string() + &fault.hint.unwrap())
        };
        use ImageStore::{Classic, Containerd, Podman};
        assert_eq!(said(Classic, "overlay2", false, true), "");
        assert_eq!(said(Containerd, "overlayfs", true, true), "");
        assert!(said(Classic, "overlay2", false, false).contains("root"));
        assert!(said(Classic, "vfs", false, true).contains("vfs"));
        assert!(said(Containerd, "overlayfs", false, true).contains("socket"));
        assert!(said(Podman, "overlay", false, true).contains("podman push"));
    }
}
