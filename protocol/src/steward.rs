//! The steward of one blob: who pulls it, who has it, and who may read which range of it from the
//! origin.
//!
//! The best-ranked live node acts. The next-ranked ones hear the same joins and so hold the same
//! state, two seconds old at most, and act when a puller says that the better ones are silent.

use std::collections::{BTreeMap, BTreeSet};

use rand::RngExt as _;

use crate::{
    chunk::{Bitfield, Geometry},
    ctx::Ctx,
    digest::Digest,
    directory::Peer,
    keeper,
    limits::{BLOB_BYTES_MAX, CHUNK_BYTES, PROVIDERS_MAX},
    message::{BlobKind, Lease, LeaseId, LeaseReport, Message, OriginFailure},
    mutation::Mutation,
    reference::Upstream,
    time::{Duration, Time},
};

/// A node that pulls the blob.
struct Joiner {
    have: Bitfield,
    heard: Time,
    upstreams: Vec<Upstream>,
    /// Chunks that its clients wait for.
    urgent: Vec<u32>,
    /// Whether it worked on leases when it joined.
    leased: bool,
    /// Leases that it has finished.
    completed: u32,
    /// Bytes per second of the last one.
    rate: Option<f64>,
    /// Why its last origin read failed, how often in a row, and when it may try again.
    failure: Option<(OriginFailure, u32, Time)>,
    /// It missed its reports, or its connection broke: what it alone has does not count.
    silent: bool,
    /// Its place in [`Steward::order`].
    place: usize,
}

struct Grant {
    holder: Peer,
    lease: Lease,
    next: u32,
    bytes: u64,
    granted: Time,
    /// When the holder last reported.
    heard: Time,
    /// When it last reported more bytes or chunks.
    moved: Time,
}

pub(crate) struct Steward {
    pub(crate) blob: Digest,
    kind: BlobKind,
    size: Option<u64>,
    chunks: u32,
    chunk_bytes: u64,
    term: u64,
    /// Until when this node acts although it is not ranked first.
    takeover_until: Time,
    acting: bool,
    /// When it wants to be called, as its owner noted it.
    pub(crate) due: Time,
    /// When [`tick`](Self::tick) last ran: what was due by then is no deadline any more.
    ticked_at: Time,
    /// No grants before this time: joins are being gathered.
    ready_at: Time,
    joiners: BTreeMap<Peer, Joiner>,
    /// The joiners in a list, so that some can be drawn at random without looking at all.
    order: Vec<Peer>,
    /// No joiner expires, falls silent or may try again before this time.
    look_at: Time,
    /// Joiners whose clients may wait for chunks that are not leased.
    waiting: BTreeSet<Peer>,
    /// Nodes that hold the whole blob.
    providers: BTreeSet<Peer>,
    /// Chunks that some joiner has, or that a holder said are near it.
    held: Bitfield,
    grants: BTreeMap<LeaseId, Grant>,
    /// Bytes per second of one stream, from the leases that were finished.
    lease_rate: Option<f64>,
    numbers: u32,
    lost: BTreeMap<u32, Time>,
    streams: Streams,
    /// The origin gives the blob only as a whole: one lease, to the end.
    whole: bool,
    /// Set when every joiner that could read the blob has been refused.
    failure: Option<OriginFailure>,
    pub(crate) origin_bytes: u64,
}

/// What the keeper of the upstream allows.
struct Streams {
    upstream: Option<Upstream>,
    granted: u16,
    granted_at: Time,
    asked: Option<Time>,
    ask_at: Time,
    /// A keeper that does not answer, and until when the next-ranked one is asked instead.
    silent: Option<(Peer, Time)>,
    bytes: u64,
    throttled: bool,
    pause_until: Time,
    idle: bool,
}

/// A steward asks the keeper again so often, well within the grant's expiry.
const ASK_INTERVAL: Duration = Duration::from_millis(100);

/// A keeper that does not answer for so long is done without: one stream.
const KEEPER_PATIENCE: Duration = Duration::from_millis(300);

/// A chunk that is reported lost again after so long is leased even if someone should have it.
const LOST_AGAIN: Duration = Duration::from_millis(900);

/// The longest pause that an origin's Retry-After is honoured for at a time.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Refusals in a row after which a joiner's way to the origin counts as closed.
const REFUSALS: u32 = 3;

/// While a stream's share of what is left is so many leases, these may be long: by the time that the
/// last one begins they are short.
const EARLY_LEASES: u32 = 8;

/// At the end, a holder that would take so long for what is left of its lease, and has had so long
/// for what it did of it, keeps no more than the chunk that it is at
const LAGGING: Duration = Duration::from_millis(300);

/// where its stream is so many times slower than others are.
const LAGGING_FACTOR: f64 = 2.5;

/// A holder whose last lease went so many times slower than leases do gets the next one after all
/// others. Among nodes with like links TCP alone makes one stream two or three times as fast as
/// another.
const SLOW_FACTOR: f64 = 4.0;

