//! What nodes say to each other on the control connection.
//!
//! Generic over how a node is named: [`Peer`] inside the machines, [`NodeRecord`] on the wire
//! (see [`wire`](crate::wire)), so that whoever is told of a node can also reach it.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::{
    attest::Attestation,
    chunk::{Bitfield, ChunkHash},
    digest::Digest,
    directory::{NodeId, NodeRecord, Peer},
    reference::{Repository, Tag, Upstream},
};

/// What a blob is to its origin: the two are read at different addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum BlobKind {
    /// A manifest or an index: one chunk, its size unknown until it is read.
    Manifest,
    /// A layer or a config.
    Blob,
}

/// Where a blob may be read. A hint only: the digest alone names the blob.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Hint {
    /// The registry, to be found in each node's own configuration.
    pub upstream: Upstream,
    /// The repository within it.
    pub repository: Repository,
}

/// Names one lease of one steward: the steward's term and a counter within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LeaseId {
    /// The term of the steward that granted it.
    pub term: u64,
    /// Counts the grants of that term.
    pub number: u32,
}

/// The chunks `first..end` of a blob, leased to be read from the origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Its name.
    pub id: LeaseId,
    /// The first chunk.
    pub first: u32,
    /// One past the last chunk.
    pub end: u32,
}

/// Why an origin read ended before its range did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OriginFailure {
    /// The origin said that it does not have the blob (404), or this node has no hint for it.
    NotFound,
    /// The origin refused this node's credentials (401, 403).
    Denied,
    /// The origin asked for a pause (429, 503), in milliseconds if it said how long.
    Throttled {
        /// Retry-After, in milliseconds.
        retry_ms: Option<u32>,
    },
    /// The origin gives a blob only as a whole: one node has to read it from start to end.
    NoRanges,
    /// Not reachable, broken off, or nonsense; the text is for people.
    Failed(String),
}

/// How far a leaseholder is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseReport {
    /// Which lease.
    pub lease: Lease,
    /// The next chunk that it has not finished; `end` when done.
    pub next: u32,
    /// Bytes read from the origin under the lease so far.
    pub bytes: u64,
}

/// A tag to be resolved.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TagKey {
    /// The registry.
    pub upstream: Upstream,
    /// The repository within it.
    pub repository: Repository,
    /// The tag.
    pub tag: Tag,
}

/// What a tag named when an origin was asked, in the words of the node that asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagRecord {
    /// The digest that the origin gave.
    pub digest: Digest,
    /// When it was asked, in seconds since 1970 by that node's clock.
    pub asked_at: u64,
    /// The node that asked.
    pub asked_by: NodeId,
}

/// Why a tag has no answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TagFailure {
    /// The origin said that there is no such tag.
    NotFound(String),
    /// The origin refused the credentials.
    Denied(String),
    /// The origin is limiting its clients; seconds to wait, if it said.
    Throttled(Option<u32>),
    /// The origin could not be reached, and the tag was never seen.
    Unreachable(String),
}

/// An answer to a question about a tag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TagAnswer {
    /// The origin said so within the time that an answer stays fresh.
    Fresh(TagRecord),
    /// The last that was known; the origin could not be asked, for this reason.
    Stale(TagRecord, String),
    /// No answer.
    Failed(TagFailure),
    /// No origin has said so: the operator of the node that the record names imported it, then.
    Imported(TagRecord),
}

/// A repository of one registry: what a token is good for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TokenKey {
    /// The upstream and the repository within it.
    pub hint: Hint,
    /// The URL of the registry that the upstream's content comes from, as the node that asks is
    /// configured: a token goes to nobody who would send it elsewhere. Of at most
    /// [`REGISTRY_URL_BYTES_MAX`](crate::limits::REGISTRY_URL_BYTES_MAX) bytes.
    pub registry: String,
}

/// A registry's Bearer token, which lets who has it pull from one repository for a while.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// The token, of at most [`TOKEN_BYTES_MAX`](crate::limits::TOKEN_BYTES_MAX) bytes.
    pub secret: String,
    /// How long it will be accepted from now on, in milliseconds.
    pub lifetime_ms: u32,
    /// Whether it was got without credentials: it opens what is public.
    pub anonymous: bool,
}

