//! The direct path between two agents, and everyone who has no business on it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tranship_core::fault::Explain;
use tranship_wire::PeerIdentity;
use tranship_wire::tls::{DialTimes, PeerKey, PeerListener, PeerOffer, TlsError, Token, dial};

const HOME: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn times() -> DialTimes {
    DialTimes {
        stagger: Duration::from_millis(50),
        overall: Duration::from_secs(2),
    }
}

async fn listener() -> (PeerListener, PeerKey, PeerKey) {
    let (own, other) = (PeerKey::generate().unwrap(), PeerKey::generate().unwrap());
    let at = [SocketAddr::new(HOME, 0)];
    (
        PeerListener::bind(&own, other.fingerprint(), &at).await.unwrap(),
        own,
        other,
    )
}

/// Nobody got in.
async fn assert_nobody(listener: &PeerListener) {
    assert!(
        timeout(Duration::from_millis(100), listener.accept())
            .await
            .is_err()
    );
}

/// The right one still gets in, and bytes go both ways.
async fn assert_welcome(listener: &PeerListener, own: &PeerKey, other: &PeerKey) {
    let offer = listener.offer(vec![HOME]);
    let times = times();
    let both = async { tokio::join!(dial(&offer, other, &times), listener.accept()) };
    let (dialled, accepted) = timeout(Duration::from_secs(10), both).await.unwrap();
    let (mut near, mut far) = (dialled.unwrap().stream, accepted.unwrap());
    assert_eq!(near.peer(), own.fingerprint());
    assert_eq!(
        far.identity(),
        PeerIdentity::Agent {
            fingerprint: other.fingerprint()
        }
    );
    near.write_all(b"there").await.unwrap();
    near.flush().await.unwrap();
    let mut got = [0; 5];
    far.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"there");
    far.write_all(b"back").await.unwrap();
    far.shutdown().await.unwrap();
    let mut rest = String::new();
    near.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "back");
}

