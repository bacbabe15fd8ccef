//! One blob's transfer at one node: its neighbours, who has what, what is requested from whom,
//! and what this node reads from the origin.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use smallvec::{SmallVec, smallvec};

use crate::{
    chunk::{Bitfield, ChunkHash, Geometry},
    ctx::Ctx,
    digest::Digest,
    directory::{Distance, Peer},
    event::Action,
    joining::Joining,
    message::{BlobKind, Hint, Lease, LeaseId, LeaseReport, Message, News, OriginFailure},
    mutation::Mutation,
    picker::{self, Supply},
    time::{Duration, Time},
};

/// A node that exchanges this blob with us.
pub(crate) struct Neighbour {
    pub(crate) have: Bitfield,
    pub(crate) distance: Distance,
}

/// For each chunk, how many neighbours have it.
#[derive(Default)]
pub(crate) struct Availability {
    copies: Vec<u16>,
    /// The chunks that at least one has.
    any: Bitfield,
}

impl Availability {
    fn new(chunks: u32) -> Self {
        let mut availability = Self::default();
        availability.grow(chunks);
        availability
    }

    fn grow(&mut self, chunks: u32) {
        self.copies.resize(chunks as usize, 0);
        self.any.grow(chunks);
    }

    fn add(&mut self, chunk: u32) {
        self.copies[chunk as usize] += 1;
        self.any.insert(chunk);
    }

    fn remove(&mut self, chunk: u32) {
        let copies = &mut self.copies[chunk as usize];
        *copies -= 1;
        if *copies == 0 {
            self.any.remove(chunk);
        }
    }

    /// How many neighbours have a chunk.
    pub(crate) fn copies(&self, chunk: u32) -> u16 {
        self.copies[chunk as usize]
    }
}

/// The chunks that this node is to bring into its rack, and into its zone.
pub(crate) struct Imports {
    /// [`View::surroundings`](crate::view::View::surroundings), as this was reckoned.
    surroundings: u64,
    pub(crate) rack: Bitfield,
    pub(crate) zone: Bitfield,
}

/// A chunk requested from a peer.
#[derive(Clone, Copy)]
pub(crate) struct Flight {
    peer: Peer,
    /// How large a chunk was thought to be: a blob's size may not be known yet.
    bytes: u64,
    sent: Time,
    /// Given up then, unless there is progress.
    deadline: Time,
}

/// What to do about a late request.
enum Wait {
    /// Wait on.
    Until(Time),
    /// Ask someone else; `stuck` is a peer that does not count as having anything for a while.
    Elsewhere { stuck: bool },
}

/// A lease that this node works on.
pub(crate) struct Running {
    /// Who granted it; `None` when this node acts without a steward.
    steward: Option<Peer>,
    pub(crate) lease: Lease,
    /// The first chunk that is not yet stored.
    pub(crate) next: u32,
    bytes: u64,
    report_at: Time,
}

impl Running {
    /// The chunks that are not stored yet.
    fn left(&self) -> Range<u32> {
        self.next..self.lease.end
    }

    fn report(&self) -> LeaseReport {
        let Self {
            lease, next, bytes, ..
        } = *self;
        LeaseReport { lease, next, bytes }
    }
}

/// What an auditor says of the blob's chunks.
struct Verdict {
    hashes: Vec<ChunkHash>,
    /// The auditor may have lied, and nobody may have such chunks: it is believed until then.
    until: Time,
}

/// Where this node stands with the blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Chunks are missing.
    Pulling,
    /// The whole does not have its digest; an audit was asked for, and another will be then.
    Suspect { asked: Peer, until: Time },
    /// This node is the auditor: it takes nothing from peers.
    Auditing,
    /// The whole has its digest.
    Complete,
}

pub(crate) struct Mesh {
    pub(crate) blob: Digest,
    pub(crate) kind: BlobKind,
    pub(crate) size: Option<u64>,
    pub(crate) have: Bitfield,
    pub(crate) phase: Phase,
    pub(crate) hints: Vec<Hint>,
    pub(crate) neighbours: BTreeMap<Peer, Neighbour>,
    /// Nothing where nobody said where nodes stand.
    pub(crate) imports: Option<Imports>,
    pub(crate) availability: Availability,
    pub(crate) flights: BTreeMap<u32, SmallVec<[Flight; 2]>>,
    /// No request is late before this time.
    late_at: Time,
    pub(crate) leases: BTreeMap<LeaseId, Running>,
    /// What readers on this node wait for, by reader.
    pub(crate) readers: BTreeMap<u64, Range<u32>>,
    pub(crate) joining: Joining,
    /// Nodes that the steward named, and when they are asked if there is still room.
    strangers: Vec<Peer>,
    meet_at: Time,
    began: Time,
    /// Offers that were not answered yet, and since when.
    offered: BTreeMap<Peer, Time>,
    /// Chunks that a neighbour leaves to others to give, and until when.
    left: BTreeSet<(Time, Peer, u32)>,
    /// Chunks that the neighbours have not been told of.
    fresh: Vec<u32>,
    /// Who may have something to ask for that was not asked for when there was last nothing.
    pub(crate) supply: Supply,
    /// When a chunk last came in.
    progress_at: Time,
    lost_at: Time,
    fallback_at: Time,
    fallback_leases: u32,
    endgame_at: Time,
    /// Whom this node has asked for an audit, and whether it has answered.
    pub(crate) auditors: BTreeMap<Peer, bool>,
    /// What one of them said.
    verdict: Option<Verdict>,
}

/// Leases that a node runs without a steward have this term.
const NO_STEWARD_TERM: u64 = 0;

/// An offer that is not answered for so long is forgotten.
const OFFER_EXPIRY: Duration = Duration::from_secs(2);

/// Neighbours for which strangers are met while acquaintances may still come.
const STRANGERS_FIRST: usize = 4;

/// Acquaintances that begin the same pull do so within about this time.
const ACQUAINTANCES_FIRST: Duration = Duration::from_millis(50);

/// Chunks that one [`Message::Lost`] names at most. A round of them takes 1.6 s, so all that one bad
/// node read should fit: with 64, a node that sends wrong bytes held 99 others up by up to 17 s \[sim\].
const LOST_MAX: usize = 1024;

