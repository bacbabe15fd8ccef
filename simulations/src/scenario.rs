//! A world before it runs: who, with what links, pulls what, and what goes wrong.

mod bound;
mod faults;
mod links;
mod names;
mod random;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use shoal_protocol::{config::Config, time::Duration};

pub(crate) use self::{
    faults::{Fault, Planned, Victim},
    names::{NAMES, RANDOM},
};

/// A world before it runs. Rates in bytes per second.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    /// As on the command line.
    pub(crate) name: String,
    /// All randomness of the run.
    pub(crate) seed: u64,
    /// Hosts, the origin not counted.
    pub(crate) nodes: usize,
    /// Each host's uplink and downlink.
    pub(crate) up: f64,
    pub(crate) down: f64,
    /// What is pulled.
    pub(crate) images: Vec<Image>,
    /// How many of the images each host pulls.
    pub(crate) images_each: usize,
    pub(crate) layout: Layout,
    pub(crate) origin: Origin,
    pub(crate) machine: Machine,
    /// Layers of an image that a client pulls at once.
    pub(crate) parallel: usize,
    /// Nodes that hold everything from the start.
    pub(crate) warm: usize,
    /// Nodes that begin only when the others have about half.
    pub(crate) late: usize,
    /// Over what time the others begin.
    pub(crate) stagger: Duration,
    /// The share of nodes whose links have a tenth of the rate.
    pub(crate) slow_share: f64,
    /// What goes wrong, and when.
    pub(crate) faults: Vec<Planned>,
    /// Whether the nodes know each other from the start, as daemons that have been up for a while,
    /// instead of finding each other.
    pub(crate) settled: bool,
    /// Whether half of the nodes know only the other members of their half in the beginning.
    pub(crate) two_views: bool,
    /// Settings of every node.
    pub(crate) config: Config,
    /// What may not be exceeded.
    pub(crate) limits: Limits,
    /// What was changed by name, as on the command line.
    pub(crate) changed: Vec<String>,
}

/// What a world may not exceed. What every world is held to stands with the checkers.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits {
    /// The longest pull, over the bound, half a second apart.
    pub(crate) ratio: Option<f64>,
    /// The 99th percentile of the pulls: so many bounds, and so many seconds on top.
    pub(crate) p99: Option<(f64, f64)>,
    /// Seconds that a node which nothing struck goes without any chunk.
    pub(crate) gap_seconds: Option<f64>,
    /// Bytes from the origin over those of the images.
    pub(crate) copies: Option<f64>,
    /// Bytes of control messages, over those of what is pulled.
    pub(crate) control: Option<f64>,
    /// Streams from the origin at once.
    pub(crate) streams: Option<usize>,
    /// Bytes that one node uploads, over those of the images.
    pub(crate) upload: Option<f64>,
    /// Bytes that nobody waited for any more, over all from peers.
    pub(crate) wasted: Option<f64>,
    /// Bytes that one node reads from the origin, over its even share.
    pub(crate) holder: Option<f64>,
    /// Chunks that a node sends at once.
    pub(crate) sending: Option<usize>,
    /// Chunks that came although nobody waited, and whose sender was not told.
    pub(crate) uncancelled: Option<u64>,
    /// Bytes of memory that the run takes.
    pub(crate) memory: Option<u64>,
}

/// An image to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Image {
    /// Of all layers together.
    pub(crate) bytes: u64,
    pub(crate) layers: usize,
    /// Whether a few layers have most of the bytes, as in real images, or all have the same.
    pub(crate) heavy_tailed: bool,
}

/// Where the hosts stand.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) zones: u16,
    /// In each zone.
    pub(crate) racks: u16,
    /// How many times a rack's hosts could send more than its pipe takes.
    pub(crate) rack_oversubscribed: Option<f64>,
    /// The same of a zone.
    pub(crate) zone_oversubscribed: Option<f64>,
    /// One way.
    pub(crate) latency_rack: Duration,
    pub(crate) latency_zone: Duration,
    pub(crate) latency_far: Duration,
    pub(crate) latency_origin: Duration,
    /// The share of packets that is lost.
    pub(crate) loss: f64,
}

/// The registry.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) rate: f64,
    /// Of each stream at most.
    pub(crate) stream_rate: Option<f64>,
    /// From a request to its first byte.
    pub(crate) first_byte: Duration,
    /// Streams beyond which it answers 429.
    pub(crate) streams_max: Option<usize>,
    /// Whether it refuses everybody.
    pub(crate) away: bool,
}

/// What is inside a host.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    /// SHA-256 of one blob, in order.
    pub(crate) sha: f64,
    /// BLAKE3 of a chunk as it comes in.
    pub(crate) blake3: f64,
    pub(crate) disk_write: f64,
    pub(crate) disk_read: f64,
    pub(crate) cores: u32,
}

pub(crate) const MBIT: f64 = 1e6 / 8.0;
pub(crate) const GBIT: f64 = 1e9 / 8.0;
pub(crate) const MIB: u64 = 1 << 20;

