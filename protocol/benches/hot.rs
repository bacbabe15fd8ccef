//! What a node computes over and over while it pulls: `cargo bench --workspace --bench hot`.
//!
//! Allocations are counted too. Where one iteration is many events, `item/s` counts the events, and
//! what was allocated is of all of them together.

use divan::AllocProfiler;
use rand::{RngExt as _, rngs::Xoshiro256PlusPlus};
use shoal_protocol::{chunk::Bitfield, digest::Digest};

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

fn blob() -> Digest {
    Digest::sha256([7; 32])
}

/// A half of so many chunks.
fn half(rng: &mut Xoshiro256PlusPlus, chunks: u32) -> Bitfield {
    let mut bits = Bitfield::new(chunks);
    for index in (0..chunks).filter(|_| rng.random()) {
        bits.insert(index);
    }
    bits
}

/// One node among neighbours, driven as by a driver whose disk and network take no time at all.
mod exchange {
    use std::collections::VecDeque;

    use divan::{Bencher, counter::ItemsCount};
    use rand::{SeedableRng as _, rngs::Xoshiro256PlusPlus};
    use shoal_protocol::{
        chunk::Bitfield,
        config::Config,
        core::Core,
        directory::{Directory, NodeId, NodeRecord, Peer, Place},
        event::{Action, Event},
        limits::CHUNK_BYTES,
        message::{BlobKind, Hint, Message, News},
        time::{Duration, Time},
    };
    use smallvec::smallvec;

    use super::{blob, half};

    /// 10 GB.
    const CHUNKS: u32 = 2400;

    /// As many as a node looks for.
    const NEIGHBOURS: usize = 16;

    /// What a chunk takes at 10 Gbit/s: half of them 4 s. The members here answer no probe, and are
    /// declared dead after 5 s at the soonest.
    const CHUNK_TIME: Duration = Duration::from_micros(3355);

    /// Every neighbour gathers what it tells for 15 ms.
    const HAVE_TIME: Duration = Duration::from_micros(15_000 / NEIGHBOURS as u64);

    /// Chunks that come in at 10 Gbit/s meanwhile.
    const HAVE_CHUNKS: usize = 4;

    /// Nothing that was requested comes in while they are told, and after 1 s it would be late.
    const HAVES: usize = 960;

    fn have(chunks: &[u32]) -> Message {
        Message::Have {
            news: smallvec![News {
                blob: blob(),
                chunks: chunks.into(),
            }],
            queue_ms: 0,
        }
    }

    /// What a node has at the start.
    #[derive(Clone, Copy)]
    enum Held {
        Nothing,
        /// Each node another half.
        Half,
        All,
    }

    struct Exchange {
        core: Core,
        now: Time,
        /// Chunks that the node lacks at the start.
        missing: u32,
        neighbours: Vec<(Peer, Bitfield)>,
        /// Chunks that the node asked for and has not got.
        requested: VecDeque<(Peer, u32)>,
        /// Chunks that it was asked for and has not sent.
        sending: VecDeque<(Peer, u32)>,
        actions: Vec<Action>,
    }

    impl Exchange {
        fn new(own: Held, theirs: Held) -> Self {
            let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
            let mut bits = |held| match held {
                Held::Nothing => Bitfield::new(CHUNKS),
                Held::All => Bitfield::full(CHUNKS),
                Held::Half => half(&mut rng, CHUNKS),
            };
            let directory = Directory::new();
            let mut records: Vec<NodeRecord> = (0..=NEIGHBOURS as u8)
                .map(|number| NodeRecord {
                    id: NodeId([number; 32]),
                    generation: 1,
                    addresses: Vec::new(),
                    place: Place::default(),
                })
                .collect();
            // The node at hand is the last to be the blob's steward.
            records.sort_by_key(|record| record.id.weight(blob().prefix()));
            let me = records.remove(0);
            let neighbours: Vec<_> = records
                .iter()
                .map(|record| (directory.intern(record), bits(theirs)))
                .collect();
            let mut core = Core::new(Config::default(), me, directory, 1, Time::ZERO);
            let members: Vec<Peer> = neighbours.iter().map(|(peer, _)| *peer).collect();
            core.recall(&members);
            let own = bits(own);
            let mut exchange = Self {
                missing: CHUNKS - own.count(),
                core,
                now: Time::ZERO,
                neighbours,
                requested: VecDeque::new(),
                sending: VecDeque::new(),
                actions: Vec::new(),
            };
            exchange.begin(own);
            exchange
        }

