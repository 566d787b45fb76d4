//! The other side of the protocol: images from a registry and to it, one layer at a time.
//!
//! Nothing that comes is believed. Documents are read strictly and within limits, blobs are compared with their digests while they
//! arrive, packed layers are unpacked and compared with the configuration, and the engine gets an archive only when all of that is
//! done. Connections are the business of a [`Transport`]: one over TLS for registries elsewhere, one over a stream between two nodes.
//!
//! | module | what |
//! |---|---|
//! | `address` | where a registry is |
//! | `request` | one request: credentials, redirects, patience |
//! | `auth` | what a registry asks for, and tokens |
//! | `fetch`, `store` | images from there |
//! | `kept` | images from there, for an engine that keeps blobs |
//! | `push`, `opened` | images to there, and uploads that come to nothing |
//! | `push_kept` | images to there, from an engine that keeps blobs |

mod address;
mod auth;
mod error;
mod fetch;
mod kept;
mod opened;
mod push;
mod push_kept;
mod request;
mod store;

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::Stream;
use http::{Request, Response};

pub use self::address::Address;
pub use self::auth::{Login, Logins, NoLogins};
pub use self::error::ClientError;
pub use self::fetch::{Fetched, Wanted};
pub use self::kept::Platforms;
pub use self::push::Pushed;
pub use self::store::{Kept, Store};

/// The bytes of a body as they come or go. It ends without an error only if it is whole.
pub type BodyStream = std::pin::Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>>;

/// The body of a request.
pub enum Payload {
    /// All of it.
    Full(Bytes),
    /// Bit by bit.
    Stream {
        /// Its length in bytes.
        length: u64,
        /// The bytes.
        stream: BodyStream,
    },
}

/// Carries requests. The authority of a request's URI says to whom, its scheme whether TLS is needed.
#[async_trait]
pub trait Transport: Send + Sync {
    /// Sends one request, and returns when the header of the answer came.
    ///
    /// # Errors
    /// That nobody is reached, or that the connection broke; [`BadCertificates`] within it, where it could not even begin. Any status is
    /// an answer.
    async fn send(&self, request: Request<Payload>) -> std::io::Result<Response<BodyStream>>;
}

/// Certificates of this node's that are of no use, which no other try mends. Goes within the error of [`Transport::send`].
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadCertificates(pub String);

/// How much patience a client has.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// How long a registry may ask to wait, all in all.
    pub busy: Duration,
    /// How long an answer, or the next bytes of a body either way, may take.
    pub pause: Duration,
    /// How long a manifest or configuration may take, with all that the registry wants before; and the answer to a layer or manifest
    /// that was sent whole.
    pub document: Duration,
    /// How often a blob may break off without having got on, and a manifest in any way.
    pub tries: u32,
    /// How long to wait after it broke off.
    pub breath: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            busy: Duration::from_secs(120),
            pause: Duration::from_secs(60),
            document: Duration::from_secs(300),
            tries: 4,
            breath: Duration::from_millis(500),
        }
    }
}

/// A client of one registry.
pub struct Client {
    address: Address,
    transport: Arc<dyn Transport>,
    logins: Arc<dyn Logins>,
    patience: Patience,
    auth: auth::Auth,
    /// For what goes on when nobody waits for it any more.
    me: Weak<Self>,
}

impl Client {
    /// A client that has asked nothing yet.
    #[must_use]
    pub fn new(
        address: Address,
        transport: Arc<dyn Transport>,
        logins: Arc<dyn Logins>,
        patience: Patience,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            address,
            transport,
            logins,
            patience,
            auth: auth::Auth::default(),
            me: me.clone(),
        })
    }

    /// The registry, as errors name it.
    fn name(&self) -> String {
        self.address.host().to_owned()
    }
}
