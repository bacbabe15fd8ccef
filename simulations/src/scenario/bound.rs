//! The lower bound: what no schedule whatever can beat.

use super::{Origin, SLOWER, Scenario};

impl Scenario {
    /// In seconds, from the first start. The origin has to send every byte once, through as many
    /// streams as it takes; each node has to receive every byte, and all that is received has to be
    /// sent by someone; what enters a rack or a zone has to pass its pipe once; each host has to
    /// write what it receives, and to hash each layer in order.
    pub(crate) fn lower_bound(&self) -> f64 {
        let layers = self.layer_sizes();
        let wanted = self.wanted();
        let slow = self.slow();
        let of = |image: usize| layers[image].iter().sum::<u64>() as f64;
        let mut pulled: Vec<usize> = wanted.iter().flatten().copied().collect();
        pulled.sort_unstable();
        pulled.dedup();
        let once: f64 = pulled.iter().map(|image| of(*image)).sum();
        let each = |host: usize| -> f64 { wanted[host].iter().map(|image| of(*image)).sum() };
        let factor = |host: usize| if slow[host] { 1.0 / SLOWER } else { 1.0 };

        let from_origin = if self.origin.away {
            0.0
        } else {
            let Origin {
                rate,
                stream_rate,
                streams_max,
                ..
            } = self.origin;
            let topology = self.topology();
            let each = topology.stream_rate(topology.latency_outside);
            let each = stream_rate.map_or(each, |rate| rate.min(each));
            streams_max.map_or(rate, |most| rate.min(each * most as f64))
        };
        let warm_up: f64 = (0..self.warm).map(|host| factor(host) * self.up).sum();
        // What nobody holds has to come from the origin; what some hold may come from them too.
        let source = once / (from_origin + warm_up).max(1.0);
        // Only the fast nodes' time counts: the slow ones may still be waiting.
        let fast = || (0..self.nodes).filter(|host| !slow[*host]);
        let all: f64 = fast().map(each).sum();
        let up: f64 = (0..self.nodes).map(|host| factor(host) * self.up).sum();
        let everyone = all / (from_origin + up);
        let most = fast().map(each).fold(0.0, f64::max);
        let largest = pulled.iter().flat_map(|image| &layers[*image]).max();
        let machine = &self.machine;
        let hash = largest.map_or(0.0, |bytes| *bytes as f64 / machine.sha);
        let (rack_rate, zone_rate) = self.pipe_rates();
        let pipe = |rate: Option<f64>| rate.map_or(0.0, |rate| once / rate);
        [
            source,
            everyone,
            most / self.down,
            most / machine.disk_write,
            hash,
            most / (machine.sha * f64::from(machine.cores)),
            pipe(rack_rate),
            pipe(zone_rate),
        ]
        .into_iter()
        .fold(0.0, f64::max)
    }

    /// Bytes per second of a rack's and of a zone's pipe, each way.
    pub(crate) fn pipe_rates(&self) -> (Option<f64>, Option<f64>) {
        let zones = usize::from(self.layout.zones);
        let racks = usize::from(self.layout.racks) * zones;
        let share = |parts: usize, over: Option<f64>| {
            over.map(|over| self.nodes.div_ceil(parts) as f64 * self.up / over)
        };
        (
            share(racks, self.layout.rack_oversubscribed),
            share(zones, self.layout.zone_oversubscribed),
        )
    }
}
