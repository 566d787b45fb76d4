//! The client of servers that are not tranship, against our own server for strangers.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{Request, Response, header};
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;
use tranship_core::fault::Explain as _;
use tranship_wire::h2::{self, Body, Handler};
use tranship_wire::http::{HttpServer, ServerKey};
use tranship_wire::https::{Roots, send};
use tranship_wire::{PeerIdentity, WireError};

/// Says what it was asked, and gives back what came.
struct Echo;

#[async_trait]
impl Handler for Echo {
    async fn handle(&self, request: Request<Incoming>, _peer: &PeerIdentity) -> Response<Body> {
        let host = request.headers().get(header::HOST).cloned();
        let asked = format!("{} {} ", request.method(), request.uri());
        let mut came = h2::read_stream(request);
        let mut bytes = asked.into_bytes();
        while let Some(piece) = came.next().await {
            match piece {
                Ok(piece) => bytes.extend_from_slice(&piece),
                Err(_) => return Response::builder().status(400).body(h2::full_body("")).unwrap(),
            }
        }
        let mut response = Response::new(h2::full_body(bytes));
        *response.status_mut() = http::StatusCode::IM_A_TEAPOT;
        response.headers_mut().insert("x-host", host.unwrap());
        response
    }
}

/// A server with a certificate for `localhost`, or without TLS; its address and the certificate.
async fn server(secure: bool) -> (SocketAddr, String, CancellationToken) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let pem = made.cert.pem();
    let key = ServerKey::from_pem(pem.as_bytes(), made.signing_key.serialize_pem().as_bytes()).unwrap();
    let server = HttpServer::bind("127.0.0.1:0".parse().unwrap(), secure.then_some(key))
        .await
        .unwrap();
    let (address, stop) = (server.address(), CancellationToken::new());
    tokio::spawn(server.serve(Arc::new(Echo), stop.clone()));
    (address, pem, stop)
}

fn request(uri: &str, body: Body) -> Request<Body> {
    Request::put(uri).body(body).unwrap()
}

async fn text(response: Response<h2::ByteStream>) -> String {
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    while let Some(piece) = body.next().await {
        bytes.extend_from_slice(&piece.unwrap());
    }
    String::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn a_request_gets_there_and_any_status_is_an_answer() {
    for secure in [true, false] {
        let (address, pem, _stop) = server(secure).await;
        let roots = Roots::from_pem([b"not a certificate".as_slice(), pem.as_bytes()]).unwrap();
        let scheme = if secure { "https" } else { "http" };
        let uri = format!("{scheme}://localhost:{}/v2/x?y=z", address.port());
        let pieces = stream::iter([
            Ok::<_, std::io::Error>(Bytes::from_static(b"one ")),
            Ok(Bytes::from_static(b"two")),
        ]);
        let answer = send(request(&uri, h2::stream_body(pieces)), secure.then_some(&roots))
            .await
            .unwrap();
        assert_eq!(answer.status(), 418);
        let host = answer.headers()["x-host"].to_str().unwrap().to_owned();
        assert_eq!(host, format!("localhost:{}", address.port()));
        assert_eq!(text(answer).await, "PUT /v2/x?y=z one two");
    }
}

#[tokio::test]
async fn nobody_else_is_believed() {
    let (address, _, _stop) = server(true).await;
    let (_, other, _) = server(true).await;
    let roots = Roots::from_pem([other.as_bytes()]).unwrap();
    let ask = |host: &str, port: u16| request(&format!("https://{host}:{port}/"), h2::full_body(""));
    let code = |result: Result<Response<h2::ByteStream>, WireError>| result.unwrap_err().code();
    // Another certificate than those that are trusted; none that is trusted; another name than the certificate's.
    assert_eq!(
        code(send(ask("localhost", address.port()), Some(&roots)).await),
        "tls.handshake"
    );
    assert!(send(ask("localhost", address.port()), None).await.is_err());
    let (address, pem, _stop) = server(true).await;
    let roots = Roots::from_pem([pem.as_bytes()]).unwrap();
    assert_eq!(
        code(send(ask("127.0.0.1", address.port()), Some(&roots)).await),
        "tls.handshake"
    );
    assert!(Roots::from_pem([b"".as_slice()]).is_err());
    // Nobody there.
    let (address, _, stop) = server(false).await;
    stop.cancel();
    while tokio::net::TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    let uri = format!("http://{address}/");
    assert_eq!(
        code(send(request(&uri, h2::full_body("")), None).await),
        "wire.lost"
    );
}

/// A server that answers those alone who show this certificate.
async fn closed(client: &rcgen::Certificate) -> (SocketAddr, String) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut known = rustls::RootCertStore::empty();
    known.add(client.der().clone()).unwrap();
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(known), Arc::clone(&provider));
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else {
                continue;
            };
            let mut head = [0; 4096];
            let _ = stream.read(&mut head).await;
            let answer = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";
            let _ = stream.write_all(answer).await;
            let _ = stream.shutdown().await;
        }
    });
    (address, made.cert.pem())
}

#[tokio::test]
async fn a_server_that_asks_for_a_certificate_is_shown_ours() {
    let made = || rcgen::generate_simple_self_signed(vec!["me".to_owned()]).unwrap();
    let (mine, other) = (made(), made());
    let (address, pem) = closed(&mine.cert).await;
    let ask = async |client: Option<&rcgen::CertifiedKey<rcgen::KeyPair>>| {
        let shown = client.map(|made| (made.cert.pem(), made.signing_key.serialize_pem()));
        let shown = shown
            .as_ref()
            .map(|(cert, key)| (cert.as_bytes(), key.as_bytes()));
        let roots = Roots::with_client([pem.as_bytes()], shown).unwrap();
        let uri = format!("https://localhost:{}/", address.port());
        send(request(&uri, h2::full_body("")), Some(&roots)).await
    };
    assert_eq!(ask(Some(&mine)).await.unwrap().status(), 204);
    assert!(ask(None).await.is_err());
    assert!(ask(Some(&other)).await.is_err());
    // A key of another certificate, and what is none.
    let (cert, key) = (mine.cert.pem(), other.signing_key.serialize_pem());
    for (cert, key) in [(cert.as_str(), key.as_str()), (&cert, ""), ("", &key)] {
        let client = Some((cert.as_bytes(), key.as_bytes()));
        Roots::with_client([pem.as_bytes()], client).unwrap_err();
    }
}
