//! Names of nodes: what stands on the wire against what the machines compute with.
//!
//! On the wire a node is its public key. Inside, it is a [`Peer`], a small number that is handed
//! out at first sight: maps stay small, and a simulated world of 10,000 nodes that all know each
//! other shares one directory instead of holding 100 million records.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use serde::{Deserialize, Serialize};

use crate::limits::ADDRESSES_MAX;

/// A node's ed25519 public key; its libp2p peer id in another spelling.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub [u8; 32]);

/// A node, as this process numbers it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer(pub u32);

/// What a node publishes of itself through membership.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its public key.
    pub id: NodeId,
    /// Rises with every start of the daemon, so that a node that comes back is told from the one
    /// that was declared dead.
    pub generation: u64,
    /// Where its swarm port is reached, best first; at most [`ADDRESSES_MAX`].
    pub addresses: Vec<SocketAddr>,
    /// Where it stands.
    pub place: Place,
}

/// Where a node stands, as its operator says. What leaves a rack or a zone shares a narrower pipe.
/// Numbers made of labels; zero where nothing was said.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Place {
    /// The zone: a data centre, or a part of one.
    pub zone: u32,
    /// The rack within the zone.
    pub rack: u32,
}

impl Place {
    /// The place with these labels.
    pub fn labelled(zone: Option<&str>, rack: Option<&str>) -> Self {
        let number = |label: Option<&str>| {
            label.map_or(0, |label| {
                let mut first = [0; 4];
                first.copy_from_slice(&blake3::hash(label.as_bytes()).as_bytes()[..4]);
                u32::from_be_bytes(first).max(1)
            })
        };
        Self {
            zone: number(zone),
            rack: number(rack),
        }
    }

    /// Whether the operator said anything.
    pub fn is_known(self) -> bool {
        self != Self::default()
    }

    /// Which pipes lie between two places.
    pub fn distance(self, other: Self) -> Distance {
        if self == other || !self.is_known() || !other.is_known() {
            Distance::Near
        } else if self.zone == other.zone {
            Distance::Rack
        } else {
            Distance::Zone
        }
    }
}

/// Which pipes lie between two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Distance {
    /// None: the same rack, or nobody said otherwise.
    Near,
    /// Those of two racks.
    Rack,
    /// Those of two zones, and of two racks.
    Zone,
}

/// The table of [`Peer`] numbers. Cloning it clones a handle to the same table.
#[derive(Clone, Default)]
pub struct Directory(Arc<RwLock<Table>>);

#[derive(Default)]
struct Table {
    records: Vec<Arc<NodeRecord>>,
    /// The keys again, side by side: all of them are read where nodes are ranked.
    ids: Vec<NodeId>,
    numbers: BTreeMap<NodeId, Peer>,
}

impl Directory {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// The number of a node, known or new. Keeps the record of the newest generation.
    pub fn intern(&self, record: &NodeRecord) -> Peer {
        if let Some((peer, known)) = self.find(&record.id)
            && (known.generation > record.generation || *known == *record)
        {
            return peer;
        }
        let mut record = record.clone();
        record.addresses.truncate(ADDRESSES_MAX);
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = table.numbers.get(&record.id).copied() {
            table.records[peer.0 as usize] = Arc::new(record);
            return peer;
        }
        let peer = Peer(table.records.len() as u32);
        table.numbers.insert(record.id, peer);
        table.ids.push(record.id);
        table.records.push(Arc::new(record));
        peer
    }

    /// The number of a node of which nothing but its key is known yet.
    pub fn intern_id(&self, id: NodeId) -> Peer {
        match self.find(&id) {
            Some((peer, _)) => peer,
            None => self.intern(&NodeRecord {
                id,
                generation: 0,
                addresses: Vec::new(),
                place: Place::default(),
            }),
        }
    }

    /// The number of a node, if it was ever seen.
    pub fn lookup(&self, id: &NodeId) -> Option<Peer> {
        self.find(id).map(|(peer, _)| peer)
    }

    /// What is known of a node.
    ///
    /// # Panics
    /// If `peer` comes from another directory.
    pub fn record(&self, peer: Peer) -> Arc<NodeRecord> {
        Arc::clone(&self.table().records[peer.0 as usize])
    }

    /// The public key of a node.
    pub fn id(&self, peer: Peer) -> NodeId {
        self.table().ids[peer.0 as usize]
    }

    /// Where a node stands.
    pub fn place(&self, peer: Peer) -> Place {
        self.table().records[peer.0 as usize].place
    }

    /// Looks up many public keys at once.
    pub(crate) fn each(
        &self,
        peers: impl Iterator<Item = Peer>,
        mut found: impl FnMut(Peer, NodeId),
    ) {
        let table = self.table();
        for peer in peers {
            found(peer, table.ids[peer.0 as usize]);
        }
    }

    fn table(&self) -> RwLockReadGuard<'_, Table> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, id: &NodeId) -> Option<(Peer, Arc<NodeRecord>)> {
        let table = self.table();
        let peer = *table.numbers.get(id)?;
        Some((peer, Arc::clone(&table.records[peer.0 as usize])))
    }
}

impl NodeId {
    /// The weight of this node for `key` in rendezvous hashing (highest random weight; Thaler and
    /// Ravishankar, 1998). Every node computes the same.
    pub fn weight(&self, key: u64) -> u64 {
        let mut first = [0; 8];
        first.copy_from_slice(&self.0[..8]);
        mix(u64::from_be_bytes(first) ^ mix(key))
    }
}

/// The finalizer of splitmix64: every input bit changes half of the output bits.
pub(crate) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0[..4]))
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_labelled_nodes_are_far_from_each_other() {
        let a1 = Place::labelled(Some("a"), Some("1"));
        let a2 = Place::labelled(Some("a"), Some("2"));
        let b1 = Place::labelled(Some("b"), Some("1"));
        assert_eq!(a1.distance(a1), Distance::Near);
        assert_eq!(a1.distance(a2), Distance::Rack);
        assert_eq!(a1.distance(b1), Distance::Zone);
        let unknown = Place::labelled(None, None);
        assert_eq!(a1.distance(unknown), Distance::Near);
        assert_eq!(unknown.distance(b1), Distance::Near);
        let zone_only = Place::labelled(Some("a"), None);
        assert_eq!(zone_only.distance(zone_only), Distance::Near);
    }

    #[test]
    fn the_newest_generation_is_kept() {
        let directory = Directory::new();
        let record = |generation, port| NodeRecord {
            id: NodeId([1; 32]),
            generation,
            addresses: vec![SocketAddr::from(([127, 0, 0, 1], port))],
            place: Place::default(),
        };
        let peer = directory.intern_id(NodeId([1; 32]));
        assert_eq!(directory.intern(&record(5, 50)), peer);
        assert_eq!(directory.intern(&record(4, 40)), peer);
        assert_eq!(directory.record(peer).addresses[0].port(), 50);
        assert_ne!(directory.intern_id(NodeId([2; 32])), peer);
    }
}
