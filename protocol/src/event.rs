//! What goes into [`Core`](crate::core::Core) and what comes out.

use crate::{
    attest::Attestation,
    chunk::{Bitfield, ChunkHash},
    digest::Digest,
    directory::{NodeId, Peer},
    message::{
        BlobKind, Hint, Lease, LeaseId, Message, OriginFailure, TagAnswer, TagFailure, TagKey,
        TagRecord,
    },
};

/// A fact. Whatever happens outside comes in as one of these.
#[derive(Clone, Debug)]
pub enum Event {
    /// Nothing but that time has passed.
    Tick,

    // The network.
    /// A control connection to this admitted peer is up.
    Connected(Peer),
    /// The last connection to this peer is gone.
    Disconnected(Peer),
    /// Messages to this peer could not be delivered and were dropped.
    Unreachable(Peer),
    /// A peer said something.
    Message {
        /// Who.
        from: Peer,
        /// What.
        message: Message,
    },

    // What is wanted and held here.
    /// Someone on this node wants the whole blob. Again for a blob that is already pulled: one
    /// more hint.
    Pull {
        /// The blob.
        blob: Digest,
        /// Manifest or not.
        kind: BlobKind,
        /// Its size, where a verified manifest gave it or part of it is stored.
        size: Option<u64>,
        /// The chunks that are already stored.
        have: Option<Bitfield>,
        /// Where it may be read.
        hint: Hint,
    },
    /// A reader on this node waits for these chunks, in order.
    Reading {
        /// The blob.
        blob: Digest,
        /// Tells the readers of a blob apart.
        reader: u64,
        /// The chunk that it waits for.
        first: u32,
        /// One past the last chunk that it will want.
        end: u32,
    },
    /// A reader has ended.
    ReaderGone {
        /// The blob.
        blob: Digest,
        /// Which.
        reader: u64,
    },
    /// The store holds this verified blob.
    Held {
        /// The blob.
        blob: Digest,
        /// Manifest or not.
        kind: BlobKind,
        /// Its size in bytes.
        size: u64,
    },
    /// The store dropped this blob.
    Evicted {
        /// The blob.
        blob: Digest,
    },
    /// This node cannot store the blob; the pull is over here.
    Abandoned {
        /// The blob.
        blob: Digest,
    },
    /// A stored chunk was found rotten, or went missing.
    ChunkLost {
        /// The blob.
        blob: Digest,
        /// The chunk.
        index: u32,
    },

    // Chunks from peers.
    /// Some more bytes of a requested chunk came in.
    ChunkProgress {
        /// From whom.
        from: Peer,
        /// The blob.
        blob: Digest,
        /// The chunk.
        index: u32,
    },
    /// A chunk is checked against its attestation and stored.
    ChunkStored {
        /// From whom; `None` when this node read it from the origin.
        from: Option<Peer>,
        /// The blob.
        blob: Digest,
        /// The chunk.
        index: u32,
        /// Its length in bytes.
        len: u32,
    },
    /// A chunk was refused.
    ChunkRejected {
        /// From whom.
        from: Peer,
        /// The blob.
        blob: Digest,
        /// The chunk.
        index: u32,
        /// Whether it is the sender's or the way's fault; `false` when this node could not store
        /// it, or does not [accept](crate::core::Core::accepts) it: the sender may not know yet.
        corrupt: bool,
    },
    /// A chunk left this node.
    ChunkSent {
        /// To whom.
        to: Peer,
        /// The blob.
        blob: Digest,
        /// The chunk.
        index: u32,
    },
    /// A chunk could not be sent: it could not be read, or there is no way to its receiver.
    ChunkUnsent {
        /// To whom.
        to: Peer,
        /// The blob.
        blob: Digest,
        /// The chunk.
        index: u32,
    },

    // The origin.
    /// An origin's answer told the blob's size.
    Sized {
        /// The blob.
        blob: Digest,
        /// Its size in bytes.
        size: u64,
    },
    /// Bytes came in under a lease.
    OriginProgress {
        /// The blob.
        blob: Digest,
        /// The lease.
        lease: LeaseId,
        /// How many since the last report.
        bytes: u64,
    },
    /// The read under a lease is over. Its chunks were each reported as stored.
    OriginEnded {
        /// The blob.
        blob: Digest,
        /// The lease.
        lease: LeaseId,
        /// `None` when the whole range was read.
        failure: Option<OriginFailure>,
    },

    // Verification.
    /// All chunks are here and the whole has its digest.
    Verified {
        /// The blob.
        blob: Digest,
    },
    /// All chunks are here and the whole does not have its digest.
    Mismatched {
        /// The blob.
        blob: Digest,
        /// Who signed its chunks.
        signers: Vec<NodeId>,
    },
    /// These chunks were dropped, on request or because of an audit's result.
    Dropped {
        /// The blob.
        blob: Digest,
        /// The chunks that are left.
        have: Bitfield,
    },
    /// A signed hash contradicts a blob that this node has verified.
    Lied {
        /// Who signed it.
        signer: NodeId,
        /// The blob.
        blob: Digest,
        /// The chunk.
        index: u32,
        /// The lie.
        attestation: Attestation,
    },