impl Steward {
    pub(crate) fn new(ctx: &mut Ctx, blob: Digest, kind: BlobKind) -> Self {
        Self {
            blob,
            kind,
            size: None,
            chunks: 1,
            chunk_bytes: CHUNK_BYTES,
            term: ctx.rng.random_range(1..u64::MAX),
            takeover_until: Time::ZERO,
            acting: false,
            due: Time::NEVER,
            ticked_at: ctx.now,
            ready_at: Time::ZERO,
            joiners: BTreeMap::new(),
            order: Vec::new(),
            look_at: Time::NEVER,
            waiting: BTreeSet::new(),
            providers: BTreeSet::new(),
            held: Bitfield::new(1),
            grants: BTreeMap::new(),
            lease_rate: None,
            numbers: 0,
            lost: BTreeMap::new(),
            streams: Streams {
                upstream: None,
                granted: 0,
                granted_at: Time::ZERO,
                asked: None,
                ask_at: Time::ZERO,
                silent: None,
                bytes: 0,
                throttled: false,
                pause_until: Time::ZERO,
                idle: true,
            },
            whole: false,
            failure: None,
            origin_bytes: 0,
        }
    }

    pub(crate) fn is_acting(&self) -> bool {
        self.acting
    }

    /// Whether anyone pulls the blob or is known to hold it.
    pub(crate) fn is_needed(&self) -> bool {
        !self.joiners.is_empty() || !self.providers.is_empty()
    }

    /// How many nodes pull the blob.
    pub(crate) fn joins(&self) -> usize {
        self.joiners.len()
    }

    pub(crate) fn leases(&self) -> usize {
        self.grants.len()
    }

    pub(crate) fn deadline(&self, ctx: &Ctx) -> Time {
        let mut at = self.look_at;
        if !self.acting {
            return at;
        }
        for grant in self.grants.values() {
            at = at.min(grant.heard + ctx.config.lease_silence);
            at = at.min(grant.moved + ctx.config.lease_stall);
        }
        if self.ready_at > self.ticked_at {
            at = at.min(self.ready_at);
        }
        if !self.streams.idle {
            at = at.min(self.streams.ask_at.max(self.ready_at));
            let overdue = self.streams.asked.map(|asked| asked + KEEPER_PATIENCE);
            if let Some(overdue) = overdue.filter(|overdue| *overdue > self.ticked_at) {
                at = at.min(overdue);
            }
        }
        if self.streams.pause_until > self.ticked_at {
            at = at.min(self.streams.pause_until);
        }
        if self.takeover_until > self.ticked_at {
            at = at.min(self.takeover_until);
        }
        at
    }

    /// A joiner that repeats its join every 2 seconds is silent after half a second more.
    fn silence(ctx: &Ctx) -> Duration {
        ctx.config.join_interval + Duration::from_millis(600)
    }

    pub(crate) fn tick(&mut self, ctx: &mut Ctx) {
        self.ticked_at = ctx.now;
        if self.look_at <= ctx.now && self.look_at_joiners(ctx) {
            self.recount();
        }
        self.decide_role(ctx);
        if !self.acting {
            return;
        }
        let mut recount = false;
        let late: Vec<(LeaseId, bool)> = self
            .grants
            .iter()
            .filter_map(|(id, grant)| {
                let silent = ctx.now.since(grant.heard) >= ctx.config.lease_silence;
                let stalled = ctx.now.since(grant.moved) >= ctx.config.lease_stall;
                let late = silent || stalled;
                (late && !ctx.config.makes(Mutation::NoRevocation)).then_some((*id, silent))
            })
            .collect();
        for (id, silent) in late {
            let Some(grant) = self.grants.remove(&id) else {
                continue;
            };
            ctx.send(
                grant.holder,
                Message::Revoke {
                    blob: self.blob,
                    lease: id,
                },
            );
            if let Some(joiner) = self.joiners.get_mut(&grant.holder) {
                joiner.silent |= silent;
                recount |= silent;
                if !silent {
                    // Let others try their way to the origin first.
                    let again = ctx.now + ctx.config.lease_stall;
                    let failure = OriginFailure::Failed("no bytes from the origin".to_owned());
                    joiner.failure = Some((failure, 1, again));
                    self.look_at = self.look_at.min(again);
                }
            }
        }
        if recount {
            self.recount();
        }
        self.grant(ctx);
    }

    /// Forgets joiners that have not been heard of for long, notes which are silent, and when that
    /// is to be looked at again; `true` if what is held has to be counted anew.
    fn look_at_joiners(&mut self, ctx: &mut Ctx) -> bool {
        let expiry = ctx.config.joiner_expiry;
        let gone: Vec<Peer> = self
            .joiners
            .iter()
            .filter(|(_, joiner)| ctx.now.since(joiner.heard) >= expiry)
            .map(|(peer, _)| *peer)
            .collect();
        for peer in gone {
            self.forget(ctx, peer);
        }
        let silence = Self::silence(ctx);
        let mut recount = false;
        let mut next = Time::NEVER;
        for joiner in self.joiners.values_mut() {
            if !joiner.silent && ctx.now.since(joiner.heard) >= silence {
                joiner.silent = true;
                recount = true;
            }
            let patience = if joiner.silent { expiry } else { silence };
            next = next.min(joiner.heard + patience);
            if let Some((_, _, again)) = joiner.failure
                && again > ctx.now
            {
                next = next.min(again);
            }
        }
        self.look_at = next;
        recount
    }

