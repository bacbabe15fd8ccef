//! One node's whole exchange.
//!
//! # The calling contract
//!
//! - Call [`Core::handle`] with every fact, in the order in which the facts became known, and with
//!   a time that never goes back.
//! - Carry out the actions that it appends, in their order, before the next call. None of them
//!   needs an answer before other events may come in.
//! - When [`Core::deadline`] has passed, call it with [`Event::Tick`]. Being late is harmless; a
//!   call too many does nothing.
//!
//! The machine never blocks and never fails. What a peer says is checked for sense here and for
//! truth by whoever holds the bytes: a chunk enters as [`Event::ChunkStored`] only after its bytes
//! were checked against its attestation, and the attestation was [accepted](Core::accepts).

use std::collections::{BTreeMap, BTreeSet};

use rand::{RngExt as _, SeedableRng as _, rngs::Xoshiro256PlusPlus};
use smallvec::{SmallVec, smallvec};

use crate::{
    chunk::{Bitfield, ChunkHash},
    config::Config,
    ctx::Ctx,
    digest::Digest,
    directory::{Directory, NodeId, NodeRecord, Peer},
    event::{Action, Event},
    keeper::{self, Keeper},
    limits::{CHUNK_BYTES, CHUNK_BYTES_MIN},
    link::{Pace, Rate},
    membership::{Membership, Output},
    mesh::{Mesh, Phase},
    message::{BlobKind, Hint, Message, News, OriginFailure},
    mutation::Mutation,
    picker::{Sets, Supply},
    reference::Upstream,
    steward::Steward,
    tags::Tags,
    time::{Duration, Time},
    uploads::Uploads,
    view::{Changed, View},
};

/// The exchange of one node; see the [module](self) for how to call it.
pub struct Core {
    ctx: Ctx,
    membership: Membership,
    meshes: BTreeMap<Digest, Mesh>,
    stewards: BTreeMap<Digest, Steward>,
    /// When each of them wants to be called, if ever.
    steward_timers: BTreeSet<(Time, Digest)>,
    keepers: BTreeMap<Upstream, Keeper>,
    uploads: Uploads,
    tags: Tags,
    /// Verified blobs that the store holds.
    holdings: BTreeMap<Digest, (BlobKind, u64)>,
    /// Who is to hear of the audits that this node runs.
    reporters: BTreeMap<Digest, BTreeSet<Peer>>,
    /// Pulls and questions that wait for the first list of members.
    held_back: Vec<Event>,
    held_back_until: Time,
    announce_at: Time,
    /// Blobs that have other stewards now, and when those are to hear of them.
    announce_again: Changed,
    announce_again_at: Time,
    /// What the neighbours are about to be told; nothing in between.
    news: Vec<(Peer, News)>,
    last_now: Time,
    /// When the next thing is to be done.
    due: Time,
    /// Which blob gets the next request.
    turn: usize,
}

/// After a change of membership complete blobs are announced to their new stewards so soon.
const ANNOUNCE_SETTLE: Duration = Duration::from_millis(500);

/// Blobs in one [`Message::Announce`]: 512 take 30 KB.
const ANNOUNCE_PAGE: usize = 512;

/// Records of blobs that a node coordinates at most: a peer cannot fill its memory with joins.
const STEWARDS_MAX: usize = 100_000;

/// A stream from the origin takes the place of so many requests to peers.
const READING_COSTS: usize = 3;

/// A node that reads from the origin has at least so many chunks requested from peers: where each way
/// takes 50 ms, 2 nodes on links of 50 Mbit/s end after 1.15 times the bound with one, 1.06 with four
/// \[sim\].
const OUTSTANDING_READING: usize = 4;

/// Auditors that have to find the origin's bytes wrong before the origin is blamed: as many as there
/// are stewards, so that two liars among those cannot do it.
const AUDITS: usize = 3;

/// Why an idle machine looks around at least so often: it notices that it was asleep.
const HEARTBEAT: Duration = Duration::from_secs(1);

impl Core {
    /// A node that knows nobody yet. `seed` is all the randomness that it will ever use.
    pub fn new(config: Config, me: NodeRecord, directory: Directory, seed: u64, now: Time) -> Self {
        let peer = directory.intern(&me);
        let held_back_until = if config.wait_for_members {
            now + config.wait_for_members_max
        } else {
            Time::ZERO
        };
        let membership = Membership::new(&me, directory.clone(), seed, now, config.sync_interval);
        let mut core = Self {
            ctx: Ctx {
                now,
                me: peer,
                view: View::new(peer, me.id, directory.clone()),
                directory,
                rng: Xoshiro256PlusPlus::seed_from_u64(seed ^ 0x5851_f42d_4c95_7f2d),
                view_changed: Time::ZERO,
                woke_at: Time::ZERO,
                banned: BTreeSet::new(),
                links: rustc_hash::FxHashMap::default(),
                avoided: BTreeSet::new(),
                cut_off: BTreeSet::new(),
                hungry_at: Time::NEVER,
                was_hungry: false,
                have_at: Time::NEVER,
                freed: Supply::default(),
                sets: Sets::default(),
                leased: Bitfield::default(),
                acquaintances: std::collections::VecDeque::new(),
                outstanding: 0,
                outstanding_bytes: 0,
                rate: Rate::default(),
                pace: Pace::default(),
                actions: Vec::new(),
                local: std::collections::VecDeque::new(),
                config,
            },
            membership,
            meshes: BTreeMap::new(),
            stewards: BTreeMap::new(),
            steward_timers: BTreeSet::new(),
            keepers: BTreeMap::new(),
            uploads: Uploads::default(),
            tags: Tags::default(),
            holdings: BTreeMap::new(),
            reporters: BTreeMap::new(),
            held_back: Vec::new(),
            held_back_until,
            announce_at: Time::NEVER,
            announce_again: Changed::default(),
            announce_again_at: Time::NEVER,
            news: Vec::new(),
            last_now: now,
            due: now,
            turn: 0,
        };
        core.due = core.next_due();
        core
    }

    /// When to call again if nothing happens before.
    pub fn deadline(&self) -> Time {
        self.due
    }

