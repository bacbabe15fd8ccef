//! The keeper of an upstream: it bounds how many streams the whole cluster has open there.
//!
//! One node for each upstream (rendezvous hashing of its name), so that a registry meets the
//! cluster as one client however many blobs are pulled at once. The number of streams follows what
//! the origin gives: more while chunks come fast, fewer while each of them takes long, because
//! streams that only divide the same bandwidth make every chunk late; half after a 429 or 503.

use std::collections::BTreeMap;

use crate::{
    ctx::Ctx,
    digest::Digest,
    directory::Peer,
    limits::CHUNK_BYTES,
    message::Message,
    reference::Upstream,
    time::{Duration, Time},
};

struct Client {
    wanted: u16,
    granted: u16,
    /// Streams that it had open when it last said so.
    open: u16,
    /// The most that it was granted since the report before that: it may have opened as many.
    recent: u16,
    heard: Time,
    /// Order of arrival.
    number: u64,
}

pub(crate) struct Keeper {
    upstream: Upstream,
    clients: BTreeMap<(Peer, Digest), Client>,
    arrivals: u64,
    /// How many streams there may be.
    streams: u16,
    throttled_at: Time,
    measure: Measure,
}

/// Bytes since the last adjustment, and what the last trial of fewer streams gave.
struct Measure {
    since: Time,
    bytes: u64,
    trial: Option<(u16, f64)>,
    hold_until: Time,
}

/// Adjustments are at least so far apart: a few reports of every steward.
const PERIOD: Duration = Duration::from_millis(500);

/// While chunks come fast, more streams are tried so soon.
const PERIOD_FAST: Duration = Duration::from_millis(100);

/// With fewer seconds for a chunk than this, more streams do no harm.
const CHUNK_FAST: f64 = 0.4;

/// With more, fewer streams are tried.
const CHUNK_SLOW: f64 = 1.0;

/// After a trial that failed, or a throttled request, the number of streams stays for so long.
const HOLD: Duration = Duration::from_secs(15);

/// Throttled requests within so long are one event.
const THROTTLED_TOGETHER: Duration = Duration::from_secs(2);

/// How long it is remembered that the origin refused streams, while nobody wants any.
const THROTTLED_REMEMBERED: Duration = Duration::from_secs(120);

/// Fewer streams are never tried than this.
const STREAMS_MIN: u16 = 4;

