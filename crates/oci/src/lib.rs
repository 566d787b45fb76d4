//! The OCI distribution protocol: the node as a registry over what its engine holds, and as a client of others
//! (<https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md>).
//!
//! [`Registry::answer`] takes a request and gives the answer; who carries them over which connection is not its business. It reads
//! images through a port ([`port::Images`]) and keeps what is being pushed in a spool directory.
//!
//! **What is served** of an image is a manifest of our own making: the image's own configuration, so that its id stays, and its layers
//! as plain tars, whose digests are the diff ids. Nothing is packed, and nothing is kept twice. So an image that was pushed with packed
//! layers has another manifest digest here than where it came from; its id is the same. Where the engine keeps blobs, those are served,
//! with the manifests and indexes that are kept.
//!
//! **What is pushed** is believed nowhere: blobs get their names when their digests are right, layers are unpacked and compared with
//! the configuration, and only then the engine hears of the image.
//!
//! | module | what |
//! |---|---|
//! | `registry` | requests told apart |
//! | `pull`, `held` | what the engine holds, as manifests and blobs |
//! | `push`, `layout`, `upload`, `spool`, `layer` | what comes in |
//! | [`client`] | the other side: images from registries, one layer at a time, and to them |
//! | `archive` | images as `docker load` takes them |
//! | [`name`], [`document`], `keys`, [`range`] | what is in a request, read strictly |
//! | [`access`] | who may |

pub mod access;
mod archive;
pub mod client;
pub mod document;
mod error;
mod held;
mod keys;
mod layer;
mod layout;
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