    /// Whether this node acts, by rank or by request.
    fn decide_role(&mut self, ctx: &mut Ctx) {
        let first = ctx.stewards(&self.blob).first() == Some(&ctx.me);
        let act = first || self.takeover_until > ctx.now;
        if act == self.acting {
            return;
        }
        self.acting = act;
        if !act {
            // Holders finish what they were granted; the better-ranked steward hears of it from
            // their joins.
            self.grants.clear();
            return;
        }
        self.term = ctx.rng.random_range(1..u64::MAX);
        self.numbers = 0;
        self.failure = None;
        // Whoever pulls already has something to tell; a pull that begins now has not, but right
        // after a change of membership one that went on under another steward may be on its way.
        let under_way =
            !first || self.held.count() > 0 || self.joiners.values().any(|joiner| joiner.leased);
        // Alone there is nobody to hear from.
        let alone = ctx.view.live().len() == 0;
        if !alone && (under_way || ctx.now.since(ctx.view_changed) < RECENT) {
            let pause = if under_way {
                ctx.config.rebuild
            } else {
                ctx.config.rebuild / 6
            };
            self.ready_at = ctx.now + pause;
        }
        if ctx.woke_at > Time::ZERO {
            // Holders announce themselves to a node that comes back; until they have, all that
            // the cluster holds would look as if it had to be read.
            self.ready_at = self.ready_at.max(ctx.woke_at + ctx.config.join_interval);
        }
        if under_way {
            let (blob, term) = (self.blob, self.term);
            let joiners: Vec<Peer> = self.joiners.keys().copied().collect();
            for peer in joiners {
                ctx.send(peer, Message::Acting { blob, term });
            }
        }
    }

    pub(crate) fn rank_changed(&mut self, ctx: &mut Ctx) {
        self.decide_role(ctx);
        self.grant(ctx);
    }

    /// This node was asleep: others have acted, and what is known is old.
    pub(crate) fn wake(&mut self, ctx: &mut Ctx) {
        self.forget_joiners();
        self.grants.clear();
        self.acting = false;
        self.recount();
        self.ready_at = ctx.now + ctx.config.join_interval;
        self.takeover_until = Time::ZERO;
    }

    fn learn_size(&mut self, size: Option<u64>) -> bool {
        let Some(size) = size.filter(|size| self.size.is_none() && *size <= BLOB_BYTES_MAX) else {
            return false;
        };
        self.size = Some(size);
        let geometry = Geometry::new(self.kind, size);
        self.chunks = geometry.chunks();
        self.chunk_bytes = geometry.chunk_bytes;
        self.held.grow(self.chunks);
        for joiner in self.joiners.values_mut() {
            joiner.have.grow(self.chunks);
        }
        true
    }

    /// What this node knows of the blob's size from its own pull.
    pub(crate) fn size_known(&mut self, ctx: &mut Ctx, size: u64) {
        if self.learn_size(Some(size)) {
            self.welcome_all(ctx);
            self.grant(ctx);
        }
    }

    // --- joiners ---

    #[expect(clippy::too_many_arguments, reason = "the fields of one message")]
    pub(crate) fn join(
        &mut self,
        ctx: &mut Ctx,
        from: Peer,
        size: Option<u64>,
        have: &Bitfield,
        urgent: Vec<u32>,
        leases: Vec<LeaseReport>,
        upstreams: Vec<Upstream>,
        want_peers: usize,
        takeover: bool,
    ) {
        let learned = self.learn_size(size);
        if takeover {
            // Joins come every 2 seconds; a takeover that nobody asks for any more lapses.
            self.takeover_until = ctx.now + ctx.config.streams_expiry;
        }
        if self.streams.upstream.is_none() {
            self.streams.upstream = upstreams.first().cloned();
        }
        let mut bits = Bitfield::new(self.chunks);
        bits.union_with(have);
        if bits.is_full() && self.size.is_some() {
            // It has everything and is about to say so in an announcement.
            self.held = Bitfield::full(self.chunks);
        }
        let (completed, rate, failure, place) =
            self.joiners
                .get(&from)
                .map_or((0, None, None, self.order.len()), |joiner| {
                    let failure = joiner.failure.clone();
                    (joiner.completed, joiner.rate, failure, joiner.place)
                });
        let lost_some = self
            .joiners
            .get(&from)
            .is_some_and(|joiner| !joiner.have.is_subset(&bits));
        self.held.union_with(&bits);
        if place == self.order.len() {
            self.order.push(from);
        }
        self.look_at = self.look_at.min(ctx.now + Self::silence(ctx));
        if urgent.is_empty() {
            self.waiting.remove(&from);
        } else {
            self.waiting.insert(from);
        }
        let joiner = Joiner {
            have: bits,
            heard: ctx.now,
            upstreams,
            urgent,
            leased: !leases.is_empty(),
            completed,
            rate,
            failure,
            silent: false,
            place,
        };
        self.joiners.insert(from, joiner);
        self.providers.remove(&from);
        if lost_some {
            self.recount();
        }
        self.decide_role(ctx);
        if !self.acting {
            return;
        }
        // Leases that an earlier steward granted are respected.
        for report in leases {
            self.grants.entry(report.lease.id).or_insert(Grant {
                holder: from,
                lease: report.lease,
                next: report.next,
                bytes: report.bytes,
                granted: ctx.now,
                heard: ctx.now,
                moved: ctx.now,
            });
        }
        self.welcome(ctx, from, want_peers);
        if learned {
            self.welcome_all(ctx);
        }
        self.grant(ctx);
    }

