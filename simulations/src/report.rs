//! What came of a run.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;
use shoal_simulations::percentile;

use crate::{
    checkers::{Checkers, Seen},
    net::{Meter, Net, NodeIndex},
    scenario::Scenario,
    trace::Trace,
};

/// The outcome of one world. Times in seconds of virtual time, from each node's own start.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) scenario: String,
    pub(crate) nodes: usize,
    pub(crate) seed: u64,
    pub(crate) image_bytes: u64,
    pub(crate) lower_bound_seconds: f64,
    /// Of the nodes that no fault struck and that are not slow.
    pub(crate) p50_seconds: f64,
    pub(crate) p99_seconds: f64,
    pub(crate) max_seconds: f64,
    /// The longest over the bound.
    pub(crate) ratio: f64,
    /// What the origin sent, over the bytes that it had to send once.
    pub(crate) origin_copies: f64,
    /// Bytes of control messages over the bytes that were pulled.
    pub(crate) control_share: f64,
    pub(crate) peak_origin_streams: usize,
    /// How many of the things that must not happen did.
    pub(crate) invariants_broken: usize,
    /// Names the run: the same for the same scenario and seed, on any machine.
    pub(crate) trace_hash: String,
    /// Of the nodes that a fault struck, or that are slow, and that ended.
    pub(crate) struck_seconds: Vec<f64>,
    /// All times of the counted nodes, sorted.
    pub(crate) finished_seconds: Vec<f64>,
    /// When its last byte left.
    pub(crate) origin_ended_seconds: f64,
    pub(crate) origin_requests: u64,
    pub(crate) origin_refused: u64,
    pub(crate) manifest_requests: u64,
    /// Bytes of chunks that nobody waited for any more, over all from peers.
    pub(crate) wasted_share: f64,
    /// Bytes of membership's messages over the bytes that were pulled.
    pub(crate) membership_share: f64,
    pub(crate) messages: u64,
    /// What the busiest node sent, over the bytes of the images.
    pub(crate) upload_most: f64,
    /// What one node read from the origin, over its even share.
    pub(crate) holder_most: f64,
    /// Seconds that a node which nothing struck went without any chunk, at most.
    pub(crate) longest_gap_seconds: f64,
    /// Chunks that came though nobody waited, and whose senders were not told.
    pub(crate) uncancelled: u64,
    pub(crate) bulk_connections_peak: usize,
    pub(crate) bulk_refused: u64,
    /// Until all nodes saw all nodes, where they had to find each other.
    pub(crate) settled_seconds: f64,
    /// Pulls that were refused and tried again.
    pub(crate) refused_pulls: u64,
    pub(crate) chunks_rejected: u64,
    pub(crate) blobs_mismatched: u64,
    pub(crate) bans: u64,
    /// For each tenth of a second the part of the origin's and of the nodes' uplinks in use.
    #[serde(skip)]
    pub(crate) used: Vec<[f64; 2]>,
    /// Bytes of memory that the process has taken at most, with all that it ran before; where the
    /// system tells.
    pub(crate) peak_memory_bytes: Option<u64>,
    /// How much was simulated: steps of the network, and actions of the machines.
    pub(crate) steps: u64,
    pub(crate) actions: u64,
    pub(crate) faults: Vec<String>,
    /// Of the faults, those that struck while chunks were on their way.
    pub(crate) faults_in_flight: usize,
    /// Whether a kill, a partition or a liar was among those.
    pub(crate) struck_hard_in_flight: bool,
    /// How many faults of each kind there were.
    pub(crate) fault_kinds: BTreeMap<String, u64>,
    pub(crate) notes: Vec<String>,
    pub(crate) violations: Vec<String>,
    /// The command that runs it again.
    pub(crate) replay: String,
}

/// Bytes that this process has had in memory at most, as Linux counts them (proc(5), `VmHWM`).
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