fn only_failure(error: TlsError) -> TlsError {
    match error {
        TlsError::Unreachable { mut failed } if failed.len() == 1 => failed.remove(0).1,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_announced_agent_gets_in_several_times() {
    let (listener, own, other) = listener().await;
    for _ in 0..3 {
        assert_welcome(&listener, &own, &other).await;
    }
}

#[tokio::test]
async fn every_address_of_the_machine_is_listened_at() {
    let (own, other) = (PeerKey::generate().unwrap(), PeerKey::generate().unwrap());
    let listener = PeerListener::bind_everywhere(&own, other.fingerprint())
        .await
        .unwrap();
    assert_welcome(&listener, &own, &other).await;
}

#[tokio::test]
async fn a_host_with_another_certificate_is_not_told_the_token() {
    let (listener, _own, other) = listener().await;
    // Someone else listens where the offer points to, and would accept anyone.
    let expected = PeerKey::generate().unwrap().fingerprint();
    let offer = PeerOffer {
        fingerprint: expected,
        ..listener.offer(vec![HOME])
    };
    let error = only_failure(dial(&offer, &other, &times()).await.unwrap_err());
    assert_eq!(error.code(), "tls.fingerprint");
    assert!(error.to_string().contains(&expected.to_string()), "{error}");
    assert_nobody(&listener).await;
}

#[tokio::test]
async fn a_dialler_with_another_certificate_is_refused() {
    let (listener, own, other) = listener().await;
    let stranger = PeerKey::generate().unwrap();
    // It even knows the token.
    let error = dial(&listener.offer(vec![HOME]), &stranger, &times())
        .await
        .unwrap_err();
    assert_eq!(error.code(), "tls.refused", "{error:?}");
    assert_nobody(&listener).await;
    assert_welcome(&listener, &own, &other).await;
}

#[tokio::test]
async fn a_wrong_token_is_refused_and_may_not_be_guessed_at() {
    let (listener, own, other) = listener().await;
    let wrong = Token::try_from("ab".repeat(32)).unwrap();
    let offer = PeerOffer {
        token: wrong,
        ..listener.offer(vec![HOME])
    };
    for attempt in 0..3 {
        if attempt == 2 {
            assert_welcome(&listener, &own, &other).await;
        }
        let error = dial(&offer, &other, &times()).await.unwrap_err();
        assert_eq!(error.code(), "tls.refused", "{error:?}");
        assert_nobody(&listener).await;
    }
    let error = dial(&listener.offer(vec![HOME]), &other, &times())
        .await
        .unwrap_err();
    assert_eq!(
        error.code(),
        "tls.refused",
        "the right token was taken after too many wrong ones"
    );
}

#[tokio::test]
async fn strangers_who_send_garbage_or_nothing_keep_nobody_waiting() {
    let (listener, own, other) = listener().await;
    let address = SocketAddr::new(HOME, listener.port());
    let mut strangers = Vec::new();
    for number in 0..20 {
        let mut stranger = TcpStream::connect(address).await.unwrap();
        match number % 3 {
            0 => stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap(),
            // The beginning of a record that never comes.
            1 => stranger.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap(),
            _ => {}
        }
        strangers.push(stranger);
    }
    assert_welcome(&listener, &own, &other).await;
    assert_nobody(&listener).await;
    // The dawdlers are shown out in the end.
    for mut stranger in strangers {
        let mut rest = Vec::new();
        let ended = timeout(Duration::from_secs(10), stranger.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "a stranger was kept");
    }
}

#[tokio::test]
async fn strangers_in_any_number_hold_a_bounded_number_of_places() {
    let (listener, own, other) = listener().await;
    let address = SocketAddr::new(HOME, listener.port());
    let mut crowd = Vec::new();
    for _ in 0..100 {
        crowd.push(TcpStream::connect(address).await.unwrap());
    }
    let mut turned_away = 0;
    for stranger in &mut crowd {
        let mut byte = [0];
        if timeout(Duration::from_millis(20), stranger.read(&mut byte))
            .await
            .is_ok()
        {
            turned_away += 1;
        }
    }
    assert!(turned_away >= 60, "only {turned_away} were turned away");
    drop(crowd);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_welcome(&listener, &own, &other).await;
}

#[tokio::test]
async fn an_older_tls_is_not_spoken() {
    let (listener, ..) = listener().await;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let stream = TcpStream::connect(SocketAddr::new(HOME, listener.port()))
        .await
        .unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from("tranship.invalid").unwrap();
    let error = connector.connect(name, stream).await.unwrap_err();
    assert!(error.to_string().contains("ProtocolVersion"), "{error}");
}

#[tokio::test]
async fn the_first_address_that_works_is_taken_and_the_others_are_explained() {
    let (listener, own, other) = listener().await;
    // At the same port of another address someone accepts and never says a word.
    let silent = TcpListener::bind(("127.0.0.2", listener.port())).await.unwrap();
    let offer = listener.offer(vec![[127, 0, 0, 3].into(), [127, 0, 0, 2].into(), HOME]);
    let times = DialTimes::default();
    let dialled = dial(&offer, &other, &times);
    let started = Instant::now();
    let both = async { tokio::join!(dialled, listener.accept()) };
    let (dialled, accepted) = timeout(Duration::from_secs(10), both).await.unwrap();
    let dialled = dialled.unwrap();
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "the silent one was waited for"
    );
    assert_eq!(dialled.stream.address().ip(), HOME);
    assert_eq!(dialled.stream.peer(), own.fingerprint());
    assert_eq!(dialled.failed.len(), 1, "{:?}", dialled.failed);
    assert_eq!(dialled.failed[0].0.ip().to_string(), "127.0.0.3");
    assert_eq!(dialled.failed[0].1.code(), "tls.connect");
    drop((accepted, silent));
}

#[tokio::test]
async fn when_no_address_works_each_says_why_and_in_time() {
    let (listener, _, other) = listener().await;
    let silent = TcpListener::bind(("127.0.0.2", listener.port())).await.unwrap();
    let offer = listener.offer(vec![[127, 0, 0, 3].into(), [127, 0, 0, 2].into()]);
    let times = DialTimes {
        stagger: Duration::from_millis(50),
        overall: Duration::from_millis(500),
    };
    let started = Instant::now();
    let error = dial(&offer, &other, &times).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(2));
    assert_eq!(error.code(), "tls.unreachable");
    let text = error.to_string();
    assert!(text.contains("127.0.0.3") && text.contains("refused"), "{text}");
    assert!(
        text.contains("127.0.0.2") && text.contains("no answer within"),
        "{text}"
    );
    drop(silent);
}

#[tokio::test]
async fn a_dropped_listener_is_gone() {
    let (listener, _, other) = listener().await;
    let offer = listener.offer(vec![HOME]);
    drop(listener);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let error = only_failure(dial(&offer, &other, &times()).await.unwrap_err());
    assert_eq!(error.code(), "tls.connect");
}
