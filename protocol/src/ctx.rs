//! What the machines of one node share: the time, the view of the cluster, and the way out.

use std::collections::{BTreeSet, VecDeque};

use rand::{RngExt as _, rngs::Xoshiro256PlusPlus};
use rustc_hash::FxHashMap;

use crate::{
    chunk::Bitfield,
    config::Config,
    digest::Digest,
    directory::{Directory, Peer},
    event::Action,
    link::{Link, Pace, Rate},
    message::Message,
    picker::{Sets, Supply},
    time::{Duration, Time},
    view::{PeerSet, View},
};

/// The stewards of a blob (or the askers of a tag), best first.
pub(crate) use crate::view::Ranks;

/// Requested chunks that are not on their way yet, on average.
const OUTSTANDING_QUEUED: usize = 3;

pub(crate) struct Ctx {
    pub(crate) now: Time,
    pub(crate) config: Config,
    pub(crate) me: Peer,
    pub(crate) directory: Directory,
    pub(crate) rng: Xoshiro256PlusPlus,
    /// Members that are not declared dead and not banned.
    pub(crate) view: View,
    /// When that last changed.
    pub(crate) view_changed: Time,
    /// When this node last woke from a sleep.
    pub(crate) woke_at: Time,
    pub(crate) banned: BTreeSet<Peer>,
    pub(crate) links: FxHashMap<Peer, Link>,
    /// Peers that are left alone, and until when.
    pub(crate) avoided: BTreeSet<(Time, Peer)>,
    /// Members to whom the connection broke, or none could be made, and who were not heard of since.
    pub(crate) cut_off: BTreeSet<Peer>,
    /// While little is requested: when the pipes between racks and zones are no longer spared.
    pub(crate) hungry_at: Time,
    pub(crate) was_hungry: bool,
    /// When the neighbours are to hear which chunks came in.
    pub(crate) have_at: Time,
    /// Who may be asked that could not be asked before, whatever the blob.
    pub(crate) freed: Supply,
    /// What the picker reckons with; nothing in between.
    pub(crate) sets: Sets,
    /// And what a steward reckons with.
    pub(crate) leased: Bitfield,
    /// Peers that were neighbours in some blob's mesh lately, the oldest first.
    pub(crate) acquaintances: VecDeque<Peer>,
    /// Chunks requested from all peers and not yet received.
    pub(crate) outstanding: usize,
    /// Their bytes.
    pub(crate) outstanding_bytes: u64,
    /// What this node receives from peers and from the origin.
    pub(crate) rate: Rate,
    /// From request to arrival, over all peers.
    pub(crate) pace: Pace,
    pub(crate) actions: Vec<Action>,
    /// Messages of this node to itself: it may well be its own steward.
    pub(crate) local: VecDeque<Message>,
}

impl Ctx {
    pub(crate) fn send(&mut self, to: Peer, message: Message) {
        if to == self.me {
            self.local.push_back(message);
        } else if !self.banned.contains(&to) {
            self.actions.push(Action::Send { to, message });
        }
    }

    pub(crate) fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    pub(crate) fn link(&mut self, peer: Peer) -> &mut Link {
        self.links.entry(peer).or_default()
    }

    /// A peer that is asked for chunks has said something.
    pub(crate) fn heard(&mut self, peer: Peer) {
        if let Some(link) = self.links.get_mut(&peer) {
            link.heard_at = self.now;
        }
        self.cut_off.remove(&peer);
    }

    /// Bytes of a chunk came from a peer.
    pub(crate) fn progress(&mut self, peer: Peer) {
        let now = self.now;
        let link = self.link(peer);
        link.progress_at = now;
        link.stalls = 0;
    }

    pub(crate) fn is_live(&self, peer: Peer) -> bool {
        self.view.is_live(peer)
    }

    /// The three live nodes of highest weight for `key` (rendezvous hashing), best first.
    pub(crate) fn ranks(&self, key: u64) -> Ranks {
        self.view.ranks(key)
    }

    pub(crate) fn stewards(&self, blob: &Digest) -> Ranks {
        self.ranks(blob.prefix())
    }

    /// How many chunks of this size this node should have requested: enough for the configured part of a
    /// second at its measured rate, and a few on top that wait in the queues of busy neighbours.
    pub(crate) fn outstanding_target(&self, chunk_bytes: u64) -> usize {
        let window = self.rate.get() * self.config.outstanding_window.as_secs_f64();
        let chunks = (window / chunk_bytes as f64).ceil() as usize + OUTSTANDING_QUEUED;
        let most = self.config.outstanding_max(chunk_bytes);
        chunks.clamp(self.config.outstanding_min.min(most), most)
    }