    fn welcome(&mut self, ctx: &mut Ctx, to: Peer, want_peers: usize) {
        let now_live = |peer: &Peer| *peer != to && ctx.is_live(*peer);
        let providers: Vec<Peer> = self.providers.iter().copied().filter(now_live).collect();
        // Half from those that have it all, half from those that pull, each filling up the other.
        let joiners = self.some_joiners(ctx, to, want_peers);
        let most = want_peers
            .div_ceil(2)
            .max(want_peers.saturating_sub(joiners.len()));
        let mut peers = ctx.sample(providers, most);
        let rest = want_peers.saturating_sub(peers.len());
        peers.extend(joiners.into_iter().take(rest));
        let Self {
            blob, term, size, ..
        } = *self;
        let failure = self.failure.clone();
        ctx.send(
            to,
            Message::Welcome {
                blob,
                term,
                size,
                peers,
                failure,
            },
        );
    }

    /// Some of those that pull the blob, at random, for a node to meet.
    fn some_joiners(&self, ctx: &mut Ctx, to: Peer, count: usize) -> Vec<Peer> {
        let fits =
            |ctx: &Ctx, peer: Peer| peer != to && ctx.is_live(peer) && !self.joiners[&peer].silent;
        if self.order.len() <= DRAWS * count {
            let mut all = self.order.clone();
            all.retain(|peer| fits(ctx, *peer));
            return ctx.sample(all, count);
        }
        let mut some: Vec<Peer> = Vec::with_capacity(count);
        for _ in 0..DRAWS * count {
            if some.len() == count {
                break;
            }
            let peer = self.order[ctx.rng.random_range(0..self.order.len())];
            if fits(ctx, peer) && !some.contains(&peer) {
                some.push(peer);
            }
        }
        some
    }

    fn remove_joiner(&mut self, peer: Peer) -> bool {
        let Some(joiner) = self.joiners.remove(&peer) else {
            return false;
        };
        self.waiting.remove(&peer);
        self.order.swap_remove(joiner.place);
        if let Some(moved) = self.order.get(joiner.place)
            && let Some(moved) = self.joiners.get_mut(moved)
        {
            moved.place = joiner.place;
        }
        true
    }

    fn forget_joiners(&mut self) {
        self.joiners.clear();
        self.order.clear();
        self.waiting.clear();
    }

    fn welcome_all(&mut self, ctx: &mut Ctx) {
        let joiners: Vec<Peer> = self.joiners.keys().copied().collect();
        for peer in joiners {
            self.welcome(ctx, peer, ctx.config.degree);
        }
    }

    pub(crate) fn forget(&mut self, ctx: &mut Ctx, peer: Peer) {
        let known = self.remove_joiner(peer) | self.providers.remove(&peer);
        self.grants.retain(|_, grant| grant.holder != peer);
        if known {
            self.recount();
            if self.acting {
                self.grant(ctx);
            }
        }
    }

    /// The connection to a peer broke. It may come back; until then what it alone has is lost to
    /// those who pull. While nobody does, an idle connection was closed and nothing is lost.
    pub(crate) fn disconnected(&mut self, ctx: &mut Ctx, peer: Peer) {
        let holds = self.grants.values().any(|grant| grant.holder == peer);
        self.grants.retain(|_, grant| grant.holder != peer);
        if self.acting && !self.joiners.is_empty() && self.providers.remove(&peer) {
            // If it can be reached it says again that it holds the blob.
            let (blob, term) = (self.blob, self.term);
            ctx.send(peer, Message::Acting { blob, term });
        }
        let Some(joiner) = self.joiners.get_mut(&peer) else {
            return;
        };
        if holds || !joiner.silent {
            joiner.silent = true;
            self.recount();
            if self.acting {
                self.grant(ctx);
            }
        }
    }