/// A node with nothing requested and chunks missing waits so long before it calls them lost.
const LOST_AFTER: Duration = Duration::from_millis(500);

/// A reader gets what is so many chunks ahead of it before anything else, and no more: a client that
/// asks for all and takes its time waits for nothing.
const READ_AHEAD: u32 = 8;

/// Of a range that ends before the blob does, so many chunks are wanted at once: whoever asks for a
/// part waits for all of it, and nobody else's reading brings it. At most 256 MiB.
const RANGE_AHEAD: u32 = 64;

/// Chunks that one [`Message::Join`] calls urgent at most; the others go with the next one.
const URGENT_MAX: usize = 1024;

/// More neighbours that a node looks for whose own ones have nothing to give.
const STARVING_ROOM: usize = 2;

/// For how long an auditor is waited for, and then believed, at least and at most.
const AUDIT_PATIENCE: [Duration; 2] = [Duration::from_secs(30), Duration::from_secs(600)];

impl Mesh {
    pub(crate) fn new(
        ctx: &mut Ctx,
        blob: Digest,
        kind: BlobKind,
        size: Option<u64>,
        have: Option<Bitfield>,
        phase: Phase,
    ) -> Self {
        let chunks = size.map_or(1, |size| Geometry::new(kind, size).chunks());
        let have = have
            .filter(|have| have.len() == chunks)
            .unwrap_or_else(|| Bitfield::new(chunks));
        let fallback_jitter = ctx.jitter(ctx.config.fallback_after / 2);
        Self {
            blob,
            kind,
            size,
            have,
            phase,
            hints: Vec::new(),
            neighbours: BTreeMap::new(),
            imports: None,
            availability: Availability::new(chunks),
            flights: BTreeMap::new(),
            late_at: Time::NEVER,
            leases: BTreeMap::new(),
            readers: BTreeMap::new(),
            joining: Joining::new(ctx.now),
            strangers: Vec::new(),
            meet_at: Time::NEVER,
            began: ctx.now,
            offered: BTreeMap::new(),
            left: BTreeSet::new(),
            fresh: Vec::new(),
            supply: Supply::Everyone,
            progress_at: ctx.now,
            lost_at: ctx.now + LOST_AFTER,
            fallback_at: ctx.now + ctx.config.fallback_after + fallback_jitter,
            fallback_leases: 0,
            endgame_at: Time::NEVER,
            auditors: BTreeMap::new(),
            verdict: None,
        }
    }

    /// Whether nobody needs it any more.
    pub(crate) fn is_over(&self) -> bool {
        self.phase == Phase::Complete && self.neighbours.is_empty() && self.readers.is_empty()
    }

    pub(crate) fn is_pulling(&self) -> bool {
        matches!(self.phase, Phase::Pulling | Phase::Auditing) && !self.have.is_full()
    }

    /// The size of its chunks in bytes; the smallest while the blob's size is unknown.
    pub(crate) fn chunk_bytes(&self) -> u64 {
        Geometry::new(self.kind, self.size.unwrap_or_default()).chunk_bytes
    }

    /// Makes `open` the chunks that a neighbour has and this node lacks, has not requested and not
    /// leased.
    pub(crate) fn find_open(&self, open: &mut Bitfield) {
        open.clone_from(&self.availability.any);
        open.subtract(&self.have);
        for chunk in self.flights.keys() {
            open.remove(*chunk);
        }
        for running in self.leases.values() {
            for chunk in running.left() {
                open.remove(chunk);
            }
        }
    }

    /// Whether this mesh may ask peers for chunks.
    fn takes_from_peers(&self) -> bool {
        self.phase == Phase::Pulling && !self.have.is_full()
    }

    /// When [`tick`](Self::tick) next has something to do.
    pub(crate) fn deadline(&self, ctx: &Ctx) -> Time {
        let mut at = Time::NEVER;
        if let Phase::Suspect { until, .. } = self.phase {
            at = at.min(until);
        }
        for running in self.leases.values() {
            at = at.min(running.report_at);
        }
        if !self.flights.is_empty() {
            at = at.min(self.late_at);
        }
        if let Some((again, ..)) = self.left.first() {
            at = at.min(*again);
        }
        if self.takes_from_peers() {
            at = at
                .min(self.joining.next_at)
                .min(self.endgame_at)
                .min(self.meet_at);
            if let Some(verdict) = &self.verdict {
                at = at.min(verdict.until);
            }
            if self.flights.is_empty() && self.leases.is_empty() {
                at = at.min(self.lost_at);
            }
        }
        if self.may_read_alone(ctx) {
            at = at.min(self.fallback_at);
        }
        at
    }

    pub(crate) fn tick(&mut self, ctx: &mut Ctx) {
        if self.endgame_at <= ctx.now {
            // The requests that follow every event look at it again.
            self.endgame_at = Time::NEVER;
        }
        self.expire_flights(ctx);
        self.ask_again(ctx.now);
        self.report_leases(ctx);
        if self.takes_from_peers() {
            let over = |verdict: &mut Verdict| verdict.until <= ctx.now;
            if self.verdict.take_if(over).is_some() {
                // What was refused is asked for again.
                self.look_around(ctx);
            }
            if self.joining.next_at <= ctx.now {
                self.join(ctx);
            }
            if self.meet_at <= ctx.now {
                self.meet_at = Time::NEVER;
                let strangers = std::mem::take(&mut self.strangers);
                self.meet_strangers(ctx, &strangers);
            }
            if self.flights.is_empty() && self.leases.is_empty() && self.lost_at <= ctx.now {
                self.report_lost(ctx);
            }
        }
        if self.may_read_alone(ctx) && self.fallback_at <= ctx.now {
            self.fall_back(ctx);
        }
    }

    fn may_read_alone(&self, ctx: &Ctx) -> bool {
        self.is_pulling()
            && self.flights.is_empty()
            && (self.leases.len() as u32) < ctx.config.fallback_streams
    }

    // --- neighbours ---