    // Tags.
    /// Someone on this node asks what a tag names.
    ResolveTag {
        /// The tag.
        key: TagKey,
        /// What is stored of it here, with its age in seconds.
        known: Option<(TagRecord, u64)>,
    },
    /// An origin was asked, or could not be.
    TagAsked {
        /// The tag.
        key: TagKey,
        /// What it said.
        result: Result<TagRecord, TagFailure>,
        /// What is stored of the tag here, for when it could not be asked.
        known: Option<TagRecord>,
        /// What another node's operator has imported under it, for when nobody knows of an origin's word.
        imported: Option<Box<TagRecord>>,
        /// Set where the origin is to be read only for what nothing else can serve, with the reason: a
        /// tag that is known goes on naming what it named.
        spared: Option<String>,
    },
}

/// An effect. The driver alone causes these, in the order given.
#[derive(Clone, Debug)]
pub enum Action {
    /// Send a control message, connecting first where needed. Delivery is not promised.
    Send {
        /// To whom.
        to: Peer,
        /// What.
        message: Message,
    },
    /// Read a stored chunk and send it; report [`Event::ChunkSent`] or [`Event::ChunkUnsent`].
    SendChunk {
        /// To whom.
        to: Peer,
        /// The blob.
        blob: Digest,
        /// The chunk.
        index: u32,
    },
    /// Accept this chunk from this peer.
    Expect {
        /// From whom.
        from: Peer,
        /// The blob.
        blob: Digest,
        /// The chunk.
        index: u32,
    },
    /// No longer accept it.
    Unexpect {
        /// From whom.
        from: Peer,
        /// The blob.
        blob: Digest,
        /// The chunk.
        index: u32,
    },
    /// Read these chunks from the origin, in order, skipping those that are stored meanwhile.
    ReadOrigin {
        /// The blob.
        blob: Digest,
        /// Manifest or not.
        kind: BlobKind,
        /// The range. While the blob's size is unknown it is the first chunk, and the origin's
        /// answer is to be reported as [`Event::Sized`].
        lease: Lease,
        /// Where to read, each to be tried in order.
        hints: Vec<Hint>,
    },
    /// Stop reading under this lease; no [`Event::OriginEnded`] is needed.
    StopOrigin {
        /// The blob.
        blob: Digest,
        /// The lease.
        lease: LeaseId,
    },
    /// The size of a blob that is pulled became known: it can be stored from now on.
    Sized {
        /// The blob.
        blob: Digest,
        /// Manifest or not.
        kind: BlobKind,
        /// Its size in bytes.
        size: u64,
    },
    /// The pull is over without the blob.
    Failed {
        /// The blob.
        blob: Digest,
        /// Why.
        failure: OriginFailure,
    },
    /// Drop all that is stored of a blob.
    Discard {
        /// The blob.
        blob: Digest,
    },
    /// Drop every chunk that this node did not sign itself, and report [`Event::Dropped`].
    DropForeign {
        /// The blob.
        blob: Digest,
    },
    /// Drop every chunk whose hash is not the one given, keep the attestations of those as
    /// evidence, and report [`Event::Dropped`]. The machine itself does not
    /// [accept](crate::core::Core::accepts) such chunks anew.
    DropDiffering {
        /// The blob.
        blob: Digest,
        /// The hashes of the chunks, in order.
        hashes: Vec<ChunkHash>,
    },
    /// Send the hashes of this verified blob as [`Message::Audited`].
    SendHashes {
        /// To whom.
        to: Peer,
        /// The blob.
        blob: Digest,
    },
    /// Hash a stored chunk again; report [`Event::ChunkLost`] if it is rotten.
    CheckChunk {
        /// The blob.
        blob: Digest,
        /// The chunk.
        index: u32,
    },
    /// Check a lie against the verified blob, where it is held; report [`Event::Lied`] if it is
    /// one.
    CheckProof {
        /// The blob.
        blob: Digest,
        /// The chunk.
        index: u32,
        /// What may be a lie.
        attestation: Attestation,
    },
    /// Ask the origin what a tag names; report [`Event::TagAsked`].
    AskOrigin {
        /// The tag.
        key: TagKey,
    },
    /// The answer to [`Event::ResolveTag`].
    TagResolved {
        /// The tag.
        key: TagKey,
        /// What is known of it.
        answer: TagAnswer,
    },
    /// Cut all connections to this peer and admit it no more; it is proven to have lied.
    Ban {
        /// Who.
        peer: Peer,
        /// About which blob.
        blob: Digest,
    },
    /// A member came up, for the log.
    MemberUp(Peer),
    /// A member left or was declared dead, for the log.
    MemberDown(Peer),
    /// Something that an operator would want to read in the log.
    Note(String),
}
