//! What is watched while a world runs, apart from the world itself: at its links and disks, never
//! from the machines' own counters.

use std::collections::BTreeMap;

use shoal_protocol::message::Message;

use crate::{
    net::{Net, NodeIndex},
    scenario::{Fault, Limits, Scenario},
};

/// More of the same would say nothing new.
const KEPT_MAX: usize = 8;

/// Bulk connections of a node at most.
const BULK_MAX: usize = 64;

/// What no bound counts: manifests, first bytes, the last chunks.
const SLACK_SECONDS: f64 = 0.5;

/// What was seen of a whole run, apart from what was counted on the way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    /// Seconds: the lower bound, and what the pulls took.
    pub(crate) bound: f64,
    pub(crate) p99: f64,
    pub(crate) longest: f64,
    /// Bytes from the origin over those of the images.
    pub(crate) copies: f64,
    /// Bytes of control messages over those of what is pulled.
    pub(crate) control: f64,
    /// Bytes of memory, where the system tells.
    pub(crate) memory: Option<u64>,
}

#[derive(Debug, Default)]
pub(crate) struct Checkers {
    /// What must not happen and did.
    pub(crate) violations: Vec<String>,
    /// What the nodes said.
    pub(crate) notes: Vec<String>,
    /// The faults that struck.
    pub(crate) faults: Vec<String>,
    /// Of them, those that struck while chunks were on their way.
    pub(crate) faults_in_flight: usize,
    pub(crate) struck_hard_in_flight: bool,
    pub(crate) fault_kinds: BTreeMap<String, u64>,
    may_refuse: bool,
    kept_max: usize,
    /// Bytes that each node had sent when the pulls began.
    pub(crate) settled_nanos: u64,
    pub(crate) streams_peak: usize,
    pub(crate) requests: u64,
    pub(crate) manifest_requests: u64,
    pub(crate) refused: u64,
    /// Bytes of chunks from peers.
    pub(crate) peer_bytes: u64,
    /// Bytes of chunks that came although nobody waited for them any more.
    pub(crate) wasted_bytes: u64,
    pub(crate) swim_bytes: u64,
    pub(crate) messages: u64,
    pub(crate) rejected: u64,
    pub(crate) mismatched: u64,
    pub(crate) verified: u64,
    pub(crate) bans: u64,
    pub(crate) abandoned: u64,
    pub(crate) gave_up: u64,
    pub(crate) bulk_refused: u64,
    pub(crate) bulk_peak: usize,
    pub(crate) connections_peak: u32,
    /// Bytes that the busiest uplink sent, by the bytes of one pull.
    pub(crate) upload_most: f64,
    /// Seconds that a node which nothing struck went without any chunk, at most.
    pub(crate) gap_seconds: f64,
    /// What one node read from the origin, over its even share.
    pub(crate) holder_most: f64,
    pub(crate) uncancelled: u64,
    sending_max: usize,
}