    /// A node holds the whole blob.
    pub(crate) fn provided(&mut self, ctx: &mut Ctx, from: Peer, size: u64) {
        self.learn_size(Some(size));
        self.remove_joiner(from);
        self.grants.retain(|_, grant| grant.holder != from);
        if self.providers.len() < PROVIDERS_MAX {
            self.providers.insert(from);
        }
        self.held = Bitfield::full(self.chunks);
        if self.acting {
            self.grant(ctx);
        }
    }

    fn recount(&mut self) {
        if !self.providers.is_empty() {
            self.held = Bitfield::full(self.chunks);
            return;
        }
        self.held = Bitfield::new(self.chunks);
        for joiner in self.joiners.values().filter(|joiner| !joiner.silent) {
            self.held.union_with(&joiner.have);
        }
    }

    /// A joiner finds nobody who has these chunks.
    pub(crate) fn lost(&mut self, ctx: &mut Ctx, from: Peer, chunks: &[u32]) {
        if !self.acting || !self.joiners.contains_key(&from) {
            return;
        }
        let leased = |chunk: u32| {
            self.grants
                .values()
                .any(|grant| (grant.next..grant.lease.end).contains(&chunk))
        };
        let mut freed = Vec::new();
        for chunk in chunks.iter().copied().filter(|chunk| *chunk < self.chunks) {
            if leased(chunk) || !self.held.contains(chunk) {
                continue;
            }
            // The first time the joiner is only told of more peers (its join does that); if that
            // did not help, whoever should have the chunk does not give it.
            match self.lost.get(&chunk) {
                Some(first) if ctx.now.since(*first) >= LOST_AGAIN => freed.push(chunk),
                Some(_) => {}
                None => {
                    self.lost.insert(chunk, ctx.now);
                }
            }
        }
        for chunk in freed {
            self.lost.remove(&chunk);
            self.held.remove(chunk);
        }
        self.grant(ctx);
    }

    // --- leases ---

    pub(crate) fn report(
        &mut self,
        ctx: &mut Ctx,
        from: Peer,
        report: &LeaseReport,
        size: Option<u64>,
        failure: Option<OriginFailure>,
    ) {
        let learned = self.learn_size(size);
        let Some(joiner) = self.joiners.get_mut(&from) else {
            return;
        };
        joiner.heard = ctx.now;
        joiner.silent = false;
        let id = report.lease.id;
        // A manifest's or a blob's first lease was granted before its size was known.
        let end = report.lease.end.min(self.chunks);
        let next = report.next.min(end);
        let first = self
            .grants
            .get(&id)
            .map_or(report.lease.first, |grant| grant.lease.first);
        for chunk in first..next {
            self.held.insert(chunk);
            self.lost.remove(&chunk);
            if report.bytes > 0 {
                joiner.have.insert(chunk);
            }
        }
        if let Some(grant) = self
            .grants
            .get_mut(&id)
            .filter(|grant| grant.holder == from)
        {
            grant.heard = ctx.now;
            if next > grant.next || report.bytes > grant.bytes {
                grant.moved = ctx.now;
                let bytes = report.bytes.saturating_sub(grant.bytes);
                self.streams.bytes += bytes;
                self.origin_bytes += bytes;
                grant.next = next;
                grant.bytes = report.bytes;
            }
            let done = report.next >= grant.lease.end;
            if done && report.next < report.lease.end && failure.is_none() {
                // The rest was taken back.
                ctx.send(
                    from,
                    Message::Revoke {
                        blob: self.blob,
                        lease: id,
                    },
                );
            }
            if done || failure.is_some() {
                let took = ctx.now.since(grant.granted);
                if failure.is_none() && report.bytes > 0 && !took.is_zero() {
                    let rate = report.bytes as f64 / took.as_secs_f64();
                    joiner.rate = Some(rate);
                    self.lease_rate = Some(
                        self.lease_rate
                            .map_or(rate, |mean| mean.mul_add(0.75, rate / 4.0)),
                    );
                }
                self.grants.remove(&id);
                joiner.completed += u32::from(failure.is_none());
            }
        }
        if failure.is_none() && report.bytes > 0 {
            joiner.failure = None;
            self.failure = None;
        }
        if let Some(failure) = failure {
            self.failed(ctx, from, failure);
        }
        if learned && self.acting {
            self.welcome_all(ctx);
        }
        if self.acting {
            self.grant(ctx);
        }
    }