    /// Whoever exchanged another blob with this node probably pulls this one too. With the same
    /// neighbours for all layers of an image a node has 20 connections for bulk, not 20 for each.
    /// In a large cluster any member may, and while some do, the steward is left in peace.
    pub(crate) fn begin(&mut self, ctx: &mut Ctx) {
        let mut known = ctx.acquaintances.clone();
        self.meet(ctx, known.make_contiguous(), None);
        let members = ctx.view.live().len();
        if members < ctx.config.crowd {
            return;
        }
        let near = ctx.sample_near();
        self.meet(ctx, &near, None);
        let some = ctx.config.degree / 2;
        let strangers = ctx.sample_members(some);
        self.meet(ctx, &strangers, Some(near.len() + some));
        let spread = ctx.config.crowd_spread * members as u32;
        let wait = ctx.jitter(spread.min(ctx.config.crowd_spread_max));
        self.joining.hold_off(ctx.now + wait);
    }

    /// The steward named nodes that have or pull the blob. They are met at once where nobody else
    /// may answer, else once the acquaintances had the time to.
    pub(crate) fn introduced(&mut self, ctx: &mut Ctx, peers: &[Peer]) {
        // The steward does not know who stands near whom.
        let mut strangers = ctx.sample_near();
        strangers.extend(peers);
        if self.offered.is_empty() {
            self.meet_strangers(ctx, &strangers);
        } else {
            self.strangers = strangers;
            self.meet_at = ctx.now + ACQUAINTANCES_FIRST;
        }
    }

    /// Whether all places may be taken by neighbours that have nothing that this node lacks.
    fn is_starving(&self, ctx: &Ctx) -> bool {
        let idle = self.flights.is_empty() && self.leases.is_empty();
        idle && ctx.now.since(self.progress_at) >= LOST_AFTER
    }

    /// Acquaintances that have not begun this pull yet are going to offer themselves when they do;
    /// until then a few strangers are enough.
    fn meet_strangers(&mut self, ctx: &mut Ctx, strangers: &[Peer]) {
        let is_new = ctx.now.since(self.began) < ctx.config.join_interval;
        let some = is_new && ctx.acquaintances.len() >= ctx.config.degree_low;
        self.meet(ctx, strangers, some.then_some(STRANGERS_FIRST));
    }

    /// Offers to be a neighbour of these, while there is room and `enough` are not reached.
    fn meet(&mut self, ctx: &mut Ctx, peers: &[Peer], enough: Option<usize>) {
        self.offered
            .retain(|_, since| ctx.now.since(*since) < OFFER_EXPIRY);
        let starving = self.is_starving(ctx);
        for peer in peers {
            let known = self.neighbours.contains_key(peer) || self.offered.contains_key(peer);
            let room = self.has_room(ctx, *peer, starving);
            if *peer == ctx.me || known || !room || ctx.banned.contains(peer) {
                continue;
            }
            if enough.is_some_and(|enough| self.neighbours.len() + self.offered.len() >= enough) {
                break;
            }
            self.offered.insert(*peer, ctx.now);
            self.offer(ctx, *peer, false);
        }
    }

    /// Whether this peer may be a further neighbour: of those that this node looks for, or, a
    /// quarter more, of those that it accepts. Those that were asked and have not answered yet have
    /// a place reserved.
    fn has_room(&self, ctx: &Ctx, peer: Peer, accepted: bool) -> bool {
        let taken = self.neighbours.keys().chain(self.offered.keys());
        let config = &ctx.config;
        // They may have become neighbours when the view, and who is near in it, was another.
        if taken.clone().count() >= config.degree_most() {
            return false;
        }
        if ctx.view.rack().len() == 0 {
            let most = if accepted {
                config.degree_max
            } else {
                config.degree
            };
            return taken.count() < most;
        }
        let is_near = ctx.view.distance(peer) == Distance::Near;
        let alike = |other: &&Peer| (ctx.view.distance(**other) == Distance::Near) == is_near;
        let most = if is_near {
            config.degree_near
        } else {
            config.degree_far
        };
        taken.filter(alike).count() < most + if accepted { most / 4 } else { 0 }
    }

    fn offer(&self, ctx: &mut Ctx, to: Peer, answer: bool) {
        let Self {
            blob, kind, size, ..
        } = *self;
        ctx.send(
            to,
            Message::Offer {
                blob,
                kind,
                size,
                have: self.have.clone(),
                answer,
            },
        );
    }

    /// A peer offers to be a neighbour, or accepts.
    pub(crate) fn offered(
        &mut self,
        ctx: &mut Ctx,
        from: Peer,
        size: Option<u64>,
        have: Bitfield,
        answer: bool,
    ) {
        if let Some(size) = size {
            self.learn_size(ctx, size);
        }
        let fits = have.len() == self.have.len() || (size.is_none() && have.count() == 0);
        let known = self.neighbours.contains_key(&from);
        let asked = self.offered.remove(&from).is_some();
        if !fits || (!known && !asked && !self.has_room(ctx, from, true)) {
            ctx.send(from, Message::Part { blob: self.blob });
            return;
        }
        self.remove_neighbour(from);
        let mut bits = Bitfield::new(self.have.len());
        bits.union_with(&have);
        let finished = bits.is_full() && self.phase == Phase::Complete;
        if !finished {
            for chunk in bits.iter() {
                self.availability.add(chunk);
            }
            let distance = ctx.view.distance(from);
            let neighbour = Neighbour {
                have: bits,
                distance,
            };
            self.neighbours.insert(from, neighbour);
            self.supply.add(from);
            ctx.get_acquainted(from);
        }
        if !answer {
            self.offer(ctx, from, true);
        }
    }

    pub(crate) fn remove_neighbour(&mut self, peer: Peer) {
        self.left.retain(|(_, of, _)| *of != peer);
        if let Some(neighbour) = self.neighbours.remove(&peer) {
            for chunk in neighbour.have.iter() {
                self.availability.remove(chunk);
            }
        }
    }