/// How much slower slow nodes are.
pub(crate) const SLOWER: f64 = 10.0;

/// With more nodes than this a world begins settled: booting is the matter of smaller ones.
pub(crate) const BOOTING_MAX: usize = 100;

impl Default for Machine {
    /// A present server core hashes 1.8 GB/s with the instructions for SHA-256, 4.7 GB/s with
    /// BLAKE3; an NVMe disk behind the page cache takes and gives 6 GB/s.
    fn default() -> Self {
        Self {
            sha: 1.8e9,
            blake3: 4.7e9,
            disk_write: 6e9,
            disk_read: 6e9,
            cores: 16,
        }
    }
}

impl Scenario {
    /// Bytes of each layer of each image, as the seed draws them.
    pub(crate) fn layer_sizes(&self) -> Vec<Vec<u64>> {
        let mut rng = StdRng::seed_from_u64(self.seed ^ 0x001a_7e75);
        self.images
            .iter()
            .map(|image| image.layers(&mut rng))
            .collect()
    }

    /// Which images each host pulls, as the seed draws them. Those that hold everything from the
    /// start pull nothing.
    pub(crate) fn wanted(&self) -> Vec<Vec<usize>> {
        let mut rng = StdRng::seed_from_u64(self.seed ^ 0x003a_47ed);
        let mut all: Vec<usize> = (0..self.images.len()).collect();
        (0..self.nodes)
            .map(|host| {
                if host < self.warm {
                    return Vec::new();
                }
                if self.images_each < all.len() {
                    all.shuffle(&mut rng);
                }
                all[..self.images_each.min(all.len())].to_vec()
            })
            .collect()
    }

    /// Which hosts are slow from the start, as the seed draws them.
    pub(crate) fn slow(&self) -> Vec<bool> {
        let mut rng = StdRng::seed_from_u64(self.seed ^ 0x0000_510e);
        let count = (self.slow_share * self.nodes as f64).round() as usize;
        let mut slow = vec![false; self.nodes];
        slow[..count.min(self.nodes)].fill(true);
        slow.shuffle(&mut rng);
        slow
    }
}

impl Image {
    fn layers(&self, rng: &mut StdRng) -> Vec<u64> {
        // Pareto's distribution with the exponent 1.1, cut off where one layer would be all.
        let mut weights: Vec<f64> = (0..self.layers)
            .map(|_| {
                if self.heavy_tailed {
                    rng.random_range(0.01f64..1.0).powf(-1.0 / 1.1)
                } else {
                    1.0
                }
            })
            .collect();
        let all: f64 = weights.iter().sum();
        for weight in &mut weights {
            *weight *= self.bytes as f64 / all;
        }
        weights
            .into_iter()
            .map(|bytes| (bytes as u64).max(1))
            .collect()
    }
}

impl Scenario {
    /// Whether some fault makes a host lie, so that signers have to be remembered.
    pub(crate) fn has_liars(&self) -> bool {
        self.faults
            .iter()
            .any(|planned| planned.fault == Fault::LyingHolder)
    }

    /// Whether a pull may be refused for a while without anyone being wrong.
    pub(crate) fn may_refuse(&self) -> bool {
        self.origin.away
            || self.faults.iter().any(|planned| {
                matches!(
                    planned.fault,
                    Fault::OriginOutage { .. }
                        | Fault::OriginRefuses { .. }
                        | Fault::LyingHolder
                        | Fault::Partition { .. }
                )
            })
    }

    /// How long the last fault lasts after it struck.
    fn trouble(&self) -> Duration {
        let last = |fault: Fault| match fault {
            Fault::Kill { restart_after } => restart_after.unwrap_or_default(),
            Fault::Freeze { thaw_after } => thaw_after,
            Fault::Slow { ends_after, .. }
            | Fault::Delay { ends_after, .. }
            | Fault::FullDisk { ends_after }
            | Fault::OriginOutage { ends_after }
            | Fault::OriginRefuses { ends_after, .. } => ends_after,
            Fault::Partition { heals_after } => heals_after,
            Fault::RollingRestart { down_for, pause } => (down_for + pause) * self.nodes as u32,
            Fault::ClockJump { .. } | Fault::CorruptChunks | Fault::LyingHolder => Duration::ZERO,
        };
        self.faults
            .iter()
            .filter(|planned| !planned.left_out)
            .map(|planned| last(planned.fault))
            .max()
            .unwrap_or_default()
    }

    /// Within this time after the pulls began all have to be over: what the bound allows, ten
    /// times over where slow links are, and a minute on top after the last fault.
    pub(crate) fn patience(&self) -> Duration {
        let slow = if self.slow_share > 0.0 { SLOWER } else { 1.0 };
        // What a liar read is read again, by one for all at best.
        let lies = if self.has_liars() { 5.0 } else { 1.0 };
        let bound = Duration::from_secs_f64(self.lower_bound() * (3.0 + 3.0 * slow * lies));
        bound + self.stagger + self.trouble() + Duration::from_secs(60)
    }
}
