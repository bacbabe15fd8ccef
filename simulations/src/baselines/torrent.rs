//! Like BitTorrent with a web seed: peers from a tracker, rarest first, tit for tat, and no word
//! on who reads what from the origin.
//!
//! Numbers are those of the specification and of its official client: BEP 3
//! (<https://www.bittorrent.org/beps/bep_0003.html>), BEP 19
//! (<https://www.bittorrent.org/beps/bep_0019.html>), and what practice added to them
//! (<https://wiki.theory.org/BitTorrentSpecification>). Pieces are the image's chunks, of all its
//! layers together.
//!
//! A piece comes from one peer. The real thing cuts pieces into blocks of 16 KiB and keeps several
//! requests under way, so that the link never waits for a request: here a second piece is asked
//! for while the first one comes. The origin is a web seed: whoever misses a piece that none of
//! its peers has reads it from there, over one connection. That is many nodes and the same pieces
//! when all begin together, as nothing tells them of each other.
//!
//! In its favour: the tracker answers at once, HAVE, interest and chokes take no time, a transfer
//! that was under way when its node was choked is finished, and nodes stay when they have all.

mod swarm;

use std::cmp::Reverse;

use rand::seq::SliceRandom as _;

#[cfg(test)]
pub(super) use self::swarm::PEERS_MAX;
use self::swarm::Swarm;
use super::{
    Baseline, Setting,
    cluster::{Cluster, Ticket},
};
use crate::net::SECOND;

/// Unchokes are thought over so often: "once every ten seconds" (BEP 3).
const RECHOKE_NANOS: u64 = 10 * SECOND;
/// The optimistic unchoke goes round "every 30 seconds" (BEP 3): each third time.
const OPTIMISTIC_EVERY: u64 = 3;
/// "The four peers which it has the best download rates from" (BEP 3).
const UNCHOKED: usize = 4;
/// And one whatever its rate.
const OPTIMISTIC: usize = 1;
/// Pieces under way from one peer.
const PIPELINE: u8 = 2;
/// In the endgame "requests for all of its missing blocks" go "to all of its peers"
/// (wiki.theory.org). With whole pieces for blocks that would waste far more than it does there,
/// so that two are the limit here.
const ENDGAME_SOURCES: usize = 2;

#[derive(Clone, Copy, Debug)]
pub(super) enum Tag {
    /// A piece is here, from that place in the node's list of peers, or from the origin.
    Arrived {
        node: usize,
        piece: u32,
        from: Option<usize>,
    },
    Rechoke {
        node: usize,
        round: u64,
    },
}

/// A piece that is on its way to a node.
struct Coming {
    piece: u32,
    from: Option<usize>,
    ticket: Ticket,
}

/// The torrent of one image.
pub(super) struct Torrent {
    swarm: Swarm,
    /// By node.
    coming: Vec<Vec<Coming>>,
}

impl Torrent {
    pub(super) fn new(setting: &Setting) -> Self {
        Self {
            swarm: Swarm::new(setting),
            coming: (0..setting.nodes()).map(|_| Vec::new()).collect(),
        }
    }

    /// Asks a peer for as much as may be under way from it.
    fn ask(&mut self, cluster: &mut Cluster<Tag>, node: usize, peer: usize) {
        while self.swarm.gives(node, peer) && self.swarm.links[node][peer].asked < PIPELINE {
            let piece = self
                .swarm
                .take_rarest(node, peer, cluster.rng())
                .or_else(|| self.endgame(node, peer));
            let Some(piece) = piece else { return };
            let link = &mut self.swarm.links[node][peer];
            link.asked += 1;
            let (id, from) = (link.id, Some(peer));
            let tag = Tag::Arrived { node, piece, from };
            let ticket = cluster.fetch(id, node, cluster.chunk_bytes(piece), tag);
            self.coming[node].push(Coming {
                piece,
                from,
                ticket,
            });
        }
    }

    /// A piece that comes from elsewhere, when there is no other one left.
    fn endgame(&self, node: usize, peer: usize) -> Option<u32> {
        if !self.swarm.has_asked_for_all(node) {
            return None;
        }
        let id = self.swarm.links[node][peer].id;
        let coming = &self.coming[node];
        let sources = |piece| coming.iter().filter(|one| one.piece == piece).count();
        coming
            .iter()
            .filter(|one| one.from != Some(peer))
            .map(|one| one.piece)
            .find(|piece| self.swarm.has(id, *piece) && sources(*piece) < ENDGAME_SOURCES)
    }

    /// Reads a piece that no peer has from the origin, unless one is being read. Requests are
    /// pipelined (`urlseed_pipeline_size`, <https://libtorrent.org/reference-Settings.html>): the
    /// next piece follows the last one at once.
    fn seek_origin(&mut self, cluster: &mut Cluster<Tag>, node: usize, pipelined: bool) {
        if self.coming[node].iter().any(|one| one.from.is_none()) {
            return;
        }
        let Some(piece) = self.swarm.take_unseen(node, cluster.rng()) else {
            return;
        };
        let (origin, bytes) = (cluster.origin(), cluster.chunk_bytes(piece));
        let from = None;
        let tag = Tag::Arrived { node, piece, from };
        let ticket = if pipelined {
            cluster.fetch_next(origin, node, bytes, tag)
        } else {
            cluster.fetch(origin, node, bytes, tag)
        };
        self.coming[node].push(Coming {
            piece,
            from,
            ticket,
        });
    }