    /// A holder could not read. Others are tried before anyone is told that it cannot be read.
    fn failed(&mut self, ctx: &mut Ctx, from: Peer, failure: OriginFailure) {
        if failure == OriginFailure::NoRanges {
            if !std::mem::replace(&mut self.whole, true) {
                for (id, grant) in std::mem::take(&mut self.grants) {
                    ctx.send(
                        grant.holder,
                        Message::Revoke {
                            blob: self.blob,
                            lease: id,
                        },
                    );
                }
            }
            return;
        }
        let pause = match &failure {
            OriginFailure::Throttled { retry_ms } => {
                let pause = Duration::from_millis(u64::from(retry_ms.unwrap_or(1000)));
                let pause = pause.min(PAUSE_MAX);
                self.streams.throttled = true;
                self.streams.pause_until = self.streams.pause_until.max(ctx.now + pause);
                pause
            }
            OriginFailure::NotFound | OriginFailure::Denied => Duration::from_secs(30),
            OriginFailure::Failed(_) | OriginFailure::NoRanges => Duration::from_millis(500),
        };
        let Some(joiner) = self.joiners.get_mut(&from) else {
            return;
        };
        let times = joiner.failure.as_ref().map_or(0, |(_, times, _)| *times) + 1;
        let again = ctx.now + pause * times.min(8);
        joiner.failure = Some((failure.clone(), times, again));
        self.look_at = self.look_at.min(again);
        // Said to all when nobody is left who could read it and nobody has all of it.
        let closed = |joiner: &Joiner| match &joiner.failure {
            _ if joiner.upstreams.is_empty() => true,
            Some((OriginFailure::NotFound | OriginFailure::Denied, ..)) => true,
            Some((OriginFailure::Failed(_), times, _)) => *times >= REFUSALS,
            Some((OriginFailure::Throttled { .. } | OriginFailure::NoRanges, ..)) | None => false,
        };
        // Who asks again will find those that have it.
        let obtainable = self.held.is_full() || !self.providers.is_empty();
        if obtainable || !self.joiners.values().all(closed) {
            return;
        }
        self.failure = Some(failure);
        self.welcome_all(ctx);
        // Whoever asks from now on asks anew.
        self.forget_joiners();
        self.grants.clear();
        self.failure = None;
        self.recount();
    }

    /// Grants leases while there are streams, ranges and holders for them.
    fn grant(&mut self, ctx: &mut Ctx) {
        if !self.acting || ctx.now < self.ready_at {
            return;
        }
        let mut leased = std::mem::take(&mut ctx.leased);
        let taken_back = self.grant_beside(ctx, &mut leased);
        ctx.leased = leased;
        if taken_back {
            self.grant(ctx);
        }
    }

    /// Grants what is neither held nor leased, and makes `leased` all that is; tells whether a lease
    /// was shortened, so that there is more to grant.
    fn grant_beside(&mut self, ctx: &mut Ctx, leased: &mut Bitfield) -> bool {
        leased.clone_from(&self.held);
        for grant in self.grants.values() {
            for chunk in grant.next..grant.lease.end.min(self.chunks) {
                leased.insert(chunk);
            }
        }
        let unleased = self.chunks - leased.count();
        self.ask_keeper(ctx, unleased);
        if ctx.now < self.streams.pause_until {
            return false;
        }
        let mut streams = self.streams_allowed(ctx);
        if self.whole {
            streams = streams.min(1);
        }
        let far_end = self.begins_at_far_end(ctx) && !self.whole;
        while (self.grants.len() as u16) < streams {
            let Some((first, wanted_by)) = self.next_range(leased, far_end) else {
                break;
            };
            let Some(holder) = self.next_holder(ctx, streams, wanted_by) else {
                break;
            };
            let left = self.chunks - leased.count();
            let is_first = self.joiners[&holder].rate.is_none();
            let most = self.lease_chunks(ctx, left / u32::from(streams), is_first);
            let limit = (first + most).min(self.chunks);
            let end = leased.next_set(first).map_or(limit, |next| next.min(limit));
            let (first, end) = if far_end {
                let start = (first + 1).saturating_sub(most);
                let begin = (start..=first)
                    .rev()
                    .take_while(|chunk| !leased.contains(*chunk))
                    .last()
                    .unwrap_or(first);
                (begin, first + 1)
            } else if self.whole {
                (leased.next_clear(0).unwrap_or(first), self.chunks)
            } else {
                (first, end)
            };
            for chunk in first..end {
                leased.insert(chunk);
            }
            self.numbers += 1;
            let id = LeaseId {
                term: self.term,
                number: self.numbers,
            };
            let lease = Lease { id, first, end };
            let grant = Grant {
                holder,
                lease,
                next: first,
                bytes: 0,
                granted: ctx.now,
                heard: ctx.now,
                moved: ctx.now,
            };
            self.grants.insert(id, grant);
            ctx.send(
                holder,
                Message::Grant {
                    blob: self.blob,
                    lease,
                },
            );
        }
        let all_leased = leased.count() == self.chunks;
        all_leased && !self.whole && !far_end && self.take_back(ctx)
    }

