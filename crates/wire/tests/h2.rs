//! HTTP/2 over pipes and sockets: what goes through, and that nothing that was broken off passes for complete.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, Method, Request, Response};
use hyper::body::Incoming;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tranship_core::fault::{Explain, Fault, FaultKind};
use tranship_wire::h2::{
    self, Body, ByteStream, Client, ClientOptions, Handler, ServerOptions, serve_connection,
};
use tranship_wire::relay::{RelayCounts, relay};
use tranship_wire::{Keepalive, PeerIdentity, WireError};

/// How a request's stream ended, as the receiving side saw it.
type Ends = mpsc::UnboundedSender<Result<u64, String>>;

struct House {
    ends: Ends,
    under_way: Arc<AtomicUsize>,
}

struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn drain(mut bytes: ByteStream) -> Result<(u64, String), WireError> {
    let (mut length, mut hash) = (0, Sha256::new());
    while let Some(piece) = bytes.next().await {
        let piece = piece?;
        length += piece.len() as u64;
        hash.update(&piece);
    }
    Ok((length, format!("{:?}", hash.finalize())))
}

fn pieces(count: usize, size: usize) -> impl Iterator<Item = Result<Bytes, io::Error>> {
    (0..count).map(move |number| Ok(Bytes::from(vec![u8::try_from(number % 251).unwrap(); size])))
}

fn broken() -> io::Error {
    io::Error::other("the disk is gone")
}

#[async_trait::async_trait]
impl Handler for House {
    async fn handle(&self, request: Request<Incoming>, peer: &PeerIdentity) -> Response<Body> {
        let _under_way = Counted::new(&self.under_way);
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/who") => h2::json_response(&peer.to_string()),
            (&Method::POST, "/double") => match h2::read_json::<u64>(request).await {
                Ok(number) => h2::json_response(&(number * 2)),
                Err(error) => h2::fault_response(&error.into_fault()),
            },
            (&Method::DELETE, "/thing") => h2::empty_response(),
            (&Method::GET, "/fault") => h2::fault_response(
                &Fault::new("engine.no-space", FaultKind::RolledBack, "no space").with_hint("make some"),
            ),
            (&Method::GET, "/large") => h2::json_response(&"x".repeat(17 << 20)),
            (&Method::GET, "/html") => {
                let mut response = Response::new(h2::full_body("<html>\u{1b}[31m proxy"));
                *response.status_mut() = http::StatusCode::BAD_GATEWAY;
                response
            }
            (&Method::GET, "/never") => std::future::pending().await,
            (&Method::PUT, "/store") => {
                let drained = drain(h2::read_stream(request)).await;
                let seen = drained
                    .as_ref()
                    .map(|(length, _)| *length)
                    .map_err(|e| e.code().to_owned());
                // Most tests do not ask.
                let _ = self.ends.send(seen);
                match drained {
                    Ok(result) => h2::json_response(&result),
                    Err(error) => h2::fault_response(&error.into_fault()),
                }
            }
            (&Method::PUT, "/refuse") => {
                h2::fault_response(&Fault::new("store.full", FaultKind::Environment, "no"))
            }
            (&Method::GET, "/load") => {
                let mut headers = HeaderMap::new();
                headers.insert("x-digest", "abc".parse().unwrap());
                h2::stream_response(headers, stream::iter(pieces(64, 1 << 20)))
            }
            (&Method::GET, "/load-broken") => {
                let broken = pieces(8, 1 << 10).chain([Err(broken())]);
                h2::stream_response(HeaderMap::new(), stream::iter(broken))
            }
            (&Method::GET, "/events") => {
                h2::events_response(stream::iter((0..1000).map(|n| Ok::<_, WireError>((n, "x\ny")))))
            }
            (&Method::GET, "/events-fault") => h2::events_response(stream::iter([
                Ok(1),
                Err(Fault::new("a.b", FaultKind::InDoubt, "look")),
                Ok(2),
            ])),
            (&Method::POST, "/echo") => {
                let (response, mut duplex) = h2::duplex_response(request);
                let ends = self.ends.clone();
                tokio::spawn(async move {
                    let (mut reader, mut writer) = tokio::io::split(&mut duplex);
                    let copied = tokio::io::copy(&mut reader, &mut writer).await;
                    if copied.is_ok() {
                        writer.shutdown().await.unwrap();
                    }
                    let _ = ends.send(copied.map_err(|error| error.to_string()));
                });
                response
            }
            (&Method::POST, "/drop") => {
                let (response, mut duplex) = h2::duplex_response(request);
                tokio::spawn(async move { duplex.write_all(b"half").await });
                response
            }
            (&Method::POST, "/nested") => {
                let (response, duplex) = h2::duplex_response(request);
                let house = Self {
                    ends: self.ends.clone(),
                    under_way: Arc::clone(&self.under_way),
                };
                tokio::spawn(serve(duplex, house, Keepalive::default()));
                response
            }
            _ => h2::not_found(&request),
        }
    }
}

