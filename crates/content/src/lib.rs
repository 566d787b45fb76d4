//! What storage elements hold: trees, chunks, and how one element becomes equal to another with as few bytes as can be.
//!
//! A [tree] is the manifest of an element: every entry with everything that a file system can say about it,
//! in one canonical order, and for each file the list of its chunks. A *round* makes a sink equal to a source:
//!
//! ```text
//! source                                              sink
//!   scan: what changed since the base tree?  ◄─────   what do I hold? (nothing, a known tree, or its manifest)
//!   chunks that the base lacks               ─────►   write, verify each chunk, put in place
//!   tree id of what was sent                 ─────►   tree id of what is here: equal, or the round failed
//! ```
//!
//! | module | |
//! |---|---|
//! | [`entry`], [`encoding`] | entries, extents, canonical order; their bytes |
//! | [`tree`] | manifests on disk: written and read as streams |
//! | [`chunk`] | content-defined cutting |
//! | [`scan`] | file system → entries; rescan against a base |
//! | [`message`], [`frame`] | what the two halves of a round say to each other, and the frames that carry it |
//! | [`source`], [`sink`] | the two halves |
//! | [`place`] | elements' directories as wholes: set aside, brought back, measured |
//! | [`verify`] | what is different between two trees |
//! | [`bridge`] | from pipes of tasks to streams of threads |
//! | [`storage`] | both behind the port [`tranship_core::storage::Storage`] |
//!
//! This room leaves to others where an element is (`engine`), how bytes travel (`wire`) and when rounds happen (`migrate`).
//! All of it is synchronous code for threads of its own; [`storage`] alone knows about tasks.

mod boot;
pub mod bridge;
pub mod chunk;
pub mod encoding;
pub mod entry;
pub mod frame;
pub mod message;
pub mod place;
pub mod scan;
pub mod sink;
pub mod source;
pub mod storage;
pub mod tree;
pub mod verify;

pub use boot::boot as boot_id;
