//! What the two halves of a round say to each other over a byte stream, in this order:
//!
//! ```text
//! sink → source    Hello{versions}                       the sink speaks first
//! source → sink    Hello{versions, options}
//! sink → source    Holds(Nothing | Known tree id)        Nothing: only an empty root directory is there
//! source → sink    Base(Nothing | Known id | Send)       Known: the source has that very tree from an earlier round
//!   if Send:       sink → source  Manifest(bytes)… ManifestEnd{id}
//! source → sink    the delta, in canonical order of paths (below)
//!   meanwhile:     source → sink  Ask{…}  sink → source  Blocks{…}   hashes of short blocks of a base file, so that
//!                  a small change inside a chunk costs little; asked ahead of their use, answered in order
//! source → sink    Done
//! sink → source    Again{paths}                          files that could not be put together (a base chunk was not what the
//!                                                        tree says): the source sends them once more, whole, then Done
//! source → sink    End{tree, entries, bytes}
//! sink → source    Applied{tree, …} | Failed{fault}      only after equality, and after syncing if that was asked for
//! ```
//!
//! The delta:
//!
//! * `Remove{path}`: the base has it, the source has not (any more, or not of this type). Takes what is below along.
//! * `Make{entry}`: an entry without content that is new or of another type: directory, symlink, FIFO, socket, device, hardlink,
//!   empty file.
//! * `Attributes{entry}`: same content (and extents), other attributes.
//! * `File{entry without extents, write}` then its content from the beginning to the end, then `FileEnd`:
//!   `Hole{length}`, `Data{id, bytes}`, `Copy{path, offset, length, id}` (bytes that the base holds),
//!   `Patch{path, offset, length of base, id, parts}` (bytes of the base with literal parts between them).
//!   `write` is `Replace` (a new file takes the place of the old one; `Copy` may refer to any base file) or `InPlace` (large
//!   files: `Copy` and `Patch` refer to this file only, at offsets that have not been written yet in this round).
//!   Small files may come as `Whole{entry, bytes}`, one chunk or none, many of them in one frame.
//! * entries that are equal to the base's are not mentioned.
//!
//! `Copy` and `Patch` always mean the base *as it was at the beginning of the round*: the sink keeps what a `Remove` or a
//! replacement displaces until `Done`.
//!
//! Frames: `length u32 LE of what follows | kind u8 | flags u8 (1: body is zstd) | body`; with flag 1 the body begins with the
//! plain length as u32 LE. A frame is at most [`MAX_FRAME`] bytes, plain or compressed.

/// The longest frame body in bytes, plain or compressed.
pub const MAX_FRAME: usize = 8 << 20;
/// Oldest version of this language that is spoken.
pub const VERSION_MIN: u16 = 1;
/// Newest version of this language that is spoken.
pub const VERSION_MAX: u16 = 1;
