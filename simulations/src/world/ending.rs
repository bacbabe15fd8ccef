//! How a world ends, and what is said of it.

use super::World;
use crate::report::Report;

impl World {
    /// Whether everyone has what it wants, and nobody is to come back.
    pub(super) fn is_over(&self) -> bool {
        self.restarts == 0
            && self.hosts[..self.origin]
                .iter()
                .zip(&self.wanted)
                .all(|(host, wanted)| wanted.is_empty() || host.is_over())
    }

    pub(super) fn name_the_stuck(&mut self) {
        for id in 0..self.origin {
            let host = &self.hosts[id];
            if host.is_over() || self.wanted[id].is_empty() {
                continue;
            }
            let missing: Vec<String> = host
                .blobs
                .iter()
                .zip(&self.content.blobs)
                .filter_map(|(stored, blob)| Some((stored.as_ref()?, blob)))
                .filter(|(stored, _)| !stored.verified)
                .map(|(stored, blob)| format!("{} {:?}", blob.digest.short(), stored.have))
                .collect();
            let unasked: usize = host.pulls.iter().map(|pull| pull.next.len()).sum();
            let leases = self.machines.with(id, |core| core.leases().len());
            let leases = leases.unwrap_or_default();
            let text = format!(
                "node {id} never finished: {missing:?}, {unasked} layers not asked for, \
                 {leases} leases, {:?}",
                host.state
            );
            self.checkers.violation(text);
        }
    }

    /// Seconds that each node took, from its own start: those whose time counts, and the others.
    fn times(&self) -> (Vec<f64>, Vec<f64>) {
        let (mut counted, mut struck) = (Vec::new(), Vec::new());
        for host in &self.hosts[..self.origin] {
            let (Some(started), Some(done)) = (host.started_at, host.done_at) else {
                continue;
            };
            let seconds = (done - started) as f64 / 1e9;
            if host.victim || host.slow {
                struck.push(seconds);
            } else {
                counted.push(seconds);
            }
        }
        counted.sort_by(f64::total_cmp);
        struck.sort_by(f64::total_cmp);
        (counted, struck)
    }

    pub(super) fn report(mut self) -> Report {
        let (counted, struck) = self.times();
        self.checkers.ended(&self.scenario, self.origin, &self.net);
        let layers = self.scenario.layer_sizes();
        let once: u64 = layers.iter().flatten().sum();
        let most = self.hosts.iter().map(|host| host.from_origin).max();
        let even = once as f64 / self.scenario.nodes as f64;
        self.checkers.holder_most = most.unwrap_or_default() as f64 / even;
        Report::new(
            &self.scenario,
            counted,
            struck,
            &self.net,
            self.origin,
            &self.trace,
            self.checkers,
        )
    }
}
