//! Reading a leased range from the origin.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use shoal_protocol::{
    attest::Attestation,
    chunk::ChunkHash,
    digest::Digest,
    event::Event,
    limits::{CHUNK_BYTES, CHUNK_BYTES_MIN},
    message::{BlobKind, Hint, Lease, OriginFailure},
};
use tokio::{sync::watch, task::spawn_blocking};
use tokio_util::task::AbortOnDropHandle;

use super::{Driver, Fact, Parts};
use crate::{
    clock,
    metrics::OriginOutcome,
    origin::{OriginBody, OriginError},
    store::{Ahead, Blob, StoreError},
};

/// Bytes that are gathered before they are written: fewer, larger writes, and a client that reads
/// along still waits for no more than this.
const GATHER_BYTES: usize = 256 << 10;

/// Progress is reported no more often than this.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// How often a read goes on from another origin under one lease; then the steward decides.
const CONTINUATIONS_MAX: usize = 4;

/// Why a read under a lease ended.
enum End {
    Origin(OriginFailure),
    Store(StoreError),
    /// The daemon is stopping, or the pull is over.
    Gone,
}

impl Driver {
    /// Starts to read; aborted by dropping the handle that is kept for the lease.
    pub(super) fn read_origin(
        &mut self,
        blob: Digest,
        kind: BlobKind,
        lease: Lease,
        hints: Vec<Hint>,
    ) {
        let Some(fetch) = self.fetches.get(&blob) else {
            return;
        };
        let read = Read {
            parts: Arc::clone(&self.parts),
            slot: fetch.blob.subscribe(),
            blob,
            kind,
            lease,
        };
        let task = tokio::spawn(async move {
            let (parts, blob) = (Arc::clone(&read.parts), read.blob);
            let failure = match read.run(&hints).await {
                Ok(()) => None,
                Err(End::Origin(failure)) => Some(failure),
                Err(End::Store(error)) => {
                    let _ = parts.facts.send(Fact::StoreFailed { blob, error }).await;
                    return;
                }
                Err(End::Gone) => return,
            };
            let event = Event::OriginEnded {
                blob,
                lease: lease.id,
                failure,
            };
            let _ = parts.facts.send(Fact::Event(event)).await;
        });
        self.reads
            .insert((blob, lease.id), AbortOnDropHandle::new(task));
    }
}

struct Read {
    parts: Arc<Parts>,
    slot: watch::Receiver<Option<Arc<Blob>>>,
    blob: Digest,
    kind: BlobKind,
    lease: Lease,
}

impl Read {
    async fn run(mut self, hints: &[Hint]) -> Result<(), End> {
        let mut last = OriginFailure::NotFound;
        for hint in hints {
            match self.open(hint).await {
                Ok(body) => {
                    let body = self.fitting(body, hint).await?;
                    let outcome = self.take(body, hint).await;
                    self.count(outcome.as_ref().err());
                    return outcome;
                }
                Err(error) => {
                    // That an origin is away is said once.
                    if error.is_away() {
                        tracing::debug!("{error}");
                    } else {
                        tracing::info!("{error}");
                    }
                    self.parts.metrics.origin_request(outcome_of(&error));
                    last = OriginFailure::from(&error);
                    if !matches!(last, OriginFailure::NotFound | OriginFailure::Denied) {
                        break;
                    }
                }
            }
        }
        Err(End::Origin(last))
    }

    fn count(&self, end: Option<&End>) {
        let outcome = match end {
            None => OriginOutcome::Ok,
            Some(End::Origin(_)) => OriginOutcome::Cut,
            Some(End::Store(_) | End::Gone) => return,
        };
        self.parts.metrics.origin_request(outcome);
    }

    async fn open(&self, hint: &Hint) -> Result<OriginBody, OriginError> {
        let stored = self.slot.borrow().clone();
        let geometry = stored.as_ref().map(|stored| stored.geometry());
        let start = geometry.map_or(0, |geometry| geometry.range(self.lease.first).start);
        let end = match (self.kind, stored) {
            (BlobKind::Manifest, _) => None,
            // As much as any first chunk has; the answer tells how much it really is.
            (BlobKind::Blob, None) => Some(CHUNK_BYTES_MIN),
            (BlobKind::Blob, Some(stored)) => {
                // The whole of a blob needs no range, and some origins know none.
                let end = stored
                    .geometry()
                    .range(self.lease.end.saturating_sub(1))
                    .end;
                (start > 0 || end < stored.size()).then_some(end)
            }
        };
        self.parts
            .origins
            .read(&self.blob, self.kind, hint, start, end)
            .await
    }

    /// The first answer for a blob of unknown size tells its size, and so how long the first chunk
    /// is: where that is more than was asked for, the chunk is asked for again as a whole.
    async fn fitting(&mut self, body: OriginBody, hint: &Hint) -> Result<OriginBody, End> {
        let (None, Some(size)) = (self.slot.borrow().clone(), body.size) else {
            return Ok(body);
        };
        self.sized(size).await;
        let first = self.stored().await?.geometry().range(0);
        if body.whole || first.end <= CHUNK_BYTES_MIN {
            return Ok(body);
        }
        drop(body);
        self.open(hint)
            .await
            .map_err(|error| End::Origin(OriginFailure::from(&error)))
    }