        /// The pull, and every neighbour's offer.
        fn begin(&mut self, own: Bitfield) {
            let (kind, size) = (BlobKind::Blob, Some(u64::from(CHUNKS) * CHUNK_BYTES));
            self.handle(Event::Pull {
                blob: blob(),
                kind,
                size,
                have: Some(own),
                hint: Hint {
                    upstream: "registry.example".parse().expect("an upstream"),
                    repository: "team/app".parse().expect("a repository"),
                },
            });
            for (from, have) in self.neighbours.clone() {
                let offer = Message::Offer {
                    blob: blob(),
                    kind,
                    size,
                    have,
                    answer: false,
                };
                let answered = self.message(from, offer);
                assert!(answered, "an offer was declined");
            }
        }

        /// Lets the machine know a fact and does as it asks; whether it made an offer.
        fn handle(&mut self, event: Event) -> bool {
            let mut offered = false;
            let mut stewards = Vec::new();
            self.core.handle(self.now, event, &mut self.actions);
            for action in self.actions.drain(..) {
                if let Action::Expect { from, index, .. } = action {
                    self.requested.push_back((from, index));
                } else if let Action::SendChunk { to, index, .. } = action {
                    self.sending.push_back((to, index));
                } else if let Action::Send { to, message } = action {
                    offered |= matches!(message, Message::Offer { .. });
                    if matches!(message, Message::Join { .. }) {
                        stewards.push(to);
                    }
                }
            }
            for steward in stewards {
                let welcome = Message::Welcome {
                    blob: blob(),
                    term: 1,
                    size: None,
                    peers: Vec::new(),
                    failure: None,
                };
                self.message(steward, welcome);
            }
            offered
        }

        fn message(&mut self, from: Peer, message: Message) -> bool {
            self.handle(Event::Message { from, message })
        }

        /// The oldest request is answered; whether there was one.
        fn store(&mut self) -> bool {
            let Some((from, index)) = self.requested.pop_front() else {
                return false;
            };
            self.now = self.now + CHUNK_TIME;
            self.handle(Event::ChunkStored {
                from: Some(from),
                blob: blob(),
                index,
                len: CHUNK_BYTES as u32,
            });
            true
        }
    }

    /// A chunk is stored, and the next one picked and requested.
    #[divan::bench]
    fn chunk_stored(bencher: Bencher) {
        let pull = |mut exchange: Exchange| {
            let mut stored = 0u32;
            while exchange.store() {
                stored += 1;
            }
            (stored, exchange)
        };
        let (stored, exchange) = pull(Exchange::new(Held::Half, Held::Half));
        assert_eq!(stored, exchange.missing, "not every chunk was asked for");
        bencher
            .counter(ItemsCount::new(stored))
            .with_inputs(|| Exchange::new(Held::Half, Held::Half))
            .bench_local_values(pull);
    }

    /// As long as that takes, and nothing but time passes: membership's packets are among what is
    /// allocated in all the others too.
    #[divan::bench]
    fn time_alone(bencher: Bencher) {
        let chunks = CHUNKS / 2;
        bencher
            .counter(ItemsCount::new(chunks))
            .with_inputs(|| Exchange::new(Held::All, Held::Nothing))
            .bench_local_values(|mut exchange| {
                for _ in 0..chunks {
                    exchange.now = exchange.now + CHUNK_TIME;
                    exchange.handle(Event::Tick);
                }
                exchange
            });
    }

    /// A neighbour tells of chunks that others have too, while enough is requested.
    #[divan::bench]
    fn have_batch(bencher: Bencher) {
        let setup = || {
            let exchange = Exchange::new(Held::Half, Held::Half);
            let mut news: Vec<_> = exchange
                .neighbours
                .iter()
                .map(|(peer, have)| {
                    let lacks = (0..CHUNKS).filter(|index| !have.contains(*index));
                    (*peer, lacks.collect::<Vec<_>>())
                })
                .collect();
            let batches: Vec<(Peer, Message)> = (0..HAVES)
                .map(|turn| {
                    let (peer, lacks) = &mut news[turn % NEIGHBOURS];
                    (*peer, have(&lacks.split_off(lacks.len() - HAVE_CHUNKS)))
                })
                .collect();
            (exchange, batches)
        };
        bencher
            .counter(ItemsCount::new(HAVES))
            .with_inputs(setup)
            .bench_local_values(|(mut exchange, batches)| {
                for (from, message) in batches {
                    exchange.now = exchange.now + HAVE_TIME;
                    exchange.message(from, message);
                }
                exchange
            });
    }