    fn next_due(&self) -> Time {
        let mut at = self
            .membership
            .deadline()
            .min(self.announce_at)
            .min(self.announce_again_at)
            .min(self.tags.deadline())
            .min(self.ctx.have_at);
        for mesh in self.meshes.values() {
            at = at.min(mesh.deadline(&self.ctx));
        }
        if let Some((due, _)) = self.steward_timers.first() {
            at = at.min(*due);
        }
        if !self.held_back.is_empty() {
            at = at.min(self.held_back_until);
        }
        if self.meshes.values().any(Mesh::is_pulling) {
            // A neighbour that was left alone may be asked again, or one that is far.
            if let Some((until, _)) = self.ctx.avoided.first() {
                at = at.min(*until);
            }
            if self.ctx.hungry_at > self.ctx.now {
                at = at.min(self.ctx.hungry_at);
            }
        }
        at.min(self.last_now + HEARTBEAT)
    }

    /// Takes these nodes for members without asking or telling anyone, as a node that has been in
    /// their cluster for a while: so a world of thousands need not boot. To be called before the
    /// first [`handle`](Self::handle).
    pub fn recall(&mut self, members: &[Peer]) {
        self.membership.recall(self.ctx.now, members);
        self.drain_membership();
        // Their memory too: that is an action for every member at every node of a world.
        self.ctx.actions = Vec::new();
        self.members_known();
        self.due = self.next_due();
    }

    /// Whether a chunk from a peer may be stored, by who signed it and for what hash: not where the
    /// signer is proven to have lied, nor where an auditor of the blob says otherwise. To be asked
    /// when the chunk has come; if not, it is [rejected](Event::ChunkRejected), and its sender, which
    /// may not have heard of it yet, is not to blame.
    pub fn accepts(&self, blob: &Digest, index: u32, signer: Peer, hash: &ChunkHash) -> bool {
        let mesh = self.meshes.get(blob);
        !self.ctx.banned.contains(&signer) && mesh.is_none_or(|mesh| mesh.accepts(index, hash))
    }

    /// Takes in a fact and appends what is to be done about it.
    pub fn handle(&mut self, now: Time, event: Event, actions: &mut Vec<Action>) {
        self.ctx.now = now.max(self.ctx.now);
        if now.since(self.last_now) > self.ctx.config.asleep_after {
            self.woke_up();
        }
        self.last_now = self.ctx.now;
        let gives = concerns_uploads_alone(&event);
        self.take(event);
        // Half of all events are of this kind, and have changed nothing that is to be requested.
        if !gives || self.due <= self.ctx.now {
            self.settle();
            self.due = self.next_due();
        }
        actions.append(&mut self.ctx.actions);
    }

    /// Runs everything that the event set off, to the end.
    fn settle(&mut self) {
        if self.due <= self.ctx.now {
            self.tick();
        }
        loop {
            self.drain_membership();
            if let Some(message) = self.ctx.local.pop_front() {
                self.message(self.ctx.me, message);
                continue;
            }
            self.fill();
            if self.ctx.local.is_empty() {
                break;
            }
        }
        self.ctx.view.trim();
    }

    /// Lets the steward of a blob, if this node has its record, do something, and keeps track of
    /// when it wants to be called and whether it is still needed. A node may have the records of
    /// 100,000 blobs: none but the one concerned is looked at.
    fn steward(&mut self, blob: Digest, act: impl FnOnce(&mut Steward, &mut Ctx)) {
        let Some(steward) = self.stewards.get_mut(&blob) else {
            return;
        };
        act(steward, &mut self.ctx);
        let due = steward.deadline(&self.ctx);
        let before = std::mem::replace(&mut steward.due, due);
        if !steward.is_needed() {
            self.steward_timers.remove(&(before, blob));
            self.stewards.remove(&blob);
        } else if due != before {
            self.steward_timers.remove(&(before, blob));
            if due != Time::NEVER {
                self.steward_timers.insert((due, blob));
            }
        }
    }

    /// As [`steward`](Self::steward), beginning its record where there is none.
    fn new_steward(
        &mut self,
        blob: Digest,
        kind: BlobKind,
        act: impl FnOnce(&mut Steward, &mut Ctx),
    ) {
        let ctx = &mut self.ctx;
        self.stewards
            .entry(blob)
            .or_insert_with(|| Steward::new(ctx, blob, kind));
        self.steward(blob, act);
    }

    /// Lets the stewards of all blobs do something.
    fn all_stewards(&mut self, mut act: impl FnMut(&mut Steward, &mut Ctx)) {
        let blobs: Vec<Digest> = self.stewards.keys().copied().collect();
        for blob in blobs {
            self.steward(blob, &mut act);
        }
    }

