//! Which certificates a registry may be known by: those that the system trusts, and those that docker is told to trust for it.

use std::io;
use std::path::Path;

use tranship_wire::https::Roots;

/// Where systems keep the certificates that they trust; the first one that is there counts.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
];

/// Where docker has certificates of single registries, in a directory called `HOST:PORT`
/// (<https://docs.docker.com/engine/security/certificates/>).
const OF_DOCKER: &str = "/etc/docker/certs.d";

/// The certificates for a registry, `host[:port]`.
///
/// # Errors
/// If there is none at all.
pub(crate) async fn roots(host: &str) -> io::Result<Roots> {
    let host = host.to_owned();
    let read =
        tokio::task::spawn_blocking(move || texts(&host, &BUNDLES.map(Path::new), Path::new(OF_DOCKER)));
    let texts = read.await.map_err(io::Error::other)?;
    Roots::from_pem(texts.iter().map(Vec::as_slice)).map_err(|_| {
        io::Error::other(
            "this node trusts no certificates at all; install its package of them (ca-certificates)",
        )
    })
}

fn texts(host: &str, bundles: &[&Path], of_docker: &Path) -> Vec<Vec<u8>> {
    let mut texts: Vec<Vec<u8>> = bundles
        .iter()
        .find_map(|bundle| std::fs::read(bundle).ok())
        .into_iter()
        .collect();
    // The name becomes a part of a path.
    if host.contains('/') || host.starts_with('.') {
        return texts;
    }
    let own = std::fs::read_dir(of_docker.join(host)).into_iter().flatten();
    for entry in own.flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "crt")
            && let Ok(text) = std::fs::read(&path)
        {
            texts.push(text);
        }
    }
    texts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_s_certificates_count_for_their_registry_only() {
        let directory = tempfile::tempdir().unwrap();
        let own = directory.path().join("r:5000");
        std::fs::create_dir(&own).unwrap();
        std::fs::write(own.join("ca.crt"), "one").unwrap();
        std::fs::write(own.join("client.key"), "secret").unwrap();
        let bundle = directory.path().join("bundle");
        std::fs::write(&bundle, "all").unwrap();
        let texts = |host: &str| super::texts(host, &[Path::new("/nowhere"), &bundle], directory.path());
        assert_eq!(texts("r:5000"), [b"all".to_vec(), b"one".to_vec()]);
        for other in ["r", "r:5001", "../r:5000", "."] {
            assert_eq!(texts(other), [b"all".to_vec()], "{other}");
        }
    }
}