    /// Nobody has anything: a neighbour tells of a chunk, it is requested at once, and stored. Two
    /// events each.
    #[divan::bench]
    fn have_then_stored(bencher: Bencher) {
        let chunks = CHUNKS / 2;
        let setup = || {
            let exchange = Exchange::new(Held::Nothing, Held::Nothing);
            let peers = exchange.neighbours.iter().map(|(peer, _)| *peer).cycle();
            let news = (0..chunks).map(|index| have(&[index]));
            let news: Vec<(Peer, Message)> = peers.zip(news).collect();
            (exchange, news)
        };
        bencher
            .counter(ItemsCount::new(2 * chunks))
            .with_inputs(setup)
            .bench_local_values(|(mut exchange, news)| {
                for (from, message) in news {
                    exchange.message(from, message);
                    assert!(exchange.store(), "a chunk was not asked for");
                }
                exchange
            });
    }

    /// A neighbour asks for a chunk, and it is sent. Two events each.
    #[divan::bench]
    fn request_then_sent(bencher: Bencher) {
        let chunks = CHUNKS / 2;
        bencher
            .counter(ItemsCount::new(2 * chunks))
            .with_inputs(|| Exchange::new(Held::All, Held::Nothing))
            .bench_local_values(|mut exchange| {
                for index in 0..chunks {
                    let (from, _) = exchange.neighbours[index as usize % NEIGHBOURS];
                    let blob = blob();
                    exchange.message(from, Message::Request { blob, index });
                    let (to, index) = exchange.sending.pop_front().expect("a chunk to send");
                    exchange.now = exchange.now + CHUNK_TIME;
                    exchange.handle(Event::ChunkSent { to, blob, index });
                }
                exchange
            });
    }
}

/// The chunks of a blob of 30 GB.
#[divan::bench_group(sample_size = 200)]
mod bitfield {
    use divan::{Bencher, black_box, counter::ItemsCount};
    use rand::{SeedableRng as _, rngs::Xoshiro256PlusPlus};
    use shoal_protocol::chunk::Bitfield;

    pub(super) const CHUNKS: u32 = 7500;

    pub(super) fn half(seed: u64) -> Bitfield {
        super::half(&mut Xoshiro256PlusPlus::seed_from_u64(seed), CHUNKS)
    }

    #[divan::bench]
    fn insert_each(bencher: Bencher) {
        bencher
            .counter(ItemsCount::new(CHUNKS))
            .with_inputs(|| Bitfield::new(CHUNKS))
            .bench_values(|mut bits| {
                for index in 0..CHUNKS {
                    bits.insert(black_box(index));
                }
                bits
            });
    }

    #[divan::bench]
    fn iterate(bencher: Bencher) {
        let bits = half(1);
        bencher
            .counter(ItemsCount::new(bits.count()))
            .bench(|| black_box(&bits).iter().map(u64::from).sum::<u64>());
    }

    #[divan::bench]
    fn count(bencher: Bencher) {
        let bits = half(1);
        bencher.bench(|| black_box(&bits).count());
    }

    #[divan::bench]
    fn clone(bencher: Bencher) {
        let bits = half(1);
        bencher.bench(|| black_box(&bits).clone());
    }

    #[divan::bench]
    fn union_with(bencher: Bencher) {
        let (bits, other) = (half(1), half(2));
        bencher
            .with_inputs(|| bits.clone())
            .bench_refs(|bits| bits.union_with(black_box(&other)));
    }

    #[divan::bench]
    fn intersect_with(bencher: Bencher) {
        let (bits, other) = (half(1), half(2));
        bencher
            .with_inputs(|| bits.clone())
            .bench_refs(|bits| bits.intersect_with(black_box(&other)));
    }

    #[divan::bench]
    fn subtract(bencher: Bencher) {
        let (bits, other) = (half(1), half(2));
        bencher
            .with_inputs(|| bits.clone())
            .bench_refs(|bits| bits.subtract(black_box(&other)));
    }

    /// With no chunk in both, so that all of them are looked at.
    #[divan::bench]
    fn intersects(bencher: Bencher) {
        let bits = half(1);
        let mut other = Bitfield::full(CHUNKS);
        other.subtract(&bits);
        bencher.bench(|| black_box(&bits).intersects(black_box(&other)));
    }

    #[divan::bench]
    fn is_full(bencher: Bencher) {
        let mut bits = Bitfield::full(CHUNKS);
        bits.remove(0);
        bencher.bench(|| black_box(&bits).is_full());
    }

    #[divan::bench]
    fn is_well_formed(bencher: Bencher) {
        let bits = half(1);
        bencher.bench(|| black_box(&bits).is_well_formed());
    }
}

/// The messages that flow most, as they are written to a connection and read from it.
#[divan::bench_group(sample_size = 200)]
mod wire {
    use divan::{Bencher, black_box, counter::BytesCount};
    use ed25519_dalek::SigningKey;
    use shoal_protocol::{
        attest::Attestation,
        chunk::ChunkHash,
        directory::Directory,
        limits::CHUNK_BYTES,
        message::{BlobKind, ChunkHeader, Lease, LeaseId, LeaseReport, Message, News},
        wire,
    };
    use smallvec::smallvec;

