//! The server for clients that are not tranship: plain and over TLS, and that it ends.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::{Request, Response};
use hyper::body::Incoming;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tranship_wire::PeerIdentity;
use tranship_wire::h2::{self, Body, Handler};
use tranship_wire::http::{HttpServer, ServerKey};

struct Echo;

#[async_trait]
impl Handler for Echo {
    async fn handle(&self, request: Request<Incoming>, peer: &PeerIdentity) -> Response<Body> {
        assert!(matches!(peer, PeerIdentity::Network { address } if address.ip().is_loopback()));
        if request.uri().path() == "/slow" {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        Response::new(h2::full_body(request.uri().path().to_owned()))
    }
}

async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn key() -> (ServerKey, rcgen::CertifiedKey<rcgen::KeyPair>) {
    let made = rcgen::generate_simple_self_signed(vec!["a".to_owned()]).unwrap();
    let key = made.signing_key.serialize_pem();
    let server = ServerKey::from_pem(made.cert.pem().as_bytes(), key.as_bytes()).unwrap();
    (server, made)
}

#[tokio::test]
async fn what_is_under_way_is_finished_when_it_ends() {
    let server = HttpServer::bind(([127, 0, 0, 1], 0).into(), None).await.unwrap();
    let address = server.address();
    let stop = CancellationToken::new();
    let served = tokio::spawn(server.serve(Arc::new(Echo), stop.clone()));
    let answer = ask(TcpStream::connect(address).await.unwrap(), "/x").await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("/x"),
        "{answer}"
    );
    // One that keeps its connection and asks for nothing does not hold it up.
    let _idle = TcpStream::connect(address).await.unwrap();
    let slow = TcpStream::connect(address).await.unwrap();
    let slow = tokio::spawn(async move { ask(slow, "/slow").await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    stop.cancel();
    assert!(slow.await.unwrap().ends_with("/slow"));
    tokio::time::timeout(Duration::from_secs(5), served)
        .await
        .unwrap()
        .unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn one_address_does_not_keep_the_others_out() {
    let server = HttpServer::bind(([127, 0, 0, 1], 0).into(), None).await.unwrap();
    let address = server.address();
    let stop = CancellationToken::new();
    let served = tokio::spawn(server.serve(Arc::new(Echo), stop.clone()));
    let connect = async |from: [u8; 4]| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        socket.connect(address).await.unwrap()
    };
    // As many as there are places in all, all of which stay open as far as they are let in.
    let mut idle = Vec::new();
    for _ in 0..200 {
        idle.push(connect([127, 0, 0, 2]).await);
    }
    // Long before the idle ones would be closed for having asked nothing.
    let other = ask(connect([127, 0, 0, 3]).await, "/x");
    let answer = tokio::time::timeout(Duration::from_secs(15), other)
        .await
        .unwrap();
    assert!(answer.ends_with("/x"), "{answer}");
    // Those beyond its share were closed.
    let mut more = connect([127, 0, 0, 2]).await;
    assert!(matches!(more.read(&mut [0]).await, Ok(0) | Err(_)));
    // And when it leaves, it is let in again.
    drop((idle, more));
    loop {
        let mut again = connect([127, 0, 0, 2]).await;
        let request = b"GET /y HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let mut answer = String::new();
        let asked = again.write_all(request).await.is_ok();
        if asked && again.read_to_string(&mut answer).await.is_ok() && answer.ends_with("/y") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stop.cancel();
    served.await.unwrap();
}

#[tokio::test]
async fn with_a_key_nothing_goes_in_the_clear() {
    let (key, made) = key();
    let server = HttpServer::bind(([127, 0, 0, 1], 0).into(), Some(key))
        .await
        .unwrap();
    let address = server.address();
    let stop = CancellationToken::new();
    let served = tokio::spawn(server.serve(Arc::new(Echo), stop.clone()));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tls = TlsConnector::from(Arc::new(config))
        .connect(
            ServerName::try_from("a").unwrap(),
            TcpStream::connect(address).await.unwrap(),
        )
        .await
        .unwrap();
    assert!(ask(tls, "/secret").await.contains("/secret"));
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain
        .write_all(b"GET /secret HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!answer.windows(7).any(|bytes| bytes == b"/secret"));
    stop.cancel();
    served.await.unwrap();
}

#[test]
fn keys_that_do_not_fit_are_refused() {
    let (_, one) = key();
    let (_, other) = key();
    let (certificate, key) = (one.cert.pem(), other.signing_key.serialize_pem());
    for (certificate, key) in [
        (certificate.as_str(), key.as_str()),
        (key.as_str(), key.as_str()),
        (certificate.as_str(), certificate.as_str()),
        ("", ""),
    ] {
        assert!(ServerKey::from_pem(certificate.as_bytes(), key.as_bytes()).is_err());
    }
}
