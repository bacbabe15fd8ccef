//! The members of the cluster as the machines of one node see them: who is live, and which of them
//! rank best for a blob, an upstream or a tag.
//!
//! With 10,000 members a record for each of them at each node would not fit into a simulation, and
//! ranking all of them for every message would not fit into a daemon's time. So the live ones are a
//! set of bits, and a ranking that was asked for is kept and corrected as members come and go.

use std::{cell::RefCell, collections::BTreeMap};

use smallvec::SmallVec;

use crate::directory::{Directory, Distance, NodeId, Peer, Place, mix};

/// A set of peers: their numbers are dense, so a bit each is enough.
#[derive(Clone, Debug, Default)]
pub(crate) struct PeerSet {
    words: Vec<u64>,
    len: usize,
}

impl PeerSet {
    fn place(peer: Peer) -> (usize, u64) {
        ((peer.0 / 64) as usize, 1 << (peer.0 % 64))
    }

    pub(crate) fn contains(&self, peer: Peer) -> bool {
        let (word, bit) = Self::place(peer);
        self.words.get(word).is_some_and(|word| word & bit != 0)
    }

    /// Adds a peer; `true` if it was not there.
    pub(crate) fn insert(&mut self, peer: Peer) -> bool {
        let (word, bit) = Self::place(peer);
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        let new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.len += usize::from(new);
        new
    }

    /// Takes a peer out; `true` if it was there.
    pub(crate) fn remove(&mut self, peer: Peer) -> bool {
        let (word, bit) = Self::place(peer);
        if !self.contains(peer) {
            return false;
        }
        self.words[word] &= !bit;
        self.len -= 1;
        true
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// In the order of their numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Peer> + '_ {
        self.words.iter().enumerate().flat_map(|(at, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = left.trailing_zeros();
                left &= left.checked_sub(1)?;
                Some(Peer(at as u32 * 64 + bit))
            })
        })
    }

    /// The `at`th of them, in the order of their numbers.
    pub(crate) fn nth(&self, mut at: usize) -> Option<Peer> {
        for (place, word) in self.words.iter().enumerate() {
            let here = word.count_ones() as usize;
            if at < here {
                let mut left = *word;
                for _ in 0..at {
                    left &= left - 1;
                }
                return Some(Peer(place as u32 * 64 + left.trailing_zeros()));
            }
            at -= here;
        }
        None
    }
}

/// The best-ranked live nodes for a key, best first.
pub(crate) type Ranks = SmallVec<[Peer; 3]>;

/// How many of them count.
pub(crate) const RANKS: usize = 3;

/// Weight and node, best first.
type Ranking = SmallVec<[(u64, Peer); RANKS + 1]>;

/// Rankings that are kept: those of every blob of a large store, in some 6 MB. Beyond, all are
/// forgotten, and computed again when asked for.
const RANKINGS_MAX: usize = 65_536;

/// The rankings that are others now, or in which a member has started again.
#[derive(Debug, Default)]
pub(crate) struct Changed {
    /// These keys.
    pub(crate) keys: Vec<u64>,
    /// Perhaps others too: not all rankings that were ever asked for are known any more.
    pub(crate) others: bool,
}

impl Changed {
    pub(crate) fn concerns(&self, key: u64) -> bool {
        self.others || self.keys.contains(&key)
    }
}

pub(crate) struct View {
    me: (Peer, NodeId),
    directory: Directory,
    live: PeerSet,
    place: Place,
    /// Live members in the rack of this node, and in its zone but another rack.
    rack: PeerSet,
    zone: PeerSet,
    /// The racks of its zone, with the live members of each.
    racks: BTreeMap<u32, u32>,
    /// Counts the changes of those.
    surroundings: u64,
    rankings: RefCell<BTreeMap<u64, Ranking>>,
    forgot: bool,
}

fn enter(ranking: &mut Ranking, weight: u64, peer: Peer) -> bool {
    let at = ranking.partition_point(|(other, _)| *other > weight);
    if at >= RANKS {
        return false;
    }
    ranking.insert(at, (weight, peer));
    ranking.truncate(RANKS);
    true
}

impl View {
    pub(crate) fn new(me: Peer, my_id: NodeId, directory: Directory) -> Self {
        let place = directory.place(me);
        Self {
            me: (me, my_id),
            place,
            rack: PeerSet::default(),
            zone: PeerSet::default(),
            racks: BTreeMap::from([(place.rack, 1)]),
            surroundings: 0,
            directory,
            live: PeerSet::default(),
            rankings: RefCell::default(),
            forgot: false,
        }
    }