    /// Takes in what the lease covers. Where a body breaks off and the upstream has another origin,
    /// that one is asked for what is missing, and nothing is read twice.
    async fn take(&mut self, mut body: OriginBody, hint: &Hint) -> Result<(), End> {
        if body.size.is_none() && self.slot.borrow().is_none() {
            return self.take_unsized(body.stream).await;
        }
        let stored = self.stored().await?;
        let geometry = stored.geometry();
        let last_byte = geometry
            .range(self.lease.end.min(geometry.chunks()) - 1)
            .end;
        let mut writer = Writer::new(self, &stored);
        for _ in 0..CONTINUATIONS_MAX {
            let failure = match self.fill(&mut writer, body, last_byte).await {
                Ok(()) => return writer.finish().await,
                Err(End::Origin(failure @ OriginFailure::Failed(_))) => failure,
                Err(end) => return Err(end),
            };
            if !self.parts.origins.has_several(&hint.upstream) {
                return Err(End::Origin(failure));
            }
            tracing::debug!("going on from another origin: {failure:?}");
            self.parts.metrics.origin_request(OriginOutcome::Cut);
            let next =
                self.parts
                    .origins
                    .read(&self.blob, self.kind, hint, writer.at(), Some(last_byte));
            body = next
                .await
                .map_err(|error| End::Origin(OriginFailure::from(&error)))?;
        }
        let failure = format!("the origins' answers for {} break off", self.blob);
        Err(End::Origin(OriginFailure::Failed(failure)))
    }

    /// Cuts the body into chunks; writes, signs and reports them, up to `last_byte` of the blob.
    async fn fill(&self, writer: &mut Writer, body: OriginBody, last_byte: u64) -> Result<(), End> {
        let OriginBody {
            start,
            whole,
            size,
            mut stream,
        } = body;
        let stored = Arc::clone(&writer.stored);
        if size.is_some_and(|size| size != stored.size()) {
            return Err(End::Origin(OriginFailure::Failed(format!(
                "the origin says that {} has {} bytes; its manifest says {}",
                self.blob,
                size.unwrap_or_default(),
                stored.size()
            ))));
        }
        // An origin that knows no ranges gives all of the blob. That is of use only to a lease that
        // goes on to the end; the steward makes it one.
        if whole && self.lease.end < stored.geometry().chunks() {
            return Err(End::Origin(OriginFailure::NoRanges));
        }
        let first_byte = writer.at();
        let mut at = start;
        let mut gathered = BytesMut::new();
        let mut broken = None;
        while at < last_byte {
            let piece = match stream.next().await {
                Some(Ok(piece)) => piece,
                Some(Err(error)) => {
                    broken = Some(OriginFailure::from(&error));
                    break;
                }
                None => break,
            };
            let skip = first_byte.saturating_sub(at).min(piece.len() as u64);
            let keep = (last_byte - at).min(piece.len() as u64);
            writer.progress += keep;
            at += keep;
            if skip < keep {
                gathered.extend_from_slice(&piece[skip as usize..keep as usize]);
            }
            if gathered.len() >= GATHER_BYTES || at >= last_byte || writer.reader_waits() {
                writer.write(gathered.split().freeze()).await?;
            }
        }
        writer.write(gathered.freeze()).await?;
        writer.report(true).await;
        if at >= last_byte {
            return Ok(());
        }
        Err(End::Origin(broken.unwrap_or_else(|| {
            OriginFailure::Failed(format!(
                "the origin's answer for {} ended {} bytes early",
                self.blob,
                last_byte - at
            ))
        })))
    }

    /// The origin does not say how long its answer is; only a manifest may be read so.
    async fn take_unsized(
        &mut self,
        mut stream: futures::stream::BoxStream<'static, Result<Bytes, OriginError>>,
    ) -> Result<(), End> {
        let mut bytes = BytesMut::new();
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(|error| End::Origin(OriginFailure::from(&error)))?;
            bytes.extend_from_slice(&piece);
            if bytes.len() as u64 > CHUNK_BYTES {
                return Err(End::Origin(OriginFailure::Failed(format!(
                    "the origin does not say how large {} is",
                    self.blob
                ))));
            }
        }
        self.sized(bytes.len() as u64).await;
        let stored = self.stored().await?;
        let mut writer = Writer::new(self, &stored);
        writer.progress = bytes.len() as u64;
        writer.write(bytes.freeze()).await?;
        writer.finish().await
    }

    async fn sized(&self, size: u64) {
        let event = Event::Sized {
            blob: self.blob,
            size,
        };
        let _ = self.parts.facts.send(Fact::Event(event)).await;
    }

    /// Waits until the blob can be stored.
    async fn stored(&mut self) -> Result<Arc<Blob>, End> {
        let slot = self
            .slot
            .wait_for(Option::is_some)
            .await
            .map_err(|_| End::Gone)?;
        slot.clone().ok_or(End::Gone)
    }
}

