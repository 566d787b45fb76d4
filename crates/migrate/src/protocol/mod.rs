//! Who owns the container: the part of a migration that must be right whatever fails, as a pure state machine.
//!
//! No I/O, no clock, no randomness. A half is told what happened ([`source::Input`], [`destination::Input`]) and says what
//! is to be done next ([`source::Action`], [`destination::Action`]): make a record durable, ask the other side, act on the
//! engine. It asks for one thing at a time, and goes on only when it hears how that went. [`crate::Departure`] and
//! [`crate::Arrival`] do what it says over real engines and links; the model checker of the tests does so over every
//! order of losses, repetitions, kills and reboots.
//!
//! The rules, in the order in which ownership moves:
//!
//! 1. The source notes that it freezes before it freezes. Until the commit it may go back alone, and does so after a
//!    restart.
//! 2. The commit is one record, durable **at the source**. From then on only a durable answer of the destination moves
//!    ownership: *adopted* or *discarded*, of which it gives one and then never the other. No time-out decides anything.
//! 3. The destination runs the container only after it has durably noted the source's commit, which it learns from
//!    [`Message::Start`].
//! 4. Handing back is durable twice: *discarding* before the container is taken away, so that no restart starts it again,
//!    and *discarded* after, before the source hears of it.
//! 5. What a disk may or may not have kept (a record whose saving failed) counts as kept where that is the worse case.
//!
//! Every message may be lost, repeated or late; a half that hears something stale ignores it or says again what it said.

pub mod destination;
#[cfg(test)]
mod model;
pub mod source;
#[cfg(test)]
mod transitions;

use serde::{Deserialize, Serialize};

/// What the source asks of the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Message {
    /// Make everything that the container needs, and the container.
    Prepare,
    /// The source has committed: run it.
    Start,
    /// Does it prove itself?
    Ready,
    /// It is yours.
    Adopt,
    /// Undo everything; it must never run there again.
    Discard,
}

/// What the destination says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answer {
    /// Everything is there, durably; nothing runs.
    Prepared,
    /// It runs, or did a moment ago.
    Started,
    /// It proved itself.
    Ready,
    /// It belongs to the destination, for good.
    Adopted,
    /// Everything was undone, for good: it does not run and never will.
    Discarded,
    /// The destination has no record of this migration.
    Unknown,
    /// It did not work. Says nothing about who owns the container.
    Failed,
}

/// One of the two sides, where a person decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Owner {
    /// The container belongs where it came from.
    Source,
    /// The container belongs where it went.
    Destination,
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Destination => "destination",
        })
    }
}
