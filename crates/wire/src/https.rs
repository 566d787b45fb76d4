//! A client of servers that are not tranship: HTTP/1.1, with TLS wherever the address does not say `http`. One connection for every
//! request, since what is asked for is large or rare.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::uri::{PathAndQuery, Uri};
use http::{HeaderValue, Request, Response, header};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::crypto::ring as provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::error::WireError;
use crate::h2::{Body, ByteStream, Place};
use crate::http::pair;
use crate::tls::TlsError;

/// How long an address may take to answer, and a handshake to be through.
const CONNECT: Duration = Duration::from_secs(15);
/// How long sent bytes may stay without an acknowledgement.
const UNACKNOWLEDGED: Duration = Duration::from_secs(60);

/// Certificates by which servers are known, and one by which they may know us.
#[derive(Debug, Clone)]
pub struct Roots(Arc<ClientConfig>);

impl Roots {
    /// Reads certificates in PEM. What a bundle holds that cannot be used is passed over.
    ///
    /// # Errors
    /// [`TlsError::Pem`] if there is none at all.
    pub fn from_pem<'a>(texts: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, TlsError> {
        Self::with_client(texts, None)
    }

    /// The same with a certificate of our own and its key, both in PEM, for servers that ask for one.
    ///
    /// # Errors
    /// As [`Roots::from_pem`]; [`TlsError::Pem`] and [`TlsError::Setup`] if the two are none or do not belong together.
    pub fn with_client<'a>(
        texts: impl IntoIterator<Item = &'a [u8]>,
        client: Option<(&[u8], &[u8])>,
    ) -> Result<Self, TlsError> {
        let mut store = RootCertStore::empty();
        for text in texts {
            let certificates = CertificateDer::pem_slice_iter(text).filter_map(Result::ok);
            store.add_parsable_certificates(certificates);
        }
        if store.is_empty() {
            return Err(TlsError::Pem { what: "certificate" });
        }
        let config = ClientConfig::builder_with_provider(Arc::new(provider::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(store);
        let mut config = match client {
            None => config.with_no_client_auth(),
            Some((certificates, key)) => {
                let (chain, key) = pair(certificates, key)?;
                config.with_client_auth_cert(chain, key)?
            }
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(Arc::new(config)))
    }
}

/// Sends a request to where its address leads. `roots` are needed for `https`.
///
/// # Errors
/// [`WireError::Lost`] and [`WireError::Tls`]; any status is an answer.
pub async fn send(request: Request<Body>, roots: Option<&Roots>) -> Result<Response<ByteStream>, WireError> {
    let uri = request.uri().clone();
    let peer = uri.authority().map(ToString::to_string).unwrap_or_default();
    let lost = |error: io::Error| WireError::Lost {
        peer: peer.clone(),
        source: Some(error.into()),
    };
    let secure = uri.scheme_str() != Some("http");
    let host = uri.host().unwrap_or_default();
    let host = host
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .unwrap_or(host);
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let stream = timeout(CONNECT, TcpStream::connect((host, port))).await;
    let stream = stream
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(lost)?;
    let milliseconds = u32::try_from(UNACKNOWLEDGED.as_millis()).unwrap_or(u32::MAX);
    stream
        .set_nodelay(true)
        .and_then(|()| Ok(rustix::net::sockopt::set_tcp_user_timeout(&stream, milliseconds)?))
        .map_err(lost)?;
    let request = origin_form(request, &uri, &peer);
    if !secure {
        return exchange(stream, request, peer).await;
    }
    let Some(roots) = roots else {
        return Err(TlsError::Pem { what: "certificate" }.into());
    };
    let name = ServerName::try_from(host.to_owned()).map_err(|error| lost(io::Error::other(error)))?;
    let connector = TlsConnector::from(Arc::clone(&roots.0));
    let stream = timeout(CONNECT, connector.connect(name, stream)).await;
    let stream = stream
        .map_err(|_| TlsError::Timeout(CONNECT))?
        .map_err(TlsError::Handshake)?;
    exchange(stream, request, peer).await
}

/// The request as HTTP/1.1 has it: a path, and the host in a header.
fn origin_form(mut request: Request<Body>, uri: &Uri, peer: &str) -> Request<Body> {
    let path = uri.path_and_query().cloned();
    *request.uri_mut() = Uri::from(path.unwrap_or(PathAndQuery::from_static("/")));
    if let Ok(host) = HeaderValue::from_str(peer) {
        request.headers_mut().insert(header::HOST, host);
    }
    request
}

async fn exchange<IO>(io: IO, request: Request<Body>, peer: String) -> Result<Response<ByteStream>, WireError>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let place = Place {
        what: format!("{} {}", request.method(), request.uri().path()),
        peer,
    };
    let (mut sender, connection) = http1::handshake(TokioIo::new(io))
        .await
        .map_err(|error| place.error(error))?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!("a connection to a server ended: {error}");
        }
    });
    let response = sender.send_request(request).await;
    let response = response.map_err(|error| place.error(error))?;
    Ok(response.map(|body| ByteStream::new(body, place)))
}
