//! What a registry refuses, with the status and the code that the distribution specification has for it
//! (<https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md#error-codes>).

use http::StatusCode;
use tranship_core::EngineError;
use tranship_core::fault::{Explain, FaultKind};

/// Why a request is refused, or fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OciError {
    /// Not the name of a repository.
    #[error("{text:?} is not the name of a repository")]
    Name {
        /// As it came.
        text: String,
    },
    /// Neither a tag nor a digest.
    #[error("{text:?} is neither a tag nor a digest")]
    Reference {
        /// As it came.
        text: String,
    },
    /// Not a digest, or not the one of what came.
    #[error("{message}")]
    Digest {
        /// What is wrong.
        message: String,
    },
    /// There is nothing of that name.
    #[error("there is no repository {name}")]
    NoName {
        /// The repository.
        name: String,
    },
    /// There is no such manifest.
    #[error("there is no manifest {what}")]
    NoManifest {
        /// Tag or digest.
        what: String,
    },
    /// There is no such blob.
    #[error("there is no blob {digest}")]
    NoBlob {
        /// Its digest.
        digest: String,
    },
    /// There is no such upload.
    #[error("there is no upload of this name; it may have been given up")]
    NoUpload,
    /// An upload is not continued where it stands.
    #[error("the upload stands at byte {at}; {message}")]
    Order {
        /// Bytes that are there.
        at: u64,
        /// What came instead.
        message: String,
    },
    /// An upload cannot be used as it was asked.
    #[error("{message}")]
    Upload {
        /// What is wrong.
        message: String,
    },
    /// A body broke off, was too short or came too slowly.
    #[error("the body of the request ended early: {message}")]
    Body {
        /// How it ended.
        message: String,
    },
    /// A manifest, index or configuration that cannot be taken.
    #[error("{message}")]
    Manifest {
        /// What is wrong.
        message: String,
    },
    /// A manifest names what was not pushed before.
    #[error("{message}")]
    Missing {
        /// What is not there.
        message: String,
    },
    /// A layer that is not what its configuration says.
    #[error("layer {digest}: {message}")]
    Layer {
        /// Digest of the blob.
        digest: String,
        /// What is wrong.
        message: String,
    },
    /// A layer that unpacks to more than is taken in.
    #[error("layer {digest} unpacks to more than {limit} bytes")]
    Bomb {
        /// Digest of the blob.
        digest: String,
        /// The most that is taken in.
        limit: u64,
    },
    /// More than is taken in.
    #[error("{what} is larger than {limit} bytes")]
    TooLarge {
        /// Blob, manifest …
        what: &'static str,
        /// Bytes.
        limit: u64,
    },
    /// The disk would be too full.
    #[error(
        "there is no room for it: {free} bytes are free on the disk of the spool, of which {kept} stay free"
    )]
    NoSpace {
        /// Free bytes.
        free: u64,
        /// Bytes that are left alone.
        kept: u64,
    },
    /// Too much is under way.
    #[error("too many {what} at once")]
    TooMany {
        /// Uploads, blobs …
        what: &'static str,
    },
    /// A range that the blob does not have.
    #[error("the blob has {length} bytes, and not the range that was asked for")]
    Range {
        /// Its length.
        length: u64,
    },
    /// Not here.
    #[error("{message}")]
    Unsupported {
        /// What and why.
        message: String,
    },
    /// Something in the request makes no sense.
    #[error("{message}")]
    Request {
        /// What is wrong.
        message: String,
    },
    /// The spool directory fails.
    #[error("the spool directory cannot be used: {action}")]
    Spool {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A file of credentials that cannot be used.
    #[error("the file of credentials {message}")]
    Credentials {
        /// What is wrong.
        message: String,
    },
    /// What the engine says.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl OciError {
    /// Status of the answer, and the specification's code in it.
    #[must_use]
    pub fn answer(&self) -> (StatusCode, &'static str) {
        use StatusCode as S;
        match self {
            Self::Name { .. } => (S::BAD_REQUEST, "NAME_INVALID"),
            Self::Reference { .. } => (S::BAD_REQUEST, "MANIFEST_INVALID"),
            Self::Digest { .. } => (S::BAD_REQUEST, "DIGEST_INVALID"),
            Self::NoName { .. } => (S::NOT_FOUND, "NAME_UNKNOWN"),
            Self::NoManifest { .. } => (S::NOT_FOUND, "MANIFEST_UNKNOWN"),
            Self::NoBlob { .. } => (S::NOT_FOUND, "BLOB_UNKNOWN"),
            Self::NoUpload => (S::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN"),
            Self::Order { .. } => (S::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID"),
            Self::Upload { .. } => (S::BAD_REQUEST, "BLOB_UPLOAD_INVALID"),
            Self::Body { .. } => (S::BAD_REQUEST, "SIZE_INVALID"),
            Self::Manifest { .. } | Self::Layer { .. } => (S::BAD_REQUEST, "MANIFEST_INVALID"),
            Self::Missing { .. } => (S::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN"),
            Self::Bomb { .. } | Self::TooLarge { .. } => (S::PAYLOAD_TOO_LARGE, "SIZE_INVALID"),
            Self::NoSpace { .. } => (S::INSUFFICIENT_STORAGE, "DENIED"),
            Self::TooMany { .. } => (S::TOO_MANY_REQUESTS, "TOOMANYREQUESTS"),
            Self::Range { .. } => (S::RANGE_NOT_SATISFIABLE, "UNSUPPORTED"),
            Self::Unsupported { .. } => (S::METHOD_NOT_ALLOWED, "UNSUPPORTED"),
            Self::Request { .. } => (S::BAD_REQUEST, "UNSUPPORTED"),
            Self::Credentials { .. } => (S::INTERNAL_SERVER_ERROR, "UNKNOWN"),
            Self::Spool { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                (S::INSUFFICIENT_STORAGE, "DENIED")
            }
            Self::Spool { .. } => (S::INTERNAL_SERVER_ERROR, "UNKNOWN"),
            Self::Engine(error) => match error {
                EngineError::NotFound { .. } => (S::NOT_FOUND, "MANIFEST_UNKNOWN"),
                EngineError::Conflict { .. } => (S::METHOD_NOT_ALLOWED, "UNSUPPORTED"),
                EngineError::Unsupported { .. } => (S::NOT_IMPLEMENTED, "UNSUPPORTED"),
                EngineError::NoSpace { .. } => (S::INSUFFICIENT_STORAGE, "DENIED"),
                EngineError::Unreachable { .. } | EngineError::Denied { .. } => (S::BAD_GATEWAY, "UNKNOWN"),
                _ => (S::INTERNAL_SERVER_ERROR, "UNKNOWN"),
            },
        }
    }
}

impl Explain for OciError {
    fn code(&self) -> &'static str {
        match self {
            Self::Name { .. } => "oci.name",
            Self::Reference { .. } => "oci.reference",
            Self::Digest { .. } => "oci.digest",
            Self::NoName { .. } => "oci.no-repository",
            Self::NoManifest { .. } => "oci.no-manifest",
            Self::NoBlob { .. } => "oci.no-blob",
            Self::NoUpload => "oci.no-upload",
            Self::Order { .. } => "oci.upload-order",
            Self::Upload { .. } => "oci.upload",
            Self::Body { .. } => "oci.body",
            Self::Manifest { .. } => "oci.manifest",
            Self::Missing { .. } => "oci.blob-missing",
            Self::Layer { .. } => "oci.layer",
            Self::Bomb { .. } => "oci.layer-bomb",
            Self::TooLarge { .. } => "oci.too-large",
            Self::NoSpace { .. } => "oci.no-space",
            Self::TooMany { .. } => "oci.too-many",
            Self::Range { .. } => "oci.range",
            Self::Unsupported { .. } => "oci.unsupported",
            Self::Request { .. } => "oci.request",
            Self::Spool { .. } => "oci.spool",
            Self::Credentials { .. } => "oci.credentials",
            Self::Engine(error) => error.code(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Engine(error) => error.hint(),
            Self::Missing { .. } => Some("push again: uploaded blobs are kept for a short while only".into()),
            Self::NoSpace { .. } => Some("free space on the node and push again".into()),
            Self::Credentials { .. } => Some(
                "`htpasswd -B -C 10 -c FILE USER` makes one; `chmod 600 FILE` closes it to others".into(),
            ),
            Self::Spool { source, .. } if source.kind() == std::io::ErrorKind::WouldBlock => {
                Some("end the other server, or serve without taking images in (--read-only)".into())
            }
            _ => None,
        }
    }

    fn kind(&self) -> FaultKind {
        FaultKind::Environment
    }
}
