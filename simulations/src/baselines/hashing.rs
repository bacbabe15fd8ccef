//! Static hashing of chunks: every chunk has one owner, found by hashing, who reads it from the
//! origin when it is first asked for; everybody gets it from the owner.
//!
//! As in groupcache (<https://github.com/golang/groupcache>), with the owner chosen by rendezvous
//! hashing (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998). The
//! origin is read exactly once, but a chunk leaves its owner N-1 times, and chunks are not spread
//! evenly: whoever owns most of them is waited for by all.
//!
//! In its favour: the nodes ask in orders of their own, so that not all wait for the same owner,
//! and a chunk is given away as soon as it is here.

use std::collections::BTreeMap;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use shoal_protocol::directory::NodeId;

use super::{Baseline, Setting, cluster::Cluster};

/// Chunks that a node asks for at once: enough for the fastest links simulated, as many as the
/// exchange itself asks for at 10 Gbit/s.
const OUTSTANDING: usize = 16;

#[derive(Clone, Copy, Debug)]
pub(super) enum Tag {
    /// At its owner, from the origin.
    Read { chunk: u32 },
    /// At another node.
    Arrived { node: usize, chunk: u32 },
}

/// What an owner has of a chunk.
enum Owned {
    /// It was never asked for.
    Absent,
    /// It is on its way, and these wait.
    Reading(Vec<usize>),
    Here,
}

/// Chunks with owners.
pub(super) struct Hashing {
    owners: Vec<usize>,
    chunks: Vec<Owned>,
    /// By node: what it has not asked for, the last first.
    wanted: BTreeMap<usize, Vec<u32>>,
}

impl Hashing {
    pub(super) fn new(setting: &Setting) -> Self {
        let chunks = setting.chunks().len() as u32;
        let mut rng = StdRng::seed_from_u64(setting.seed);
        let ids: Vec<NodeId> = (0..setting.nodes()).map(|_| NodeId(rng.random())).collect();
        let owner = |chunk: u32| {
            let weight = |node: &usize| ids[*node].weight(u64::from(chunk));
            (0..ids.len()).max_by_key(weight).unwrap_or(0)
        };
        Self {
            owners: (0..chunks).map(owner).collect(),
            chunks: (0..chunks).map(|_| Owned::Absent).collect(),
            wanted: BTreeMap::new(),
        }
    }

    /// Chunks of the node that owns most.
    #[cfg(test)]
    pub(super) fn owned_most(&self) -> usize {
        let owned = |node| self.owners.iter().filter(|owner| *owner == node).count();
        self.owners.iter().map(owned).max().unwrap_or(0)
    }

    fn ask(&mut self, cluster: &mut Cluster<Tag>, node: usize) {
        let Some(chunk) = self.wanted.get_mut(&node).and_then(Vec::pop) else {
            return;
        };
        match &mut self.chunks[chunk as usize] {
            Owned::Here => self.give(cluster, node, chunk),
            Owned::Reading(waiting) => waiting.push(node),
            absent @ Owned::Absent => {
                *absent = Owned::Reading(vec![node]);
                let bytes = cluster.chunk_bytes(chunk);
                let owner = self.owners[chunk as usize];
                let origin = cluster.origin();
                cluster.fetch(origin, owner, bytes, Tag::Read { chunk });
            }
        }
    }

    fn give(&mut self, cluster: &mut Cluster<Tag>, node: usize, chunk: u32) {
        let owner = self.owners[chunk as usize];
        if owner == node {
            cluster.after(0, Tag::Arrived { node, chunk });
        } else {
            let bytes = cluster.chunk_bytes(chunk);
            cluster.fetch(owner, node, bytes, Tag::Arrived { node, chunk });
        }
    }
}

impl Baseline for Hashing {
    type Tag = Tag;

    fn pull(&mut self, cluster: &mut Cluster<Tag>, node: usize) {
        let mut order: Vec<u32> = (0..self.chunks.len() as u32).collect();
        order.shuffle(cluster.rng());
        self.wanted.insert(node, order);
        for _ in 0..OUTSTANDING {
            self.ask(cluster, node);
        }
    }

    fn handle(&mut self, cluster: &mut Cluster<Tag>, tag: Tag) {
        match tag {
            Tag::Read { chunk } => {
                let was = std::mem::replace(&mut self.chunks[chunk as usize], Owned::Here);
                if let Owned::Reading(waiting) = was {
                    for node in waiting {
                        self.give(cluster, node, chunk);
                    }
                }
            }
            Tag::Arrived { node, chunk } => {
                cluster.chunk_arrived(node, chunk);
                self.ask(cluster, node);
            }
        }
    }
}
