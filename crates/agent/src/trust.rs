//! Which certificates a registry may be known by: those that the system trusts, and those that docker is told to trust for it. And which
//! one it is shown if it asks for one: what docker has for it.

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

/// What is read for a registry.
#[derive(Debug, Default, PartialEq, Eq)]
struct Trust {
    /// Certificates that it may be known by.
    roots: Vec<Vec<u8>>,
    /// The certificate and the key that it is shown if it asks for one.
    client: Option<(Vec<u8>, Vec<u8>)>,
}

/// The certificates for a registry, `host[:port]`.
///
/// # Errors
/// If there is none at all; if one for its clients is of no use.
pub(crate) async fn roots(host: &str) -> io::Result<Roots> {
    let host = host.to_owned();
    let read =
        tokio::task::spawn_blocking(move || read(&host, &BUNDLES.map(Path::new), Path::new(OF_DOCKER)));
    let trust = read.await.map_err(io::Error::other)??;
    let client = trust.client.as_ref().map(|(cert, key)| (&cert[..], &key[..]));
    Roots::with_client(trust.roots.iter().map(Vec::as_slice), client).map_err(|error| match &client {
        Some(_) => io::Error::other(format!(
            "its certificates below {OF_DOCKER} are of no use: {error}"
        )),
        None => io::Error::other(
            "this node trusts no certificates at all; install its package of them (ca-certificates)",
        ),
    })
}

fn read(host: &str, bundles: &[&Path], of_docker: &Path) -> io::Result<Trust> {
    let mut trust = Trust {
        roots: bundles
            .iter()
            .find_map(|bundle| std::fs::read(bundle).ok())
            .into_iter()
            .collect(),
        client: None,
    };
    // The name becomes a part of a path.
    if host.contains('/') || host.starts_with('.') {
        return Ok(trust);
    }
    let own = std::fs::read_dir(of_docker.join(host)).into_iter().flatten();
    let mut paths: Vec<_> = own.flatten().map(|entry| entry.path()).collect();
    // Of several for clients, the first one by its name is shown.
    paths.sort();
    for path in paths {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => trust.roots.extend(std::fs::read(&path)),
            Some("cert") if trust.client.is_none() => {
                // Without it the registry would say no to somebody whom it should know, and nobody would know why.
                let needed = |path: &Path| {
                    std::fs::read(path)
                        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
                };
                trust.client = Some((needed(&path)?, needed(&path.with_extension("key"))?));
            }
            _ => {}
        }
    }
    Ok(trust)
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
        let read = |host: &str| super::read(host, &[Path::new("/nowhere"), &bundle], directory.path());
        let roots = |host: &str| read(host).unwrap().roots;
        assert_eq!(roots("r:5000"), [b"all".to_vec(), b"one".to_vec()]);
        assert_eq!(read("r:5000").unwrap().client, None);
        // One for clients, of which the first counts; not without its key.
        std::fs::write(own.join("other.cert"), "cert 2").unwrap();
        let error = read("r:5000").unwrap_err();
        assert!(error.to_string().contains("other.key"), "{error}");
        std::fs::write(own.join("client.cert"), "cert 1").unwrap();
        let trust = read("r:5000").unwrap();
        assert_eq!(trust.client, Some((b"cert 1".to_vec(), b"secret".to_vec())));
        assert_eq!(trust.roots.len(), 2);
        for other in ["r", "r:5001", "../r:5000", "."] {
            let nothing = Trust {
                roots: vec![b"all".to_vec()],
                client: None,
            };
            assert_eq!(read(other).unwrap(), nothing, "{other}");
        }
    }
}