async fn serve<IO>(io: IO, house: House, keepalive: Keepalive) -> Result<(), WireError>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let options = ServerOptions {
        keepalive,
        ..ServerOptions::default()
    };
    serve_connection(
        io,
        Arc::new(house),
        PeerIdentity::Stdio,
        &options,
        CancellationToken::new(),
    )
    .await
}

struct Pair {
    client: Client,
    ends: mpsc::UnboundedReceiver<Result<u64, String>>,
    under_way: Arc<AtomicUsize>,
    server: tokio::task::JoinHandle<Result<(), WireError>>,
}

async fn pair_over<A, B>(near: A, far: B, keepalive: Keepalive) -> Pair
where
    A: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    B: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, ends) = mpsc::unbounded_channel();
    let under_way = Arc::new(AtomicUsize::new(0));
    let house = House {
        ends: sender,
        under_way: Arc::clone(&under_way),
    };
    let server = tokio::spawn(serve(far, house, keepalive));
    let options = ClientOptions {
        keepalive,
        ..ClientOptions::new("the house")
    };
    let client = Client::connect(near, &options).await.unwrap();
    Pair {
        client,
        ends,
        under_way,
        server,
    }
}

async fn pair() -> Pair {
    let (near, far) = UnixStream::pair().unwrap();
    pair_over(near, far, Keepalive::default()).await
}

fn quick() -> Keepalive {
    Keepalive {
        interval: Duration::from_millis(100),
        silence: Duration::from_millis(600),
        answer: Duration::from_secs(20),
    }
}

#[tokio::test]
async fn values_go_both_ways_and_faults_come_as_they_were_made() {
    let Pair { client, .. } = pair().await;
    assert!(
        client
            .get_json::<String>("/who")
            .await
            .unwrap()
            .contains("standard input")
    );
    assert_eq!(
        client.post_json::<u64, u64>("/double?x=1", &21).await.unwrap(),
        42
    );
    client.delete("/thing").await.unwrap();
    let fault = client.get_json::<()>("/fault").await.unwrap_err().into_fault();
    assert_eq!(
        (fault.code.as_str(), fault.kind),
        ("engine.no-space", FaultKind::RolledBack)
    );
    assert_eq!(fault.hint.as_deref(), Some("make some"));
    assert_eq!(
        client.delete("/nothing").await.unwrap_err().into_fault().code,
        "wire.not-found"
    );
    // All of it went over one connection, which still stands.
    assert!(!client.is_closed());
}

#[tokio::test]
async fn what_makes_no_sense_is_an_error_of_its_own() {
    let Pair { client, .. } = pair().await;
    let wrong = client
        .post_json::<str, u64>("/double", "text")
        .await
        .unwrap_err()
        .into_fault();
    assert_eq!(wrong.code, "wire.malformed");
    assert_eq!(
        client.get_json::<u64>("/who").await.unwrap_err().code(),
        "wire.malformed"
    );
    assert_eq!(
        client.get_json::<String>("/large").await.unwrap_err().code(),
        "wire.too-large"
    );
    assert_eq!(
        client.get_json::<()>("no slash").await.unwrap_err().code(),
        "wire.request"
    );
    let error = client.get_json::<()>("/html").await.unwrap_err();
    assert_eq!(error.code(), "wire.status");
    assert!(
        error.to_string().contains("502") && !error.to_string().contains('\u{1b}'),
        "{error}"
    );
    // A body that is too large is cut off at the server as well.
    let large = "x".repeat(17 << 20);
    let error = client.post_json::<str, u64>("/double", &large).await.unwrap_err();
    assert_eq!(error.into_fault().code, "wire.too-large");
}