/// The BLAKE3 hash of a token: names it without giving it away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenHash(pub [u8; 32]);

impl Token {
    /// Its name.
    pub fn hash(&self) -> TokenHash {
        TokenHash::of(&self.secret)
    }
}

impl TokenHash {
    /// The name of the token with this text.
    pub fn of(secret: &str) -> Self {
        Self(*blake3::hash(secret.as_bytes()).as_bytes())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("lifetime_ms", &self.lifetime_ms)
            .field("anonymous", &self.anonymous)
            .finish_non_exhaustive()
    }
}

/// An answer to a question for a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenAnswer {
    /// This one.
    Granted(Token),
    /// The keeper is logging in; another answer follows.
    LoggingIn,
    /// The keeper has none and gets none.
    None,
}

/// A member as full membership lists carry it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberEntry<P> {
    /// Who.
    pub peer: P,
    /// Which start of that node's daemon.
    pub generation: u64,
    /// SWIM's incarnation number.
    pub incarnation: u16,
    /// Whether it was declared dead.
    pub down: bool,
}

/// Chunks of one blob that a node got lately.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct News {
    /// The blob.
    pub blob: Digest,
    /// The chunks. As many as come in between two [`Message::Have`]s on most links need no memory of
    /// their own.
    #[serde(with = "few")]
    pub chunks: SmallVec<[u32; 8]>,
}

