//! The hallway: how two nodes of tranship reach each other, and what keeps the way between them honest.
//!
//! Every way in is a duplex byte stream: the system's `ssh` with an agent at the other end ([`bootstrap`]), the unix
//! socket of this node's own agent ([`local`]), or TLS 1.3 straight from agent to agent ([`tls`]). Over any of them
//! runs the same HTTP/2 ([`h2`]), and a stream can be nested in a request of another one ([`relay`] joins two).
//!
//! Nothing in here knows what the requests mean. Two promises hold for every stream: an end that was not meant is seen
//! as an error, never as a clean end; and a peer that has gone silent is given up within the time that [`Keepalive`]
//! says, for requests under way as well.

mod ahead;
pub mod bootstrap;
pub mod error;
mod guard;
pub mod h1;
pub mod h2;
mod hex;
pub mod http;
pub mod https;
pub mod identity;
pub mod local;
pub mod relay;
pub mod ssh;
pub mod stdio;
pub mod tls;

pub use error::WireError;
pub use guard::Keepalive;
pub use identity::{Fingerprint, PeerIdentity};
