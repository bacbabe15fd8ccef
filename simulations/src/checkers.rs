//! What is watched while a world runs, apart from the world itself.

use shoal_protocol::core::Core;

use crate::world::HostId;

/// More of the same would say nothing new.
const KEPT_MAX: usize = 8;

#[derive(Debug, Default)]
pub(crate) struct Checkers {
    /// What must not happen and did.
    pub(crate) violations: Vec<String>,
    /// What the nodes said, and the faults that struck.
    pub(crate) notes: Vec<String>,
    /// Bulk bytes in each second of the run: from the origin, and from all nodes.
    pub(crate) moved: Vec<[u64; 2]>,
    pub(crate) streams_peak: usize,
    pub(crate) requests: u64,
    pub(crate) manifest_requests: u64,
    pub(crate) refused: u64,
    /// Bytes of chunks from peers.
    pub(crate) peer_bytes: u64,
    /// Bytes of chunks that came although nobody waited for them any more.
    pub(crate) wasted_bytes: u64,
}

impl Checkers {
    pub(crate) fn violation(&mut self, what: String) {
        if self.violations.len() < KEPT_MAX {
            self.violations.push(what);
        }
    }

    pub(crate) fn ensure(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.violation(what());
        }
    }

    pub(crate) fn note(&mut self, nanos: u64, host: HostId, what: &str) {
        if self.notes.len() < KEPT_MAX {
            self.notes
                .push(format!("{:.3} s: node {host}: {what}", nanos as f64 / 1e9));
        }
    }

    pub(crate) fn fault(&mut self, nanos: u64, host: HostId, what: &str) {
        self.note(nanos, host, what);
    }

    pub(crate) fn invariants(&mut self, nanos: u64, host: HostId, core: &Core) {
        if let Err(broken) = core.check() {
            self.violation(format!(
                "{:.3} s: node {host}: {broken}",
                nanos as f64 / 1e9
            ));
        }
    }

    pub(crate) fn moved(&mut self, second: usize, origin: bool, bytes: u64) {
        if self.moved.len() <= second {
            self.moved.resize(second + 1, [0; 2]);
        }
        self.moved[second][usize::from(!origin)] += bytes;
    }

    pub(crate) fn origin_request(&mut self, open: usize, manifest: bool) {
        self.streams_peak = self.streams_peak.max(open);
        self.requests += 1;
        self.manifest_requests += u64::from(manifest);
    }

    pub(crate) fn chunk(&mut self, bytes: u64, expected: bool) {
        self.peer_bytes += bytes;
        if !expected {
            self.wasted_bytes += bytes;
        }
    }
}