/// A control message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message<P = Peer> {
    // Membership.
    /// A SWIM packet.
    Swim(Bytes),
    /// The hash of the sender's member list; the receiver answers with its list if they differ.
    MembersHash(u64),
    /// A page of the sender's member list.
    Members {
        /// Up to [`MEMBER_PAGE_MAX`](crate::limits::MEMBER_PAGE_MAX) members.
        page: Vec<MemberEntry<P>>,
        /// Whether the receiver should send its own list back.
        reply: bool,
    },

    // Puller and steward.
    /// "I pull this blob." Repeated while the pull lasts; tells the steward all it has to know.
    Join {
        /// The blob.
        blob: Digest,
        /// Manifest or not.
        kind: BlobKind,
        /// Its size, where the sender knows it.
        size: Option<u64>,
        /// What the sender has.
        have: Bitfield,
        /// Chunks that a client of the sender waits for.
        urgent: Vec<u32>,
        /// The leases that the sender works on.
        leases: Vec<LeaseReport>,
        /// Upstreams where the sender may read the blob; empty when it has no hint.
        upstreams: Vec<Upstream>,
        /// How many peers the sender would like to hear of.
        want_peers: u16,
        /// Set when the better-ranked stewards do not answer: asks the receiver to act.
        takeover: bool,
    },
    /// A steward's answer to a join, and its word whenever something changed.
    Welcome {
        /// The blob.
        blob: Digest,
        /// The steward's term.
        term: u64,
        /// The blob's size, where the steward knows it.
        size: Option<u64>,
        /// Nodes that have or pull the blob.
        peers: Vec<P>,
        /// Why nobody can read it, when no holder and no origin is left to try.
        failure: Option<OriginFailure>,
    },
    /// "I act as steward of this blob": everyone who pulls it joins again at once, and who holds it
    /// says so.
    Acting {
        /// The blob.
        blob: Digest,
        /// The new term.
        term: u64,
    },
    /// Read this range from the origin.
    Grant {
        /// The blob.
        blob: Digest,
        /// The range.
        lease: Lease,
    },
    /// How far the sender is with a lease; also a sign of life while the origin is slow.
    Report {
        /// The blob.
        blob: Digest,
        /// The progress.
        report: LeaseReport,
        /// The blob's size, learned from the origin's answer.
        size: Option<u64>,
        /// Set when the lease ended early.
        failure: Option<OriginFailure>,
    },
    /// Stop reading under this lease; chunks not finished go to someone else.
    Revoke {
        /// The blob.
        blob: Digest,
        /// Which lease.
        lease: LeaseId,
    },
    /// Chunks that nobody whom the sender knows has.
    Lost {
        /// The blob.
        blob: Digest,
        /// The chunks.
        chunks: Vec<u32>,
    },
    /// The sender no longer pulls this blob.
    Leave {
        /// The blob.
        blob: Digest,
    },
    /// Complete blobs that the sender holds, and blobs that it held and dropped.
    Announce {
        /// Held, each with its kind and size in bytes.
        held: Vec<(Digest, BlobKind, u64)>,
        /// Dropped.
        dropped: Vec<Digest>,
    },

    // Steward and keeper of an upstream.
    /// A steward asks for origin streams, or keeps those it has.
    StreamsWanted {
        /// The upstream.
        upstream: Upstream,
        /// The blob whose steward asks.
        blob: Digest,
        /// How many it could use.
        wanted: u16,
        /// Bytes read from the origin for this blob since the last message.
        bytes: u64,
        /// Whether the origin asked for a pause since the last message.
        throttled: bool,
        /// Streams that are open: what was granted and is taken back ends with its leases.
        open: u16,
    },
    /// The keeper's answer; valid for 5 seconds.
    StreamsGranted {
        /// The upstream.
        upstream: Upstream,
        /// The blob whose steward asked.
        blob: Digest,
        /// How many streams it may have open.
        streams: u16,
    },

    // Neighbours in a mesh.
    /// What the sender has of a blob: offers or accepts to be neighbours.
    Offer {
        /// The blob.
        blob: Digest,
        /// Manifest or not.
        kind: BlobKind,
        /// Its size, where the sender knows it.
        size: Option<u64>,
        /// What the sender has.
        have: Bitfield,
        /// Whether this answers the receiver's own offer.
        answer: bool,
    },
    /// The sender is not, or no longer, a neighbour in this blob's mesh.
    Part {
        /// The blob.
        blob: Digest,
    },
    /// Chunks that the sender got since it last said so.
    Have {
        /// The chunks of each blob.
        #[serde(with = "few")]
        news: SmallVec<[News; 1]>,
        /// How long a request would wait in the sender's upload queue, in milliseconds.
        queue_ms: u32,
    },
    /// Send me this chunk.
    Request {
        /// The blob.
        blob: Digest,
        /// The chunk.
        index: u32,
    },
    /// The request waits in the upload queue for about so long.
    Queued {
        /// The blob.
        blob: Digest,
        /// The chunk.
        index: u32,
        /// Milliseconds.
        delay_ms: u32,
    },
    /// The upload queue is full.
    Busy {
        /// The blob.
        blob: Digest,
        /// The chunk.
        index: u32,
        /// When to ask this node again, in milliseconds.
        retry_ms: u32,
    },
    /// The sender has given that chunk to others already, and gives those first that it has not.
    Elsewhere {
        /// The blob.
        blob: Digest,
        /// The chunk.
        index: u32,
        /// When to ask this node for it again, in milliseconds.
        retry_ms: u32,
    },
    /// The sender does not have that chunk (any more).
    Missing {
        /// The blob.
        blob: Digest,
        /// The chunk.
        index: u32,
    },
    /// The chunk is no longer wanted.
    Cancel {
        /// The blob.
        blob: Digest,
        /// The chunk.
        index: u32,
    },
    /// The bytes that the receiver sent do not match their attestation.
    Corrupt {
        /// The blob.
        blob: Digest,
        /// The chunk.
        index: u32,
    },

    // Blame.
    /// The whole does not have its digest: asks the receiver for an audit.
    Mismatch {
        /// The blob.
        blob: Digest,
        /// Manifest or not.
        kind: BlobKind,
        /// Its size.
        size: u64,
        /// Where it may be read.
        hints: Vec<Hint>,
    },
    /// The result of an audit: the hashes of all chunks of the blob whose digest did match, in
    /// order. None at all: what the origin gives does not have the digest either.
    Audited {
        /// The blob.
        blob: Digest,
        /// The chunks' hashes.
        hashes: Vec<ChunkHash>,
    },
    /// A signed hash that contradicts a blob; whoever has verified that blob can check it.
    Proof {
        /// The blob.
        blob: Digest,
        /// The chunk.
        index: u32,
        /// The lie.
        attestation: Attestation,
    },

    // Tags.
    /// What does this tag name?
    AskTag {
        /// The tag.
        key: TagKey,
    },
    /// The answer.
    Tag {
        /// The tag.
        key: TagKey,
        /// What is known of it.
        answer: TagAnswer,
    },

    /// The sender's operator has imported an image under this tag. Told to every member, so that any
    /// of them can answer where no origin does.
    TagImported {
        /// The tag.
        key: TagKey,
        /// What it names; `asked_by` is the sender, `asked_at` when it was imported.
        record: TagRecord,
    },

    // Statistics.
    /// Asks for the receiver's own statistics.
    AskStats {
        /// Given back with the answer.
        id: u64,
    },
    /// The answer, JSON as the admin endpoint serves it.
    Stats {
        /// From the question.
        id: u64,
        /// The JSON text.
        json: Bytes,
    },

    // Keeper of an upstream's logins.
    /// Asks the keeper of an upstream for a token.
    AskToken {
        /// Given back with the answer.
        id: u64,
        /// What it is to be good for.
        key: TokenKey,
        /// The token that the registry does not accept any more, where that is why one is needed.
        rejected: Option<TokenHash>,
        /// Whether one that was got without credentials will do: the sender has none either.
        anonymous: bool,
    },
    /// The answer.
    Token {
        /// From the question.
        id: u64,
        /// The token, if there is one.
        answer: TokenAnswer,
    },
    /// A token for the keeper to give to the others: it had none, and the sender has logged in.
    OfferToken {
        /// What it is good for.
        key: TokenKey,
        /// The token.
        token: Token,
    },
}