impl Checkers {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        Self {
            may_refuse: scenario.may_refuse(),
            kept_max: KEPT_MAX,
            // Four times as many where some do not move, as the machine has it.
            sending_max: scenario
                .limits
                .sending
                .unwrap_or(4 * scenario.config.upload_slots_max),
            ..Self::default()
        }
    }

    /// The pulls begin.
    pub(crate) fn began(&mut self) {
        self.swim_bytes = 0;
        self.messages = 0;
    }

    pub(crate) fn ended<M, T: Copy, E>(
        &mut self,
        scenario: &Scenario,
        nodes: usize,
        net: &Net<M, T, E>,
    ) {
        let image: u64 = scenario.images.iter().map(|image| image.bytes).sum();
        let most = (0..nodes).map(|node| net.sent_bulk(node)).max();
        self.upload_most = most.unwrap_or_default() as f64 / image as f64;
    }

    /// The first thing that breaks ends the run.
    pub(crate) fn stop_at_first(&mut self) {
        self.kept_max = 1;
    }

    /// Whether going on would show nothing new.
    pub(crate) fn is_hopeless(&self) -> bool {
        self.violations.len() >= self.kept_max
    }

    pub(crate) fn violation(&mut self, what: String) {
        if self.violations.len() < self.kept_max {
            self.violations.push(what);
        }
    }

    pub(crate) fn ensure(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.violation(what());
        }
    }

    pub(crate) fn note(&mut self, seconds: f64, host: NodeIndex, what: &str) {
        if self.notes.len() < KEPT_MAX {
            self.notes
                .push(format!("{seconds:.3} s: node {host}: {what}"));
        }
    }

    pub(crate) fn fault(
        &mut self,
        seconds: f64,
        victim: Option<NodeIndex>,
        fault: Fault,
        in_flight: bool,
    ) {
        self.faults_in_flight += usize::from(in_flight);
        self.struck_hard_in_flight |= in_flight && fault.is_hard();
        *self.fault_kinds.entry(fault.kind().to_owned()).or_default() += 1;
        let whom = victim.map_or_else(String::new, |victim| format!(" node {victim}"));
        self.faults.push(format!("{seconds:.3} s:{whom} {fault:?}"));
    }

    pub(crate) fn control(&mut self, message: &Message, bytes: u64) {
        self.messages += 1;
        if matches!(
            message,
            Message::Swim(_) | Message::MembersHash(_) | Message::Members { .. }
        ) {
            self.swim_bytes += bytes;
        }
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

    /// A node is sending so many chunks.
    pub(crate) fn sending(&mut self, host: NodeIndex, count: usize) {
        let most = self.sending_max;
        self.ensure(count <= most, || {
            format!("node {host} sends {count} chunks at once")
        });
    }

    /// A node stored a chunk after so long without any.
    pub(crate) fn gap(&mut self, seconds: f64) {
        self.gap_seconds = self.gap_seconds.max(seconds);
    }

    /// Holds what was counted to what the scenario allows.
    pub(crate) fn hold(&mut self, limits: &Limits, seen: &Seen) {
        let wasted = self.wasted_bytes as f64 / self.peer_bytes.max(1) as f64;
        let ratio = (seen.longest - SLACK_SECONDS) / seen.bound;
        let p99 = limits.p99.map(|(bounds, more)| bounds * seen.bound + more);
        let streams = limits.streams.map(|most| most as f64);
        let held = [
            ("bounds that the longest pull took", ratio, limits.ratio),
            ("seconds at the 99th percentile", seen.p99, p99),
            ("of what is pulled in control", seen.control, limits.control),
            (
                "streams from the origin at once",
                self.streams_peak as f64,
                streams,
            ),
            (
                "images uploaded by one node",
                self.upload_most,
                limits.upload,
            ),
            (
                "seconds without a chunk",
                self.gap_seconds,
                limits.gap_seconds,
            ),
            ("copies from the origin", seen.copies, limits.copies),
            ("of the bytes from peers in vain", wasted, limits.wasted),
            ("even shares of one holder", self.holder_most, limits.holder),
            (
                "chunks that came though nobody waited, and whose senders were not told",
                self.uncancelled as f64,
                limits.uncancelled.map(|most| most as f64),
            ),
            (
                "bytes of memory",
                seen.memory.map_or(f64::NAN, |bytes| bytes as f64),
                limits.memory.map(|most| most as f64),
            ),
        ];
        for (what, value, limit) in held {
            if let Some(limit) = limit {
                self.ensure(value <= limit || value.is_nan(), || {
                    format!("{value:.3} {what}, more than {limit}")
                });
            }
        }
    }

    pub(crate) fn connections(&mut self, _host: NodeIndex, count: u32) {
        self.connections_peak = self.connections_peak.max(count);
    }

    pub(crate) fn bulk(&mut self, host: NodeIndex, count: usize) {
        self.bulk_peak = self.bulk_peak.max(count);
        self.ensure(count <= BULK_MAX, || {
            format!("node {host} has {count} bulk connections")
        });
    }

    pub(crate) fn gave_up(&mut self, what: String) {
        self.gave_up += 1;
        if !self.may_refuse {
            self.violation(what);
        }
    }

    pub(crate) fn ban(&mut self, seconds: f64, host: NodeIndex, banned: NodeIndex, honest: bool) {
        self.bans += 1;
        self.ensure(!honest, || {
            format!("{seconds:.3} s: node {host} bans node {banned}, which did not lie")
        });
    }
}
