//! Complete layers only: a node gives away a layer when it has all of it and has verified it.
//!
//! As Spegel does, which serves what is in containerd's content store: a look-up finds some nodes
//! that hold the layer, one of them is asked for the whole of it, and where none is found in time
//! the client goes to the origin. Nodes that begin together find nobody, and all go there.
//!
//! In its favour: a layer can be found from the moment it is verified, not only when the image is
//! there, and holders are found as soon as there is one.

use rand::RngExt as _;

use super::{
    Baseline, Setting,
    cluster::{Cluster, Queue},
    direct::LAYERS_AT_ONCE,
};
use crate::net::MILLISECOND;

/// After so long without a holder the client is sent to the origin: `mirrorResolveTimeout` in
/// <https://github.com/spegel-org/spegel/blob/main/charts/spegel/values.yaml>.
const LOOKUP_NANOS_MAX: u64 = 20 * MILLISECOND;

#[derive(Clone, Copy, Debug)]
pub(super) enum Tag {
    /// A look-up has ended.
    Looked { node: usize, layer: usize },
    /// The last byte is here.
    Arrived { node: usize, layer: usize },
    /// It is hashed, and can be found.
    Verified { node: usize, layer: usize },
}

/// Whole layers.
pub(super) struct Layers {
    queues: Vec<Queue>,
    /// By layer: who holds it.
    holders: Vec<Vec<usize>>,
}

impl Layers {
    pub(super) fn new(setting: &Setting) -> Self {
        Self {
            queues: vec![Queue::new(setting); setting.nodes()],
            holders: vec![Vec::new(); setting.layers.len()],
        }
    }

    fn look(&mut self, cluster: &mut Cluster<Tag>, node: usize) {
        if let Some(layer) = self.queues[node].next() {
            let after = if self.holders[layer].is_empty() {
                LOOKUP_NANOS_MAX
            } else {
                lookup_nanos(cluster, node)
            };
            cluster.after(after, Tag::Looked { node, layer });
        }
    }
}

/// A look-up in Kademlia, which Spegel uses, takes O(log N) round trips (Maymounkov and Mazières,
/// "Kademlia", 2002).
fn lookup_nanos(cluster: &Cluster<Tag>, node: usize) -> u64 {
    let trips = u64::from(usize::BITS - cluster.nodes().leading_zeros());
    let other = (node + 1) % cluster.nodes();
    (trips * 2 * cluster.latency(node, other)).min(LOOKUP_NANOS_MAX)
}

impl Baseline for Layers {
    type Tag = Tag;

    fn pull(&mut self, cluster: &mut Cluster<Tag>, node: usize) {
        for _ in 0..LAYERS_AT_ONCE {
            self.look(cluster, node);
        }
    }

    fn handle(&mut self, cluster: &mut Cluster<Tag>, tag: Tag) {
        match tag {
            Tag::Looked { node, layer } => {
                // Whoever answers the look-up first, which is not whoever has the least to do.
                let holders = &self.holders[layer];
                let from = match holders.len() {
                    0 => cluster.origin(),
                    some => holders[cluster.rng().random_range(0..some)],
                };
                cluster.fetch_layer(from, node, layer, Tag::Arrived { node, layer });
            }
            Tag::Arrived { node, layer } => {
                let at = cluster.layer_arrived(node, layer);
                cluster.after(at - cluster.now(), Tag::Verified { node, layer });
                self.look(cluster, node);
            }
            Tag::Verified { node, layer } => self.holders[layer].push(node),
        }
    }
}
