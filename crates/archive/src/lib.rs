//! Archives: what `tranship cp` and the engine's archive API speak.
//!
//! * [`reader`] and [`writer`] – tar as streams. Reading is strict, because readers of tar differ: whatever another one could take
//!   for something else is an error with a stable code. Writing is canonical: the same entries give the same bytes.
//! * [`compression`] – gzip, bzip2, xz and zstd, found out by their first bytes.
//! * [`filter`] – which entries go along and under which names, and how one request over a container becomes one per storage
//!   element.
//! * [`merge`] and [`fan_out`] – several archives become one, one is fed to several elements.
//! * [`copy_rules`] – what the two arguments of `docker cp` mean.
//! * [`confined`] – unpacks and packs trees that others change meanwhile, without ever leaving them.
//!
//! Everything here is synchronous and works on [`std::io::Read`] and [`std::io::Write`] in bounded memory; asynchronous
//! callers run it on a thread that may block. An error of a stream that carries a [`compression::CompressionError`] keeps its
//! code all the way up.
//!
//! ```
//! use std::io::Read;
//! use tranship_archive::entry::Entry;
//! use tranship_archive::reader::{ReadOptions, Reader};
//! use tranship_archive::writer::Writer;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut writer = Writer::new(Vec::new());
//! writer.append(&Entry::file("dir/hello", 0o644, 5), &mut &b"hello"[..])?;
//! let bytes = writer.finish()?;
//!
//! let mut reader = Reader::new(&bytes[..], ReadOptions::strict());
//! while let Some(entry) = reader.next_entry()? {
//!     let mut content = String::new();
//!     reader.data().read_to_string(&mut content)?;
//!     assert_eq!((entry.path.as_slice(), content.as_str()), (&b"dir/hello"[..], "hello"));
//! }
//! # Ok(())
//! # }
//! ```

pub mod acl;
pub mod compression;
pub mod confined;
pub mod copy_rules;
pub mod entry;
pub mod error;
pub mod fan_out;
pub mod filter;
pub mod glob;
mod header;
pub mod merge;
pub mod path;
mod pax;
pub mod reader;
pub mod sparse;
pub mod writer;

pub use path::{PathError, TreePath};