    fn tick(&mut self) {
        let ctx = &mut self.ctx;
        if self.membership.deadline() <= ctx.now {
            self.membership.tick(ctx.now);
        }
        for mesh in self.meshes.values_mut() {
            if mesh.deadline(ctx) <= ctx.now {
                mesh.tick(ctx);
            }
        }
        ctx.retry();
        if ctx.have_at <= ctx.now {
            self.announce_chunks();
        }
        // Each of them once: what is due again at once is due with the next call.
        let now = self.ctx.now;
        let due: Vec<Digest> = self
            .steward_timers
            .iter()
            .take_while(|(at, _)| *at <= now)
            .map(|(_, blob)| *blob)
            .collect();
        for blob in due {
            self.steward(blob, Steward::tick);
        }
        let ctx = &mut self.ctx;
        if self.tags.deadline() <= ctx.now {
            self.tags.tick(ctx);
        }
        if self.announce_at <= ctx.now {
            self.announce_at = ctx.now + ctx.config.announce_interval;
            self.announce_again_at = Time::NEVER;
            self.announce_again = Changed::default();
            let all: Vec<Digest> = self.holdings.keys().copied().collect();
            self.announce(&all);
        }
        if self.announce_again_at <= self.ctx.now {
            self.announce_again_at = Time::NEVER;
            let changed = std::mem::take(&mut self.announce_again);
            let keys: BTreeSet<u64> = changed.keys.iter().copied().collect();
            let moved = |blob: &&Digest| changed.others || keys.contains(&blob.prefix());
            let blobs: Vec<Digest> = self.holdings.keys().filter(moved).copied().collect();
            self.announce(&blobs);
        }
        if self.held_back_until <= self.ctx.now {
            for event in std::mem::take(&mut self.held_back) {
                self.take(event);
            }
        }
        let overdue: SmallVec<[Digest; 1]> = self
            .meshes
            .values()
            .filter(|mesh| mesh.is_audit_overdue(self.ctx.now))
            .map(|mesh| mesh.blob)
            .collect();
        for blob in overdue {
            self.ask_for_audit(blob, &[]);
        }
        if !self.keepers.is_empty() {
            let expiry = self.ctx.config.streams_expiry;
            self.keepers
                .retain(|_, keeper| !keeper.is_idle(self.ctx.now, expiry * 12));
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Tick => {}
            Event::Connected(peer) => {
                self.ctx.cut_off.remove(&peer);
                self.membership.connected(peer);
            }
            Event::Disconnected(peer) | Event::Unreachable(peer) => {
                if self.ctx.is_live(peer) {
                    self.ctx.cut_off.insert(peer);
                }
                self.peer_gone(peer);
            }
            Event::Message { from, message } => {
                if !self.ctx.banned.contains(&from) {
                    self.ctx.heard(from);
                    self.message(from, message);
                }
            }
            Event::Pull { .. } | Event::ResolveTag { .. }
                if self.ctx.now < self.held_back_until =>
            {
                self.held_back.push(event);
            }
            // What is told of a blob whose pull is not known yet comes after it.
            Event::Reading { blob, .. }
            | Event::ReaderGone { blob, .. }
            | Event::Verified { blob }
            | Event::Mismatched { blob, .. }
            | Event::Abandoned { blob }
                if self.is_held_back(blob) =>
            {
                self.held_back.push(event);
            }
            Event::Pull {
                blob,
                kind,
                size,
                have,
                hint,
            } => {
                self.pull(blob, kind, size, have, hint);
            }
            Event::Reading {
                blob,
                reader,
                first,
                end,
            } => {
                if let Some(mesh) = self.meshes.get_mut(&blob) {
                    let waits = !mesh.have.contains(first);
                    let new = mesh.readers.insert(reader, first..end).is_none();
                    // One that reads on waits for what is leased next anyway; where it stands goes
                    // with the next join. A thousand that told at once would be one steward's load.
                    if new && waits && mesh.is_pulling() {
                        mesh.joining.hurry(self.ctx.now);
                    }
                }
            }
            Event::ReaderGone { blob, reader } => {
                if let Some(mesh) = self.meshes.get_mut(&blob) {
                    mesh.readers.remove(&reader);
                }
            }
            Event::Held { blob, kind, size } => {
                self.holdings.insert(blob, (kind, size));
                self.announce_at = self.announce_at.min(self.ctx.now + ANNOUNCE_SETTLE);
            }
            Event::Evicted { blob } => self.evicted(blob),
            Event::Abandoned { blob } => self.leave(blob),
            Event::ChunkLost { blob, index } => self.chunk_lost(blob, index),
            Event::ChunkProgress { from, blob, index } => {
                self.ctx.progress(from);
                if let Some(mesh) = self.meshes.get_mut(&blob) {
                    mesh.progress(&mut self.ctx, from, index);
                }
            }
            Event::ChunkStored {
                from,
                blob,
                index,
                len,
            } => {
                if from.is_some() {
                    self.ctx.rate.add(self.ctx.now, u64::from(len));
                }
                if let Some(mesh) = self.meshes.get_mut(&blob) {
                    mesh.stored(&mut self.ctx, from, index);
                    if from.is_some() && mesh.phase == Phase::Auditing {
                        // It was being written when the audit began, which trusts no peer.
                        self.ctx.act(Action::DropForeign { blob });
                    }
                }
            }
            Event::ChunkRejected {
                from,
                blob,
                index,
                corrupt,
            } => {
                if self.ctx.config.makes(Mutation::NoAttestationCheck) {
                    if let Some(mesh) = self.meshes.get_mut(&blob) {
                        mesh.stored(&mut self.ctx, Some(from), index);
                    }
                    return;
                }
                if let Some(mesh) = self.meshes.get_mut(&blob) {
                    mesh.rejected(&mut self.ctx, from, index, corrupt);
                }
                if corrupt {
                    self.strike(from, blob, index);
                }
            }
            Event::ChunkSent { to, blob, index } => {
                self.uploads.sent(&mut self.ctx, to, blob, index);
            }
            Event::ChunkUnsent { to, blob, index } => {
                self.uploads.unsent(&mut self.ctx, to, blob, index);
            }
            Event::Sized { blob, size } => self.sized(blob, size),
            Event::OriginProgress { blob, lease, bytes } => {
                if let Some(mesh) = self.meshes.get_mut(&blob) {
                    mesh.origin_progress(&mut self.ctx, lease, bytes);
                }
            }
            Event::OriginEnded {
                blob,
                lease,
                failure,
            } => {
                if let Some(mesh) = self.meshes.get_mut(&blob) {
                    mesh.origin_ended(&mut self.ctx, lease, failure);
                }
            }
            Event::Verified { blob } => self.verified(blob),
            Event::Mismatched { blob, signers } => self.mismatched(blob, &signers),
            Event::Dropped { blob, have } => self.dropped(blob, have),
            Event::Lied {
                signer,
                blob,
                index,
                attestation,
            } => {
                self.lied(blob, index, signer, attestation);
            }
            Event::ResolveTag { key, known } => {
                let known = known.map(|(record, age)| (record, Duration::from_secs(age)));
                self.tags.resolve(&mut self.ctx, key, known);
            }
            Event::TagAsked {
                key,
                result,
                known,
                imported,
                spared,
            } => {
                self.tags.origin_said(
                    &mut self.ctx,
                    key,
                    result,
                    known,
                    imported.map(|record| *record),
                    spared,
                );
            }
        }
    }