impl<P> Message<P> {
    /// The same message with every node that it names spelled by `f`.
    pub fn map_peers<Q>(self, mut f: impl FnMut(P) -> Q) -> Message<Q> {
        match self {
            Self::Members { page, reply } => Message::Members {
                page: page
                    .into_iter()
                    .map(|entry| MemberEntry {
                        peer: f(entry.peer),
                        generation: entry.generation,
                        incarnation: entry.incarnation,
                        down: entry.down,
                    })
                    .collect(),
                reply,
            },
            Self::Welcome {
                blob,
                term,
                size,
                peers,
                failure,
            } => Message::Welcome {
                blob,
                term,
                size,
                peers: peers.into_iter().map(f).collect(),
                failure,
            },
            Self::Swim(packet) => Message::Swim(packet),
            Self::MembersHash(hash) => Message::MembersHash(hash),
            Self::Join {
                blob,
                kind,
                size,
                have,
                urgent,
                leases,
                upstreams,
                want_peers,
                takeover,
            } => Message::Join {
                blob,
                kind,
                size,
                have,
                urgent,
                leases,
                upstreams,
                want_peers,
                takeover,
            },
            Self::Acting { blob, term } => Message::Acting { blob, term },
            Self::Grant { blob, lease } => Message::Grant { blob, lease },
            Self::Report {
                blob,
                report,
                size,
                failure,
            } => Message::Report {
                blob,
                report,
                size,
                failure,
            },
            Self::Revoke { blob, lease } => Message::Revoke { blob, lease },
            Self::Lost { blob, chunks } => Message::Lost { blob, chunks },
            Self::Leave { blob } => Message::Leave { blob },
            Self::Announce { held, dropped } => Message::Announce { held, dropped },
            Self::StreamsWanted {
                upstream,
                blob,
                wanted,
                bytes,
                throttled,
                open,
            } => Message::StreamsWanted {
                upstream,
                blob,
                wanted,
                bytes,
                throttled,
                open,
            },
            Self::StreamsGranted {
                upstream,
                blob,
                streams,
            } => Message::StreamsGranted {
                upstream,
                blob,
                streams,
            },
            Self::Offer {
                blob,
                kind,
                size,
                have,
                answer,
            } => Message::Offer {
                blob,
                kind,
                size,
                have,
                answer,
            },
            Self::Part { blob } => Message::Part { blob },
            Self::Have { news, queue_ms } => Message::Have { news, queue_ms },
            Self::Request { blob, index } => Message::Request { blob, index },
            Self::Queued {
                blob,
                index,
                delay_ms,
            } => Message::Queued {
                blob,
                index,
                delay_ms,
            },
            Self::Busy {
                blob,
                index,
                retry_ms,
            } => Message::Busy {
                blob,
                index,
                retry_ms,
            },
            Self::Elsewhere {
                blob,
                index,
                retry_ms,
            } => Message::Elsewhere {
                blob,
                index,
                retry_ms,
            },
            Self::Missing { blob, index } => Message::Missing { blob, index },
            Self::Cancel { blob, index } => Message::Cancel { blob, index },
            Self::Corrupt { blob, index } => Message::Corrupt { blob, index },
            Self::Mismatch {
                blob,
                kind,
                size,
                hints,
            } => Message::Mismatch {
                blob,
                kind,
                size,
                hints,
            },
            Self::Audited { blob, hashes } => Message::Audited { blob, hashes },
            Self::Proof {
                blob,
                index,
                attestation,
            } => Message::Proof {
                blob,
                index,
                attestation,
            },
            Self::AskTag { key } => Message::AskTag { key },
            Self::Tag { key, answer } => Message::Tag { key, answer },
            Self::TagImported { key, record } => Message::TagImported { key, record },
            Self::AskStats { id } => Message::AskStats { id },
            Self::Stats { id, json } => Message::Stats { id, json },
            Self::AskToken {
                id,
                key,
                rejected,
                anonymous,
            } => Message::AskToken {
                id,
                key,
                rejected,
                anonymous,
            },
            Self::Token { id, answer } => Message::Token { id, answer },
            Self::OfferToken { key, token } => Message::OfferToken { key, token },
        }
    }
}