/// Writes a run of chunks in order.
struct Writer {
    parts: Arc<Parts>,
    stored: Arc<Blob>,
    /// The chunk being written, and its bytes so far.
    index: u32,
    chunk: Option<Hashed>,
    /// The first chunk that is not to be written.
    end: u32,
    lease: Lease,
    /// Bytes read and not yet reported, and when they last were.
    progress: u64,
    reported: std::time::Instant,
}

/// A chunk, hashed as it is written.
struct Hashed {
    ahead: Ahead,
    hasher: blake3::Hasher,
}

impl Writer {
    fn new(read: &Read, stored: &Arc<Blob>) -> Self {
        Self {
            parts: Arc::clone(&read.parts),
            stored: Arc::clone(stored),
            index: read.lease.first,
            chunk: None,
            end: read.lease.end.min(stored.geometry().chunks()),
            lease: read.lease,
            progress: 0,
            reported: clock::instant(),
        }
    }

    /// The first byte of the blob that is not written yet.
    fn at(&self) -> u64 {
        self.stored.geometry().range(self.index).start + u64::from(self.offset())
    }

    /// How much of the chunk is written.
    fn offset(&self) -> u32 {
        self.chunk.as_ref().map_or(0, |chunk| chunk.ahead.given())
    }

    /// Whether what is gathered is worth writing now, so that a client sees the first bytes early.
    fn reader_waits(&self) -> bool {
        self.offset() == 0
    }

    async fn write(&mut self, bytes: Bytes) -> Result<(), End> {
        let mut rest = bytes;
        #[cfg(feature = "faults")]
        if crate::faults::lies() {
            let mut wrong = BytesMut::from(&rest[..]);
            if let Some(byte) = wrong.first_mut() {
                *byte ^= 0x55;
            }
            rest = wrong.freeze();
        }
        while !rest.is_empty() && self.index < self.end {
            let len = self.stored.geometry().len(self.index);
            let piece = rest.split_to(rest.len().min((len - self.offset()) as usize));
            let mut chunk = self.begun()?;
            let written = spawn_blocking(move || {
                chunk.hasher.update(&piece);
                chunk.ahead.write(&piece).map(|()| chunk)
            });
            let chunk = written.await.map_err(|_| End::Gone)?.map_err(End::Store)?;
            if chunk.ahead.given() < len {
                self.chunk = Some(chunk);
            } else {
                self.commit(chunk).await?;
            }
        }
        self.report(false).await;
        Ok(())
    }

    /// The chunk being written.
    fn begun(&mut self) -> Result<Hashed, End> {
        if let Some(chunk) = self.chunk.take() {
            return Ok(chunk);
        }
        let ahead = self.stored.begin_ahead(self.index).map_err(End::Store)?;
        let hasher = blake3::Hasher::new();
        Ok(Hashed { ahead, hasher })
    }

    async fn commit(&mut self, chunk: Hashed) -> Result<(), End> {
        let Hashed { ahead, hasher } = chunk;
        let hash = ChunkHash(*hasher.finalize().as_bytes());
        let (index, len) = (self.index, ahead.given());
        let blob = self.stored.digest();
        let attestation = Attestation::sign(&self.parts.key, &blob, index, hash, len);
        let committed = spawn_blocking(move || ahead.commit(&attestation));
        let is_here = committed
            .await
            .map_err(|_| End::Gone)?
            .map_err(End::Store)?;
        self.index += 1;
        self.report(true).await;
        if is_here {
            let event = Event::ChunkStored {
                from: None,
                blob,
                index,
                len,
            };
            let _ = self.parts.facts.send(Fact::Event(event)).await;
        }
        Ok(())
    }

    async fn report(&mut self, now: bool) {
        let instant = clock::instant();
        if self.progress == 0 || (!now && instant.duration_since(self.reported) < PROGRESS_EVERY) {
            return;
        }
        self.reported = instant;
        let bytes = std::mem::take(&mut self.progress);
        let blob = self.stored.digest();
        self.parts.metrics.bytes_from_origin.add(bytes);
        self.parts.tallies.add_origin(blob, bytes);
        let event = Event::OriginProgress {
            blob,
            lease: self.lease.id,
            bytes,
        };
        let _ = self.parts.facts.send(Fact::Event(event)).await;
    }

    /// An empty blob has one chunk of no bytes.
    async fn finish(&mut self) -> Result<(), End> {
        if self.stored.size() == 0 && self.index == 0 && self.end > 0 {
            let empty = self.begun()?;
            self.commit(empty).await?;
        }
        self.report(true).await;
        Ok(())
    }
}

fn outcome_of(error: &OriginError) -> OriginOutcome {
    match error {
        OriginError::NotFound(_) => OriginOutcome::NotFound,
        OriginError::Denied(_) => OriginOutcome::Denied,
        OriginError::Throttled { .. } => OriginOutcome::Throttled,
        OriginError::Unreachable(_) => OriginOutcome::Unreachable,
        OriginError::Truncated { .. } => OriginOutcome::Cut,
        OriginError::Invalid(_) => OriginOutcome::Refused,
    }
}