    fn message(&mut self, from: Peer, message: Message) {
        let ctx = &mut self.ctx;
        match message {
            Message::Swim(packet) => self.membership.swim(ctx.now, &packet),
            Message::MembersHash(hash) => {
                if self.membership.members_hash(from, hash) {
                    self.members_known();
                }
            }
            Message::Members { page, reply } => {
                self.membership.members(ctx.now, from, &page, reply);
                self.members_known();
            }

            Message::Join {
                blob,
                kind,
                have,
                size,
                urgent,
                leases,
                upstreams,
                want_peers,
                takeover,
                ..
            } => {
                if have.len() > 1 && size.is_none() || !self.may_coordinate(blob, takeover) {
                    return;
                }
                let want_peers = usize::from(want_peers).min(2 * self.ctx.config.degree_max);
                self.new_steward(blob, kind, |steward, ctx| {
                    steward.join(
                        ctx, from, size, &have, urgent, leases, upstreams, want_peers, takeover,
                    );
                });
            }
            Message::Welcome {
                blob,
                size,
                peers,
                failure,
                ..
            } => {
                self.welcome(from, blob, size, &peers, failure);
            }
            Message::Acting { blob, .. } => {
                if let Some((kind, size)) = self.holdings.get(&blob).copied() {
                    let announce = Message::Announce {
                        held: vec![(blob, kind, size)],
                        dropped: Vec::new(),
                    };
                    ctx.send(from, announce);
                } else if let Some(mesh) = self.meshes.get_mut(&blob) {
                    mesh.joining.hurry(ctx.now);
                }
            }
            Message::Grant { blob, lease } => {
                if let Some(mesh) = self.meshes.get_mut(&blob) {
                    mesh.joining.answered(ctx, from);
                    mesh.granted(ctx, Some(from), lease);
                } else {
                    ctx.send(from, Message::Leave { blob });
                }
            }
            Message::Report {
                blob,
                report,
                size,
                failure,
            } => {
                self.steward(blob, |steward, ctx| {
                    steward.report(ctx, from, &report, size, failure);
                });
            }
            Message::Revoke { blob, lease } => {
                if let Some(mesh) = self.meshes.get_mut(&blob) {
                    mesh.revoked(ctx, from, lease);
                }
            }
            Message::Lost { blob, chunks } => {
                self.steward(blob, |steward, ctx| steward.lost(ctx, from, &chunks));
            }
            Message::Leave { blob } => {
                self.steward(blob, |steward, ctx| steward.forget(ctx, from));
            }
            Message::Announce { held, dropped } => {
                for (blob, kind, size) in held {
                    if !self.may_coordinate(blob, false) {
                        continue;
                    }
                    self.new_steward(blob, kind, |steward, ctx| {
                        steward.provided(ctx, from, size);
                    });
                }
                for blob in dropped {
                    self.steward(blob, |steward, ctx| steward.forget(ctx, from));
                }
            }
            Message::StreamsWanted {
                upstream,
                blob,
                wanted,
                bytes,
                throttled,
                open,
            } => {
                self.keepers
                    .entry(upstream.clone())
                    .or_insert_with(|| Keeper::new(ctx, upstream))
                    .wanted(ctx, from, blob, [wanted, open], bytes, throttled);
            }
            Message::StreamsGranted { blob, streams, .. } => {
                self.steward(blob, |steward, ctx| {
                    steward.streams_granted(ctx, from, streams);
                });
            }

            Message::Offer {
                blob,
                kind,
                size,
                have,
                answer,
            } => {
                self.offered(from, blob, kind, size, have, answer);
            }
            Message::Part { blob } => {
                if let Some(mesh) = self.meshes.get_mut(&blob) {
                    mesh.forget(ctx, from);
                }
            }
            Message::Have { news, queue_ms } => {
                let queue = Duration::from_millis(u64::from(queue_ms.min(10_000)));
                ctx.link(from).busy_until = ctx.now + queue;
                for News { blob, chunks } in &news {
                    if let Some(mesh) = self.meshes.get_mut(blob) {
                        mesh.neighbour_has(from, chunks);
                    }
                }
            }
            Message::Request { blob, index } => {
                let held = |(kind, size): &(BlobKind, u64)| {
                    let geometry = crate::chunk::Geometry::new(*kind, *size);
                    (index < geometry.chunks()).then_some(geometry.chunk_bytes)
                };
                let here = self.meshes.get(&blob).map_or_else(
                    || self.holdings.get(&blob).and_then(held),
                    |mesh| mesh.have.contains(index).then(|| mesh.chunk_bytes()),
                );
                if let Some(bytes) = here {
                    let mesh = self.meshes.get(&blob);
                    let whole = mesh.is_some_and(|mesh| mesh.phase == Phase::Complete);
                    self.uploads.request(ctx, from, blob, index, bytes, whole);
                } else {
                    ctx.send(from, Message::Missing { blob, index });
                }
            }
            Message::Queued {
                blob,
                index,
                delay_ms,
            } => {
                if let Some(mesh) = self.meshes.get_mut(&blob) {
                    mesh.queued(ctx, from, index, Duration::from_millis(delay_ms.into()));
                }
            }
            Message::Busy {
                blob,
                index,
                retry_ms,
            } => {
                if let Some(mesh) = self.meshes.get_mut(&blob) {
                    mesh.busy(ctx, from, index, Duration::from_millis(retry_ms.into()));
                }
            }
            Message::Elsewhere {
                blob,
                index,
                retry_ms,
            } => {
                if let Some(mesh) = self.meshes.get_mut(&blob) {
                    mesh.elsewhere(ctx, from, index, Duration::from_millis(retry_ms.into()));
                }
            }
            Message::Missing { blob, index } => {
                if let Some(mesh) = self.meshes.get_mut(&blob) {
                    mesh.missing(ctx, from, index);
                }
            }
            Message::Cancel { blob, index } => self.uploads.cancel(from, blob, index),
            Message::Corrupt { blob, index } => ctx.act(Action::CheckChunk { blob, index }),

            Message::Mismatch {
                blob,
                kind,
                size,
                hints,
            } => {
                self.audit(from, blob, kind, size, &hints);
            }
            Message::Audited { blob, hashes } => self.audited(from, blob, hashes),
            Message::Proof {
                blob,
                index,
                attestation,
            } => {
                if self.holdings.contains_key(&blob) {
                    ctx.act(Action::CheckProof {
                        blob,
                        index,
                        attestation,
                    });
                }
            }

            Message::AskTag { key } => self.tags.asked(ctx, from, key),
            Message::Tag { key, answer } => self.tags.answered(ctx, from, key, answer),

            // The driver's own affair.
            Message::TagImported { .. }
            | Message::AskStats { .. }
            | Message::Stats { .. }
            | Message::AskToken { .. }
            | Message::Token { .. }
            | Message::OfferToken { .. } => {}
        }
    }