    /// `count` live members at random, or all of them.
    pub(crate) fn sample_members(&mut self, count: usize) -> Vec<Peer> {
        self.sample_of(count, View::live)
    }

    /// Members of this node's rack and zone, as many as make good neighbours.
    pub(crate) fn sample_near(&mut self) -> Vec<Peer> {
        let (near, far) = (self.config.degree_near, self.config.degree_far);
        let mut peers = self.sample_of(near, View::rack);
        peers.extend(self.sample_of(far / 2, View::zone));
        peers
    }

    fn sample_of(&mut self, count: usize, which: fn(&View) -> &PeerSet) -> Vec<Peer> {
        let live = which(&self.view).len();
        let count = count.min(live);
        let mut places: Vec<usize> = Vec::with_capacity(count);
        // Floyd's way: `count` different ones with as many draws.
        for last in live - count..live {
            let place = self.rng.random_range(0..=last);
            places.push(if places.contains(&place) { last } else { place });
        }
        let nth = |place| which(&self.view).nth(place);
        places.into_iter().filter_map(nth).collect()
    }

    /// Notes whether enough is requested. A node that has waited long enough for what others are to
    /// bring into its rack brings it in itself: they may be dead, or not want it.
    pub(crate) fn feel(&mut self, target: usize) {
        if self.view.surroundings() == 0 {
            return;
        }
        if self.outstanding >= target.div_ceil(2) {
            self.hungry_at = Time::NEVER;
        } else if self.outstanding < target.div_ceil(4) && self.hungry_at == Time::NEVER {
            self.hungry_at = self.now + self.config.hungry_after;
        }
        let hungry = self.is_hungry();
        if hungry && !self.was_hungry {
            self.freed = Supply::Everyone;
        }
        self.was_hungry = hungry;
    }

    /// A chunk was requested from a peer. A node that had nothing requested has had its turn.
    pub(crate) fn requested(&mut self, peer: Peer, bytes: u64) {
        let link = self.link(peer);
        link.outstanding += 1;
        link.outstanding_bytes += bytes;
        self.outstanding += 1;
        self.outstanding_bytes += bytes;
        self.was_hungry = false;
    }

    /// Whether this node may bring in what is another's to bring in.
    pub(crate) fn is_hungry(&self) -> bool {
        self.hungry_at <= self.now && self.outstanding == 0
    }

    /// A peer is not asked before that time.
    pub(crate) fn avoid(&mut self, peer: Peer, until: Time) {
        let link = self.link(peer);
        let before = link.avoid_until;
        link.avoid_until = before.max(until);
        if until > before {
            self.avoided.remove(&(before, peer));
            self.avoided.insert((until, peer));
        }
    }

    /// A peer is not asked before that time, and counts as having nothing until then.
    pub(crate) fn shun(&mut self, peer: Peer, until: Time) {
        self.link(peer).shunned_until = until;
        self.avoid(peer, until);
    }

    /// Whether a peer counts as having nothing.
    pub(crate) fn is_shunned(&self, peer: Peer) -> bool {
        let link = self.links.get(&peer);
        link.is_some_and(|link| link.shunned_until > self.now)
    }

    /// A peer left a request unanswered: it is left alone for a while, each time for longer.
    pub(crate) fn stalled(&mut self, peer: Peer, stuck: bool) {
        let (now, penalty) = (self.now, self.config.stall_penalty);
        let link = self.link(peer);
        if !link.is_usable(now) {
            return;
        }
        let until = now + penalty * (1 << link.stalls.min(4));
        link.stalls += 1;
        if stuck {
            self.shun(peer, until);
        } else {
            self.avoid(peer, until);
        }
    }

    /// Peers that were left alone long enough may be asked again.
    pub(crate) fn retry(&mut self) {
        while let Some((until, peer)) = self.avoided.first().copied()
            && until <= self.now
        {
            self.avoided.pop_first();
            self.freed.add(peer);
        }
    }

    /// A peer is a neighbour for some blob: it is the first to be asked to be one for the next.
    pub(crate) fn get_acquainted(&mut self, peer: Peer) {
        if !self.acquaintances.contains(&peer) {
            if self.acquaintances.len() >= self.config.degree_most() {
                self.acquaintances.pop_front();
            }
            self.acquaintances.push_back(peer);
        }
    }

    /// A random duration up to `max`.
    pub(crate) fn jitter(&mut self, max: Duration) -> Duration {
        max.mul_f64(self.rng.random::<f64>())
    }

    /// `count` of `peers`, at random.
    pub(crate) fn sample(&mut self, mut peers: Vec<Peer>, count: usize) -> Vec<Peer> {
        let count = count.min(peers.len());
        for at in 0..count {
            let other = self.rng.random_range(at..peers.len());
            peers.swap(at, other);
        }
        peers.truncate(count);
        peers
    }
}
