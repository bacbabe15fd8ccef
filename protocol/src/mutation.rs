//! Deliberate mistakes, one at a time, for tests that show that the simulator's checkers catch them.
//!
//! Without the feature `mutations` none of them can be switched on, and the code of all of them is
//! optimized away.

/// A mistake that a machine can be told to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// A steward never takes a lease back from a holder that is silent.
    NoRevocation,
    /// Bytes are taken that their attestation does not cover.
    NoAttestationCheck,
    /// Requests are given up after a fixed time, however much this node has asked for.
    HastyTimers,
    /// One node may hold all leases.
    LeasesWithoutCap,
    /// The second source of a chunk is not told when the first has delivered.
    NoEndgameCancel,
    /// Nobody asks the next-ranked steward to act.
    NoTakeover,
    /// A blob is called complete whatever its digest.
    CompleteUnverified,
    /// Chunks that nobody gives are not reported lost.
    NoLost,
    /// Whoever asks is served at once, all at the same time.
    UploadsWithoutBound,
    /// Chunks are asked for in strict order.
    InOrder,
}

impl Mutation {
    /// Each of them.
    pub const ALL: [Self; 10] = [
        Self::NoRevocation,
        Self::NoAttestationCheck,
        Self::HastyTimers,
        Self::LeasesWithoutCap,
        Self::NoEndgameCancel,
        Self::NoTakeover,
        Self::CompleteUnverified,
        Self::NoLost,
        Self::UploadsWithoutBound,
        Self::InOrder,
    ];
}