    /// Members that are not declared dead and not banned, without this node.
    pub(crate) fn live(&self) -> &PeerSet {
        &self.live
    }

    /// Whether a node is live; this one always is.
    pub(crate) fn is_live(&self, peer: Peer) -> bool {
        peer == self.me.0 || self.live.contains(peer)
    }

    /// A member is live, or lives again.
    pub(crate) fn joined(&mut self, peer: Peer) -> Changed {
        let mut changed = Changed {
            others: self.forgot,
            ..Changed::default()
        };
        if self.live.insert(peer) {
            self.surround(peer, true);
            let id = self.directory.id(peer);
            for (key, ranking) in self.rankings.get_mut() {
                if enter(ranking, id.weight(*key), peer) {
                    changed.keys.push(*key);
                }
            }
        } else {
            // It was started again before anyone missed it, and as a steward knows nothing any more.
            let ranked = |ranking: &Ranking| ranking.iter().any(|(_, ranked)| *ranked == peer);
            let rankings = self.rankings.get_mut().iter();
            let concerned = rankings.filter(|(_, ranking)| ranked(ranking));
            changed.keys.extend(concerned.map(|(key, _)| *key));
        }
        changed
    }

    /// A member is not live any more.
    pub(crate) fn left(&mut self, peer: Peer) -> Changed {
        let mut changed = Changed {
            others: self.forgot,
            ..Changed::default()
        };
        if self.live.remove(peer) {
            self.surround(peer, false);
            self.rankings.get_mut().retain(|key, ranking| {
                let stays = ranking.iter().all(|(_, ranked)| *ranked != peer);
                if !stays {
                    changed.keys.push(*key);
                }
                stays
            });
        }
        changed
    }

