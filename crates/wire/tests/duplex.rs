//! Streams in both directions at once: that they don't wait for each other, over every kind of connection, and that
//! an end is told from a break.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::StreamExt;
use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::{Sleep, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tranship_core::fault::Explain;
use tranship_wire::h2::{
    self, Body, Client, ClientOptions, Duplex, Handler, ServerOptions, serve_connection,
};
use tranship_wire::relay::{RelayCounts, relay};
use tranship_wire::tls::{DialTimes, PeerKey, PeerListener, PeerStream, dial};
use tranship_wire::{PeerIdentity, WireError};

const PIECE: usize = 256 << 10;
const PAUSE: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(60);

/// Adds a ping after every frame of data that comes in, so that the connection behind it always owes an answer, and
/// reads nothing for a moment once data comes, so that both ends have filled the line before they owe the first one.
struct Pinging<IO> {
    io: IO,
    /// What is left of the preface or the frame under way.
    left: usize,
    data: bool,
    pause: Pin<Box<Sleep>>,
    paused: bool,
    raw: BytesMut,
    out: BytesMut,
}

impl<IO> Pinging<IO> {
    const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];

    fn client(io: IO) -> Self {
        let (raw, out) = Default::default();
        Self {
            io,
            left: 0,
            data: false,
            pause: Box::pin(sleep(Duration::ZERO)),
            paused: false,
            raw,
            out,
        }
    }

    fn server(io: IO) -> Self {
        Self {
            left: 24,
            ..Self::client(io)
        }
    }

    fn sort(&mut self) {
        loop {
            if self.left == 0 {
                let Some([high, middle, low, kind]) = self.raw.first_chunk::<4>() else {
                    return;
                };
                self.data = *kind == 0;
                if self.data && !self.paused {
                    self.paused = true;
                    self.pause = Box::pin(sleep(PAUSE));
                }
                let length = usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low);
                self.left = 9 + length;
            }
            let take = self.left.min(self.raw.len());
            if take == 0 {
                return;
            }
            self.out.extend_from_slice(&self.raw[..take]);
            self.raw.advance(take);
            self.left -= take;
            if self.left == 0 && self.data {
                self.out.extend_from_slice(&Self::PING);
            }
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Pinging<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.pause.as_mut().poll(cx));
        while self.out.is_empty() {
            let mut space = [0; 16 << 10];
            let mut read = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.raw.extend_from_slice(read.filled());
            self.sort();
        }
        let take = self.out.len().min(buf.remaining());
        buf.put_slice(&self.out.split_to(take));
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Pinging<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Answers every path with a stream.
struct Streams;

/// Many short pieces for each long one: a long frame is half written when the ping after a short one comes.
async fn send_all(mut sender: h2::DuplexSender, total: usize) -> Result<(), WireError> {
    let mut left = Bytes::from(vec![3; PIECE]);
    let short: Vec<Bytes> = (0..32).map(|_| left.split_to(1 << 10)).collect();
    for _ in 0..total / PIECE {
        for piece in short.iter().chain([&left]) {
            sender.send(piece.clone()).await?;
        }
    }
    sender.finish();
    Ok(())
}

async fn count(mut bytes: h2::ByteStream) -> Result<usize, WireError> {
    let mut length = 0;
    while let Some(piece) = bytes.next().await {
        length += piece?.len();
    }
    Ok(length)
}

/// Both directions at once, in bulk; returns how much came.
async fn exchange(duplex: Duplex, total: usize) -> Result<usize, WireError> {
    let (sender, bytes) = duplex.split();
    let (sent, got) = tokio::join!(send_all(sender, total), count(bytes));
    sent.and(got)
}

#[async_trait::async_trait]
impl Handler for Streams {
    async fn handle(&self, request: Request<Incoming>, _peer: &PeerIdentity) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let total = request.headers().get("x-total");
        let total = total.map_or(0, |total| total.to_str().unwrap().parse().unwrap());
        let (response, mut duplex) = h2::duplex_response(request);
        tokio::spawn(async move {
            match path.as_str() {
                "/exchange" => drop(exchange(duplex, total).await),
                "/nested" => drop(serve(Pinging::server(duplex)).await),
                "/break" => duplex.write_all(b"half").await.unwrap(),
                "/end" => {
                    duplex.write_all(b"all").await.unwrap();
                    duplex.shutdown().await.unwrap();
                    let mut rest = Vec::new();
                    // The other end breaks off, which is not looked at here.
                    let _ = duplex.read_to_end(&mut rest).await;
                }
                "/stall" => std::future::pending().await,
                _ => panic!("{path}"),
            }
        });
        response
    }
}

async fn serve<IO>(io: IO) -> Result<(), WireError>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (options, stop) = (ServerOptions::default(), CancellationToken::new());
    serve_connection(io, Arc::new(Streams), PeerIdentity::Stdio, &options, stop).await
}

async fn client<IO>(io: IO) -> Client
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    Client::connect(io, &ClientOptions::new("the other end"))
        .await
        .unwrap()
}

fn narrow_pair() -> (UnixStream, UnixStream) {
    let (near, far) = UnixStream::pair().unwrap();
    for end in [&near, &far] {
        sockopt::set_socket_send_buffer_size(end, 64 << 10).unwrap();
    }
    (near, far)
}

