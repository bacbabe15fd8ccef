//! Who knows whom, who has what, and who wants what of whom.

use rand::{RngExt as _, rngs::StdRng, seq::SliceRandom as _};

use super::super::Setting;

/// Peers in a tracker's answer ("numwant … typically 50", wiki.theory.org).
const TRACKER_PEERS: usize = 50;
/// The official client "only actively forms new connections if it has less than 30 peers and will
/// refuse connections if it has 55" (wiki.theory.org).
const PEERS_SOUGHT: usize = 30;
pub(in super::super) const PEERS_MAX: usize = 55;

/// What a node knows of one of its peers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    /// The peer.
    pub(super) id: usize,
    /// The node's place in the peer's list.
    pub(super) back: usize,
    /// Pieces that the peer has and the node has not: the node is interested if there are any.
    pub(super) wanted: u32,
    /// Whether the node gives the peer what it asks for.
    pub(super) unchoked: bool,
    /// Whether it does so whatever the peer's rate.
    pub(super) optimistic: bool,
    /// Pieces under way from the peer.
    pub(super) asked: u8,
    /// Bytes from the peer since unchokes were last thought over.
    pub(super) received: u64,
}

/// A change of interest or supply, as (node, place of the peer in its list).
#[derive(Debug, Default)]
pub(super) struct Gained {
    /// The node is not interested in the peer any more.
    pub(super) sated: Vec<(usize, usize)>,
    /// The peer has something new for the node.
    pub(super) supplied: Vec<(usize, usize)>,
}

/// The nodes as far as they have come.
pub(super) struct Swarm {
    pub(super) links: Vec<Vec<Link>>,
    pieces: u32,
    /// By node: pieces that it has, a bit each.
    have: Vec<Vec<u64>>,
    /// By node: pieces that it has not, and that are not on their way to it, a bit each.
    free: Vec<Vec<u64>>,
    held: Vec<u32>,
    /// By node: how many of its peers have each piece.
    seen: Vec<Vec<u16>>,
    /// In the order of their coming, for the tracker.
    here: Vec<usize>,
}

impl Swarm {
    pub(super) fn new(setting: &Setting) -> Self {
        let nodes = setting.nodes();
        let pieces = setting.chunks().len() as u32;
        let words = pieces.div_ceil(64) as usize;
        let mut free = vec![u64::MAX; words];
        if let (Some(last), true) = (free.last_mut(), !pieces.is_multiple_of(64)) {
            *last = (1 << (pieces % 64)) - 1;
        }
        Self {
            links: vec![Vec::new(); nodes],
            pieces,
            have: vec![vec![0; words]; nodes],
            free: vec![free; nodes],
            held: vec![0; nodes],
            seen: vec![vec![0; pieces as usize]; nodes],
            here: Vec::new(),
        }
    }

    pub(super) fn has(&self, node: usize, piece: u32) -> bool {
        self.have[node][piece as usize / 64] >> (piece % 64) & 1 == 1
    }

    pub(super) fn is_seed(&self, node: usize) -> bool {
        self.held[node] == self.pieces
    }

    /// Whether every piece is here or on its way.
    pub(super) fn has_asked_for_all(&self, node: usize) -> bool {
        self.free[node].iter().all(|word| *word == 0)
    }

    /// Whether the peer at that place is interested in the node.
    pub(super) fn interests(&self, node: usize, peer: usize) -> bool {
        let Link { id, back, .. } = self.links[node][peer];
        self.links[id][back].wanted > 0
    }

    /// Whether the peer at that place gives to the node.
    pub(super) fn gives(&self, node: usize, peer: usize) -> bool {
        let Link { id, back, .. } = self.links[node][peer];
        self.links[id][back].unchoked
    }

    /// A node comes: the tracker names peers, and it connects to some of them.
    pub(super) fn join(&mut self, node: usize, rng: &mut StdRng) {
        let (named, _) = self.here.partial_shuffle(rng, TRACKER_PEERS);
        let named = named.to_vec();
        self.here.push(node);
        for peer in named {
            if self.links[node].len() == PEERS_SOUGHT {
                break;
            }
            if self.links[peer].len() < PEERS_MAX {
                self.connect(node, peer);
            }
        }
    }

    fn connect(&mut self, one: usize, other: usize) {
        let (place, back) = (self.links[one].len(), self.links[other].len());
        for (node, peer, back) in [(one, other, back), (other, one, place)] {
            let mut wanted = 0;
            for piece in 0..self.pieces {
                if self.has(peer, piece) {
                    self.seen[node][piece as usize] += 1;
                    wanted += u32::from(!self.has(node, piece));
                }
            }
            self.links[node].push(Link {
                id: peer,
                back,
                wanted,
                unchoked: false,
                optimistic: false,
                asked: 0,
                received: 0,
            });
        }
    }

    /// A node has another piece, and its peers hear of it.
    pub(super) fn gained(&mut self, node: usize, piece: u32) -> Gained {
        self.have[node][piece as usize / 64] |= 1 << (piece % 64);
        self.held[node] += 1;
        let mut gained = Gained::default();
        for place in 0..self.links[node].len() {
            let Link { id, back, .. } = self.links[node][place];
            self.seen[id][piece as usize] += 1;
            if self.has(id, piece) {
                let wanted = &mut self.links[node][place].wanted;
                *wanted -= 1;
                if *wanted == 0 {
                    gained.sated.push((node, place));
                }
            } else {
                self.links[id][back].wanted += 1;
                gained.supplied.push((id, back));
            }
        }
        gained
    }

    /// Takes the piece that the peer has and the fewest others have; a node that has nothing takes
    /// any, so that it soon has something to give ("random first piece", Cohen, "Incentives build
    /// robustness in BitTorrent", 2003).
    pub(super) fn take_rarest(
        &mut self,
        node: usize,
        peer: usize,
        rng: &mut StdRng,
    ) -> Option<u32> {
        let first = self.held[node] == 0;
        let have = &self.have[self.links[node][peer].id];
        let (free, seen) = (&self.free[node], &self.seen[node]);
        let words = free.iter().zip(have).map(|(free, have)| free & have);
        let count = |piece: u32| if first { 0 } else { seen[piece as usize] };
        let piece = least(words, count, rng)?;
        Some(self.take(node, piece))
    }

    /// Takes a piece that no peer has.
    pub(super) fn take_unseen(&mut self, node: usize, rng: &mut StdRng) -> Option<u32> {
        let seen = &self.seen[node];
        let words = self.free[node].iter().copied();
        let piece = least(words, |piece| seen[piece as usize], rng)?;
        (seen[piece as usize] == 0).then(|| self.take(node, piece))
    }

    fn take(&mut self, node: usize, piece: u32) -> u32 {
        self.free[node][piece as usize / 64] &= !(1 << (piece % 64));
        piece
    }
}

/// Of the pieces whose bits are set the one with the least count, any of those that have it.
fn least(
    words: impl Iterator<Item = u64>,
    count: impl Fn(u32) -> u16,
    rng: &mut StdRng,
) -> Option<u32> {
    let mut best = None;
    let mut ties = 0;
    for (place, mut word) in words.enumerate() {
        while word != 0 {
            let piece = place as u32 * 64 + word.trailing_zeros();
            word &= word - 1;
            let count = count(piece);
            match best {
                Some((least, _)) if count > least => {}
                Some((least, _)) if count == least => {
                    ties += 1;
                    if rng.random_range(0..ties) == 0 {
                        best = Some((count, piece));
                    }
                }
                _ => {
                    ties = 1;
                    best = Some((count, piece));
                }
            }
        }
    }
    best.map(|(_, piece)| piece)
}