/// The key of an upstream in rendezvous hashing.
pub(crate) fn key(upstream: &Upstream) -> u64 {
    let hash = blake3::hash(upstream.as_str().as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_be_bytes(first)
}

impl Keeper {
    pub(crate) fn new(ctx: &Ctx, upstream: Upstream) -> Self {
        Self {
            upstream,
            clients: BTreeMap::new(),
            arrivals: 0,
            streams: ctx.config.streams_start,
            throttled_at: Time::ZERO,
            measure: Measure {
                since: ctx.now,
                bytes: 0,
                trial: None,
                hold_until: Time::ZERO,
            },
        }
    }

    /// A steward asks for streams, and says what came in through those it has.
    pub(crate) fn wanted(
        &mut self,
        ctx: &mut Ctx,
        from: Peer,
        blob: Digest,
        [wanted, open]: [u16; 2],
        bytes: u64,
        throttled: bool,
    ) {
        // A blob has one steward: what the one before had is free, though it may have died just now.
        self.clients
            .retain(|(steward, of), _| *of != blob || *steward == from);
        self.arrivals += 1;
        let number = self.arrivals;
        let client = self.clients.entry((from, blob)).or_insert(Client {
            wanted,
            granted: 0,
            open,
            recent: 0,
            heard: ctx.now,
            number,
        });
        client.wanted = wanted;
        // What it says now was said after it heard of what was granted before it last spoke. Who
        // wants none has none.
        client.open = open.max(client.recent).min(wanted);
        client.recent = client.granted;
        client.heard = ctx.now;
        let expiry = ctx.config.streams_expiry;
        self.clients
            .retain(|_, client| client.wanted > 0 && ctx.now.since(client.heard) < expiry);
        self.measure.bytes += bytes;
        if throttled {
            // Refusals come in groups, one for each stream too many: they count once.
            if ctx.now.since(self.throttled_at) >= THROTTLED_TOGETHER {
                self.streams = (self.streams / 2).max(1);
                self.throttled_at = ctx.now;
            }
            self.measure.hold_until = ctx.now + HOLD;
        } else {
            self.adjust(ctx);
        }
        self.share_out(ctx, (from, blob));
    }

    pub(crate) fn forget(&mut self, ctx: &mut Ctx, peer: Peer) {
        let before = self.clients.len();
        self.clients.retain(|(steward, _), _| *steward != peer);
        if self.clients.len() != before
            && let Some(first) = self.clients.keys().next().copied()
        {
            self.share_out(ctx, first);
        }
    }

    /// Whether nothing is lost when it is forgotten: nobody has streams, and the origin has not asked
    /// for a pause lately. The layers of an image are pulled one after the other; each would meet
    /// the same refusals anew.
    pub(crate) fn is_idle(&self, now: Time, expiry: Duration) -> bool {
        let mut clients = self.clients.values();
        let throttled = self.throttled_at > Time::ZERO;
        clients.all(|client| now.since(client.heard) >= expiry)
            && !(throttled && now.since(self.throttled_at) < THROTTLED_REMEMBERED)
    }

    fn adjust(&mut self, ctx: &Ctx) {
        let elapsed = ctx.now.since(self.measure.since);
        let at_once = f64::from(self.streams) * CHUNK_BYTES as f64;
        let fast = self.measure.bytes as f64 * CHUNK_FAST > at_once * elapsed.as_secs_f64();
        if elapsed < PERIOD && (elapsed < PERIOD_FAST || !fast || self.measure.trial.is_some()) {
            return;
        }
        let rate = self.measure.bytes as f64 / elapsed.as_secs_f64();
        let demand: u32 = self
            .clients
            .values()
            .map(|client| u32::from(client.wanted))
            .sum();
        self.measure.since = ctx.now;
        self.measure.bytes = 0;
        if rate == 0.0 || demand < u32::from(self.streams) || ctx.now < self.measure.hold_until {
            return;
        }
        if let Some((streams, before)) = self.measure.trial.take()
            && rate < 0.9 * before
        {
            // Fewer streams were slower: each of them is limited by itself, not by the link.
            self.streams = streams;
            self.measure.hold_until = ctx.now + HOLD;
            return;
        }
        let chunk_seconds = f64::from(self.streams) * CHUNK_BYTES as f64 / rate;
        if chunk_seconds < CHUNK_FAST {
            let more = (self.streams / 2).max(1);
            self.streams = (self.streams + more).min(ctx.config.streams_max);
        } else if chunk_seconds > CHUNK_SLOW && self.streams > STREAMS_MIN {
            self.measure.trial = Some((self.streams, rate));
            self.streams -= 1;
            // Let the streams that are open run down before the trial is judged.
            self.measure.since = ctx.now + Duration::from_secs_f64(chunk_seconds.min(5.0));
        }
    }

    /// One stream for each blob, so that no client waits for another's layer, then the rest where
    /// most is left, so that all layers end together. Only an origin that throttles makes blobs
    /// wait, in order of arrival.
    fn share_out(&mut self, ctx: &mut Ctx, asked: (Peer, Digest)) {
        let mut order: Vec<(u64, (Peer, Digest), u16)> = self
            .clients
            .iter()
            .map(|(key, client)| (client.number, *key, client.wanted))
            .collect();
        order.sort_unstable();
        let blobs = (order.len() as u16).min(ctx.config.streams_max);
        let throttled = self.throttled_at > Time::ZERO && ctx.now < self.measure.hold_until;
        let mut left = if throttled {
            self.streams
        } else {
            self.streams.max(blobs)
        };
        let mut shares: BTreeMap<(Peer, Digest), u16> = BTreeMap::new();
        for (_, key, wanted) in &order {
            let share = left.min(1).min(*wanted);
            shares.insert(*key, share);
            left -= share;
        }
        while left > 0 {
            // The highest quotient gets the next one (D'Hondt's method).
            let next = order
                .iter()
                .filter(|(_, key, wanted)| shares[key] < *wanted)
                .max_by_key(|(number, key, wanted)| {
                    let quotient = u32::from(*wanted) * 1000 / (u32::from(shares[key]) + 1);
                    (quotient, std::cmp::Reverse(*number))
                });
            let Some((_, key, _)) = next else { break };
            *shares.entry(*key).or_default() += 1;
            left -= 1;
        }
        // What one has to give up is free when its leases have ended, not before.
        let kept = |client: &Client| client.open.max(client.recent);
        let taken: u16 = self.clients.values().map(kept).sum();
        let mut free = ctx.config.streams_max.saturating_sub(taken);
        for (key, client) in &mut self.clients {
            let share = shares.get(key).copied().unwrap_or_default();
            let kept = kept(client);
            let share = share.min(kept + free);
            free -= share.saturating_sub(kept);
            client.recent = client.recent.max(share);
            if share != client.granted || *key == asked {
                client.granted = share;
                let (steward, blob) = *key;
                let upstream = self.upstream.clone();
                ctx.send(
                    steward,
                    Message::StreamsGranted {
                        upstream,
                        blob,
                        streams: share,
                    },
                );
            }
        }
    }
}