    // --- members ---

    fn is_held_back(&self, blob: Digest) -> bool {
        let pulls = |event: &Event| matches!(event, Event::Pull { blob: of, .. } if *of == blob);
        self.held_back.iter().any(pulls)
    }

    fn members_known(&mut self) {
        if self.held_back_until > self.ctx.now {
            self.held_back_until = self.ctx.now;
        }
    }

    fn drain_membership(&mut self) {
        for output in self.membership.take_outputs() {
            match output {
                Output::Send(peer, message) => self.ctx.send(peer, *message),
                Output::Up(peer) => {
                    if !self.ctx.banned.contains(&peer) {
                        let changed = self.ctx.view.joined(peer);
                        self.ctx.act(Action::MemberUp(peer));
                        self.view_changed(&changed);
                    }
                }
                Output::Down(peer) => {
                    let changed = self.ctx.view.left(peer);
                    self.ctx.act(Action::MemberDown(peer));
                    self.peer_dead(peer);
                    self.view_changed(&changed);
                }
            }
        }
        if let Some(record) = self.membership.take_renewed() {
            self.ctx.directory.intern(&record);
            self.ctx.act(Action::Note(
                "the cluster had declared this node dead; it has joined again".to_owned(),
            ));
        }
    }

    /// Members came or went. Only what has other stewards now is acted upon: in a large cluster
    /// somebody comes or goes all the time.
    fn view_changed(&mut self, changed: &Changed) {
        let ctx = &mut self.ctx;
        ctx.view_changed = ctx.now;
        ctx.freed = Supply::Everyone;
        if changed.keys.is_empty() && !changed.others {
            return;
        }
        for mesh in self.meshes.values_mut() {
            if changed.concerns(mesh.blob.prefix()) {
                let at = ctx.now + ctx.jitter(Duration::from_millis(50));
                mesh.joining.hurry(at);
            }
        }
        if self.announce_again.others || changed.others {
            self.announce_again.others = true;
        } else {
            self.announce_again.keys.extend(&changed.keys);
        }
        if !self.holdings.is_empty() {
            let at = ctx.now + ANNOUNCE_SETTLE;
            self.announce_again_at = self.announce_again_at.min(at);
        }
        let blobs: Vec<Digest> = self
            .stewards
            .keys()
            .filter(|blob| changed.concerns(blob.prefix()))
            .copied()
            .collect();
        for blob in blobs {
            self.steward(blob, Steward::rank_changed);
        }
    }

    /// The connection to a peer is gone; the peer may not be.
    fn peer_gone(&mut self, peer: Peer) {
        let ctx = &mut self.ctx;
        ctx.acquaintances.retain(|known| *known != peer);
        for mesh in self.meshes.values_mut() {
            mesh.forget(ctx, peer);
            mesh.joining.gone(ctx, peer);
        }
        self.all_stewards(|steward, ctx| steward.disconnected(ctx, peer));
        let ctx = &mut self.ctx;
        self.uploads.peer_gone(peer);
        self.tags.gone(ctx, peer);
    }

    fn peer_dead(&mut self, peer: Peer) {
        self.ctx.cut_off.remove(&peer);
        self.peer_gone(peer);
        self.all_stewards(|steward, ctx| steward.forget(ctx, peer));
        let ctx = &mut self.ctx;
        for keeper in self.keepers.values_mut() {
            keeper.forget(ctx, peer);
        }
        let waiting: Vec<Digest> = self
            .meshes
            .values()
            .filter(|mesh| matches!(mesh.phase, Phase::Suspect { asked, .. } if asked == peer))
            .map(|mesh| mesh.blob)
            .collect();
        for blob in waiting {
            self.ask_for_audit(blob, &[]);
        }
    }

    fn woke_up(&mut self) {
        self.ctx.woke_at = self.ctx.now;
        self.ctx.act(Action::Note(
            "this machine was asleep; leases are given back".to_owned(),
        ));
        for mesh in self.meshes.values_mut() {
            mesh.drop_leases(&mut self.ctx);
            // They may have given this node up, and would tell it nothing any more.
            for peer in mesh.neighbours.keys().copied().collect::<Vec<_>>() {
                mesh.forget(&mut self.ctx, peer);
            }
        }
        self.all_stewards(Steward::wake);
    }

    /// Whether this node is to keep a steward's record of a blob.
    fn may_coordinate(&self, blob: Digest, takeover: bool) -> bool {
        self.stewards.contains_key(&blob)
            || (self.stewards.len() < STEWARDS_MAX
                && (takeover || self.ctx.stewards(&blob).contains(&self.ctx.me)))
    }

    // --- pulls ---

    fn pull(
        &mut self,
        blob: Digest,
        kind: BlobKind,
        size: Option<u64>,
        have: Option<Bitfield>,
        hint: Hint,
    ) {
        let ctx = &mut self.ctx;
        let mesh = self.meshes.entry(blob).or_insert_with(|| {
            let mut mesh = Mesh::new(ctx, blob, kind, size, have, Phase::Pulling);
            mesh.begin(ctx);
            mesh
        });
        if let Some(size) = size {
            mesh.learn_size(ctx, size);
        }
        if !mesh.hints.contains(&hint) {
            mesh.hints.push(hint);
            mesh.joining.hurry(ctx.now);
        }
    }

