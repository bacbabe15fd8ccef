//! What can go wrong: small rules that compose.

use shoal_protocol::time::Duration;

/// A fault, at a share of the lower bound after the pulls began.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Planned {
    pub(crate) at_share: f64,
    pub(crate) fault: Fault,
    pub(crate) victim: Victim,
    /// Not to happen after all: a smaller world is looked for.
    pub(crate) left_out: bool,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    /// The process is killed; it starts again with its chunks after that time, if at all.
    Kill { restart_after: Option<Duration> },
    /// The process handles and sends nothing for that time.
    Freeze { thaw_after: Duration },
    /// The host's links have a part of their rate for that time.
    Slow { factor: f64, ends_after: Duration },
    /// All that the host sends and receives takes longer for that time.
    Delay {
        latency: Duration,
        ends_after: Duration,
    },
    /// The host's clock is ahead from now on, as after a suspended machine wakes.
    ClockJump { ahead: Duration },
    /// The host's disk is full for that time.
    FullDisk { ends_after: Duration },
    /// The host sends other bytes than were vouched for, from now on.
    CorruptChunks,
    /// The host vouches for wrong bytes of what it reads from the origin, from now on.
    LyingHolder,
    /// Two halves cannot reach each other for that time; the origin is reached by both.
    Partition { heals_after: Duration },
    /// The origin refuses connections and breaks those it has, for that time.
    OriginOutage { ends_after: Duration },
    /// The origin answers 429 or 503 for that time, asking for a pause or not.
    OriginRefuses {
        retry_after: Option<Duration>,
        ends_after: Duration,
    },
    /// Every node is stopped and started again with its chunks, one after the other.
    RollingRestart { down_for: Duration, pause: Duration },
}

/// Whom it strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Victim {
    /// A node that is reading from the origin.
    Holder,
    /// The steward of a blob in transfer.
    Steward,
    /// A node that is pulling.
    Any,
    /// Not a node.
    World,
}

impl Fault {
    /// What it is called where faults are counted.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Self::Kill { .. } => "kills",
            Self::Freeze { .. } => "freezes",
            Self::Slow { .. } => "slow links",
            Self::Delay { .. } => "delays",
            Self::ClockJump { .. } => "clock jumps",
            Self::FullDisk { .. } => "full disks",
            Self::CorruptChunks => "corrupting servers",
            Self::LyingHolder => "liars",
            Self::Partition { .. } => "partitions",
            Self::OriginOutage { .. } => "outages",
            Self::OriginRefuses { .. } => "refusals",
            Self::RollingRestart { .. } => "rolling restarts",
        }
    }

    /// Whether it strikes no node in particular.
    pub(crate) fn strikes_all(self) -> bool {
        matches!(
            self,
            Self::Partition { .. }
                | Self::OriginOutage { .. }
                | Self::OriginRefuses { .. }
                | Self::RollingRestart { .. }
        )
    }

    /// Whether it takes work away from under the others, or puts wrong bytes among them.
    pub(crate) fn is_hard(self) -> bool {
        matches!(
            self,
            Self::Kill { .. } | Self::Partition { .. } | Self::CorruptChunks | Self::LyingHolder
        )
    }
}