    /// A peer is gone, dead, banned, or no longer a neighbour.
    pub(crate) fn forget(&mut self, ctx: &mut Ctx, peer: Peer) {
        self.offered.remove(&peer);
        self.remove_neighbour(peer);
        // A few may be dead, and never answer.
        if self.neighbours.is_empty() && self.offered.len() <= ctx.config.degree / 4 {
            self.joining.go_ahead(ctx.now);
        }
        let flown: Vec<u32> = self
            .flights
            .iter()
            .filter(|(_, flights)| flights.iter().any(|flight| flight.peer == peer))
            .map(|(chunk, _)| *chunk)
            .collect();
        for chunk in flown {
            self.drop_flight(ctx, chunk, peer, false);
        }
        if self.is_pulling() && self.neighbours.len() < ctx.config.degree_low {
            let at = ctx.now + ctx.jitter(Duration::from_millis(100));
            self.joining.hurry(at);
        }
    }

    pub(crate) fn neighbour_has(&mut self, from: Peer, chunks: &[u32]) {
        let Some(neighbour) = self.neighbours.get_mut(&from) else {
            return;
        };
        for chunk in chunks {
            if neighbour.have.insert(*chunk) {
                self.availability.add(*chunk);
                if !self.have.contains(*chunk) {
                    self.supply.add(from);
                }
            }
        }
        if self.phase == Phase::Complete && neighbour.have.is_full() {
            // Neither has anything to give the other.
            self.remove_neighbour(from);
        }
    }

    /// The whole has its digest. The neighbours hear it in full: announcements leave out what the
    /// receiver has itself, and so never tell it that we have all.
    pub(crate) fn finish(&mut self, ctx: &mut Ctx) {
        self.phase = Phase::Complete;
        // Of a small blob this is known before the news that its last chunk is stored; a request that
        // stayed on the books for ever would take the place of others.
        self.have = Bitfield::full(self.have.len());
        self.cancel_requests(ctx);
        self.verdict = None;
        let neighbours: Vec<Peer> = self.neighbours.keys().copied().collect();
        for peer in neighbours {
            self.offer(ctx, peer, true);
            if self.neighbours[&peer].have.is_full() {
                self.remove_neighbour(peer);
            }
        }
    }

    /// Adds what came in since the last time, and a neighbour lacks, to what that one is to hear.
    pub(crate) fn tell_news(&mut self, news: &mut Vec<(Peer, News)>) {
        if self.fresh.is_empty() {
            return;
        }
        let blob = self.blob;
        for (peer, neighbour) in &self.neighbours {
            let lacks = |chunk: &u32| !neighbour.have.contains(*chunk);
            let chunks: SmallVec<_> = self.fresh.iter().copied().filter(lacks).collect();
            if !chunks.is_empty() {
                news.push((*peer, News { blob, chunks }));
            }
        }
        self.fresh.clear();
    }

    // --- size ---

    pub(crate) fn learn_size(&mut self, ctx: &mut Ctx, size: u64) {
        if self.size.is_some() || size > crate::limits::BLOB_BYTES_MAX {
            return;
        }
        self.supply = Supply::Everyone;
        self.size = Some(size);
        let chunks = Geometry::new(self.kind, size).chunks();
        self.have.grow(chunks);
        self.availability.grow(chunks);
        for neighbour in self.neighbours.values_mut() {
            neighbour.have.grow(chunks);
        }
        ctx.act(Action::Sized {
            blob: self.blob,
            kind: self.kind,
            size,
        });
    }

    // --- requests ---

    /// Makes one request if there is one to make.
    pub(crate) fn request_one(&mut self, ctx: &mut Ctx) -> bool {
        if self.supply.is_empty() || !self.takes_from_peers() {
            return false;
        }
        self.reckon_imports(ctx);
        if let Some((chunk, peer)) = picker::next(self, ctx) {
            self.request(ctx, chunk, peer);
            return true;
        }
        self.supply = Supply::default();
        false
    }

    fn reckon_imports(&mut self, ctx: &Ctx) {
        let surroundings = ctx.view.surroundings();
        let chunks = self.have.len();
        let is_new = |imports: &Imports| {
            imports.surroundings == surroundings && imports.rack.len() == chunks
        };
        if surroundings == 0 || self.imports.as_ref().is_some_and(is_new) {
            return;
        }
        let mut rack = Bitfield::new(chunks);
        let mut zone = Bitfield::new(chunks);
        ctx.view
            .imports(self.blob.prefix(), chunks, |chunk, also_zone| {
                rack.insert(chunk);
                if also_zone {
                    zone.insert(chunk);
                }
            });
        self.imports = Some(Imports {
            surroundings,
            rack,
            zone,
        });
    }

    fn request(&mut self, ctx: &mut Ctx, chunk: u32, peer: Peer) {
        let timeout = Self::request_timeout(ctx, peer, self.chunk_bytes());
        let flight = Flight {
            peer,
            bytes: self.chunk_bytes(),
            sent: ctx.now,
            deadline: ctx.now + timeout,
        };
        self.late_at = self.late_at.min(flight.deadline);
        self.flights.entry(chunk).or_default().push(flight);
        ctx.requested(peer, flight.bytes);
        let blob = self.blob;
        ctx.act(Action::Expect {
            from: peer,
            blob,
            index: chunk,
        });
        ctx.send(peer, Message::Request { blob, index: chunk });
    }

    /// No progress for so long means that the peer is stalled. Both its speed and our own count:
    /// a timer that ignores our own backlog makes one chunk in ten come twice on slow nodes [sim].
    fn request_timeout(ctx: &mut Ctx, peer: Peer, bytes: u64) -> Duration {
        if ctx.config.makes(Mutation::HastyTimers) {
            return ctx.config.request_timeout / 10;
        }
        let own = ctx.pace.of(bytes).unwrap_or_default();
        let theirs = ctx.link(peer).pace.of(bytes).unwrap_or_default();
        (own.max(theirs) * 4).clamp(ctx.config.request_timeout, REQUEST_TIMEOUT_MAX)
    }

