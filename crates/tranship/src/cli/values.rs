//! Values of options that are words, and what they mean to the heart.

use clap::ValueEnum;
use tranship_migrate::options::{MemoryTracking, ModeRequest, OnSource, TcpConnections, VolumeConflict};

/// How containers move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ModeArg {
    /// Stateless where there is no state to carry, else live where nothing speaks against it, else cold
    Auto,
    /// Run there before stopping here: no downtime. You vouch that there is no state
    Stateless,
    /// Stop here, then run there: never two at once
    Cold,
    /// Pause here, then run there, afresh: goes on at once if anything fails
    Warm,
    /// Pause here, then go on there with all that is in memory (CRIU, experimental engine features)
    Live,
}

/// What to do about a volume of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum VolumeConflictArg {
    /// Do not begin
    Refuse,
    /// Use the destination's volume with the data that it holds
    Reuse,
    /// Give this volume another name there
    Rename,
    /// Replace the data of the destination's volume; it comes back if the migration fails
    Replace,
}

/// What becomes of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnSourceArg {
    /// Stop it and keep it, with restart policy "no"
    Stop,
    /// Stop and remove it
    Remove,
    /// Let it run (stateless mode only)
    Keep,
}

/// What becomes of established TCP connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TcpArg {
    /// Close them: clients connect anew
    Close,
    /// Keep them. No mode can; the plan says why
    Keep,
}

/// Whether live mode asks the kernel which pages were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MemoryTrackingArg {
    /// Where it tells
    Auto,
    /// Never: all of the memory is dumped each time
    Off,
}

impl From<MemoryTrackingArg> for MemoryTracking {
    fn from(what: MemoryTrackingArg) -> Self {
        match what {
            MemoryTrackingArg::Auto => Self::Auto,
            MemoryTrackingArg::Off => Self::Off,
        }
    }
}

impl From<ModeArg> for ModeRequest {
    fn from(mode: ModeArg) -> Self {
        match mode {
            ModeArg::Auto => Self::Auto,
            ModeArg::Stateless => Self::Stateless,
            ModeArg::Cold => Self::Cold,
            ModeArg::Warm => Self::Warm,
            ModeArg::Live => Self::Live,
        }
    }
}

impl From<OnSourceArg> for OnSource {
    fn from(what: OnSourceArg) -> Self {
        match what {
            OnSourceArg::Stop => Self::Stop,
            OnSourceArg::Remove => Self::Remove,
            OnSourceArg::Keep => Self::Keep,
        }
    }
}

impl From<VolumeConflictArg> for VolumeConflict {
    fn from(what: VolumeConflictArg) -> Self {
        match what {
            VolumeConflictArg::Refuse => Self::Refuse,
            VolumeConflictArg::Reuse => Self::Reuse,
            VolumeConflictArg::Rename => Self::Rename,
            VolumeConflictArg::Replace => Self::Replace,
        }
    }
}

impl From<TcpArg> for TcpConnections {
    fn from(what: TcpArg) -> Self {
        match what {
            TcpArg::Close => Self::Close,
            TcpArg::Keep => Self::Keep,
        }
    }
}
