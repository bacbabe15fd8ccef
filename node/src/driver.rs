//! The one loop that turns facts into events of the exchange, and its actions into effects.
//!
//! Everything that happens comes in through one bounded queue of facts, one of network events and
//! one of readers' demands. Nothing in the loop waits: what takes time runs in tasks that report
//! back as facts.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use shoal_protocol::{
    attest::Attestation,
    chunk::Bitfield,
    core::Core,
    digest::Digest,
    directory::{Directory, NodeId, Peer},
    event::{Action, Event},
    limits::CONTROL_FRAME_BYTES_MAX,
    message::{BlobKind, Hint, LeaseId, Message, OriginFailure, TagAnswer, TagKey, TagRecord},
    reference::Upstream,
    time::Time,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    clock::{Clock, unix_seconds},
    content::PullError,
    metrics::Metrics,
    network::{Network, NetworkEvent},
    origin::Origins,
    packing::Packer,
    stats::{BanStats, BlobStats, LeaseStats, NodeStats, StoreStats},
    store::{Blob, BlobState, DemandEvent, Store, StoreError, Verdict},
};

mod blame;
mod chunks;
mod logins;
mod origin_reads;

pub(crate) use logins::{Keepers, Logins};

/// Facts that wait for the loop; tasks that have more wait for room.
pub(crate) const FACTS_MAX: usize = 1024;

/// How often evictions are collected and gauges brought up to date.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// Imported tags that are remembered: a member cannot fill the disk with them.
const IMPORTS_MAX: usize = 10_000;

/// Bytes of a node's statistics for another: the largest control message, with room for its frame.
const STATS_BYTES_MAX: usize = CONTROL_FRAME_BYTES_MAX - 4096;

/// What the rest of the node asks of the loop, and what tasks report to it.
pub(crate) enum Fact {
    /// Someone wants this blob; the answer comes when it can be stored and read.
    WantBlob {
        blob: Digest,
        kind: BlobKind,
        size: Option<u64>,
        hint: Hint,
        reply: BlobReply,
    },
    /// Someone wants to know what a tag names.
    WantTag {
        key: TagKey,
        reply: oneshot::Sender<TagAnswer>,
    },
    /// The operator has imported an image under this tag; the answer is how many members are told.
    TagImported {
        key: TagKey,
        record: TagRecord,
        reply: oneshot::Sender<u64>,
    },
    /// Someone wants this node's statistics.
    WantStats { reply: oneshot::Sender<NodeStats> },
    /// Someone wants a peer's statistics.
    WantPeerStats {
        peer: Peer,
        reply: oneshot::Sender<Bytes>,
    },
    /// Someone wants to know who the members are.
    WantMembers { reply: oneshot::Sender<Vec<Peer>> },
    /// Someone wants to know who keeps an upstream's logins; see [`Core::login_keepers`].
    WantKeepers {
        upstream: Upstream,
        reply: oneshot::Sender<Vec<Peer>>,
    },
    /// The store has opened a blob, or cannot.
    Opened {
        blob: Digest,
        kind: BlobKind,
        hint: Option<Hint>,
        result: Result<Arc<Blob>, StoreError>,
    },
    /// Something for the exchange.
    Event(Event),
    /// This node cannot store what it reads.
    StoreFailed { blob: Digest, error: StoreError },
    /// The digest of the whole was computed.
    Verdict { blob: Digest, verdict: Verdict },
    /// Chunks were dropped; these are the attestations of those that contradicted.
    Dropped {
        blob: Digest,
        have: Bitfield,
        evidence: Vec<(u32, Attestation)>,
    },
    /// The origin was asked about a tag.
    TagAsked {
        key: TagKey,
        result: Result<Digest, crate::origin::OriginError>,
    },
}

type BlobReply = oneshot::Sender<Result<Arc<Blob>, PullError>>;

/// Bytes of a blob by where they came from, since the daemon started.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) from_origin: u64,
    pub(crate) from_peers: u64,
}