impl Report {
    pub(crate) fn new<M, T: Copy, E>(
        scenario: &Scenario,
        counted: Vec<f64>,
        struck: Vec<f64>,
        net: &Net<M, T, E>,
        origin: NodeIndex,
        trace: &Trace,
        mut checkers: Checkers,
    ) -> Self {
        let lower_bound = scenario.lower_bound();
        let layers = scenario.layer_sizes();
        let once: u64 = layers.iter().flatten().sum();
        let of = |image: &usize| layers[*image].iter().sum::<u64>();
        let pulled: u64 = scenario.wanted().iter().flatten().map(of).sum();
        let control: u64 = (0..origin).map(|node| net.sent_control(node)).sum();
        let seen = Seen {
            bound: lower_bound,
            p99: percentile(&counted, 0.99),
            longest: counted.last().copied().unwrap_or(f64::NAN),
            copies: net.sent_bulk(origin) as f64 / once as f64,
            control: control as f64 / pulled.max(1) as f64,
            memory: peak_memory(),
        };
        checkers.hold(&scenario.limits, &seen);
        let meter = net.meter();
        let seconds = Meter::SLOT as f64 / 1e9;
        Self {
            scenario: scenario.name.clone(),
            nodes: scenario.nodes,
            seed: scenario.seed,
            image_bytes: once,
            lower_bound_seconds: lower_bound,
            p50_seconds: percentile(&counted, 0.5),
            p99_seconds: seen.p99,
            max_seconds: seen.longest,
            ratio: seen.longest / lower_bound,
            origin_copies: seen.copies,
            control_share: seen.control,
            peak_origin_streams: checkers.streams_peak,
            invariants_broken: checkers.violations.len(),
            trace_hash: trace.name(),
            struck_seconds: struck,
            origin_ended_seconds: net.sent_until(origin).saturating_sub(meter.since) as f64 / 1e9,
            origin_requests: checkers.requests,
            origin_refused: checkers.refused,
            manifest_requests: checkers.manifest_requests,
            wasted_share: checkers.wasted_bytes as f64 / checkers.peer_bytes.max(1) as f64,
            membership_share: checkers.swim_bytes as f64 / pulled.max(1) as f64,
            messages: checkers.messages,
            upload_most: checkers.upload_most,
            holder_most: checkers.holder_most,
            longest_gap_seconds: checkers.gap_seconds,
            uncancelled: checkers.uncancelled,
            bulk_connections_peak: checkers.bulk_peak,
            bulk_refused: checkers.bulk_refused,
            settled_seconds: checkers.settled_nanos as f64 / 1e9,
            refused_pulls: checkers.gave_up + checkers.abandoned,
            chunks_rejected: checkers.rejected,
            blobs_mismatched: checkers.mismatched,
            bans: checkers.bans,
            used: meter
                .tenths
                .iter()
                .map(|[outside, nodes]| {
                    let all = scenario.up * scenario.nodes as f64;
                    [
                        *outside as f64 / seconds / scenario.origin.rate,
                        *nodes as f64 / seconds / all,
                    ]
                })
                .collect(),
            finished_seconds: counted,
            peak_memory_bytes: seen.memory,
            steps: net.steps(),
            actions: trace.actions,
            faults: checkers.faults,
            faults_in_flight: checkers.faults_in_flight,
            struck_hard_in_flight: checkers.struck_hard_in_flight,
            fault_kinds: checkers.fault_kinds,
            notes: checkers.notes,
            violations: checkers.violations,
            replay: scenario.replay(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} seed {}: {} nodes, {:.0} MB: p50 {:.2} s, p99 {:.2} s, longest {:.2} s, bound {:.2} s, ratio {:.3}",
            self.scenario,
            self.seed,
            self.nodes,
            self.image_bytes as f64 / 1e6,
            self.p50_seconds,
            self.p99_seconds,
            self.max_seconds,
            self.lower_bound_seconds,
            self.ratio,
        )?;
        writeln!(
            f,
            "  origin {:.4} copies until {:.2} s in {} requests ({} refused, {} for manifests), {} streams at most",
            self.origin_copies,
            self.origin_ended_seconds,
            self.origin_requests,
            self.origin_refused,
            self.manifest_requests,
            self.peak_origin_streams,
        )?;
        writeln!(
            f,
            "  {:.2} % wasted, {:.3} % control ({:.3} % membership), busiest uplink {:.2} copies, {} bulk connections at most ({} refused)",
            100.0 * self.wasted_share,
            100.0 * self.control_share,
            100.0 * self.membership_share,
            self.upload_most,
            self.bulk_connections_peak,
            self.bulk_refused,
        )?;
        writeln!(
            f,
            "  {} messages, {} actions, {} steps, settled in {:.2} s, trace {}",
            self.messages, self.actions, self.steps, self.settled_seconds, self.trace_hash,
        )?;
        writeln!(
            f,
            "  longest gap {:.2} s, largest holder {:.1} even shares, {} not cancelled, {} MB of memory",
            self.longest_gap_seconds,
            self.holder_most,
            self.uncancelled,
            self.peak_memory_bytes.unwrap_or_default() / 1_000_000,
        )?;
        if !self.struck_seconds.is_empty() {
            writeln!(
                f,
                "  {} struck or slow nodes ended, the last after {:.2} s",
                self.struck_seconds.len(),
                self.struck_seconds.last().copied().unwrap_or(f64::NAN)
            )?;
        }
        let odd = self.refused_pulls + self.chunks_rejected + self.blobs_mismatched + self.bans;
        if odd > 0 {
            writeln!(
                f,
                "  {} pulls tried again, {} chunks rejected, {} blobs mismatched, {} bans",
                self.refused_pulls, self.chunks_rejected, self.blobs_mismatched, self.bans
            )?;
        }
        if f.alternate() {
            for (tenth, [origin, nodes]) in self.used.iter().enumerate() {
                writeln!(
                    f,
                    "  {:5.1} s: {:3.0} % of the origin, {:3.0} % of the nodes' uplinks",
                    tenth as f64 / 10.0,
                    100.0 * origin,
                    100.0 * nodes
                )?;
            }
        }
        for fault in self.faults.iter().take(8) {
            writeln!(f, "  fault {fault}")?;
        }
        for note in &self.notes {
            writeln!(f, "  note {note}")?;
        }
        for violation in &self.violations {
            writeln!(f, "  VIOLATION {violation}")?;
        }
        if !self.violations.is_empty() {
            writeln!(f, "  again: {}", self.replay)?;
        }
        Ok(())
    }
}