#[tokio::test]
async fn streams_arrive_whole_in_both_directions() {
    let Pair { client, .. } = pair().await;
    let (headers, bytes) = client.receive_stream("/load").await.unwrap();
    assert_eq!(headers["x-digest"], "abc");
    let loaded = drain(bytes).await.unwrap();
    assert_eq!(loaded.0, 64 << 20);
    let source = stream::iter(pieces(64, 1 << 20));
    let stored: (u64, String) = client
        .send_stream(Method::PUT, "/store", HeaderMap::new(), source)
        .await
        .unwrap();
    assert_eq!(stored, loaded);
    let events: Vec<(u32, String)> = client
        .events("/events")
        .await
        .unwrap()
        .map(|event| event.unwrap())
        .collect()
        .await;
    assert_eq!(events.len(), 1000);
    assert_eq!(events[999], (999, "x\ny".to_owned()));
}

#[tokio::test]
async fn a_stream_that_fails_is_seen_as_an_error_by_its_receiver() {
    let Pair { client, mut ends, .. } = pair().await;
    let source = stream::iter(pieces(8, 1 << 10).chain([Err(broken())]));
    let error = client
        .send_stream::<(u64, String), _, _>(Method::PUT, "/store", HeaderMap::new(), source)
        .await
        .unwrap_err();
    assert_eq!(error.code(), "wire.source");
    assert!(error.into_fault().to_string().contains("the disk is gone"));
    assert_eq!(ends.recv().await.unwrap(), Err("wire.aborted".to_owned()));

    // The failure overtakes what was sent before it, so it may come even instead of the answer.
    let error = match client.receive_stream("/load-broken").await {
        Ok((_, bytes)) => drain(bytes).await.unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(error.code(), "wire.aborted");

    let events: Vec<Result<u32, WireError>> = client.events("/events-fault").await.unwrap().collect().await;
    assert_eq!(events.len(), 2);
    assert_eq!(events[1].as_ref().unwrap_err().kind(), FaultKind::InDoubt);
    // None of this harms the connection.
    assert_eq!(client.post_json::<u64, u64>("/double", &1).await.unwrap(), 2);
}

#[tokio::test]
async fn an_early_answer_stops_an_endless_upload() {
    let Pair { client, .. } = pair().await;
    for _ in 0..20 {
        let endless = stream::repeat_with(|| Ok::<_, io::Error>(Bytes::from(vec![0; 1 << 18])));
        let sent = client.send_stream::<(), _, _>(Method::PUT, "/refuse", HeaderMap::new(), endless);
        let error = timeout(Duration::from_secs(10), sent).await.unwrap().unwrap_err();
        assert_eq!(error.into_fault().code, "store.full");
    }
}

#[tokio::test]
async fn dropping_an_upload_or_a_request_is_seen_at_the_other_end() {
    let Pair {
        client,
        mut ends,
        under_way,
        ..
    } = pair().await;
    let endless =
        stream::repeat_with(|| Ok::<_, io::Error>(Bytes::from(vec![0; 1 << 10]))).then(|piece| async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            piece
        });
    let sent = client.send_stream::<(), _, _>(Method::PUT, "/store", HeaderMap::new(), endless);
    assert!(timeout(Duration::from_millis(300), sent).await.is_err());
    // Either the handler sees the error, or it is dropped before; a clean end it never sees.
    let never = client.get_json::<()>("/never");
    assert!(timeout(Duration::from_millis(300), never).await.is_err());
    timeout(Duration::from_secs(5), async {
        while under_way.load(Ordering::SeqCst) > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    if let Ok(end) = ends.try_recv() {
        assert!(end.is_err(), "{end:?}");
    }
}

#[tokio::test]
async fn a_duplex_stream_carries_bytes_and_tells_an_end_from_a_drop() {
    let Pair { client, mut ends, .. } = pair().await;
    let mut echo = client.duplex("/echo").await.unwrap();
    let sent = vec![5; 3 << 20];
    let (mut reader, mut writer) = tokio::io::split(&mut echo);
    let (written, read) = tokio::join!(
        async {
            writer.write_all(&sent).await?;
            writer.shutdown().await
        },
        async {
            let mut got = Vec::new();
            reader.read_to_end(&mut got).await.map(|_| got)
        }
    );
    written.unwrap();
    assert!(read.unwrap() == sent);
    assert_eq!(ends.recv().await.unwrap(), Ok(3 << 20));

    let mut echo = client.duplex("/echo").await.unwrap();
    echo.write_all(b"half").await.unwrap();
    let mut four = [0; 4];
    echo.read_exact(&mut four).await.unwrap();
    drop(echo);
    let end = timeout(Duration::from_secs(5), ends.recv())
        .await
        .unwrap()
        .unwrap();
    assert!(
        end.is_err(),
        "a dropped stream passed for a complete one: {end:?}"
    );
}

#[tokio::test]
async fn a_connection_can_be_nested_in_a_relay_of_two_others() {
    // The caller joins two agents: it has a connection to each and neither can reach the other.
    let (Pair { client: a, .. }, Pair { client: b, .. }) = (pair().await, pair().await);
    let (near, far) = tokio::io::duplex(64 << 10);
    let counts = Arc::new(RelayCounts::default());
    let to_b = b.duplex("/nested").await.unwrap();
    let relayed = tokio::spawn({
        let counts = Arc::clone(&counts);
        async move { relay(far, to_b, &counts).await }
    });
    let nested = Client::connect(near, &ClientOptions::new("b through the caller"))
        .await
        .unwrap();
    let (_, bytes) = nested.receive_stream("/load").await.unwrap();
    assert_eq!(drain(bytes).await.unwrap().0, 64 << 20);
    let source = stream::iter(pieces(64, 1 << 20));
    let stored: (u64, String) = nested
        .send_stream(Method::PUT, "/store", HeaderMap::new(), source)
        .await
        .unwrap();
    assert_eq!(stored.0, 64 << 20);
    assert!(counts.back() > 64 << 20 && counts.forward() > 64 << 20);
    drop(nested);
    timeout(Duration::from_secs(5), relayed)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(!a.is_closed() && !b.is_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_in_both_directions_over_a_narrow_pipe_does_not_lock_up() {
    let (near, far) = tokio::io::duplex(4 << 10);
    let keepalive = Keepalive {
        interval: Duration::from_millis(5),
        silence: Duration::from_secs(5),
        answer: Duration::from_secs(20),
    };
    let Pair { client, .. } = pair_over(near, far, keepalive).await;
    let both = (0..4).map(|_| {
        let client = client.clone();
        async move {
            let up = async {
                let source = stream::iter(pieces(64, 1 << 18));
                client
                    .send_stream::<(u64, String), _, _>(Method::PUT, "/store", HeaderMap::new(), source)
                    .await
                    .unwrap()
            };
            let down = async {
                drain(client.receive_stream("/load").await.unwrap().1)
                    .await
                    .unwrap()
            };
            let (up, down) = tokio::join!(up, down);
            assert_eq!((up.0, down.0), (16 << 20, 64 << 20));
        }
    });
    let all = futures_util::future::join_all(both);
    timeout(Duration::from_secs(60), all).await.unwrap();
}

#[tokio::test]
async fn a_peer_that_closes_ends_what_is_under_way_at_once() {
    let Pair { client, server, .. } = pair().await;
    assert!(client.get_json::<String>("/who").await.is_ok());
    let (pending, (), closed) = tokio::join!(
        client.get_json::<()>("/never"),
        async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            server.abort();
        },
        client.closed()
    );
    assert!(pending.unwrap_err().is_lost());
    assert!(closed.is_lost());
    assert!(client.is_closed());
    let later = timeout(Duration::from_secs(1), client.get_json::<()>("/who"))
        .await
        .unwrap();
    assert!(later.unwrap_err().is_lost());
}

#[tokio::test]
async fn the_server_ends_quietly_when_the_client_leaves() {
    let Pair { client, server, .. } = pair().await;
    assert!(client.get_json::<String>("/who").await.is_ok());
    drop(client);
    timeout(Duration::from_secs(5), server)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_shutdown_lets_requests_under_way_finish() {
    let (near, far) = UnixStream::pair().unwrap();
    let (sender, mut ends) = mpsc::unbounded_channel();
    let house = House {
        ends: sender,
        under_way: Arc::default(),
    };
    let shutdown = CancellationToken::new();
    let server = tokio::spawn({
        let shutdown = shutdown.clone();
        async move {
            let options = ServerOptions::default();
            serve_connection(far, Arc::new(house), PeerIdentity::Stdio, &options, shutdown).await
        }
    });
    let client = Client::connect(near, &ClientOptions::new("the house"))
        .await
        .unwrap();
    let slow = stream::iter(pieces(50, 1 << 10)).then(|piece| async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        piece
    });
    let (stored, ()) = tokio::join!(
        client.send_stream::<(u64, String), _, _>(Method::PUT, "/store", HeaderMap::new(), slow),
        async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            shutdown.cancel();
        }
    );
    assert_eq!(stored.unwrap().0, 50 << 10);
    assert_eq!(ends.recv().await.unwrap(), Ok(50 << 10));
    timeout(Duration::from_secs(5), server)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(client.get_json::<String>("/who").await.unwrap_err().is_lost());
}

/// Passes bytes on until it is told to stop; from then on both ends see a line that is open and silent.
async fn freezable(stop: CancellationToken) -> (tokio::io::DuplexStream, tokio::io::DuplexStream) {
    let (near, mut inner_near) = tokio::io::duplex(64 << 10);
    let (mut inner_far, far) = tokio::io::duplex(64 << 10);
    tokio::spawn(async move {
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut inner_near, &mut inner_far) => {}
            () = stop.cancelled() => std::future::pending::<()>().await,
        }
    });
    (near, far)
}