/// Tallies of all blobs, shared with those who report on pulls.
#[derive(Clone, Default)]
pub(crate) struct Tallies(Arc<Mutex<HashMap<Digest, Tally>>>);

impl Tallies {
    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Tally>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, blob: &Digest) -> Tally {
        self.lock().get(blob).copied().unwrap_or_default()
    }

    fn add_origin(&self, blob: Digest, bytes: u64) {
        self.lock().entry(blob).or_default().from_origin += bytes;
    }

    fn add_peers(&self, blob: Digest, bytes: u64) {
        self.lock().entry(blob).or_default().from_peers += bytes;
    }

    fn forget(&self, blob: &Digest) {
        self.lock().remove(blob);
    }
}

/// What the loop and its tasks share.
pub(crate) struct Parts {
    pub(crate) clock: Clock,
    pub(crate) directory: Directory,
    pub(crate) network: Network,
    pub(crate) store: Store,
    pub(crate) origins: Origins,
    pub(crate) logins: Arc<Logins>,
    pub(crate) key: SigningKey,
    pub(crate) packer: Packer,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) tallies: Tallies,
    pub(crate) facts: mpsc::Sender<Fact>,
    /// How old a tag's last known answer may be.
    pub(crate) tag_stale: Duration,
}

/// A blob that this node is fetching.
struct Fetch {
    kind: BlobKind,
    /// Set once the blob can be stored; tasks that read from the origin wait for it.
    blob: watch::Sender<Option<Arc<Blob>>>,
    /// Who waits to read it.
    waiting: Vec<BlobReply>,
    /// The whole did not have its digest; nobody reads before it is known which chunks lied.
    suspect: bool,
    verify: Option<AbortOnDropHandle<()>>,
}

impl Fetch {
    fn new(kind: BlobKind) -> Self {
        Self {
            kind,
            blob: watch::Sender::new(None),
            waiting: Vec::new(),
            suspect: false,
            verify: None,
        }
    }

    /// Lets in those who wait, where there is something to read.
    fn admit(&mut self) {
        let Some(blob) = self.blob.borrow().clone() else {
            return;
        };
        if !self.suspect {
            for reply in self.waiting.drain(..) {
                // Whoever asked may be gone; the fetch goes on for the others.
                let _ = reply.send(Ok(Arc::clone(&blob)));
            }
        }
    }
}

pub(crate) struct Driver {
    parts: Arc<Parts>,
    core: Core,
    actions: Vec<Action>,
    fetches: BTreeMap<Digest, Fetch>,
    reads: BTreeMap<(Digest, LeaseId), AbortOnDropHandle<()>>,
    tags: BTreeMap<TagKey, Vec<oneshot::Sender<TagAnswer>>>,
    stats: BTreeMap<u64, oneshot::Sender<Bytes>>,
    /// Attestations of chunks that an audit made us drop: lies, if the blob turns out right.
    evidence: BTreeMap<Digest, Vec<(u32, Attestation)>>,
    bans: Vec<BanStats>,
    members_down: u64,
    /// What the exchange waits for is due then, by its own time.
    due: Time,
    /// For how long this process was held up in all.
    held_up: Duration,
}

/// A timer that fires so late was held up.
const HELD_UP_MIN: Duration = Duration::from_millis(50);

/// One that fires later than this was asleep, as the exchange sees it (`Config::asleep_after`).
const HELD_UP_MAX: Duration = Duration::from_secs(3);

impl Driver {
    pub(crate) fn new(parts: Arc<Parts>, core: Core) -> Self {
        Self {
            parts,
            core,
            actions: Vec::new(),
            fetches: BTreeMap::new(),
            reads: BTreeMap::new(),
            tags: BTreeMap::new(),
            stats: BTreeMap::new(),
            evidence: BTreeMap::new(),
            bans: Vec::new(),
            members_down: 0,
            due: Time::NEVER,
            held_up: Duration::ZERO,
        }
    }

