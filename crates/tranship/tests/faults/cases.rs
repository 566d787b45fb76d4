//! What goes wrong, and where.

use std::fmt;

use tranship_migrate::failpoint;

/// An end of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Source,
    Destination,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Destination => "destination",
        })
    }
}

/// What happens while the migration waits at its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The caller is killed.
    Caller,
    /// An agent is killed. Whoever keeps services running starts it again.
    Agent(Side),
    /// An agent is killed, and nothing but a caller starts it again.
    LonelyAgent(Side),
    /// The caller and both agents are killed.
    Everybody,
    /// An engine is killed and comes back.
    EngineKilled(Side),
    /// An engine is ended in order, which stops its containers, and comes back.
    EngineRestarted(Side),
    /// A host loses its power and gets it back.
    Reboot(Side),
    /// The destination's cable is pulled, and put back after a while.
    Cable,
    /// The same, until the source has been in doubt for a while or has given up.
    LongCable,
    /// A host hears nothing from the other, and what it sends arrives.
    Deaf(Side),
    /// The destination's disks are full for a while, the engine's and that of the agent's records.
    FullDisks,
    /// An agent is killed and its journal ends in part of a record.
    Torn(Side),
    /// An agent is killed before its newest record reached the disk.
    Unwritten(Side),
}

/// How it moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Cold,
    Warm,
    Live,
    Stateless,
}

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Warm => "warm",
            Self::Live => "live",
            Self::Stateless => "stateless",
        }
    }
}

/// One migration and what happens to it.
#[derive(Debug, Clone)]
pub struct Case {
    pub mode: Mode,
    pub place: &'static str,
    pub trouble: Trouble,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}: {}", self.mode.name(), self.place, self.trouble)
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Caller => f.write_str("caller killed"),
            Self::Agent(side) => write!(f, "{side} agent killed"),
            Self::LonelyAgent(side) => write!(f, "{side} agent killed, no service"),
            Self::Everybody => f.write_str("caller and agents killed"),
            Self::EngineKilled(side) => write!(f, "{side} engine killed"),
            Self::EngineRestarted(side) => write!(f, "{side} engine restarted"),
            Self::Reboot(side) => write!(f, "{side} rebooted"),
            Self::Cable => f.write_str("cable out for 3 s"),
            Self::LongCable => f.write_str("cable out for 20 s"),
            Self::Deaf(side) => write!(f, "{side} hears nothing for 12 s"),
            Self::FullDisks => f.write_str("destination disks full for 4 s"),
            Self::Torn(side) => write!(f, "{side} journal torn"),
            Self::Unwritten(side) => write!(f, "{side} record not written"),
        }
    }
}

/// Places that are only passed on the way back.
const WAY_BACK: &[&str] = &[
    "destination.discard",
    "destination.discarding",
    "destination.removed",
];

/// Places that need an image that travels.
const IMAGE: &[&str] = &["source.image", "destination.image", "destination.image-loaded"];

/// Places that stateless mode does not pass.
const STATEFUL: &[&str] = &[
    "source.bulk",
    "source.hook",
    "source.frozen",
    "source.delta",
    "source.delta-done",
    "source.committed",
    "destination.volume-made",
    "destination.element",
];

/// One place of each durable state, before and after each message that moves ownership.
const TURNS: &[&str] = &[
    "source.image",
    "source.bulk",
    "source.freeze",
    "source.frozen",
    "source.committed",
    "destination.created",
    "destination.committed",
    "destination.started",
    "source.adopt",
    "destination.adopted",
    "destination.discarding",
];

/// Around the commit.
const COMMIT: &[&str] = &[
    "source.bulk",
    "source.frozen",
    "source.committed",
    "destination.start",
    "destination.started",
    "source.adopt",
    "destination.adopted",
];

impl Case {
    pub fn side(&self) -> Side {
        if self.place.starts_with("source.") {
            Side::Source
        } else {
            Side::Destination
        }
    }

    /// Where the source fails so that it goes back by way of the destination.
    pub fn sent_back_at(&self) -> Option<&'static str> {
        let failing = match self.mode {
            Mode::Stateless => "source.health",
            Mode::Cold | Mode::Warm | Mode::Live => "source.committed",
        };
        WAY_BACK.contains(&self.place).then_some(failing)
    }

    pub fn image_travels(&self) -> bool {
        IMAGE.contains(&self.place)
    }
}

fn places(mode: Mode) -> impl Iterator<Item = &'static str> {
    failpoint::ALL
        .iter()
        .copied()
        .filter(move |place| mode != Mode::Stateless || !STATEFUL.contains(place))
}

/// All cases, those that take long first: what is left at the end is short.
pub fn all() -> Vec<Case> {
    use Mode::{Cold, Live, Stateless, Warm};
    use Side::{Destination, Source};
    use Trouble::{
        Agent, Cable, Caller, Deaf, EngineKilled, EngineRestarted, Everybody, FullDisks, LonelyAgent,
        LongCable, Reboot, Torn, Unwritten,
    };
    let mut cases = Vec::new();
    let mut add = |mode, place, trouble| cases.push(Case { mode, place, trouble });
    for place in COMMIT {
        add(Cold, *place, LongCable);
        add(Cold, *place, Deaf(Source));
        add(Cold, *place, Deaf(Destination));
        add(Warm, *place, Cable);
    }
    for place in TURNS {
        for side in [Source, Destination] {
            add(Cold, *place, Reboot(side));
            add(Cold, *place, EngineKilled(side));
            add(Warm, *place, EngineRestarted(side));
        }
    }
    for place in ["source.frozen", "destination.started"] {
        for side in [Source, Destination] {
            add(Warm, place, Reboot(side));
            add(Warm, place, EngineKilled(side));
        }
    }
    // The steps are those of warm mode; what differs is what a container goes on from.
    for place in COMMIT {
        for side in [Source, Destination] {
            add(Live, *place, Agent(side));
            add(Live, *place, EngineKilled(side));
        }
        add(Live, *place, Cable);
    }
    for place in ["source.frozen", "source.committed", "destination.started"] {
        for side in [Source, Destination] {
            add(Live, place, Reboot(side));
            add(Live, place, EngineRestarted(side));
        }
        add(Live, place, Everybody);
    }
    for place in [
        "destination.committed",
        "destination.discarding",
        "destination.removed",
    ] {
        for side in [Source, Destination] {
            add(Live, place, Agent(side));
        }
    }
    for place in TURNS {
        add(Cold, *place, FullDisks);
        add(Cold, *place, Everybody);
    }
    for mode in [Cold, Warm, Stateless] {
        for place in places(mode) {
            add(mode, place, Caller);
            add(mode, place, Agent(Source));
            add(mode, place, Agent(Destination));
        }
    }
    for place in COMMIT {
        for side in [Source, Destination] {
            add(Cold, *place, Torn(side));
        }
        add(Cold, *place, LonelyAgent(Source));
        add(Cold, *place, LonelyAgent(Destination));
    }
    // Where nobody has acted yet on what the newest record says.
    add(Cold, "source.freeze", Unwritten(Source));
    add(Cold, "source.committed", Unwritten(Source));
    add(Warm, "source.committed", Unwritten(Source));
    add(Live, "source.committed", Unwritten(Source));
    add(Live, "destination.committed", Unwritten(Destination));
    add(Cold, "destination.committed", Unwritten(Destination));
    add(Warm, "destination.committed", Unwritten(Destination));
    add(Cold, "destination.discarding", Unwritten(Destination));
    cases
}