    /// Shortens the leases of holders so slow that everyone would wait for them at the end to the
    /// chunk that they are at, and tells whether there were any.
    fn take_back(&mut self, ctx: &Ctx) -> bool {
        let Some(usual) = self.lease_rate else {
            return false;
        };
        let mut taken = false;
        for grant in self.grants.values_mut() {
            let rest = grant.lease.end.min(self.chunks) - grant.next;
            let took = ctx.now.since(grant.granted);
            let rate = grant.bytes as f64 / took.as_secs_f64();
            let waits = f64::from(rest) * self.chunk_bytes as f64 / rate;
            let lags = took >= LAGGING && waits >= LAGGING.as_secs_f64();
            if rest > 1 && lags && rate * LAGGING_FACTOR < usual {
                // The rest of this chunk alone would be read twice otherwise.
                grant.lease.end = grant.next + 1;
                taken = true;
            }
        }
        taken
    }

    /// Chunks in a lease where `share` are left for each stream: what a stream gives in the
    /// configured time, and more while much is left. Longer ones keep more of a slow origin's chunks
    /// under way at once, and all of them late; shorter ones cost requests, and on a slow link the
    /// stream idles until the next one is granted. A holder's first one is never longer:
    /// it may be slow.
    fn lease_chunks(&self, ctx: &Ctx, share: u32, is_first: bool) -> u32 {
        let config = &ctx.config;
        let within = |time: Duration| {
            let bytes = (self.lease_rate.unwrap_or_default() * time.as_secs_f64()) as u64;
            let bytes = bytes.clamp(config.lease_bytes_min, config.lease_bytes_max);
            (bytes / self.chunk_bytes) as u32
        };
        let mut most = within(config.lease_time);
        if !is_first {
            most = most.max(within(config.lease_time_max).min(share / EARLY_LEASES));
        }
        // Shrinking to one chunk near the end, so that the last leases end together.
        most.min(share / 2).max(1)
    }

    /// Where views differ two nodes may act: the one that was asked to take over begins at the
    /// far end, so that the two meet in the middle instead of reading everything twice. Where the
    /// connection to the other broke, its process has most likely ended: from the far end nothing
    /// can be hashed before all of it is here.
    fn begins_at_far_end(&self, ctx: &Ctx) -> bool {
        if self.takeover_until <= ctx.now {
            return false;
        }
        let ranks = ctx.stewards(&self.blob);
        let mut better = ranks.iter().take_while(|peer| **peer != ctx.me);
        better.any(|peer| !ctx.cut_off.contains(peer))
    }

    /// The next chunk to be leased, and who waits for it most.
    fn next_range(&mut self, leased: &Bitfield, far_end: bool) -> Option<(u32, Option<Peer>)> {
        while let Some(peer) = self.waiting.first().copied() {
            let urgent = self
                .joiners
                .get(&peer)
                .filter(|joiner| !joiner.silent)
                .and_then(|joiner| {
                    let free = |chunk: &u32| *chunk < self.chunks && !leased.contains(*chunk);
                    joiner.urgent.iter().copied().find(free)
                });
            if let Some(chunk) = urgent {
                return Some((chunk, Some(peer)));
            }
            // It says so with its next join if it waits for something else then.
            self.waiting.pop_first();
        }
        let first = leased.next_clear(0)?;
        if far_end {
            let last = (first..self.chunks)
                .rev()
                .find(|chunk| !leased.contains(*chunk));
            return last.map(|chunk| (chunk, None));
        }
        Some((first, None))
    }

    /// Who may hold one more lease: the one with the fewest, of those below their cap. Without a
    /// cap the first joiner would take all of them [sim: 1.34 times the bound, more where it is
    /// slow]. Those that were slow come last: with 5 of 100 nodes at a tenth of the others' rate, and
    /// 5 that are killed, the rest end 0.49 s after the bound with that, 0.66 s without [sim].
    fn next_holder(&self, ctx: &mut Ctx, streams: u16, wanted_by: Option<Peer>) -> Option<Peer> {
        let is_able = |ctx: &Ctx, peer: Peer, joiner: &Joiner| {
            let refused = joiner
                .failure
                .as_ref()
                .is_some_and(|(.., again)| *again > ctx.now);
            !joiner.upstreams.is_empty() && !joiner.silent && !refused && ctx.is_live(peer)
        };
        let is_slow = |joiner: &Joiner| {
            let rates = joiner.rate.zip(self.lease_rate);
            rates.is_some_and(|(rate, usual)| rate * SLOW_FACTOR < usual)
        };
        if ctx.config.makes(Mutation::LeasesWithoutCap) {
            let mut joiners = self.joiners.iter();
            return joiners
                .find(|(peer, joiner)| is_able(ctx, **peer, joiner))
                .map(|(peer, _)| *peer);
        }
        let active = |peer: Peer| {
            let of_peer = |grant: &&Grant| grant.holder == peer;
            self.grants.values().filter(of_peer).count()
        };
        // Among many, most have none: whoever is drawn is as good as the best of all.
        if self.order.len() > DRAWS * usize::from(streams) {
            for draw in 0..DRAWS * 8 {
                let random = self.order[ctx.rng.random_range(0..self.order.len())];
                let peer = wanted_by.filter(|_| draw == 0).unwrap_or(random);
                let joiner = &self.joiners[&peer];
                let able = is_able(ctx, peer, joiner) && !ctx.is_shunned(peer);
                if able && !is_slow(joiner) && active(peer) == 0 {
                    return Some(peer);
                }
            }
        }
        let mut able: Vec<(Peer, usize, u32)> = self
            .joiners
            .iter()
            .filter(|(peer, joiner)| is_able(ctx, **peer, joiner))
            .map(|(peer, joiner)| (*peer, active(*peer), joiner.completed))
            .collect();
        // What a node reads is of no use to others who cannot have it from it.
        if able.iter().any(|(peer, ..)| !ctx.is_shunned(*peer)) {
            able.retain(|(peer, ..)| !ctx.is_shunned(*peer));
        }
        let share = usize::from(streams).div_ceil(able.len().max(1));
        let below_cap = |(_, active, completed): &(Peer, usize, u32)| {
            *active < share.min(2 + *completed as usize)
        };
        if let Some(first) = wanted_by
            && able
                .iter()
                .any(|holder| holder.0 == first && below_cap(holder))
        {
            return Some(first);
        }
        able.into_iter()
            .filter(below_cap)
            .map(|(peer, active, _)| {
                let slow = is_slow(&self.joiners[&peer]);
                (slow, active, ctx.rng.random::<u32>(), peer)
            })
            .min()
            .map(|(.., peer)| peer)
    }

