//! The node as a registry: the OCI distribution protocol over what the engine holds
//! (<https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md>).
//!
//! [`Registry::answer`] takes a request and gives the answer; who carries them over which connection is not its business. It reads
//! images through a port ([`port::Images`]) and keeps what is being pushed in a spool directory.
//!
//! **What is served** of an image is a manifest of our own making: the image's own configuration, so that its id stays, and its layers
//! as plain tars, whose digests are the diff ids. Nothing is packed, and nothing is kept twice. So an image that was pushed with packed
//! layers has another manifest digest here than where it came from; its id is the same.
//!
//! **What is pushed** is believed nowhere: blobs get their names when their digests are right, layers are unpacked and compared with
//! the configuration, and only then the engine hears of the image.
//!
//! | module | what |
//! |---|---|
//! | `registry` | requests told apart |
//! | `pull`, `held` | what the engine holds, as manifests and blobs |
//! | `push`, `upload`, `spool`, `layer` | what comes in |
//! | [`name`], [`document`], [`range`] | what is in a request, read strictly |
//! | [`access`] | who may |

pub mod access;
pub mod document;
mod error;
mod held;
mod layer;
pub mod name;
pub mod port;
mod pull;
mod push;
pub mod range;
mod registry;
mod spool;
mod upload;

pub use access::Credentials;
pub use error::OciError;
pub use registry::{Answer, Registry};
pub use spool::Limits;