    fn arrived(
        &mut self,
        cluster: &mut Cluster<Tag>,
        node: usize,
        piece: u32,
        from: Option<usize>,
    ) {
        let (here, others) = std::mem::take(&mut self.coming[node])
            .into_iter()
            .partition(|one| one.piece == piece);
        self.coming[node] = others;
        for one in here {
            if one.from != from {
                cluster.cancel(one.ticket);
            }
            if let Some(peer) = one.from {
                self.swarm.links[node][peer].asked -= 1;
            }
        }
        if let Some(peer) = from {
            self.swarm.links[node][peer].received += cluster.chunk_bytes(piece);
        }
        cluster.chunk_arrived(node, piece);
        let gained = self.swarm.gained(node, piece);
        for (node, place) in gained.sated {
            let link = self.swarm.links[node][place];
            self.swarm.links[link.id][link.back].unchoked = false;
            self.fill(cluster, link.id);
        }
        self.fill(cluster, node);
        for (peer, place) in gained.supplied {
            self.ask(cluster, peer, place);
        }
        for peer in 0..self.swarm.links[node].len() {
            self.ask(cluster, node, peer);
        }
        self.seek_origin(cluster, node, from.is_none());
    }

    /// Gives the slots that are free to interested peers, any of them.
    fn fill(&mut self, cluster: &mut Cluster<Tag>, node: usize) {
        let links = &self.swarm.links[node];
        let served = links.iter().filter(|link| link.unchoked).count();
        let free = (UNCHOKED + OPTIMISTIC).saturating_sub(served);
        if free == 0 {
            return;
        }
        let mut waiting: Vec<usize> = (0..links.len())
            .filter(|peer| !links[*peer].unchoked && self.swarm.interests(node, *peer))
            .collect();
        let (chosen, _) = waiting.partial_shuffle(cluster.rng(), free);
        for peer in chosen.iter() {
            self.unchoke(cluster, node, *peer);
        }
    }

    fn unchoke(&mut self, cluster: &mut Cluster<Tag>, node: usize, peer: usize) {
        let link = &mut self.swarm.links[node][peer];
        link.unchoked = true;
        let (id, back) = (link.id, link.back);
        self.ask(cluster, id, back);
    }

    /// Thinks the unchokes over: those who gave most, and one more, by turns. A node that has all
    /// lets its peers take turns, as libtorrent does by default (`seed_choking_algorithm`,
    /// <https://libtorrent.org/reference-Settings.html>).
    fn rechoke(&mut self, cluster: &mut Cluster<Tag>, node: usize, round: u64) {
        let mut peers: Vec<usize> = (0..self.swarm.links[node].len())
            .filter(|peer| self.swarm.interests(node, *peer))
            .collect();
        peers.shuffle(cluster.rng());
        let seed = self.swarm.is_seed(node);
        let links = &mut self.swarm.links[node];
        if !seed {
            peers.sort_by_key(|peer| Reverse(links[*peer].received));
        }
        let rest = peers.split_off(peers.len().min(UNCHOKED));
        let lucky = rest.iter().find(|peer| links[**peer].optimistic);
        let lucky = lucky.filter(|_| !round.is_multiple_of(OPTIMISTIC_EVERY));
        let lucky = lucky.or(rest.first()).copied();
        for (place, link) in links.iter_mut().enumerate() {
            link.received = 0;
            link.optimistic = lucky == Some(place);
            link.unchoked = link.optimistic || peers.contains(&place);
        }
        for peer in peers.into_iter().chain(lucky) {
            self.unchoke(cluster, node, peer);
        }
        let next = Tag::Rechoke {
            node,
            round: round + 1,
        };
        cluster.after(RECHOKE_NANOS, next);
    }
}

impl Baseline for Torrent {
    type Tag = Tag;

    fn pull(&mut self, cluster: &mut Cluster<Tag>, node: usize) {
        self.swarm.join(node, cluster.rng());
        for peer in 0..self.swarm.links[node].len() {
            let id = self.swarm.links[node][peer].id;
            self.fill(cluster, id);
        }
        self.seek_origin(cluster, node, false);
        cluster.after(RECHOKE_NANOS, Tag::Rechoke { node, round: 1 });
    }

    fn handle(&mut self, cluster: &mut Cluster<Tag>, tag: Tag) {
        match tag {
            Tag::Arrived { node, piece, from } => self.arrived(cluster, node, piece, from),
            Tag::Rechoke { node, round } => self.rechoke(cluster, node, round),
        }
    }
}

/// How many peers each node has when all have come.
#[cfg(test)]
pub(super) fn peers_after_joining(setting: &Setting) -> Vec<usize> {
    use rand::{SeedableRng as _, rngs::StdRng};

    let mut rng = StdRng::seed_from_u64(setting.seed);
    let mut swarm = Swarm::new(setting);
    for node in 0..setting.nodes() {
        swarm.join(node, &mut rng);
    }
    swarm.links.iter().map(Vec::len).collect()
}