#[tokio::test]
async fn a_half_open_line_is_given_up_at_both_ends() {
    let stop = CancellationToken::new();
    let (near, far) = freezable(stop.clone()).await;
    let Pair {
        client,
        server,
        mut ends,
        ..
    } = pair_over(near, far, quick()).await;
    // An idle line that works stays up for much longer than the silence allowed.
    tokio::time::sleep(quick().silence * 3).await;
    assert!(client.get_json::<String>("/who").await.is_ok());

    let endless = stream::repeat_with(|| Ok::<_, io::Error>(Bytes::from(vec![0; 1 << 14])));
    let upload = client.send_stream::<(), _, _>(Method::PUT, "/store", HeaderMap::new(), endless);
    let started = std::time::Instant::now();
    let all = async {
        tokio::join!(client.get_json::<()>("/never"), upload, client.closed(), async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            stop.cancel();
        })
    };
    let (never, upload, closed, ()) = timeout(Duration::from_secs(10), all).await.unwrap();
    assert!(started.elapsed() >= quick().silence);
    for error in [never.unwrap_err(), upload.unwrap_err(), closed] {
        assert!(error.is_lost(), "{error:?}");
        assert!(error.into_fault().to_string().contains("taken for dead"));
    }
    let served = timeout(Duration::from_secs(10), server).await.unwrap().unwrap();
    assert!(served.unwrap_err().is_lost());
    if let Ok(end) = ends.try_recv() {
        assert!(end.is_err());
    }
}

