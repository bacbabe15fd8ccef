//! What goes wrong, and how it ends; and what becomes of liars.

use ed25519_dalek::SigningKey;
use rand::RngExt as _;
use shoal_protocol::{
    attest::Attestation,
    chunk::ChunkHash,
    digest::Digest,
    event::Event,
    message::{BlobKind, Message, OriginFailure},
    time::Duration,
};

use super::{Happening, World, connections::RESET, peer};
use crate::{
    host::{BlobIndex, State, store::Stored},
    net::{Cut, MILLISECOND, NodeIndex},
    scenario::{Fault, Planned, Victim},
};

/// How a fault ends.
#[derive(Debug)]
pub(super) enum Mend {
    Restart(NodeIndex),
    Thaw(NodeIndex),
    Speed(NodeIndex, [f64; 2]),
    Latency(NodeIndex),
    Disk(NodeIndex),
    Heal,
    OriginBack,
    OriginGives,
    /// The next node of a rolling restart.
    Roll(NodeIndex, Duration, Duration),
}

/// A fault whose victim is not there yet is tried again so soon.
const LATER: u64 = 10 * MILLISECOND;

impl World {
    fn mend_after(&mut self, after: Duration, mend: Mend) {
        let at = self.net.now() + after.as_nanos() as u64;
        self.net.at(at, Happening::Mend(Box::new(mend)));
    }

    pub(super) fn strike(&mut self, number: usize) {
        let Planned { fault, victim, .. } = self.scenario.faults[number];
        if victim == Victim::World {
            self.checkers
                .fault(self.seconds(), None, fault, self.in_flight());
            self.strike_world(fault);
            return;
        }
        let Some(victim) = self.choose(victim) else {
            // Nobody fits at this moment.
            if !Self::is_over(self) {
                let at = self.net.now() + LATER;
                self.net.at(at, Happening::Fault(number as u32));
            }
            return;
        };
        self.checkers
            .fault(self.seconds(), Some(victim), fault, self.in_flight());
        self.strike_host(victim, fault);
    }

    /// Whether chunks are on their way somewhere.
    fn in_flight(&self) -> bool {
        self.hosts
            .iter()
            .any(|host| !host.expected.is_empty() || !host.reads.is_empty())
    }

    fn strike_world(&mut self, fault: Fault) {
        let now = self.net.now() as f64 / 1e9;
        self.trace
            .line(|| format!("{now:10.6} s: everybody is struck: {fault:?}"));
        match fault {
            Fault::Partition { heals_after } => {
                let half = self.origin / 2;
                let whole = self.origin;
                // The origin is on both sides: its streams are never cut.
                let side = move |node: NodeIndex| u8::from(node >= half && node < whole);
                let cuts = self.net.divide(side, Some(whole));
                self.cut(&cuts);
                for a in 0..half {
                    for b in half..whole {
                        self.bulk_broken(a, b);
                        if self.hosts[a].connected.remove(b) {
                            self.hosts[b].connected.remove(a);
                            self.fact(RESET, a, Event::Disconnected(peer(b)));
                            self.fact(RESET, b, Event::Disconnected(peer(a)));
                        }
                    }
                }
                self.mend_after(heals_after, Mend::Heal);
            }
            Fault::OriginOutage { ends_after } => {
                self.origin_leaves();
                self.mend_after(ends_after, Mend::OriginBack);
            }
            Fault::OriginRefuses {
                retry_after,
                ends_after,
            } => {
                let retry_ms = retry_after.map(|after| after.as_millis() as u32);
                self.registry.refuses = Some(OriginFailure::Throttled { retry_ms });
                self.mend_after(ends_after, Mend::OriginGives);
            }
            Fault::RollingRestart { down_for, pause } => {
                self.mend_after(Duration::ZERO, Mend::Roll(0, down_for, pause));
                self.restarts += 1;
            }
            Fault::Kill { .. }
            | Fault::Freeze { .. }
            | Fault::Slow { .. }
            | Fault::Delay { .. }
            | Fault::ClockJump { .. }
            | Fault::FullDisk { .. }
            | Fault::CorruptChunks
            | Fault::LyingHolder => {}
        }
    }