async fn tls_pairs<const N: usize>() -> [(PeerStream, PeerStream); N] {
    let home = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let (own, other) = (PeerKey::generate().unwrap(), PeerKey::generate().unwrap());
    let at = [SocketAddr::new(home, 0)];
    let listener = PeerListener::bind(&own, other.fingerprint(), &at).await.unwrap();
    let (offer, times) = (listener.offer(vec![home]), DialTimes::default());
    let mut pairs = Vec::new();
    for _ in 0..N {
        let (near, far) = tokio::join!(dial(&offer, &other, &times), listener.accept());
        pairs.push((near.unwrap().stream, far.unwrap()));
    }
    pairs.try_into().unwrap()
}

/// As many streams as given over the same connection, each with as much in each direction.
async fn exchange_all(client: &Client, streams: usize, total: usize) {
    let all = (0..streams).map(|_| async {
        let mut headers = HeaderMap::new();
        headers.insert("x-total", total.to_string().parse().unwrap());
        let duplex = client.duplex_with("/exchange", headers).await.unwrap();
        assert_eq!(exchange(duplex, total).await.unwrap(), total);
    });
    timeout(PATIENCE, futures_util::future::join_all(all))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_goes_both_ways_at_once_over_a_narrow_socket() {
    let (near, far) = narrow_pair();
    tokio::spawn(serve(Pinging::server(far)));
    exchange_all(&client(Pinging::client(near)).await, 1, 64 << 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_goes_both_ways_at_once_over_tls() {
    let [(near, far)] = tls_pairs().await;
    tokio::spawn(serve(Pinging::server(far)));
    // More streams, so that more is under way than the system's buffers hold.
    exchange_all(&client(Pinging::client(near)).await, 4, 64 << 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_goes_both_ways_at_once_through_a_relay() {
    // One who reaches both joins them: a stream at one end, a request at the other.
    let (near, far) = narrow_pair();
    tokio::spawn(serve(far));
    let to_far = client(near).await;
    let (near, middle) = narrow_pair();
    let through = to_far.duplex("/nested").await.unwrap();
    tokio::spawn(async move { relay(middle, through, &Arc::new(RelayCounts::default())).await });
    exchange_all(&client(Pinging::client(near)).await, 6, 64 << 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_connections_to_one_offer_carry_several_streams() {
    let pairs = tls_pairs::<2>().await;
    let mut both = Vec::new();
    for (near, far) in pairs {
        tokio::spawn(serve(far));
        both.push(client(near).await);
    }
    let all = both.iter().map(|client| exchange_all(client, 2, 16 << 20));
    futures_util::future::join_all(all).await;
}

#[tokio::test]
async fn a_reader_tells_an_end_from_a_break() {
    let (near, far) = UnixStream::pair().unwrap();
    tokio::spawn(serve(far));
    let client = client(near).await;
    let (_sender, mut bytes) = client.duplex("/end").await.unwrap().split();
    assert_eq!(bytes.next().await.unwrap().unwrap(), "all");
    assert!(bytes.next().await.is_none());

    let (_sender, mut bytes) = client.duplex("/break").await.unwrap().split();
    let error = loop {
        match bytes.next().await.unwrap() {
            Ok(piece) => assert_eq!(piece, "half"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.code(), "wire.aborted");

    // The same for those who read it as a reader.
    let mut duplex = client.duplex("/break").await.unwrap();
    let error = duplex.read_to_end(&mut Vec::new()).await.unwrap_err();
    let inner = error.get_ref().unwrap().downcast_ref::<WireError>().unwrap();
    assert_eq!(inner.code(), "wire.aborted");
}

#[tokio::test]
async fn a_sender_learns_that_nobody_takes_it_any_more() {
    let (near, far) = UnixStream::pair().unwrap();
    tokio::spawn(serve(far));
    let client = client(near).await;
    let (mut sender, _bytes) = client.duplex("/break").await.unwrap().split();
    let endless = async {
        loop {
            if let Err(error) = sender.send(Bytes::from_static(&[0; 9])).await {
                break error;
            }
        }
    };
    let error = timeout(PATIENCE, endless).await.unwrap();
    assert_eq!(error.code(), "wire.aborted");
}

#[tokio::test]
async fn what_nobody_reads_is_bounded() {
    let (near, far) = UnixStream::pair().unwrap();
    tokio::spawn(serve(far));
    let client = client(near).await;
    let (mut sender, _bytes) = client.duplex("/stall").await.unwrap().split();
    let piece = Bytes::from(vec![0; PIECE]);
    let mut taken = 0;
    while timeout(Duration::from_millis(500), sender.send(piece.clone()))
        .await
        .is_ok()
    {
        taken += PIECE;
    }
    assert!((8 << 20..=12 << 20).contains(&taken), "{taken}");
    // The connection is free for others.
    exchange_all(&client, 1, 1 << 20).await;
}

#[tokio::test]
async fn a_piece_that_was_read_in_part_goes_on_in_the_half() {
    let (near, far) = UnixStream::pair().unwrap();
    tokio::spawn(serve(far));
    let mut duplex = client(near).await.duplex("/end").await.unwrap();
    assert_eq!(duplex.read_u8().await.unwrap(), b'a');
    let (_sender, mut bytes) = duplex.split();
    assert_eq!(bytes.next().await.unwrap().unwrap(), "ll");
    assert!(bytes.next().await.is_none());
}
