//! HTTP/2 over any duplex stream: JSON for control, streams for bulk, server-sent events for progress.
//!
//! ```
//! use std::sync::Arc;
//! use http::{Request, Response};
//! use hyper::body::Incoming;
//! use tranship_wire::h2::{self, Body, Client, ClientOptions, Handler, ServerOptions};
//! use tranship_wire::PeerIdentity;
//!
//! struct Greeter;
//!
//! #[async_trait::async_trait]
//! impl Handler for Greeter {
//!     async fn handle(&self, request: Request<Incoming>, _peer: &PeerIdentity) -> Response<Body> {
//!         h2::json_response(&format!("hello from {}", request.uri().path()))
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), tranship_wire::WireError> {
//! let (near, far) = tokio::io::duplex(4096);
//! tokio::spawn(async move {
//!     let options = ServerOptions::default();
//!     h2::serve_connection(far, Arc::new(Greeter), PeerIdentity::Stdio, &options, Default::default()).await
//! });
//! let client = Client::connect(near, &ClientOptions::new("the greeter")).await?;
//! assert_eq!(client.get_json::<String>("/here").await?, "hello from /here");
//! # Ok(())
//! # }
//! ```
//!
//! How a stream ends carries meaning here. A body that its sender finished is closed; one that its sender could not
//! finish, or dropped, is reset, and the receiver gets an error. Whoever reads to the end without an error has it all.

mod body;
mod client;
mod duplex;
mod events;
mod server;

pub(crate) use body::Place;
pub use body::{Body, ByteStream, Limits, full_body, stream_body};
pub use client::{Client, ClientOptions};
pub use duplex::{Duplex, DuplexSender};
pub use events::Events;
pub use server::{
    Handler, ServerOptions, duplex_response, empty_response, events_response, fault_response,
    fault_response_with, json_response, not_found, read_json, read_stream, serve_connection, stream_response,
};

/// How much a peer may send on one stream before it is told that there is room again.
const STREAM_WINDOW: u32 = 8 << 20;
/// The same for all streams of a connection together: several that nobody reads do not stop the others.
const CONNECTION_WINDOW: u32 = 64 << 20;
/// The longest frame that is accepted. What is sent is cut to [`PIECE`], so that a ping does not wait long behind one;
/// this leaves room for a whole piece of a nested connection with its header.
const FRAME_SIZE: u32 = 512 << 10;
/// The longest piece of a stream that is sent as one.
const PIECE: usize = 256 << 10;
/// How much of a stream's data waits in memory for room at the other end.
const SEND_BUFFER: usize = 1 << 20;
/// More than enough for every request there is.
const HEADER_LIST: u32 = 64 << 10;
/// How much is read ahead while nothing can be written. One frame is enough where the line tells its other end of
/// every byte that was read; a line nested in a stream does so once half of a window was read.
pub(crate) const READ_AHEAD: usize = STREAM_WINDOW as usize / 2 + 2 * FRAME_SIZE as usize;
