//! tar streams.
pub mod acl;
pub mod compression;
pub mod confined;
pub mod copy_rules;
pub mod entry;
pub mod error;
pub mod fan_out;
pub mod filter;
mod header;
pub mod merge;
pub mod path;
mod pax;
pub mod reader;
pub mod sparse;
pub mod writer;

pub use path::{PathError, TreePath};
