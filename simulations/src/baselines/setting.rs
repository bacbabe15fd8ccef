//! What all contenders find: links, an image, and who begins when.

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use shoal_protocol::{chunk::Geometry, message::BlobKind};

use crate::{
    net::{NodeLinks, Topology},
    scenario::Scenario,
};

/// A scenario as a contender sees it.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    /// All randomness of the run.
    pub(crate) seed: u64,
    /// Each node's links; the last are the origin's.
    pub(crate) links: Vec<NodeLinks>,
    /// What lies between them.
    pub(crate) topology: Topology,
    /// Cores of a node.
    pub(crate) cores: u32,
    /// Bytes of each layer.
    pub(crate) layers: Vec<u64>,
    /// From an origin request to its first byte, in nanoseconds.
    pub(crate) first_byte: u64,
    /// Of each of its streams at most, in bytes per second.
    pub(crate) origin_stream_rate: f64,
    /// SHA-256 of one layer, in bytes per second.
    pub(crate) hash_rate: f64,
    /// When each node begins, in nanoseconds.
    pub(crate) starts: Vec<u64>,
}

impl Setting {
    /// The links, the image and the starts of a scenario. What goes wrong in it is left out, and
    /// of its images all nodes pull the first.
    pub(crate) fn of(scenario: &Scenario) -> Self {
        let mut rng = StdRng::seed_from_u64(scenario.seed);
        let stagger = scenario.stagger.as_nanos() as u64;
        Self {
            seed: scenario.seed,
            links: scenario.links(),
            topology: scenario.topology(),
            cores: scenario.machine.cores,
            layers: scenario.layer_sizes().swap_remove(0),
            first_byte: scenario.origin.first_byte.as_nanos() as u64,
            origin_stream_rate: scenario.origin.stream_rate.unwrap_or(f64::INFINITY),
            hash_rate: scenario.machine.sha,
            starts: (0..scenario.nodes)
                .map(|_| rng.random_range(0..=stagger))
                .collect(),
        }
    }

    /// Nodes that pull.
    pub(crate) fn nodes(&self) -> usize {
        self.links.len() - 1
    }

    /// Bytes of the image.
    pub(crate) fn bytes(&self) -> u64 {
        self.layers.iter().sum()
    }

    /// The image's chunks, of all layers in order: layer and bytes.
    pub(crate) fn chunks(&self) -> Vec<(usize, u64)> {
        let chunks = self.layers.iter().enumerate().flat_map(|(layer, size)| {
            let geometry = Geometry::new(BlobKind::Blob, *size);
            (0..geometry.chunks()).map(move |index| (layer, u64::from(geometry.len(index))))
        });
        chunks.collect()
    }
}