    fn sized(&mut self, blob: Digest, size: u64) {
        let ctx = &mut self.ctx;
        if let Some(mesh) = self.meshes.get_mut(&blob) {
            mesh.learn_size(ctx, size);
            mesh.joining.hurry(ctx.now);
        }
        self.steward(blob, |steward, ctx| steward.size_known(ctx, size));
    }

    fn welcome(
        &mut self,
        from: Peer,
        blob: Digest,
        size: Option<u64>,
        peers: &[Peer],
        failure: Option<OriginFailure>,
    ) {
        let Some(mesh) = self.meshes.get_mut(&blob) else {
            return;
        };
        let ctx = &mut self.ctx;
        mesh.joining.answered(ctx, from);
        if let Some(size) = size {
            mesh.learn_size(ctx, size);
        }
        if !mesh.is_pulling() {
            return;
        }
        if let Some(failure) = failure {
            self.fail(blob, failure);
            return;
        }
        mesh.introduced(ctx, peers);
    }

    fn fail(&mut self, blob: Digest, failure: OriginFailure) {
        if self.meshes.contains_key(&blob) {
            self.leave(blob);
            self.ctx.act(Action::Failed { blob, failure });
        }
    }

    /// Ends a pull without the blob.
    fn leave(&mut self, blob: Digest) {
        let Some(mut mesh) = self.meshes.remove(&blob) else {
            return;
        };
        mesh.drop_leases(&mut self.ctx);
        let neighbours: Vec<Peer> = mesh.neighbours.keys().copied().collect();
        for peer in neighbours {
            mesh.forget(&mut self.ctx, peer);
            self.ctx.send(peer, Message::Part { blob });
        }
        mesh.cancel_requests(&mut self.ctx);
        for steward in self.ctx.stewards(&blob) {
            self.ctx.send(steward, Message::Leave { blob });
        }
    }

    fn offered(
        &mut self,
        from: Peer,
        blob: Digest,
        kind: BlobKind,
        size: Option<u64>,
        have: Bitfield,
        answer: bool,
    ) {
        let ctx = &mut self.ctx;
        if !self.meshes.contains_key(&blob) {
            let Some((_, held)) = self.holdings.get(&blob).copied() else {
                ctx.send(from, Message::Part { blob });
                return;
            };
            let all = Bitfield::full(crate::chunk::Geometry::new(kind, held).chunks());
            let mesh = Mesh::new(ctx, blob, kind, Some(held), Some(all), Phase::Complete);
            self.meshes.insert(blob, mesh);
        }
        if let Some(mesh) = self.meshes.get_mut(&blob) {
            mesh.offered(ctx, from, size, have, answer);
        }
    }

    /// Tells every neighbour which chunks came in that it lacks: one message for all blobs, since
    /// layers are pulled side by side.
    fn announce_chunks(&mut self) {
        let ctx = &mut self.ctx;
        ctx.have_at = Time::NEVER;
        for mesh in self.meshes.values_mut() {
            mesh.tell_news(&mut self.news);
        }
        self.news
            .sort_unstable_by_key(|(peer, news)| (*peer, news.blob));
        let queue_ms = self.uploads.delay(ctx).as_millis() as u32;
        let mut all = self.news.drain(..).peekable();
        while let Some((peer, first)) = all.next() {
            let mut news = smallvec![first];
            while let Some((_, next)) = all.next_if(|(to, _)| *to == peer) {
                news.push(next);
            }
            ctx.send(peer, Message::Have { news, queue_ms });
        }
    }

    /// Makes requests until enough are outstanding, a blob at a time in turn.
    fn fill(&mut self) {
        let ctx = &mut self.ctx;
        // What is read from the origin comes in over the same link. The origin is the scarcest
        // source, so its streams are not crowded out by requests to peers.
        let mut reading = 0;
        let (mut smallest, mut largest) = (CHUNK_BYTES, CHUNK_BYTES_MIN);
        let mut over = false;
        let mut pulling: SmallVec<[Digest; 8]> = SmallVec::new();
        for mesh in self.meshes.values() {
            reading += mesh.leases.len();
            if mesh.is_pulling() {
                smallest = smallest.min(mesh.chunk_bytes());
                largest = largest.max(mesh.chunk_bytes());
                pulling.push(mesh.blob);
            }
            over |= mesh.is_over() && self.holdings.contains_key(&mesh.blob);
        }
        // So many of the smallest, but no more bytes than of the largest: a slow node that asked for
        // so many large chunks would wait for a second or two for them.
        let bytes = ctx.outstanding_target(largest) as u64 * largest;
        let target = ctx.outstanding_target(smallest);
        let target = target
            .saturating_sub(READING_COSTS * reading)
            .max(target.min(OUTSTANDING_READING));
        if !pulling.is_empty() {
            ctx.feel(target);
        }
        let freed = std::mem::take(&mut ctx.freed);
        if !freed.is_empty() {
            for blob in &pulling {
                if let Some(mesh) = self.meshes.get_mut(blob) {
                    mesh.supply.merge(&freed);
                }
            }
        }
        let mut request = |ctx: &mut Ctx, make: fn(&mut Mesh, &mut Ctx) -> bool| {
            let mut idle = 0;
            while idle < pulling.len() && ctx.outstanding < target && ctx.outstanding_bytes < bytes
            {
                self.turn = (self.turn + 1) % pulling.len();
                let requested = self
                    .meshes
                    .get_mut(&pulling[self.turn])
                    .is_some_and(|mesh| make(mesh, ctx));
                idle = if requested { 0 } else { idle + 1 };
            }
        };
        request(ctx, Mesh::request_one);
        // Only when no blob has anything else to ask for.
        request(ctx, Mesh::endgame);
        if over {
            let holdings = &self.holdings;
            self.meshes
                .retain(|blob, mesh| !mesh.is_over() || !holdings.contains_key(blob));
        }
    }

    // --- holdings ---