    use super::{bitfield, blob};

    fn request() -> Message {
        Message::Request {
            blob: blob(),
            index: 1234,
        }
    }

    /// As many chunks as come in at 10 Gbit/s between two of them.
    fn have() -> Message {
        Message::Have {
            news: smallvec![News {
                blob: blob(),
                chunks: smallvec![12, 7012, 1234, 345],
            }],
            queue_ms: 20,
        }
    }

    fn join() -> Message {
        let lease = Lease {
            id: LeaseId { term: 1, number: 9 },
            first: 4000,
            end: 4004,
        };
        Message::Join {
            blob: blob(),
            kind: BlobKind::Blob,
            size: Some(u64::from(bitfield::CHUNKS) * CHUNK_BYTES),
            have: bitfield::half(1),
            urgent: vec![77],
            leases: vec![LeaseReport {
                lease,
                next: 4002,
                bytes: 2 * CHUNK_BYTES,
            }],
            upstreams: vec!["registry.example".parse().expect("an upstream")],
            want_peers: 8,
            takeover: false,
        }
    }

    fn header() -> ChunkHeader {
        let key = SigningKey::from_bytes(&[7; 32]);
        let (index, len) = (1234, CHUNK_BYTES as u32);
        ChunkHeader {
            blob: blob(),
            index,
            size: u64::from(bitfield::CHUNKS) * CHUNK_BYTES,
            attestation: Attestation::sign(&key, &blob(), index, ChunkHash([9; 32]), len),
            packed: None,
        }
    }

    fn encode(bencher: Bencher, message: fn() -> Message) {
        let directory = Directory::new();
        let message = message();
        let bytes = wire::encode_message(message.clone(), &directory);
        bencher
            .counter(BytesCount::of_slice(&bytes))
            .with_inputs(|| message.clone())
            .bench_values(|message| wire::encode_message(message, &directory));
    }

    fn decode(bencher: Bencher, message: fn() -> Message) {
        let directory = Directory::new();
        let bytes = wire::encode_message(message(), &directory);
        bencher
            .counter(BytesCount::of_slice(&bytes))
            .bench(|| wire::decode_message(black_box(&bytes), &directory));
    }

    #[divan::bench]
    fn request_encode(bencher: Bencher) {
        encode(bencher, request);
    }

    #[divan::bench]
    fn request_decode(bencher: Bencher) {
        decode(bencher, request);
    }

    #[divan::bench]
    fn have_encode(bencher: Bencher) {
        encode(bencher, have);
    }

    #[divan::bench]
    fn have_decode(bencher: Bencher) {
        decode(bencher, have);
    }

    #[divan::bench]
    fn join_encode(bencher: Bencher) {
        encode(bencher, join);
    }

    #[divan::bench]
    fn join_decode(bencher: Bencher) {
        decode(bencher, join);
    }

    #[divan::bench]
    fn chunk_header_encode(bencher: Bencher) {
        let header = header();
        bencher
            .counter(BytesCount::of_slice(&wire::encode(&header)))
            .bench(|| wire::encode(black_box(&header)));
    }

    #[divan::bench]
    fn chunk_header_decode(bencher: Bencher) {
        let bytes = wire::encode(&header());
        bencher
            .counter(BytesCount::of_slice(&bytes))
            .bench(|| wire::decode_chunk_header(black_box(&bytes)));
    }
}

/// Who vouches for a chunk: once for each that a node reads from the origin, sends or receives.
mod attestation {
    use divan::{Bencher, black_box};
    use ed25519_dalek::SigningKey;
    use shoal_protocol::{attest::Attestation, chunk::ChunkHash, limits::CHUNK_BYTES};

    use super::blob;

    fn sign_one(key: &SigningKey, index: u32) -> Attestation {
        let hash = ChunkHash([9; 32]);
        Attestation::sign(key, &blob(), index, hash, CHUNK_BYTES as u32)
    }

    #[divan::bench]
    fn sign(bencher: Bencher) {
        let key = SigningKey::from_bytes(&[7; 32]);
        bencher.bench(|| sign_one(&key, black_box(1234)));
    }

    #[divan::bench]
    fn check(bencher: Bencher) {
        let blob = blob();
        let attestation = sign_one(&SigningKey::from_bytes(&[7; 32]), 1234);
        assert!(attestation.is_signed_for(&blob, 1234));
        bencher.bench(|| black_box(&attestation).is_signed_for(&blob, 1234));
    }
}