    fn strike_host(&mut self, victim: NodeIndex, fault: Fault) {
        let now = self.net.now() as f64 / 1e9;
        self.trace
            .line(|| format!("{now:10.6} s: node {victim} is struck: {fault:?}"));
        self.hosts[victim].victim = true;
        match fault {
            Fault::Kill { restart_after } => {
                self.kill(victim);
                if let Some(after) = restart_after {
                    self.restarts += 1;
                    self.mend_after(after, Mend::Restart(victim));
                }
            }
            Fault::Freeze { thaw_after } => {
                self.hosts[victim].state = State::Frozen;
                self.net.stop(victim);
                self.mend_after(thaw_after, Mend::Thaw(victim));
            }
            Fault::Slow { factor, ends_after } => {
                let [up, down] = self.net.rates(victim);
                self.net.set_rates(victim, up * factor, down * factor);
                self.mend_after(ends_after, Mend::Speed(victim, [up, down]));
            }
            Fault::Delay {
                latency,
                ends_after,
            } => {
                self.net
                    .set_extra_latency(victim, latency.as_nanos() as u64);
                self.mend_after(ends_after, Mend::Latency(victim));
            }
            Fault::ClockJump { ahead } => {
                self.hosts[victim].clock_ahead += ahead.as_nanos() as u64;
                self.feed(victim, Event::Tick);
            }
            Fault::FullDisk { ends_after } => {
                self.hosts[victim].full = true;
                self.mend_after(ends_after, Mend::Disk(victim));
            }
            Fault::CorruptChunks => self.hosts[victim].lies.as_server = true,
            Fault::LyingHolder => self.hosts[victim].lies.as_holder = true,
            Fault::Partition { .. }
            | Fault::OriginOutage { .. }
            | Fault::OriginRefuses { .. }
            | Fault::RollingRestart { .. } => {}
        }
    }

    pub(super) fn mend(&mut self, mend: Mend) {
        match mend {
            Mend::Restart(victim) => {
                self.restarts -= 1;
                self.restart(victim);
            }
            Mend::Thaw(victim) => self.thaw(victim),
            Mend::Speed(victim, [up, down]) => self.net.set_rates(victim, up, down),
            Mend::Latency(victim) => self.net.set_extra_latency(victim, 0),
            Mend::Disk(victim) => self.hosts[victim].full = false,
            Mend::Heal => {
                self.net.divide(|_| 0, None);
                // The daemon's bootstrap dials for ever those that it was told of.
                for host in 1..self.origin {
                    if self.hosts[host].state == State::Up
                        && !self.hosts[host].connected.contains(0)
                    {
                        self.dial(host, 0);
                    }
                }
            }
            Mend::OriginBack => self.registry.away = self.scenario.origin.away,
            Mend::OriginGives => self.registry.refuses = None,
            Mend::Roll(victim, down_for, pause) => {
                if self.hosts[victim].state == State::Up {
                    self.kill(victim);
                    self.restarts += 1;
                    self.mend_after(down_for, Mend::Restart(victim));
                }
                if victim + 1 < self.origin {
                    self.mend_after(pause, Mend::Roll(victim + 1, down_for, pause));
                } else {
                    self.restarts -= 1;
                }
            }
        }
    }

    fn choose(&mut self, victim: Victim) -> Option<NodeIndex> {
        let layers: Vec<Digest> = self
            .content
            .blobs
            .iter()
            .filter(|blob| blob.kind == BlobKind::Blob)
            .map(|blob| blob.digest)
            .collect();
        let mut fitting = Vec::new();
        for id in 0..self.origin {
            let host = &self.hosts[id];
            let transferring = host.started_at.is_some() && host.done_at.is_none();
            // Who alone has everything is spared: nobody could end without it.
            let only_source = self.registry.away && id < self.scenario.warm;
            if host.state != State::Up || host.slow || only_source {
                continue;
            }
            let victim_before = host.victim;
            let fits = self.machines.with(id, |core| match victim {
                Victim::Holder => transferring && !core.leases().is_empty(),
                Victim::Steward => core.stewarding().iter().any(|blob| layers.contains(blob)),
                Victim::Any => transferring && !victim_before,
                Victim::World => false,
            });
            if fits == Some(true) {
                fitting.push(id);
            }
        }
        if fitting.is_empty() {
            return None;
        }
        Some(fitting[self.rng.random_range(0..fitting.len())])
    }

    /// Streams were cut off: those who were sending hear of it.
    fn cut(&mut self, cuts: &[Cut<super::chunks::Tag>]) {
        for cut in cuts {
            if cut.unsent && self.hosts[cut.from].state != State::Down {
                self.unsent(cut.tag);
            }
        }
    }

    fn kill(&mut self, victim: NodeIndex) {
        self.stop_reads(victim, None);
        let bulk: Vec<NodeIndex> = self.hosts[victim].bulk.keys().copied().collect();
        self.hosts[victim].kill();
        self.machines.stop(victim);
        for other in bulk {
            self.bulk_broken(victim, other);
        }
        let cuts = self.net.reset(victim);
        self.cut(&cuts);
        self.disconnect(victim, |_| true);
    }

    fn thaw(&mut self, victim: NodeIndex) {
        if self.hosts[victim].state != State::Frozen {
            return;
        }
        self.hosts[victim].state = State::Up;
        for event in std::mem::take(&mut self.hosts[victim].backlog) {
            self.feed(victim, event);
        }
        self.net.go_on(victim);
        self.feed(victim, Event::Tick);
    }