#[tokio::test]
async fn a_silent_line_is_given_up_by_one_who_only_receives() {
    let stop = CancellationToken::new();
    let (near, far) = freezable(stop.clone()).await;
    let Pair { client, .. } = pair_over(near, far, quick()).await;
    let (_, mut bytes) = client.receive_stream("/load").await.unwrap();
    bytes.next().await.unwrap().unwrap();
    stop.cancel();
    let rest = timeout(Duration::from_secs(10), drain(bytes)).await.unwrap();
    assert_eq!(rest.unwrap_err().code(), "wire.lost");
}

#[tokio::test]
async fn strangers_and_dawdlers_are_shown_out() {
    let options = ServerOptions {
        header_time: Duration::from_millis(300),
        ..ServerOptions::default()
    };
    let headers = [0, 0, 5, 1, 0, 0, 0, 0, 1];
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let cases: [(&str, Vec<u8>); 4] = [
        ("garbage", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("nothing", vec![]),
        ("half a preface", preface[..10].to_vec()),
        (
            "an unfinished header",
            [&preface[..], &settings, &headers[..]].concat(),
        ),
    ];
    for (name, bytes) in cases {
        let (mut near, far) = tokio::io::duplex(1 << 10);
        let (sender, _ends) = mpsc::unbounded_channel();
        let house = Arc::new(House {
            ends: sender,
            under_way: Arc::default(),
        });
        let options = options.clone();
        let server = tokio::spawn(async move {
            serve_connection(
                far,
                house,
                PeerIdentity::Stdio,
                &options,
                CancellationToken::new(),
            )
            .await
        });
        near.write_all(&bytes).await.unwrap();
        let served = timeout(Duration::from_secs(5), server).await;
        let served = served
            .unwrap_or_else(|_| panic!("{name} was waited for"))
            .unwrap();
        assert!(served.unwrap_err().is_lost(), "{name}");
    }
}

#[tokio::test]
async fn one_that_does_not_speak_http2_is_an_error_and_not_a_wait() {
    let (near, mut far) = tokio::io::duplex(1 << 10);
    let client = Client::connect(near, &ClientOptions::new("a web server"))
        .await
        .unwrap();
    far.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    let error = timeout(Duration::from_secs(5), client.get_json::<()>("/"))
        .await
        .unwrap()
        .unwrap_err();
    assert!(error.is_lost(), "{error:?}");
}