    /// Nothing is left to ask for but what was asked for: ask a second peer for the oldest.
    pub(crate) fn endgame(&mut self, ctx: &mut Ctx) -> bool {
        if (self.endgame_at > ctx.now && self.endgame_at != Time::NEVER) || !self.takes_from_peers()
        {
            return false;
        }
        self.endgame_at = Time::NEVER;
        // What comes a second time while more is missing takes the place of that.
        if !self.is_all_on_its_way() {
            return false;
        }
        let takes = ctx.pace.of(self.chunk_bytes()).unwrap_or_default();
        let patience = ctx.config.endgame_after.max(takes * 3);
        let oldest = self
            .flights
            .iter()
            .filter(|(_, flights)| flights.len() == 1)
            .map(|(chunk, flights)| (flights[0].sent, *chunk, flights[0].peer))
            .min();
        let Some((sent, chunk, first)) = oldest else {
            return false;
        };
        if sent + patience > ctx.now {
            self.endgame_at = sent + patience;
            return false;
        }
        let Some(second) = picker::second_source(self, ctx, chunk, first) else {
            self.endgame_at = ctx.now + patience;
            return false;
        };
        self.request(ctx, chunk, second);
        true
    }

    /// Whether every chunk that is missing was asked for, of a peer or of the origin.
    fn is_all_on_its_way(&self) -> bool {
        let reading: usize = self
            .leases
            .values()
            .map(|running| running.left().len())
            .sum();
        let missing = self.have.len() - self.have.count();
        missing as usize <= self.flights.len() + reading
    }

    pub(crate) fn progress(&mut self, ctx: &mut Ctx, from: Peer, chunk: u32) {
        let timeout = Self::request_timeout(ctx, from, self.chunk_bytes());
        if let Some(flight) = self.flight(from, chunk) {
            flight.deadline = ctx.now + timeout;
            self.late_at = self.late_at.min(ctx.now + timeout);
        }
    }

    pub(crate) fn queued(&mut self, ctx: &mut Ctx, from: Peer, chunk: u32, delay: Duration) {
        let timeout = Self::request_timeout(ctx, from, self.chunk_bytes());
        let delay = delay.min(QUEUE_DELAY_MAX);
        ctx.link(from).busy_until = ctx.now + delay;
        if let Some(flight) = self.flight(from, chunk) {
            let deadline = ctx.now + delay * 2 + timeout;
            flight.deadline = deadline;
            self.late_at = self.late_at.min(deadline);
        }
    }

    pub(crate) fn busy(&mut self, ctx: &mut Ctx, from: Peer, chunk: u32, retry: Duration) {
        let now = ctx.now;
        ctx.avoid(from, now + retry.min(QUEUE_DELAY_MAX));
        self.drop_flight(ctx, chunk, from, false);
    }

    /// A neighbour leaves a chunk to others to give: until it is to be asked again, it counts as
    /// not having it.
    pub(crate) fn elsewhere(&mut self, ctx: &mut Ctx, from: Peer, chunk: u32, retry: Duration) {
        if self.lacks(from, chunk) {
            let again = ctx.now + retry.min(QUEUE_DELAY_MAX);
            self.left.insert((again, from, chunk));
            self.lost_at = self.lost_at.max(ctx.now + LOST_AFTER);
        }
        self.drop_flight(ctx, chunk, from, false);
    }

    /// Neighbours that left chunks to others may be asked for them again.
    fn ask_again(&mut self, now: Time) {
        while let Some((at, peer, chunk)) = self.left.first().copied()
            && at <= now
        {
            self.left.pop_first();
            self.neighbour_has(peer, &[chunk]);
        }
    }

    pub(crate) fn missing(&mut self, ctx: &mut Ctx, from: Peer, chunk: u32) {
        self.lacks(from, chunk);
        self.drop_flight(ctx, chunk, from, false);
    }

    /// Takes note that a neighbour does not have a chunk; tells whether it was thought to.
    fn lacks(&mut self, from: Peer, chunk: u32) -> bool {
        let neighbour = self.neighbours.get_mut(&from);
        let thought = neighbour.is_some_and(|neighbour| neighbour.have.remove(chunk));
        if thought {
            self.availability.remove(chunk);
        }
        thought
    }

    fn flight(&mut self, peer: Peer, chunk: u32) -> Option<&mut Flight> {
        self.flights
            .get_mut(&chunk)?
            .iter_mut()
            .find(|flight| flight.peer == peer)
    }

    /// Forgets a request; tells the peer where it could still be sending.
    fn drop_flight(&mut self, ctx: &mut Ctx, chunk: u32, peer: Peer, cancel: bool) {
        let Some(flights) = self.flights.get_mut(&chunk) else {
            return;
        };
        let Some(at) = flights.iter().position(|flight| flight.peer == peer) else {
            return;
        };
        let bytes = flights.remove(at).bytes;
        if flights.is_empty() {
            self.flights.remove(&chunk);
        }
        if !self.have.contains(chunk) {
            self.supply = Supply::Everyone;
        }
        let link = ctx.link(peer);
        link.outstanding = link.outstanding.saturating_sub(1);
        link.outstanding_bytes = link.outstanding_bytes.saturating_sub(bytes);
        ctx.freed.add(peer);
        ctx.outstanding = ctx.outstanding.saturating_sub(1);
        ctx.outstanding_bytes = ctx.outstanding_bytes.saturating_sub(bytes);
        let blob = self.blob;
        ctx.act(Action::Unexpect {
            from: peer,
            blob,
            index: chunk,
        });
        if cancel {
            ctx.send(peer, Message::Cancel { blob, index: chunk });
        }
    }

    fn expire_flights(&mut self, ctx: &mut Ctx) {
        if self.late_at > ctx.now {
            return;
        }
        let late: Vec<(u32, Flight)> = self
            .flights
            .iter()
            .flat_map(|(chunk, flights)| flights.iter().map(|flight| (*chunk, *flight)))
            .filter(|(_, flight)| flight.deadline <= ctx.now)
            .collect();
        for (chunk, flight) in late {
            match self.wait(ctx, chunk, flight) {
                Wait::Until(deadline) => {
                    if let Some(flight) = self.flight(flight.peer, chunk) {
                        flight.deadline = deadline;
                    }
                }
                Wait::Elsewhere { stuck } => {
                    self.drop_flight(ctx, chunk, flight.peer, true);
                    ctx.stalled(flight.peer, stuck);
                }
            }
        }
        let deadlines = self
            .flights
            .values()
            .flatten()
            .map(|flight| flight.deadline);
        self.late_at = deadlines.min().unwrap_or(Time::NEVER);
    }