    fn restart(&mut self, victim: NodeIndex) {
        if self.hosts[victim].state != State::Down {
            return;
        }
        let seed = self.rng.random();
        self.start(victim, seed);
        let up = (0..self.origin).find(|host| {
            *host != victim
                && self.hosts[*host].state == State::Up
                && self.net.reaches(victim, *host)
        });
        if let Some(up) = up {
            self.dial(victim, up);
        }
        for index in 0..self.content.blobs.len() {
            let verified = self.hosts[victim].blobs[index]
                .as_ref()
                .is_some_and(|stored| stored.verified);
            if verified {
                let blob = &self.content.blobs[index];
                let held = Event::Held {
                    blob: blob.digest,
                    kind: blob.kind,
                    size: blob.size,
                };
                self.feed(victim, held);
            }
        }
        if self.hosts[victim].started_at.is_some() {
            self.start_pull(victim);
        }
    }

    // --- liars ---

    pub(super) fn drop_chunks(
        &mut self,
        id: NodeIndex,
        index: BlobIndex,
        unwanted: impl Fn(&Stored, u32) -> bool,
    ) {
        let blob = self.content.blob(index);
        let (digest, kind, size) = (blob.digest, blob.kind, blob.size);
        let stored = self.hosts[id].blobs[usize::from(index)]
            .get_or_insert_with(|| Box::new(Stored::new(kind, Some(size))));
        stored.drop_chunks(unwanted);
        let have = stored.have.clone();
        self.fact(MILLISECOND, id, Event::Dropped { blob: digest, have });
    }

    /// A node tells the hashes of a blob that it holds verified.
    pub(super) fn send_hashes(&mut self, from: NodeIndex, to: NodeIndex, blob: &Digest) {
        let index = self.content.index(blob);
        let verified = self.hosts[from]
            .blob(index)
            .is_some_and(|stored| stored.verified);
        if verified {
            let chunks = self.content.blob(index).geometry().chunks();
            let hashes = (0..chunks).map(|chunk| hash(blob, chunk, false)).collect();
            let blob = *blob;
            self.send(from, to, Message::Audited { blob, hashes });
        }
    }

    /// A blob is verified: whoever vouched for other bytes has lied.
    pub(super) fn judge(&mut self, id: NodeIndex, index: BlobIndex, evidence: &[(u32, NodeIndex)]) {
        let blob = self.content.blob(index).digest;
        for (chunk, liar) in evidence {
            let len = self.content.chunk_len(index, *chunk);
            let wrong = hash(&blob, *chunk, true);
            // Signatures are not checked here; the key is nobody's.
            let key = SigningKey::from_bytes(&[1; 32]);
            let mut attestation = Attestation::sign(&key, &blob, *chunk, wrong, len);
            attestation.signer = self.hosts[*liar].record.id;
            let lied = Event::Lied {
                signer: attestation.signer,
                blob,
                index: *chunk,
                attestation,
            };
            self.feed(id, lied);
        }
    }

    pub(super) fn check_proof(
        &mut self,
        id: NodeIndex,
        blob: &Digest,
        index: u32,
        attestation: Attestation,
    ) {
        let held = self.content.index(blob);
        let verified = self.hosts[id]
            .blob(held)
            .is_some_and(|stored| stored.verified);
        if verified && attestation.hash != hash(blob, index, false) {
            let lied = Event::Lied {
                signer: attestation.signer,
                blob: *blob,
                index,
                attestation,
            };
            self.fact(MILLISECOND, id, lied);
        }
    }

    pub(super) fn ban(&mut self, id: NodeIndex, banned: NodeIndex) {
        let honest = !self.hosts[banned].lies.as_holder;
        let seconds = self.seconds();
        self.checkers.ban(seconds, id, banned, honest);
        self.hosts[id].banned.insert(banned);
        self.bulk_broken(id, banned);
        if self.hosts[id].connected.remove(banned) {
            self.hosts[banned].connected.remove(id);
            self.fact(RESET, id, Event::Disconnected(peer(banned)));
            self.fact(RESET, banned, Event::Disconnected(peer(id)));
        }
    }
}

/// The hash that a chunk's signer vouches for: all liars tell the same lie.
pub(super) fn hash(blob: &Digest, index: u32, lie: bool) -> ChunkHash {
    if lie {
        return ChunkHash([0xee; 32]);
    }
    let mut hash = [0; 32];
    hash[..8].copy_from_slice(&blob.prefix().to_be_bytes());
    hash[8..12].copy_from_slice(&index.to_be_bytes());
    ChunkHash(hash)
}
