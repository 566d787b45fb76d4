//! Which certificates a registry may be known by: those that the system trusts, and those that docker is told to trust for it. And which
//! one it is shown if it asks for one: what docker has for it.

use std::io;
use std::path::Path;

use tranship_oci::client::BadCertificates;
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

/// The certificates for a host, `host[:port]`, that is asked for the sake of a registry. Only the registry itself is shown who we are: it
/// leads to hosts of its choice.
///
/// # Errors
/// [`BadCertificates`] within, if there is none at all; if one for its clients is of no use.
pub(crate) async fn roots(host: &str, registry: &str) -> io::Result<Roots> {
    let (host, shown) = (host.to_owned(), host.eq_ignore_ascii_case(registry));
    let read = tokio::task::spawn_blocking(move || {
        read(&host, shown, &BUNDLES.map(Path::new), Path::new(OF_DOCKER))
    });
    let trust = read.await.map_err(io::Error::other)?.map_err(useless)?;
    let client = trust.client.as_ref().map(|(cert, key)| (&cert[..], &key[..]));
    Roots::with_client(trust.roots.iter().map(Vec::as_slice), client).map_err(|error| {
        useless(match &client {
            Some(_) => format!("those below {OF_DOCKER} are of no use: {error}"),
            None => "this node trusts none at all; install its package of them (ca-certificates)".into(),
        })
    })
}

/// What no other try mends.
fn useless(why: impl ToString) -> io::Error {
    io::Error::other(BadCertificates(why.to_string()))
}

/// What is there for a host; a certificate to be `shown` only if it is wanted.
fn read(host: &str, shown: bool, bundles: &[&Path], of_docker: &Path) -> io::Result<Trust> {
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
    let mut wanted = shown;
    for path in paths {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => trust.roots.extend(std::fs::read(&path)),
            Some("cert") if wanted => {
                wanted = false;
                trust.client = one_to_show(&path, |path| std::fs::read(path))?;
            }
            _ => {}
        }
    }
    Ok(trust)
}

/// A certificate and its key. Both may be closed to an agent that is not root's: it is a stranger to the registry then, as it is without
/// any, and many let strangers read. Where one is missing the registry would say no to somebody whom it should know, and nobody would
/// know why.
fn one_to_show(
    path: &Path,
    read: impl Fn(&Path) -> io::Result<Vec<u8>>,
) -> io::Result<Option<(Vec<u8>, Vec<u8>)>> {
    let both = [path, &path.with_extension("key")].map(|path| {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        read(path).map_err(named)
    });
    match both {
        [Ok(certificate), Ok(key)] => Ok(Some((certificate, key))),
        [Err(error), _] | [_, Err(error)] if error.kind() == io::ErrorKind::PermissionDenied => {
            tracing::warn!(%error, "a registry is asked without the certificate that it may want to see");
            Ok(None)
        }
        [Err(error), _] | [_, Err(error)] => Err(error),
    }
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
        let read_as = |host: &str, shown: bool| {
            super::read(host, shown, &[Path::new("/nowhere"), &bundle], directory.path())
        };
        let read = |host: &str| read_as(host, true);
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
        // Where a registry leads to, nobody is told who we are.
        let elsewhere = read_as("r:5000", false).unwrap();
        assert_eq!((elsewhere.roots.len(), elsewhere.client), (2, None));
        for other in ["r", "r:5001", "../r:5000", "."] {
            let nothing = Trust {
                roots: vec![b"all".to_vec()],
                client: None,
            };
            assert_eq!(read(other).unwrap(), nothing, "{other}");
        }
    }
    #[test]
    fn a_key_that_is_closed_to_the_agent_is_done_without() {
        use io::ErrorKind::{InvalidData, NotFound, PermissionDenied};
        for (closed, kind, fails) in [
            ("r.key", PermissionDenied, false),
            ("r.cert", PermissionDenied, false),
            ("r.key", NotFound, true),
            ("r.key", InvalidData, true),
        ] {
            let read = |path: &Path| match path.ends_with(closed) {
                true => Err(kind.into()),
                false => Ok(b"x".to_vec()),
            };
            match one_to_show(Path::new("/certs/r.cert"), read) {
                Ok(shown) => assert!(!fails && shown.is_none(), "{closed} {kind}"),
                Err(error) => assert!(fails && error.to_string().contains(closed), "{error}"),
            }
        }
    }

    #[test]
    fn what_is_of_no_use_is_told_as_that() {
        let error = useless("no key");
        let within = error.get_ref().and_then(|inner| inner.downcast_ref());
        assert!(matches!(within, Some(BadCertificates(why)) if why == "no key"));
    }
}