    fn surround(&mut self, peer: Peer, joined: bool) {
        if !self.place.is_known() {
            return;
        }
        let place = self.directory.place(peer);
        let mates = match self.distance(peer) {
            Distance::Near if place.is_known() => &mut self.rack,
            Distance::Rack => &mut self.zone,
            Distance::Near | Distance::Zone => return,
        };
        self.surroundings += 1;
        let count = self.racks.entry(place.rack).or_default();
        if joined {
            mates.insert(peer);
            *count += 1;
        } else {
            mates.remove(peer);
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.racks.remove(&place.rack);
            }
        }
    }

    /// Which pipes lie between this node and a peer.
    pub(crate) fn distance(&self, peer: Peer) -> Distance {
        if self.place.is_known() {
            self.place.distance(self.directory.place(peer))
        } else {
            Distance::Near
        }
    }

    /// Live members in the rack of this node; none where nobody said which it is.
    pub(crate) fn rack(&self) -> &PeerSet {
        &self.rack
    }

    /// Live members in its zone but another rack.
    pub(crate) fn zone(&self) -> &PeerSet {
        &self.zone
    }

    /// Changes whenever [`imports`](Self::imports) may.
    pub(crate) fn surroundings(&self) -> u64 {
        self.surroundings
    }

    /// What this node is to bring into its rack, and into its zone, of `count` things under `key`:
    /// each is one member's, by rendezvous hashing, so that it crosses a pipe once. A zone's is
    /// the one of the rack that ranks first for it.
    pub(crate) fn imports(&self, key: u64, count: u32, mut import: impl FnMut(u32, bool)) {
        let mut mates = Vec::with_capacity(self.rack.len());
        self.directory
            .each(self.rack.iter(), |_, id| mates.push(id));
        for number in 0..count {
            let key = mix(key ^ u64::from(number));
            let mine = self.me.1.weight(key);
            if mates.iter().any(|id| id.weight(key) > mine) {
                continue;
            }
            let weight = |rack: u32| mix(key ^ mix(u64::from(rack)));
            let rack = weight(self.place.rack);
            import(
                number,
                self.racks.keys().all(|other| weight(*other) <= rack),
            );
        }
    }

    /// The three live nodes of highest weight for `key` (rendezvous hashing), best first.
    pub(crate) fn ranks(&self, key: u64) -> Ranks {
        let mut rankings = self.rankings.borrow_mut();
        let ranking = rankings.entry(key).or_insert_with(|| {
            let mut ranking = Ranking::new();
            enter(&mut ranking, self.me.1.weight(key), self.me.0);
            self.directory.each(self.live.iter(), |peer, id| {
                enter(&mut ranking, id.weight(key), peer);
            });
            ranking
        });
        ranking.iter().map(|(_, peer)| *peer).collect()
    }

    /// Keeps the bound on rankings; called between events.
    pub(crate) fn trim(&mut self) {
        let rankings = self.rankings.get_mut();
        if rankings.len() > RANKINGS_MAX {
            rankings.clear();
            self.forgot = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::NodeRecord;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn view(members: u8) -> View {
        let directory = Directory::new();
        for number in 0..members {
            directory.intern_id(NodeId([number; 32]));
        }
        View::new(Peer(0), NodeId([0; 32]), directory)
    }

    fn reckoned(view: &View, key: u64) -> Ranks {
        let mut all: Vec<(u64, Peer)> = view
            .live()
            .iter()
            .chain([Peer(0)])
            .map(|peer| (view.directory.id(peer).weight(key), peer))
            .collect();
        all.sort_unstable_by(|a, b| b.cmp(a));
        all.into_iter().take(RANKS).map(|(_, peer)| peer).collect()
    }

    #[test]
    fn everything_is_brought_into_each_rack_and_each_zone_by_one_member() {
        const THINGS: u32 = 500;
        let directory = Directory::new();
        // 2 zones of 3 racks of 5 nodes.
        let place = |number: u32| Place {
            zone: 1 + number % 2,
            rack: 1 + number % 6,
        };
        for number in 0..30 {
            directory.intern(&NodeRecord {
                id: NodeId([number as u8 + 1; 32]),
                generation: 1,
                addresses: Vec::new(),
                place: place(number),
            });
        }
        let mut racks: BTreeMap<(u32, u32), u32> = BTreeMap::new();
        let mut zones: BTreeMap<(u32, u32), u32> = BTreeMap::new();
        for me in 0..30 {
            let id = directory.id(Peer(me));
            let mut view = View::new(Peer(me), id, directory.clone());
            for other in (0..30).filter(|other| *other != me) {
                view.joined(Peer(other));
            }
            assert_eq!((view.rack().len(), view.zone().len()), (4, 10));
            let mut mine = 0;
            view.imports(7, THINGS, |thing, also_zone| {
                mine += 1;
                *racks.entry((thing, place(me).rack)).or_default() += 1;
                if also_zone {
                    *zones.entry((thing, place(me).zone)).or_default() += 1;
                }
            });
            // A fifth of them, within what chance does.
            assert!((60..140).contains(&mine), "{mine}");
        }
        assert_eq!((racks.len(), zones.len()), (500 * 6, 500 * 2));
        assert!(
            racks
                .values()
                .chain(zones.values())
                .all(|count| *count == 1)
        );
    }

    proptest! {
        #[test]
        fn a_kept_ranking_is_what_it_would_be_anew(
            changes in prop::collection::vec((any::<bool>(), 1u32..40), 0..120),
        ) {
            let mut view = view(40);
            let keys = [1, 99, u64::MAX / 3];
            for (up, peer) in changes {
                let before = keys.map(|key| view.ranks(key));
                let again = up && view.is_live(Peer(peer));
                let changed = if up { view.joined(Peer(peer)) } else { view.left(Peer(peer)) };
                for (key, before) in keys.into_iter().zip(before) {
                    let now = view.ranks(key);
                    prop_assert_eq!(&now, &reckoned(&view, key));
                    let knows_nothing = again && now.contains(&Peer(peer));
                    prop_assert_eq!(changed.concerns(key), now != before || knows_nothing);
                }
            }
        }

        #[test]
        fn a_peer_set_is_a_set(ops in prop::collection::vec((any::<bool>(), 0u32..300), 0..200)) {
            let mut set = PeerSet::default();
            let mut model = BTreeSet::new();
            for (add, peer) in ops {
                if add {
                    prop_assert_eq!(set.insert(Peer(peer)), model.insert(Peer(peer)));
                } else {
                    prop_assert_eq!(set.remove(Peer(peer)), model.remove(&Peer(peer)));
                }
            }
            prop_assert_eq!(set.len(), model.len());
            prop_assert!(set.iter().eq(model.iter().copied()));
            for (at, peer) in model.iter().enumerate() {
                prop_assert_eq!(set.nth(at), Some(*peer));
            }
            prop_assert_eq!(set.nth(model.len()), None);
        }
    }
}
