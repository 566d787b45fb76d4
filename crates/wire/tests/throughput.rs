//! How fast bytes go through each kind of connection. The quick form runs with the other tests and only looks whether
//! everything arrives; the long one is asked for: `cargo test --release -p tranship-wire --test throughput -- --ignored`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stderr, reason = "this is where a test's words go")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, Method, Request, Response};
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use tranship_wire::PeerIdentity;
use tranship_wire::h2::{self, Body, Client, ClientOptions, Handler, ServerOptions, serve_connection};
use tranship_wire::relay::relay;
use tranship_wire::tls::{DialTimes, PeerKey, PeerListener, dial};

const PIECE: usize = 256 << 10;

struct Store {
    pieces: usize,
}

fn source(pieces: usize) -> impl futures_util::Stream<Item = Result<Bytes, std::io::Error>> {
    let piece = Bytes::from(vec![7; PIECE]);
    stream::iter((0..pieces).map(move |_| Ok(piece.clone())))
}

#[async_trait::async_trait]
impl Handler for Store {
    async fn handle(&self, request: Request<Incoming>, _peer: &PeerIdentity) -> Response<Body> {
        if request.method() == Method::POST {
            let nested = request.uri().path() == "/nested";
            let (response, duplex) = h2::duplex_response(request);
            let store = Store { pieces: self.pieces };
            tokio::spawn(async move {
                if nested {
                    drop(serve(duplex, store).await);
                    return;
                }
                let (mut sender, mut bytes) = duplex.split();
                let mut length = 0_u64;
                while let Some(piece) = bytes.next().await {
                    length += piece.unwrap().len() as u64;
                }
                let answer = length.to_be_bytes().to_vec();
                sender.send(answer.into()).await.unwrap();
                sender.finish();
            });
            return response;
        }
        if request.method() == Method::GET {
            return h2::stream_response(HeaderMap::new(), source(self.pieces));
        }
        let mut bytes = h2::read_stream(request);
        let mut length = 0;
        while let Some(piece) = bytes.next().await {
            match piece {
                Ok(piece) => length += piece.len(),
                Err(error) => return h2::fault_response(&error.into_fault()),
            }
        }
        h2::json_response(&length)
    }
}

async fn serve<IO>(io: IO, store: Store) -> Result<(), tranship_wire::WireError>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (options, stop) = (ServerOptions::default(), CancellationToken::new());
    serve_connection(io, Arc::new(store), PeerIdentity::Stdio, &options, stop).await
}

/// Seconds of processor time that this process has used so far, for all its threads.
fn processor() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields = stat.rsplit(')').next().unwrap().split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).map(|n| n.parse::<u64>().unwrap()).sum();
    ticks as f64 / 100.0
}

async fn run<A, B>(name: &str, near: A, far: B, pieces: usize)
where
    A: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    B: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    tokio::spawn(serve(far, Store { pieces }));
    measure(name, near, pieces).await;
}

async fn measure<A>(name: &str, near: A, pieces: usize)
where
    A: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let client = Client::connect(near, &ClientOptions::new("the store"))
        .await
        .unwrap();
    let total = pieces * PIECE;
    let rate = |started: Instant| total as f64 / started.elapsed().as_secs_f64() / 1e6;

    let started = Instant::now();
    let sent: usize = client
        .send_stream(Method::PUT, "/", HeaderMap::new(), source(pieces))
        .await
        .unwrap();
    let up = rate(started);
    assert_eq!(sent, total);

    let started = Instant::now();
    let (_, mut bytes) = client.receive_stream("/").await.unwrap();
    let mut got = 0;
    while let Some(piece) = bytes.next().await {
        got += piece.unwrap().len();
    }
    assert_eq!(got, total);
    let down = rate(started);

    let (started, used) = (Instant::now(), processor());
    let (mut sender, mut answer) = client.duplex("/").await.unwrap().split();
    let piece = Bytes::from(vec![7; PIECE]);
    for _ in 0..pieces {
        sender.send(piece.clone()).await.unwrap();
    }
    sender.finish();
    let answer = answer.next().await.unwrap().unwrap();
    assert_eq!(*answer, (total as u64).to_be_bytes());
    let (duplex, cost) = (rate(started), (processor() - used) / total as f64 * 1e9);
    eprintln!(
        "{name}: {up:.0} MB/s up, {down:.0} MB/s down, {duplex:.0} MB/s in one duplex stream at {cost:.2} s of processor per GB"
    );
}

async fn all(pieces: usize) {
    let (near, far) = UnixStream::pair().unwrap();
    run("unix socket", near, far, pieces).await;

    // One who reaches both ends joins them.
    let (near, far) = UnixStream::pair().unwrap();
    tokio::spawn(serve(far, Store { pieces }));
    let options = ClientOptions::new("the store");
    let through = Client::connect(near, &options).await.unwrap();
    let through = through.duplex("/nested").await.unwrap();
    let (near, middle) = UnixStream::pair().unwrap();
    tokio::spawn(async move { relay(middle, through, &Arc::default()).await });
    measure("nested in a relay", near, pieces).await;

    let home = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let tcp = tokio::net::TcpListener::bind((home, 0)).await.unwrap();
    let near = tokio::net::TcpStream::connect(tcp.local_addr().unwrap())
        .await
        .unwrap();
    run("plain TCP", near, tcp.accept().await.unwrap().0, pieces).await;

    let (own, other) = (PeerKey::generate().unwrap(), PeerKey::generate().unwrap());
    let at = [SocketAddr::new(home, 0)];
    let listener = PeerListener::bind(&own, other.fingerprint(), &at).await.unwrap();
    let (offer, times) = (listener.offer(vec![home]), DialTimes::default());
    let (near, far) = tokio::join!(dial(&offer, &other, &times), listener.accept());
    run("TLS over TCP", near.unwrap().stream, far.unwrap(), pieces).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_arrives() {
    all(128).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes long and says how fast it was"]
async fn how_fast() {
    for _ in 0..3 {
        all(8192).await;
    }
}