    fn verified(&mut self, blob: Digest) {
        let Some(mesh) = self.meshes.get_mut(&blob) else {
            return;
        };
        let Some(size) = mesh.size else { return };
        mesh.finish(&mut self.ctx);
        self.holdings.insert(blob, (mesh.kind, size));
        mesh.drop_leases(&mut self.ctx);
        self.announce(&[blob]);
        for peer in self.reporters.remove(&blob).unwrap_or_default() {
            self.ctx.act(Action::SendHashes { to: peer, blob });
        }
        self.announce_at = self
            .announce_at
            .min(self.ctx.now + self.ctx.config.announce_interval);
    }

    fn announce(&mut self, blobs: &[Digest]) {
        let mut to: BTreeMap<Peer, Vec<(Digest, BlobKind, u64)>> = BTreeMap::new();
        for blob in blobs {
            let Some((kind, size)) = self.holdings.get(blob).copied() else {
                continue;
            };
            for steward in self.ctx.stewards(blob) {
                to.entry(steward).or_default().push((*blob, kind, size));
            }
        }
        for (peer, held) in to {
            for page in held.chunks(ANNOUNCE_PAGE) {
                let message = Message::Announce {
                    held: page.to_vec(),
                    dropped: Vec::new(),
                };
                self.ctx.send(peer, message);
            }
        }
    }

    fn evicted(&mut self, blob: Digest) {
        self.holdings.remove(&blob);
        if let Some(mesh) = self.meshes.remove(&blob) {
            for peer in mesh.neighbours.keys() {
                self.ctx.send(*peer, Message::Part { blob });
            }
        }
        for steward in self.ctx.stewards(&blob) {
            self.ctx.send(
                steward,
                Message::Announce {
                    held: Vec::new(),
                    dropped: vec![blob],
                },
            );
        }
    }

    fn chunk_lost(&mut self, blob: Digest, index: u32) {
        let held = self.holdings.remove(&blob);
        let ctx = &mut self.ctx;
        if let Some((kind, size)) = held {
            self.meshes
                .entry(blob)
                .or_insert_with(|| Mesh::new(ctx, blob, kind, Some(size), None, Phase::Pulling));
        }
        let Some(mesh) = self.meshes.get_mut(&blob) else {
            return;
        };
        let mut have = if held.is_some() {
            Bitfield::full(mesh.have.len())
        } else {
            mesh.have.clone()
        };
        have.remove(index);
        mesh.phase = Phase::Pulling;
        mesh.dropped(ctx, have);
        mesh.joining.hurry(ctx.now);
        if held.is_some() {
            for steward in ctx.stewards(&blob) {
                ctx.send(
                    steward,
                    Message::Announce {
                        held: Vec::new(),
                        dropped: vec![blob],
                    },
                );
            }
        }
    }

    // --- blame ---

    fn strike(&mut self, from: Peer, blob: Digest, index: u32) {
        let ctx = &mut self.ctx;
        ctx.send(from, Message::Corrupt { blob, index });
        let (now, max, penalty) = (ctx.now, ctx.config.strikes_max, ctx.config.strike_penalty);
        let link = ctx.link(from);
        link.strikes += 1;
        if link.strikes >= max {
            link.strikes = 0;
            ctx.shun(from, now + penalty);
            let note = format!(
                "{from:?} sent wrong bytes {max} times; not asked again for {} s",
                penalty.as_secs()
            );
            ctx.act(Action::Note(note));
        }
    }

    /// The whole does not have its digest. One node finds out for all where the lie is.
    fn mismatched(&mut self, blob: Digest, signers: &[NodeId]) {
        if self.ctx.config.makes(Mutation::CompleteUnverified) {
            self.verified(blob);
            return;
        }
        let Some(mesh) = self.meshes.get(&blob) else {
            return;
        };
        if mesh.phase == Phase::Auditing {
            for peer in self.reporters.remove(&blob).unwrap_or_default() {
                self.ctx.send(
                    peer,
                    Message::Audited {
                        blob,
                        hashes: Vec::new(),
                    },
                );
            }
            self.fail(blob, origin_is_wrong());
            return;
        }
        self.ask_for_audit(blob, signers);
    }

    /// What the origin gives is wrong; nothing of it is kept, so that the next pull reads anew.
    fn discard(&mut self, blob: Digest) {
        self.fail(blob, origin_is_wrong());
        self.ctx.act(Action::Discard { blob });
    }

    /// Asks the best-ranked node that did not fail to find out before; one that signed nothing of
    /// the blob where there is one. All who ask choose the same, so that one audit serves all.
    fn ask_for_audit(&mut self, blob: Digest, implicated: &[NodeId]) {
        let ctx = &mut self.ctx;
        let Some(mesh) = self.meshes.get_mut(&blob) else {
            return;
        };
        let ranks = ctx.stewards(&blob);
        let untried = |peer: &&Peer| !mesh.auditors.contains_key(peer);
        let innocent = |peer: &&Peer| !implicated.contains(&ctx.directory.id(**peer));
        let auditor = ranks
            .iter()
            .filter(untried)
            .find(innocent)
            .or_else(|| ranks.iter().find(untried))
            .copied()
            // Whoever has asked them all trusts nobody else any more.
            .unwrap_or(ctx.me);
        mesh.suspect(ctx, auditor);
        let (kind, size, hints) = (mesh.kind, mesh.size.unwrap_or_default(), mesh.hints.clone());
        ctx.send(
            auditor,
            Message::Mismatch {
                blob,
                kind,
                size,
                hints,
            },
        );
    }

    /// Someone asks this node for an audit: it reads from the origin all that it did not read
    /// itself, and trusts nobody.
    fn audit(&mut self, from: Peer, blob: Digest, kind: BlobKind, size: u64, hints: &[Hint]) {
        if self.holdings.contains_key(&blob) {
            self.ctx.act(Action::SendHashes { to: from, blob });
            return;
        }
        for hint in hints {
            self.pull(blob, kind, Some(size), None, hint.clone());
        }
        let Some(mesh) = self.meshes.get_mut(&blob) else {
            return;
        };
        if from != self.ctx.me {
            self.reporters.entry(blob).or_default().insert(from);
        }
        if mesh.phase != Phase::Auditing {
            let me = self.ctx.me;
            mesh.suspect(&mut self.ctx, me);
            mesh.drop_leases(&mut self.ctx);
            mesh.phase = Phase::Auditing;
            self.ctx.act(Action::DropForeign { blob });
        }
    }

