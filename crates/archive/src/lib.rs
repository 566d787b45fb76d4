//! tar streams.
pub mod acl;
pub mod compression;
pub mod entry;
pub mod error;
mod header;
pub mod path;
mod pax;
pub mod reader;
pub mod sparse;
pub mod writer;

pub use path::{PathError, TreePath};
