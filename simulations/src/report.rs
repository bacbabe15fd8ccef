//! What came of a run.

use std::fmt;

use serde::Serialize;

use crate::{checkers::Checkers, scenario::Scenario};

/// The outcome of one world. Times in seconds of virtual time.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) scenario: &'static str,
    pub(crate) seed: u64,
    pub(crate) nodes: usize,
    pub(crate) image_bytes: u64,
    pub(crate) lower_bound: f64,
    /// Of the nodes that no fault struck.
    pub(crate) median: f64,
    pub(crate) longest: f64,
    pub(crate) ratio: f64,
    /// Of the nodes that a fault struck and that ended nevertheless.
    pub(crate) victims: Vec<f64>,
    pub(crate) origin_copies: f64,
    /// When its last byte left.
    pub(crate) origin_ended: f64,
    pub(crate) origin_requests: u64,
    pub(crate) origin_refused: u64,
    pub(crate) origin_streams_peak: usize,
    pub(crate) manifest_requests: u64,
    /// Bytes of chunks that nobody waited for any more, as a share of all from peers.
    pub(crate) wasted: f64,
    /// Bytes of control messages as a share of the bytes that had to be moved.
    pub(crate) control: f64,
    /// Until all nodes saw all nodes.
    pub(crate) settled: f64,
    /// Names the run: the same for the same scenario and seed.
    pub(crate) trace: String,
    /// For each second the part of the origin's uplink and of the nodes' uplinks that was used.
    pub(crate) used: Vec<[f64; 2]>,
    pub(crate) notes: Vec<String>,
    pub(crate) violations: Vec<String>,
}

impl Report {
    #[expect(clippy::too_many_arguments, reason = "the parts of one report")]
    pub(crate) fn new(
        scenario: &Scenario,
        times: &[f64],
        victims: Vec<f64>,
        settled: f64,
        origin_bytes: u64,
        origin_ended: f64,
        control_bytes: u64,
        trace: &blake3::Hash,
        checkers: Checkers,
    ) -> Self {
        let lower_bound = scenario.lower_bound();
        let longest = times.last().copied().unwrap_or(f64::NAN);
        let image = scenario.image_bytes as f64;
        Self {
            scenario: scenario.name,
            seed: scenario.seed,
            nodes: scenario.nodes,
            image_bytes: scenario.image_bytes,
            lower_bound,
            median: times.get(times.len() / 2).copied().unwrap_or(f64::NAN),
            longest,
            ratio: longest / lower_bound,
            victims,
            origin_copies: origin_bytes as f64 / image,
            origin_ended,
            origin_requests: checkers.requests,
            origin_refused: checkers.refused,
            origin_streams_peak: checkers.streams_peak,
            manifest_requests: checkers.manifest_requests,
            wasted: checkers.wasted_bytes as f64 / checkers.peer_bytes.max(1) as f64,
            control: control_bytes as f64 / (image * scenario.nodes as f64),
            settled,
            trace: trace.to_hex()[..16].to_owned(),
            used: checkers
                .moved
                .iter()
                .map(|[origin, peers]| {
                    let nodes = scenario.rate * scenario.nodes as f64;
                    [*origin as f64 / scenario.origin_rate, *peers as f64 / nodes]
                })
                .collect(),
            notes: checkers.notes,
            violations: checkers.violations,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} seed {}: {} nodes, {:.0} MiB: median {:.2} s, longest {:.2} s, bound {:.2} s, ratio {:.3}",
            self.scenario,
            self.seed,
            self.nodes,
            self.image_bytes as f64 / f64::from(1 << 20),
            self.median,
            self.longest,
            self.lower_bound,
            self.ratio,
        )?;
        writeln!(
            f,
            "  origin {:.4} copies until {:.2} s in {} requests ({} refused, {} for manifests), {} streams at most",
            self.origin_copies,
            self.origin_ended,
            self.origin_requests,
            self.origin_refused,
            self.manifest_requests,
            self.origin_streams_peak,
        )?;
        writeln!(
            f,
            "  {:.2} % wasted, {:.3} % control, settled in {:.2} s, trace {}",
            100.0 * self.wasted,
            100.0 * self.control,
            self.settled,
            self.trace,
        )?;
        if !self.victims.is_empty() {
            writeln!(f, "  struck nodes ended after {:.2?} s", self.victims)?;
        }
        if f.alternate() {
            for (second, [origin, nodes]) in self.used.iter().enumerate() {
                let (origin, nodes) = (100.0 * origin, 100.0 * nodes);
                writeln!(
                    f,
                    "  {second:4} s: {origin:3.0} % of the origin, {nodes:3.0} % of the nodes' uplinks"
                )?;
            }
        }
        for note in &self.notes {
            writeln!(f, "  note {note}")?;
        }
        for violation in &self.violations {
            writeln!(f, "  VIOLATION {violation}")?;
        }
        Ok(())
    }
}