    /// What to do about a request whose deadline has come.
    fn wait(&self, ctx: &mut Ctx, chunk: u32, flight: Flight) -> Wait {
        let timeout = Self::request_timeout(ctx, flight.peer, flight.bytes);
        let link = *ctx.link(flight.peer);
        // Chunks come one after the other, of whichever blob: those behind are not late yet.
        let moves = link.progress_at + timeout;
        if moves > ctx.now && ctx.now.since(flight.sent) < REQUEST_TIMEOUT_MAX {
            return Wait::Until(moves);
        }
        // A peer that still talks is not frozen: what holds its chunks up is a loss on a full link,
        // and to ask it anew would take longer than to wait.
        let silent = ctx.now.since(link.heard_at) >= ctx.config.request_timeout;
        let waited = ctx.now.since(flight.sent.max(link.progress_at));
        let stuck = silent || waited >= TALKING_TIMEOUT || link.stalls >= TALKING_STALLS;
        let is_source = |(peer, neighbour): (&Peer, &Neighbour)| {
            let link = ctx.links.get(peer);
            *peer != flight.peer
                && neighbour.have.contains(chunk)
                && link.is_none_or(|link| link.is_usable(ctx.now))
        };
        if stuck || self.neighbours.iter().any(is_source) {
            Wait::Elsewhere { stuck }
        } else {
            Wait::Until(ctx.now + ctx.config.request_timeout / 4)
        }
    }

    /// A chunk was refused on arrival: ask someone else. Where that is not the sender's fault it
    /// would come the same way again: until the sender says that it has another, it has none.
    pub(crate) fn rejected(&mut self, ctx: &mut Ctx, from: Peer, chunk: u32, corrupt: bool) {
        if !corrupt {
            self.missing(ctx, from, chunk);
            return;
        }
        self.drop_flight(ctx, chunk, from, false);
    }

    // --- chunks ---

    /// A chunk is stored. `from` is `None` where this node read it from the origin.
    pub(crate) fn stored(&mut self, ctx: &mut Ctx, from: Option<Peer>, chunk: u32) {
        let is_new = self.have.insert(chunk);
        for flight in self.flights.get(&chunk).cloned().unwrap_or_default() {
            let delivered = from == Some(flight.peer);
            if delivered {
                let link = ctx.links.entry(flight.peer).or_default();
                let began = flight.sent.max(link.delivered_at);
                let took = ctx.now.since(began);
                link.pace.sample(took, flight.bytes);
                link.delivered_at = ctx.now;
                link.stalls = 0;
                ctx.pace.sample(took, flight.bytes);
            }
            let cancel = !delivered && !ctx.config.makes(Mutation::NoEndgameCancel);
            self.drop_flight(ctx, chunk, flight.peer, cancel);
        }
        if !is_new {
            return;
        }
        self.progress_at = ctx.now;
        self.lost_at = ctx.now + LOST_AFTER;
        self.fallback_at = ctx.now + ctx.config.fallback_after;
        self.fresh.push(chunk);
        self.advance_leases(ctx, from.is_none());
        // What the neighbours wait for is not delayed when it is the last.
        let last = self.have.is_full();
        let delay = if last {
            Duration::ZERO
        } else {
            ctx.config.have_interval
        };
        ctx.have_at = ctx.have_at.min(ctx.now + delay);
    }

    /// Chunks were dropped from the store.
    pub(crate) fn dropped(&mut self, ctx: &mut Ctx, have: Bitfield) {
        if have.len() != self.have.len() {
            return;
        }
        self.have = have;
        self.fresh.clear();
        self.progress_at = ctx.now;
        // They did not tell of chunks that were here when they got theirs.
        self.look_around(ctx);
    }

    /// The neighbours hear what is here, and say what they have.
    fn look_around(&mut self, ctx: &mut Ctx) {
        self.supply = Supply::Everyone;
        let neighbours: Vec<Peer> = self.neighbours.keys().copied().collect();
        for peer in neighbours {
            self.offer(ctx, peer, false);
        }
    }

    // --- leases ---

    /// A steward lets this node read a range from the origin.
    pub(crate) fn granted(&mut self, ctx: &mut Ctx, steward: Option<Peer>, lease: Lease) {
        if !self.is_pulling() || self.hints.is_empty() || self.leases.contains_key(&lease.id) {
            let failure = self.hints.is_empty().then_some(OriginFailure::NotFound);
            let next = if failure.is_some() {
                lease.first
            } else {
                lease.end
            };
            self.tell(
                ctx,
                steward,
                LeaseReport {
                    lease,
                    next,
                    bytes: 0,
                },
                failure,
            );
            return;
        }
        // What a neighbour has need not come from the origin a second time.
        let near = self.near(ctx);
        let end = lease.end.min(self.have.len());
        let auditing = self.phase == Phase::Auditing;
        let first = (lease.first..end).find(|chunk| {
            if auditing {
                !self.have.contains(*chunk)
            } else {
                !near.contains(*chunk)
            }
        });
        let Some(first) = first else {
            self.tell(
                ctx,
                steward,
                LeaseReport {
                    lease,
                    next: lease.end,
                    bytes: 0,
                },
                None,
            );
            return;
        };
        let report_at = ctx.now + ctx.config.report_interval;
        let running = Running {
            steward,
            lease,
            next: first,
            bytes: 0,
            report_at,
        };
        self.leases.insert(lease.id, running);
        ctx.act(Action::ReadOrigin {
            blob: self.blob,
            kind: self.kind,
            lease: Lease { first, ..lease },
            hints: self.hints.clone(),
        });
        for chunk in first..end {
            for flight in self.flights.get(&chunk).cloned().unwrap_or_default() {
                self.drop_flight(ctx, chunk, flight.peer, true);
            }
        }
    }

    pub(crate) fn origin_progress(&mut self, ctx: &mut Ctx, id: LeaseId, bytes: u64) {
        ctx.rate.add(ctx.now, bytes);
        if let Some(running) = self.leases.get_mut(&id) {
            running.bytes += bytes;
        }
    }