    /// Runs until `shutdown`.
    pub(crate) async fn run(
        mut self,
        mut facts: mpsc::Receiver<Fact>,
        mut network: mpsc::Receiver<NetworkEvent>,
        mut demands: mpsc::Receiver<DemandEvent>,
        shutdown: CancellationToken,
    ) {
        for (blob, kind, size) in self.parts.store.complete() {
            self.event(Event::Held { blob, kind, size });
        }
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        loop {
            self.due = self.core.deadline();
            let wake = self.parts.clock.instant_of(self.due + self.held_up);
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(fact) = facts.recv() => self.fact(fact),
                Some(event) = network.recv() => self.network(event),
                Some(demand) = demands.recv() => self.demand(demand),
                _ = housekeeping.tick() => self.keep_house(),
                () = tokio::time::sleep_until(wake.into()) => self.event(Event::Tick),
            }
        }
    }

    /// Lets the exchange take in an event, and carries out what it asks for.
    fn event(&mut self, event: Event) {
        let mut actions = std::mem::take(&mut self.actions);
        tracing::trace!("event: {event:?}");
        let now = self.now();
        self.core.handle(now, event, &mut actions);
        for action in actions.drain(..) {
            tracing::trace!("action: {action:?}");
            self.act(action);
        }
        self.actions = actions;
        #[cfg(debug_assertions)]
        if let Err(broken) = self.core.check() {
            tracing::error!("{broken}");
        }
    }

    /// The time of the exchange. It stands still while this process is held up, by a busy machine
    /// or one that is paused: the answers that are late by then wait in its own sockets, and whoever
    /// took their senders for dead would have the origin read twice. A machine that sleeps for long
    /// is another matter; the exchange notices the jump.
    fn now(&mut self) -> Time {
        let now = self.parts.clock.now();
        let late = now.since(self.due + self.held_up);
        if (HELD_UP_MIN..HELD_UP_MAX).contains(&late) {
            self.held_up += late;
        }
        Time::ZERO + now.since(Time::ZERO + self.held_up)
    }

    // --- facts ---

    fn fact(&mut self, fact: Fact) {
        match fact {
            Fact::WantBlob {
                blob,
                kind,
                size,
                hint,
                reply,
            } => {
                self.want_blob(blob, kind, size, hint, reply);
            }
            Fact::WantTag { key, reply } => {
                let known = self.known_tag(&key);
                let waiting = self.tags.entry(key.clone()).or_default();
                waiting.retain(|waiting| !waiting.is_closed());
                waiting.push(reply);
                self.event(Event::ResolveTag { key, known });
            }
            Fact::TagImported { key, record, reply } => {
                let members = self.core.members();
                let me = NodeId(self.parts.key.verifying_key().to_bytes());
                let others = members
                    .into_iter()
                    .filter(|peer| self.parts.directory.id(*peer) != me);
                let mut told = 0;
                for peer in others {
                    told += 1;
                    let (key, record) = (key.clone(), record.clone());
                    self.parts
                        .network
                        .send(peer, Message::TagImported { key, record });
                }
                let _ = reply.send(told);
            }
            Fact::WantStats { reply } => {
                let _ = reply.send(self.node_stats());
            }
            Fact::WantPeerStats { peer, reply } => {
                self.stats.retain(|_, waiting| !waiting.is_closed());
                let id = self.core.random();
                self.stats.insert(id, reply);
                self.parts.network.send(peer, Message::AskStats { id });
            }
            Fact::WantMembers { reply } => {
                let _ = reply.send(self.core.members());
            }
            Fact::WantKeepers { upstream, reply } => {
                let _ = reply.send(self.core.login_keepers(&upstream));
            }
            Fact::Opened {
                blob,
                kind,
                hint,
                result,
            } => self.opened(blob, kind, hint, result),
            Fact::Event(event) => {
                self.count(&event);
                self.event(event);
            }
            Fact::StoreFailed { blob, error } => self.store_failed(blob, &error),
            Fact::Verdict { blob, verdict } => self.verdict(blob, verdict),
            Fact::Dropped {
                blob,
                have,
                evidence,
            } => {
                self.evidence.entry(blob).or_default().extend(evidence);
                if let Some(fetch) = self.fetches.get_mut(&blob) {
                    fetch.suspect = false;
                    fetch.admit();
                }
                self.start_verification(blob);
                self.event(Event::Dropped { blob, have });
            }
            Fact::TagAsked { key, result } => {
                let spared = self.parts.origins.spared(&key.upstream);
                let known = self.known_tag(&key).map(|(record, _)| record);
                let result = match result {
                    Ok(digest) => {
                        let asked_by = NodeId(self.parts.key.verifying_key().to_bytes());
                        let record = TagRecord {
                            digest,
                            asked_at: unix_seconds(),
                            asked_by,
                        };
                        // Where the origin is spared, the exchange decides what is to be remembered.
                        let same = known.as_ref().is_some_and(|known| known.digest == digest);
                        if spared.is_none() || same {
                            self.remember_tag(&key, &record);
                        }
                        Ok(record)
                    }
                    Err(error) => {
                        // That an origin is away is said once.
                        if error.is_away() {
                            tracing::debug!("{error}");
                        } else {
                            tracing::info!("{error}");
                        }
                        Err((&error).into())
                    }
                };
                let imported = self.parts.store.import(&key).map(Box::new);
                self.event(Event::TagAsked {
                    key,
                    result,
                    known,
                    imported,
                    spared,
                });
            }
        }
    }

    /// Keeps the books on what tasks report.
    fn count(&mut self, event: &Event) {
        let metrics = &self.parts.metrics;
        if let Event::ChunkStored {
            from, blob, len, ..
        } = event
        {
            metrics.chunks_stored.increment();
            if from.is_some() {
                metrics.bytes_from_peers.add(u64::from(*len));
                self.parts.tallies.add_peers(*blob, u64::from(*len));
            }
        } else if let Event::ChunkRejected { .. } = event {
            metrics.chunks_rejected.increment();
        } else if let Event::OriginEnded { blob, lease, .. } = event {
            self.reads.remove(&(*blob, *lease));
        }
    }

    fn network(&mut self, event: NetworkEvent) {
        match event {
            NetworkEvent::Connected(peer) => self.event(Event::Connected(peer)),
            NetworkEvent::Disconnected(peer) => {
                self.parts.logins.gone(peer);
                self.event(Event::Disconnected(peer));
            }
            NetworkEvent::Unreachable(peer) => {
                self.parts.logins.gone(peer);
                self.event(Event::Unreachable(peer));
            }
            NetworkEvent::DialFailed(address, reason) => {
                tracing::debug!("cannot connect to {address}: {reason}");
            }
            NetworkEvent::Message {
                from,
                message: Message::AskStats { id },
            } => {
                let json = self.node_stats().to_json_within(STATS_BYTES_MAX);
                self.parts.network.send(
                    from,
                    Message::Stats {
                        id,
                        json: json.into(),
                    },
                );
            }
            NetworkEvent::Message {
                message: Message::Stats { id, json },
                ..
            } => {
                if let Some(reply) = self.stats.remove(&id) {
                    let _ = reply.send(json);
                }
            }
            NetworkEvent::Message {
                from,
                message: Message::TagImported { key, record },
            } => {
                // Nobody speaks for another.
                if self.parts.directory.id(from) == record.asked_by {
                    self.remember_import(&key, &record);
                }
            }
            NetworkEvent::Message {
                from,
                message:
                    Message::AskToken {
                        id,
                        key,
                        rejected,
                        anonymous,
                    },
            } => logins::answer(&self.parts, from, id, key, rejected, anonymous),
            NetworkEvent::Message {
                from,
                message: Message::Token { id, answer },
            } => self.parts.logins.answered(from, id, answer),
            NetworkEvent::Message {
                message: Message::OfferToken { key, token },
                ..
            } => self.parts.origins.take_token(key, token),
            NetworkEvent::Message { from, message } => {
                self.event(Event::Message { from, message });
            }
            NetworkEvent::Chunk {
                from,
                header,
                bytes,
            } => self.receive(from, header, bytes),
            NetworkEvent::ChunkProgress {
                from, blob, index, ..
            } => {
                self.event(Event::ChunkProgress { from, blob, index });
            }
        }
    }

    fn demand(&mut self, demand: DemandEvent) {
        self.event(match demand {
            DemandEvent::At {
                blob,
                reader,
                chunk,
                end_chunk,
            } => Event::Reading {
                blob,
                reader,
                first: chunk,
                end: end_chunk,
            },
            DemandEvent::Gone { blob, reader } => Event::ReaderGone { blob, reader },
        });
    }

    // --- pulls ---

    fn want_blob(
        &mut self,
        blob: Digest,
        kind: BlobKind,
        size: Option<u64>,
        hint: Hint,
        reply: BlobReply,
    ) {
        if let Some(fetch) = self.fetches.get_mut(&blob) {
            // Those who have left would gather here while nothing comes.
            fetch.waiting.retain(|waiting| !waiting.is_closed());
            fetch.waiting.push(reply);
            fetch.admit();
            // One more hint.
            self.event(Event::Pull {
                blob,
                kind,
                size,
                have: None,
                hint,
            });
            return;
        }
        let mut fetch = Fetch::new(kind);
        fetch.waiting.push(reply);
        self.fetches.insert(blob, fetch);
        self.open(blob, kind, size, Some(hint));
    }

    /// Opens what is stored of a blob, or makes room for it where its size is known.
    fn open(&self, blob: Digest, kind: BlobKind, size: Option<u64>, hint: Option<Hint>) {
        let parts = Arc::clone(&self.parts);
        tokio::task::spawn_blocking(move || {
            let result = match (parts.store.get(&blob), size) {
                (Some(stored), _) => Ok(stored),
                (None, Some(size)) => parts.store.begin(blob, kind, size),
                (None, None) => {
                    // Nothing is known of it but its digest; its size comes with the first answer.
                    let Some(hint) = hint else { return };
                    let event = Event::Pull {
                        blob,
                        kind,
                        size: None,
                        have: None,
                        hint,
                    };
                    let _ = parts.facts.blocking_send(Fact::Event(event));
                    return;
                }
            };
            let _ = parts.facts.blocking_send(Fact::Opened {
                blob,
                kind,
                hint,
                result,
            });
        });
    }

    fn opened(
        &mut self,
        blob: Digest,
        kind: BlobKind,
        hint: Option<Hint>,
        result: Result<Arc<Blob>, StoreError>,
    ) {
        let stored = match result {
            Ok(stored) => stored,
            Err(error) => return self.store_failed(blob, &error),
        };
        let Some(fetch) = self.fetches.get_mut(&blob) else {
            return;
        };
        let (size, have) = (stored.size(), stored.have());
        let complete = stored.state() == BlobState::Complete;
        fetch.blob.send_replace(Some(stored));
        fetch.admit();
        if complete {
            self.fetches.remove(&blob);
            self.event(Event::Held { blob, kind, size });
            return;
        }
        self.start_verification(blob);
        if let Some(hint) = hint {
            let size = Some(size);
            self.event(Event::Pull {
                blob,
                kind,
                size,
                have: Some(have),
                hint,
            });
        }
    }

    fn start_verification(&mut self, blob: Digest) {
        let Some(fetch) = self.fetches.get_mut(&blob) else {
            return;
        };
        let Some(stored) = fetch.blob.borrow().clone() else {
            return;
        };
        let parts = Arc::clone(&self.parts);
        fetch.verify = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            let verdict = stored.verify().await;
            let _ = parts.facts.send(Fact::Verdict { blob, verdict }).await;
        })));
    }

    fn verdict(&mut self, blob: Digest, verdict: Verdict) {
        match verdict {
            Verdict::Matches => {
                self.parts.metrics.blobs_completed.increment();
                let Some(fetch) = self.fetches.remove(&blob) else {
                    return;
                };
                self.event(Event::Verified { blob });
                let stored = fetch.blob.borrow().clone();
                if let (Some(stored), Some(evidence)) = (stored, self.evidence.remove(&blob)) {
                    self.judge(&stored, &evidence);
                }
            }
            Verdict::Differs => {
                self.parts.metrics.blobs_mismatched.increment();
                let Some(fetch) = self.fetches.get_mut(&blob) else {
                    return;
                };
                fetch.suspect = true;
                let Some(stored) = fetch.blob.borrow().clone() else {
                    return;
                };
                tracing::warn!(
                    "{blob}: all chunks are here and the whole does not have its digest; \
                     asking for an audit"
                );
                stored.fail(PullError::Corrupt(format!(
                    "{blob} does not have its digest; pull again"
                )));
                self.event(Event::Mismatched {
                    blob,
                    signers: stored.signers(),
                });
            }
        }
    }

    /// The pull is over without the blob.
    fn failed(&mut self, blob: Digest, error: &PullError) {
        tracing::warn!("{blob}: {error}");
        let Some(fetch) = self.fetches.remove(&blob) else {
            return;
        };
        if let Some(stored) = fetch.blob.borrow().as_ref() {
            stored.fail(error.clone());
        }
        for reply in fetch.waiting {
            let _ = reply.send(Err(error.clone()));
        }
    }

    fn store_failed(&mut self, blob: Digest, error: &StoreError) {
        let error = PullError::Unavailable(format!("cannot store {blob}: {error}"));
        self.failed(blob, &error);
        self.reads.retain(|(read, _), _| *read != blob);
        self.event(Event::Abandoned { blob });
    }

    // --- actions ---

    fn act(&mut self, action: Action) {
        match action {
            Action::Send { to, message } => {
                if matches!(message, Message::Busy { .. }) {
                    self.parts.metrics.uploads_refused.increment();
                }
                self.parts.network.send(to, message);
            }
            Action::SendChunk { to, blob, index } => self.send_chunk(to, blob, index),
            Action::Expect { from, blob, index } => self.parts.network.expect(from, blob, index),
            Action::Unexpect { from, blob, index } => {
                self.parts.network.unexpect(from, blob, index);
            }
            Action::ReadOrigin {
                blob,
                kind,
                lease,
                hints,
            } => {
                self.read_origin(blob, kind, lease, hints);
            }
            Action::StopOrigin { blob, lease } => {
                self.parts.metrics.leases_revoked.increment();
                self.reads.remove(&(blob, lease));
            }
            Action::Sized { blob, kind, size } => {
                if self
                    .fetches
                    .get(&blob)
                    .is_some_and(|fetch| fetch.blob.borrow().is_none())
                {
                    self.open(blob, kind, Some(size), None);
                }
            }
            Action::Failed { blob, failure } => {
                self.reads.retain(|(read, _), _| *read != blob);
                let error = pull_error(&blob, failure);
                self.failed(blob, &error);
            }
            Action::Discard { blob } => {
                let parts = Arc::clone(&self.parts);
                tokio::task::spawn_blocking(move || {
                    if let Err(error) = parts.store.remove(&blob) {
                        tracing::warn!("{error}");
                    }
                });
            }
            Action::DropForeign { blob } => self.drop_foreign(blob),
            Action::DropDiffering { blob, hashes } => self.drop_differing(blob, hashes),
            Action::SendHashes { to, blob } => self.send_hashes(to, blob),
            Action::CheckChunk { blob, index } => self.check_chunk(blob, index),
            Action::CheckProof {
                blob,
                index,
                attestation,
            } => {
                self.check_proof(blob, index, attestation);
            }
            Action::AskOrigin { key } => {
                let parts = Arc::clone(&self.parts);
                tokio::spawn(async move {
                    let hint = Hint {
                        upstream: key.upstream.clone(),
                        repository: key.repository.clone(),
                    };
                    let known = parts.store.tag(&key).is_some();
                    let result = parts.origins.resolve_tag(&hint, &key.tag, known).await;
                    let _ = parts.facts.send(Fact::TagAsked { key, result }).await;
                });
            }
            Action::TagResolved { key, answer } => {
                match &answer {
                    TagAnswer::Fresh(record) => self.remember_tag(&key, record),
                    TagAnswer::Imported(record) => self.remember_import(&key, record),
                    TagAnswer::Stale(..) | TagAnswer::Failed(_) => {}
                }
                for reply in self.tags.remove(&key).unwrap_or_default() {
                    let _ = reply.send(answer.clone());
                }
            }
            Action::Ban { peer, blob } => self.ban(peer, blob),
            Action::MemberUp(peer) => {
                let record = self.parts.directory.record(peer);
                tracing::info!("node {:?} at {:?} is up", record.id, record.addresses);
            }
            Action::MemberDown(peer) => {
                self.members_down += 1;
                tracing::info!("node {:?} is down", self.parts.directory.id(peer));
            }
            Action::Note(note) => tracing::info!("{note}"),
        }
    }

    /// What a tag is known to have named, and how many seconds ago; not where that is too long.
    fn known_tag(&self, key: &TagKey) -> Option<(TagRecord, u64)> {
        let record = self.parts.store.tag(key)?;
        let age = unix_seconds().saturating_sub(record.asked_at);
        (age <= self.parts.tag_stale.as_secs()).then_some((record, age))
    }

    fn remember_tag(&self, key: &TagKey, record: &TagRecord) {
        if self
            .parts
            .store
            .tag(key)
            .is_some_and(|known| known.asked_at >= record.asked_at)
        {
            return;
        }
        if let Err(error) = self.parts.store.put_tag(key, record) {
            tracing::warn!(
                "cannot remember what {}:{} names: {error}",
                key.repository,
                key.tag
            );
        }
    }

    /// Keeps what another node's operator imported last under a tag. What this node's own did is kept
    /// already, and nobody else can say so: it goes before what this node remembers.
    fn remember_import(&self, key: &TagKey, record: &TagRecord) {
        let me = NodeId(self.parts.key.verifying_key().to_bytes());
        let store = &self.parts.store;
        let known = store.import(key);
        if record.asked_by == me || known.as_ref() == Some(record) {
            return;
        }
        let kept = match store.imports() {
            Ok(count) if known.is_none() && count >= IMPORTS_MAX => {
                tracing::warn!(
                    "node {:?} has imported {}:{}; as {IMPORTS_MAX} imported tags are known \
                     already, it is not remembered",
                    record.asked_by,
                    key.repository,
                    key.tag
                );
                return;
            }
            Ok(_) => store.put_import(key, record),
            Err(error) => Err(error),
        };
        if let Err(error) = kept {
            tracing::warn!(
                "cannot remember that {}:{} was imported: {error}",
                key.repository,
                key.tag
            );
        }
    }

    // --- reports ---

    fn keep_house(&mut self) {
        for blob in self.parts.store.evictions() {
            self.parts.metrics.blobs_evicted.increment();
            self.parts.tallies.forget(&blob);
            self.event(Event::Evicted { blob });
        }
        let metrics = &self.parts.metrics;
        metrics.sample(self.parts.clock.now());
        metrics.pulls_active.set(self.fetches.len() as u64);
        metrics.origin_streams.set(self.reads.len() as u64);
        metrics.leases_held.set(self.core.leases().len() as u64);
        metrics
            .blobs_stewarded
            .set(self.core.stewarding().len() as u64);
        metrics.members_alive.set(self.core.members().len() as u64);
        let connections = self.parts.network.connections();
        metrics
            .connections
            .set((connections.control + connections.bulk) as u64);
        if let Ok(usage) = self.parts.store.usage() {
            metrics.store_bytes.set(usage.bytes_used);
            metrics.store_blobs.set(usage.blobs as u64);
        }
        metrics.set_allowances(self.parts.origins.allowances());
    }

    fn node_stats(&self) -> NodeStats {
        let parts = &self.parts;
        let me = NodeId(parts.key.verifying_key().to_bytes());
        let connections = parts.network.connections();
        let addresses = parts
            .directory
            .lookup(&me)
            .map(|peer| parts.directory.record(peer).addresses.clone())
            .unwrap_or_default();
        let usage = parts.store.usage().ok();
        NodeStats {
            id: hex::encode(me.0),
            addresses: addresses.iter().map(ToString::to_string).collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: parts.clock.now().as_secs_f64() as u64,
            bytes: parts.metrics.bytes(),
            rates: parts.metrics.rates(parts.clock.now()),
            blobs: self.blob_stats(),
            pulls_active: self.fetches.len() as u64,
            leases: self
                .core
                .leases()
                .into_iter()
                .map(|(blob, first, end)| LeaseStats {
                    blob: blob.to_string(),
                    first,
                    end,
                })
                .collect(),
            stewarding: self
                .core
                .stewarding()
                .iter()
                .map(ToString::to_string)
                .collect(),
            bans: self.bans.clone(),
            origins: parts.origins.stats(),
            store: StoreStats {
                used_bytes: usage.as_ref().map_or(0, |usage| usage.bytes_used),
                quota_bytes: usage.as_ref().and_then(|usage| usage.quota),
                free_bytes: usage.as_ref().map_or(0, |usage| usage.free),
            },
            connections: (connections.control + connections.bulk) as u64,
            members_alive: self.core.members().len() as u64,
            members_down: self.members_down,
            origin_streams: self.reads.len() as u64,
            allowances: parts.origins.allowances(),
            blobs_omitted: 0,
        }
    }

    fn blob_stats(&self) -> Vec<BlobStats> {
        let stat = |digest: Digest, kind, size, have_bytes, complete| {
            let tally = self.parts.tallies.get(&digest);
            BlobStats {
                digest: digest.to_string(),
                kind: match kind {
                    BlobKind::Manifest => "manifest".to_owned(),
                    BlobKind::Blob => "blob".to_owned(),
                },
                size,
                have_bytes,
                complete,
                from_origin: tally.from_origin,
                from_peers: tally.from_peers,
            }
        };
        let fetching = self.fetches.iter().map(|(digest, fetch)| {
            let blob = fetch.blob.borrow().clone();
            let (size, have) = blob.map_or((0, 0), |blob| {
                let geometry = blob.geometry();
                let have = blob.have();
                (
                    blob.size(),
                    have.iter()
                        .map(|index| u64::from(geometry.len(index)))
                        .sum(),
                )
            });
            stat(*digest, fetch.kind, size, have, false)
        });
        let complete = self.parts.store.complete().into_iter();
        let complete = complete
            .filter(|(digest, ..)| !self.fetches.contains_key(digest))
            .map(|(digest, kind, size)| stat(digest, kind, size, size, true));
        fetching.chain(complete).collect()
    }
}

/// What a client is told when the exchange gives up.
fn pull_error(blob: &Digest, failure: OriginFailure) -> PullError {
    match failure {
        OriginFailure::NotFound => PullError::NotFound(format!("the origin does not have {blob}")),
        OriginFailure::Denied => PullError::Denied(format!(
            "the origin refuses this cluster's credentials for {blob}"
        )),
        OriginFailure::Throttled { retry_ms } => PullError::Throttled {
            reason: "the origin is limiting its clients".to_owned(),
            retry_after: retry_ms.map(|ms| Duration::from_millis(ms.into())),
        },
        OriginFailure::NoRanges => {
            PullError::Unavailable(format!("the origin cannot give parts of {blob}"))
        }
        OriginFailure::Failed(reason) => PullError::Unavailable(reason),
    }
}