/// What stands before the bytes of a chunk on the bulk connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkHeader {
    /// The blob.
    pub blob: Digest,
    /// The chunk.
    pub index: u32,
    /// The size of the whole blob, so that a receiver that did not know it can store the chunk.
    pub size: u64,
    /// Who vouches for the chunk; its length is in it.
    pub attestation: Attestation,
    /// Where the chunk follows as a zstd frame, the bytes of that frame: fewer than the chunk's.
    pub packed: Option<u32>,
}

impl ChunkHeader {
    /// How many bytes follow the header.
    pub fn wire_len(&self) -> u32 {
        self.packed.unwrap_or(self.attestation.len)
    }
}

/// Short lists, as the longer ones are written. `SmallVec` could do it itself, but would set aside as
/// much memory as whoever wrote the length says.
mod few {
    use std::{fmt, marker::PhantomData};

    use serde::{
        Deserialize, Deserializer, Serialize, Serializer,
        de::{SeqAccess, Visitor},
    };
    use smallvec::{Array, SmallVec};

    pub(super) fn serialize<A: Array, S: Serializer>(
        items: &SmallVec<A>,
        serializer: S,
    ) -> Result<S::Ok, S::Error>
    where
        A::Item: Serialize,
    {
        serializer.collect_seq(items)
    }

    pub(super) fn deserialize<'de, A: Array, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<SmallVec<A>, D::Error>
    where
        A::Item: Deserialize<'de>,
    {
        struct Items<A>(PhantomData<A>);

        impl<'de, A: Array> Visitor<'de> for Items<A>
        where
            A::Item: Deserialize<'de>,
        {
            type Value = SmallVec<A>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<S: SeqAccess<'de>>(self, mut list: S) -> Result<Self::Value, S::Error> {
                let mut items = SmallVec::new();
                while let Some(item) = list.next_element()? {
                    items.push(item);
                }
                Ok(items)
            }
        }

        deserializer.deserialize_seq(Items(PhantomData))
    }
}

/// How a node is named on the wire.
pub type WireMessage = Message<NodeRecord>;