    pub(crate) fn origin_ended(
        &mut self,
        ctx: &mut Ctx,
        id: LeaseId,
        failure: Option<OriginFailure>,
    ) {
        let Some(running) = self.leases.remove(&id) else {
            return;
        };
        self.supply = Supply::Everyone;
        let Running {
            steward,
            lease,
            next,
            bytes,
            ..
        } = running;
        let next = if failure.is_none() { lease.end } else { next };
        self.lost_at = self.lost_at.max(ctx.now + LOST_AFTER);
        if steward.is_none() {
            self.fallback_at = ctx.now
                + if failure.is_none() {
                    Duration::ZERO
                } else {
                    ctx.config.fallback_after
                };
        } else {
            // If no further lease comes soon, something is wrong with the steward.
            self.joining.hurry(ctx.now + ctx.config.join_resend);
        }
        self.tell(ctx, steward, LeaseReport { lease, next, bytes }, failure);
    }

    pub(crate) fn revoked(&mut self, ctx: &mut Ctx, from: Peer, id: LeaseId) {
        if self
            .leases
            .get(&id)
            .is_some_and(|running| running.steward == Some(from))
        {
            self.leases.remove(&id);
            self.supply = Supply::Everyone;
            ctx.act(Action::StopOrigin {
                blob: self.blob,
                lease: id,
            });
        }
    }

    /// This node was asleep: what it was granted may be in other hands.
    pub(crate) fn drop_leases(&mut self, ctx: &mut Ctx) {
        self.supply = Supply::Everyone;
        for id in std::mem::take(&mut self.leases).into_keys() {
            ctx.act(Action::StopOrigin {
                blob: self.blob,
                lease: id,
            });
        }
        self.joining = Joining::new(ctx.now);
        // What it read without a steward nobody grants it again.
        self.fallback_at = self.fallback_at.min(ctx.now + ctx.config.fallback_after);
    }

    /// What this node or a neighbour has. One that is left alone, because it stalled or sent wrong
    /// bytes, does not count: the steward may well grant a lease for that very reason.
    fn near(&self, ctx: &Ctx) -> Bitfield {
        let mut near = self.have.clone();
        for (peer, neighbour) in &self.neighbours {
            if !ctx.is_shunned(*peer) {
                near.union_with(&neighbour.have);
            }
        }
        near
    }

    fn advance_leases(&mut self, ctx: &mut Ctx, from_origin: bool) {
        // A chunk is in one lease.
        let mut reports: SmallVec<[_; 1]> = SmallVec::new();
        for running in self.leases.values_mut() {
            let before = running.next;
            while running.next < running.lease.end && self.have.contains(running.next) {
                running.next += 1;
            }
            if running.next != before && from_origin {
                running.report_at = ctx.now + ctx.config.report_interval;
                reports.push((running.steward, running.report()));
            }
        }
        for (steward, report) in reports {
            self.tell(ctx, steward, report, None);
        }
    }

    fn report_leases(&mut self, ctx: &mut Ctx) {
        let mut reports = Vec::new();
        for running in self
            .leases
            .values_mut()
            .filter(|running| running.report_at <= ctx.now)
        {
            running.report_at = ctx.now + ctx.config.report_interval;
            reports.push((running.steward, running.report()));
        }
        for (steward, report) in reports {
            self.tell(ctx, steward, report, None);
        }
    }

    fn tell(
        &self,
        ctx: &mut Ctx,
        steward: Option<Peer>,
        report: LeaseReport,
        failure: Option<OriginFailure>,
    ) {
        if let Some(steward) = steward {
            let Self { blob, size, .. } = *self;
            ctx.send(
                steward,
                Message::Report {
                    blob,
                    report,
                    size,
                    failure,
                },
            );
        }
    }

    // --- readers ---

    /// The chunks that a reader is to get before anything else: the first that it lacks and the one
    /// after it, or all of a range that ends before the blob does. Some may be here.
    pub(crate) fn awaited(&self, reader: &Range<u32>) -> Range<u32> {
        let is_part = self.is_part(reader);
        let most = if is_part { RANGE_AHEAD } else { READ_AHEAD };
        let end = reader.end.min(reader.start.saturating_add(most));
        let missing = self.have.next_clear(reader.start);
        match missing.filter(|head| *head < end) {
            None => end..end,
            Some(head) if is_part => head..end,
            Some(head) => head..reader.end.min(head + 2),
        }
    }

    fn is_part(&self, reader: &Range<u32>) -> bool {
        reader.end < self.have.len()
    }

    /// What of that nobody brings yet; of a reader that goes on to the end the first chunk alone,
    /// as the others are leased in this order anyway.
    fn urgent(&self) -> Vec<u32> {
        let is_leased = |chunk: u32| {
            let mut leases = self.leases.values();
            leases.any(|running| running.left().contains(&chunk))
        };
        let mut urgent: Vec<u32> = Vec::new();
        for reader in self.readers.values() {
            let most = if self.is_part(reader) { RANGE_AHEAD } else { 1 };
            let lacks = |chunk: &u32| !self.have.contains(*chunk);
            let missing = self.awaited(reader).filter(lacks).take(most as usize);
            urgent.extend(
                missing.filter(|chunk| !self.flights.contains_key(chunk) && !is_leased(*chunk)),
            );
            if urgent.len() >= URGENT_MAX {
                break;
            }
        }
        urgent
    }

    // --- stewards ---

    fn join(&mut self, ctx: &mut Ctx) {
        let ranks = ctx.stewards(&self.blob);
        let urgent = self.urgent();
        let leases = self
            .leases
            .values()
            .map(Running::report)
            .collect::<Vec<_>>();
        let mut upstreams: Vec<_> = self
            .hints
            .iter()
            .map(|hint| hint.upstream.clone())
            .collect();
        upstreams.dedup();
        let degree = if ctx.view.rack().len() == 0 {
            ctx.config.degree
        } else {
            ctx.config.degree_near + ctx.config.degree_far
        };
        let mut room = degree.saturating_sub(self.neighbours.len());
        if self.is_starving(ctx) {
            room = room.max(STARVING_ROOM);
        }
        for join in self.joining.due(ctx, &ranks) {
            ctx.send(
                join.to,
                Message::Join {
                    blob: self.blob,
                    kind: self.kind,
                    size: self.size,
                    have: self.have.clone(),
                    urgent: urgent.clone(),
                    leases: leases.clone(),
                    upstreams: upstreams.clone(),
                    want_peers: (room * 2) as u16,
                    takeover: join.takeover,
                },
            );
        }
    }