    fn audited(&mut self, from: Peer, blob: Digest, hashes: Vec<ChunkHash>) {
        let Some(mesh) = self.meshes.get_mut(&blob) else {
            return;
        };
        let Phase::Suspect { asked, .. } = mesh.phase else {
            return;
        };
        if mesh.has_verdict() {
            // What it calls wrong is being dropped.
            return;
        }
        // One that was given up may still answer: from a slow origin all need as long.
        let Some(answered @ false) = mesh.auditors.get_mut(&from) else {
            return;
        };
        *answered = true;
        if hashes.is_empty() {
            // What the origin gave to this node and to the auditor is wrong: so says the auditor.
            // Others have to say so.
            if mesh.auditors.values().filter(|answered| **answered).count() >= AUDITS {
                self.discard(blob);
            } else if from == asked {
                self.ask_for_audit(blob, &[]);
            }
        } else if hashes.len() == mesh.have.len() as usize {
            mesh.audited(&mut self.ctx, hashes.clone());
            self.ctx.act(Action::DropDiffering { blob, hashes });
        }
    }

    fn dropped(&mut self, blob: Digest, have: Bitfield) {
        let ctx = &mut self.ctx;
        let Some(mesh) = self.meshes.get_mut(&blob) else {
            return;
        };
        let unchanged = have.is_full();
        mesh.dropped(ctx, have);
        match mesh.phase {
            Phase::Auditing => mesh.read_alone(ctx),
            // The auditor calls right what is wrong.
            Phase::Suspect { .. } if unchanged => self.ask_for_audit(blob, &[]),
            Phase::Suspect { .. } | Phase::Pulling => {
                mesh.phase = Phase::Pulling;
                mesh.joining.hurry(ctx.now);
            }
            Phase::Complete => {}
        }
    }

    fn lied(
        &mut self,
        blob: Digest,
        index: u32,
        signer: NodeId,
        attestation: crate::attest::Attestation,
    ) {
        let ctx = &mut self.ctx;
        let peer = ctx.directory.intern_id(signer);
        if peer == ctx.me || !ctx.banned.insert(peer) {
            return;
        }
        let changed = ctx.view.left(peer);
        ctx.act(Action::Ban { peer, blob });
        let members: Vec<Peer> = ctx.view.live().iter().collect();
        for member in members {
            ctx.send(
                member,
                Message::Proof {
                    blob,
                    index,
                    attestation,
                },
            );
        }
        self.peer_dead(peer);
        self.view_changed(&changed);
    }

    // --- for statistics and checks ---

    /// Live members, this node included.
    pub fn members(&self) -> Vec<Peer> {
        self.ctx.view.live().iter().chain([self.ctx.me]).collect()
    }

    /// How many live members there are, this node included.
    pub fn member_count(&self) -> usize {
        self.ctx.view.live().len() + 1
    }

    /// The members that keep an upstream's logins and come before this node in that, best first: whom
    /// it asks before it logs in there. None where it is the keeper.
    pub fn login_keepers(&self, upstream: &Upstream) -> Vec<Peer> {
        let ranks = self.ctx.ranks(keeper::key(upstream)).into_iter();
        ranks.take_while(|peer| *peer != self.ctx.me).collect()
    }

    /// The leases that this node works on: blob, first chunk not yet stored, end.
    pub fn leases(&self) -> Vec<(Digest, u32, u32)> {
        self.meshes
            .values()
            .flat_map(|mesh| {
                mesh.leases
                    .values()
                    .map(|running| (mesh.blob, running.next, running.lease.end))
            })
            .collect()
    }

    /// The blobs in transfer whose steward this node is.
    pub fn stewarding(&self) -> Vec<Digest> {
        let acting = |steward: &&Steward| steward.is_acting() && steward.joins() > 0;
        self.stewards
            .values()
            .filter(acting)
            .map(|steward| steward.blob)
            .collect()
    }

    /// The blobs that this node pulls.
    pub fn pulling(&self) -> Vec<Digest> {
        self.meshes
            .values()
            .filter(|mesh| mesh.is_pulling())
            .map(|mesh| mesh.blob)
            .collect()
    }

    /// Peers proven to have lied.
    pub fn banned(&self) -> Vec<Peer> {
        self.ctx.banned.iter().copied().collect()
    }

    /// Checks the [invariants](crate::invariants) that one node can see.
    ///
    /// # Errors
    /// The first one that is broken.
    pub fn check(&self) -> Result<(), crate::invariants::Broken> {
        crate::invariants::check(self.view())
    }

    fn view(&self) -> crate::invariants::View<'_> {
        crate::invariants::View {
            config: &self.ctx.config,
            outstanding: self.ctx.outstanding,
            outstanding_bytes: self.ctx.outstanding_bytes,
            links: &self.ctx.links,
            avoided: self.ctx.avoided.len(),
            acquaintances: self.ctx.acquaintances.len(),
            members: self.ctx.view.live().len(),
            cut_off: self.ctx.cut_off.len(),
            uploads: &self.uploads,
            meshes: &self.meshes,
            stewards: &self.stewards,
        }
    }

    /// A random number from the machine's own sequence, for drivers that need jitter.
    pub fn random(&mut self) -> u64 {
        self.ctx.rng.random()
    }

    /// The measured download rate in bytes per second.
    pub fn download_rate(&self) -> f64 {
        self.ctx.rate.get()
    }
}

/// Whether an event is only about what others get from this node.
fn concerns_uploads_alone(event: &Event) -> bool {
    let uploads =
        |message: &Message| matches!(message, Message::Request { .. } | Message::Cancel { .. });
    matches!(event, Event::ChunkSent { .. } | Event::ChunkUnsent { .. })
        || matches!(event, Event::Message { message, .. } if uploads(message))
}

fn origin_is_wrong() -> OriginFailure {
    OriginFailure::Failed(
        "the origin's bytes do not have the digest that names them; the blob is damaged there"
            .to_owned(),
    )
}

#[cfg(test)]
mod tests;