    // --- streams ---

    fn ask_keeper(&mut self, ctx: &mut Ctx, unleased: u32) {
        // Not more than the keeper could ever give, but enough to tell large blobs from small ones.
        let wanted = (unleased + self.grants.len() as u32).min(u32::from(u16::MAX)) as u16;
        let idle = wanted == 0;
        let due = self.streams.ask_at <= ctx.now || self.streams.throttled;
        let changed = idle != self.streams.idle;
        if !changed && (idle || !due) {
            return;
        }
        self.streams.idle = idle;
        self.streams.ask_at = ctx.now + ASK_INTERVAL;
        let Some(upstream) = self.streams.upstream.clone() else {
            return;
        };
        if self.is_keeper_overdue(ctx) && !idle {
            self.pass_over_keeper(ctx, &upstream);
        }
        let Some(keeper) = self.keeper(ctx, &upstream) else {
            return;
        };
        if !idle {
            self.streams.asked.get_or_insert(ctx.now);
        }
        let bytes = std::mem::take(&mut self.streams.bytes);
        let throttled = std::mem::take(&mut self.streams.throttled);
        let blob = self.blob;
        ctx.send(
            keeper,
            Message::StreamsWanted {
                upstream,
                blob,
                wanted,
                bytes,
                throttled,
                open: self.grants.len() as u16,
            },
        );
    }

    /// The best-ranked node that is not known to be silent.
    fn keeper(&self, ctx: &Ctx, upstream: &Upstream) -> Option<Peer> {
        let silent = self.silent_keeper(ctx);
        let ranks = ctx.ranks(keeper::key(upstream));
        ranks.iter().copied().find(|peer| Some(*peer) != silent)
    }

    fn silent_keeper(&self, ctx: &Ctx) -> Option<Peer> {
        let (peer, until) = self.streams.silent?;
        (until > ctx.now).then_some(peer)
    }

    fn is_keeper_overdue(&self, ctx: &Ctx) -> bool {
        let asked = self.streams.asked;
        asked.is_some_and(|asked| ctx.now.since(asked) >= KEEPER_PATIENCE)
    }

    /// The keeper does not answer: another one is asked for a while. SWIM takes seconds to call it
    /// dead, and one stream for each blob is a third of what 10 Gbit/s can carry.
    fn pass_over_keeper(&mut self, ctx: &Ctx, upstream: &Upstream) {
        if self.silent_keeper(ctx).is_none() {
            let until = ctx.now + ctx.config.streams_expiry;
            self.streams.silent = self.keeper(ctx, upstream).map(|keeper| (keeper, until));
        }
    }

    pub(crate) fn streams_granted(&mut self, ctx: &mut Ctx, from: Peer, streams: u16) {
        self.streams.silent = self.streams.silent.filter(|(silent, _)| *silent != from);
        self.streams.granted = streams.min(ctx.config.streams_max);
        self.streams.granted_at = ctx.now;
        self.streams.asked = None;
        if self.acting {
            self.grant(ctx);
        }
    }

    fn streams_allowed(&self, ctx: &Ctx) -> u16 {
        let valid = self.streams.granted_at > Time::ZERO
            && ctx.now.since(self.streams.granted_at) < ctx.config.streams_expiry;
        match (valid, self.is_keeper_overdue(ctx)) {
            (true, false) => self.streams.granted,
            (true, true) => self.streams.granted.max(1),
            (false, true) => 1,
            (false, false) => 0,
        }
    }
}

/// For each node that is wanted at random so many are drawn, before all are looked at.
const DRAWS: usize = 4;

/// After a change of membership joins of blobs in transfer may still be on their way.
const RECENT: Duration = Duration::from_secs(3);