    /// Chunks that nobody near has are the steward's to find. What a neighbour has only waits for its
    /// turn: it may be busy with other blobs.
    fn report_lost(&mut self, ctx: &mut Ctx) {
        self.lost_at = ctx.now + Duration::from_secs(1);
        self.supply = Supply::Everyone;
        let mut missing = Bitfield::full(self.have.len());
        missing.subtract(&self.near(ctx));
        if missing.count() == 0 || ctx.config.makes(Mutation::NoLost) {
            return;
        }
        // A neighbour that took this node for dead tells it nothing any more: whoever is none says
        // so, and makes room for others.
        self.look_around(ctx);
        let Some(steward) = self.joining.acting else {
            return;
        };
        let chunks: Vec<u32> = missing.iter().take(LOST_MAX).collect();
        ctx.send(
            steward,
            Message::Lost {
                blob: self.blob,
                chunks,
            },
        );
        self.joining.hurry(ctx.now);
    }

    /// No steward answers and nothing comes in: read from the origin without being told to.
    fn fall_back(&mut self, ctx: &mut Ctx) {
        let patience = ctx.config.fallback_after;
        let answered = ctx.now.since(self.joining.answered_at) < patience;
        let flowing = self.fallback_leases == 0 && ctx.now.since(self.progress_at) < patience;
        if ((answered || flowing) && self.phase != Phase::Auditing) || self.hints.is_empty() {
            self.fallback_at = ctx.now + patience + ctx.jitter(patience / 4);
            return;
        }
        self.read_alone(ctx);
    }

    /// Takes ranges for itself, a few at a time: without a steward, or as an auditor.
    pub(crate) fn read_alone(&mut self, ctx: &mut Ctx) {
        let mut from = 0;
        self.fallback_at = Time::NEVER;
        while (self.leases.len() as u32) < ctx.config.fallback_streams {
            let free = |chunk: &u32| {
                !self.have.contains(*chunk)
                    && !self
                        .leases
                        .values()
                        .any(|running| (running.lease.first..running.lease.end).contains(chunk))
            };
            let Some(first) = (from..self.have.len()).find(free) else {
                break;
            };
            let limit = (first + (ctx.config.lease_bytes_min / self.chunk_bytes()).max(1) as u32)
                .min(self.have.len());
            let end = (first..limit).find(|chunk| !free(chunk)).unwrap_or(limit);
            self.fallback_leases += 1;
            let id = LeaseId {
                term: NO_STEWARD_TERM,
                number: self.fallback_leases,
            };
            self.granted(ctx, None, Lease { id, first, end });
            from = end;
        }
    }

    /// The digest did not match: whom to ask for an audit.
    pub(crate) fn suspect(&mut self, ctx: &mut Ctx, auditor: Peer) {
        self.auditors.insert(auditor, false);
        // It led here.
        self.verdict = None;
        self.phase = Phase::Suspect {
            asked: auditor,
            until: self.audit_patience(ctx),
        };
        self.cancel_requests(ctx);
    }

    /// Until when an auditor is waited for, or believed. It reads what all have read together, and
    /// what is dropped comes anew from one node at first: both may take as long as all took up to
    /// now, and were nobody to wait for it, everyone would read the blob itself. One that lies or is
    /// silent gains no more than that.
    fn audit_patience(&self, ctx: &Ctx) -> Time {
        let [least, most] = AUDIT_PATIENCE;
        ctx.now + ctx.now.since(self.began).clamp(least, most)
    }

    /// An auditor has told the hashes of the chunks.
    pub(crate) fn audited(&mut self, ctx: &mut Ctx, hashes: Vec<ChunkHash>) {
        let until = self.audit_patience(ctx);
        self.verdict = Some(Verdict { hashes, until });
    }

    pub(crate) fn has_verdict(&self) -> bool {
        self.verdict.is_some()
    }

    /// Whether a chunk with this hash is not known to be wrong.
    pub(crate) fn accepts(&self, chunk: u32, hash: &ChunkHash) -> bool {
        self.verdict
            .as_ref()
            .is_none_or(|verdict| verdict.hashes.get(chunk as usize) == Some(hash))
    }

    pub(crate) fn cancel_requests(&mut self, ctx: &mut Ctx) {
        for (chunk, flights) in self.flights.clone() {
            for flight in flights {
                self.drop_flight(ctx, chunk, flight.peer, true);
            }
        }
    }

    /// Whom a chunk is requested from.
    pub(crate) fn flights_of(&self, chunk: u32) -> SmallVec<[Peer; 2]> {
        self.flights.get(&chunk).map_or(smallvec![], |flights| {
            flights.iter().map(|flight| flight.peer).collect()
        })
    }

    /// The bytes that are requested for a chunk, from all peers.
    pub(crate) fn bytes_in_flight(&self, chunk: u32) -> u64 {
        let flights = self.flights.get(&chunk).into_iter().flatten();
        flights.map(|flight| flight.bytes).sum()
    }

    pub(crate) fn is_audit_overdue(&self, now: Time) -> bool {
        matches!(self.phase, Phase::Suspect { until, .. } if until <= now)
    }
}

/// The longest time that a request may go without progress, however slow the peers are.
const REQUEST_TIMEOUT_MAX: Duration = Duration::from_secs(15);

/// A peer that talks but sends no chunk for so long counts as having none: longer than TCP takes to
/// send a lost segment three times, at 0.2, 0.6 and 1.4 s (RFC 6298 doubles the time).
const TALKING_TIMEOUT: Duration = Duration::from_secs(4);

/// And so does one that left so many requests unanswered in a row.
const TALKING_STALLS: u32 = 2;

/// What a peer says of its queue is believed up to here.
const QUEUE_DELAY_MAX: Duration = Duration::from_secs(10);
