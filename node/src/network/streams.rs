//! What is spoken on a stream: messages on one lane, chunks on the other, each one way.
//!
//! A message is a u32 length and so many bytes. A chunk is a u32 length, a header of so many bytes,
//! and the number of bytes that the header announces. Lengths are big-endian.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use shoal_protocol::{
    directory::{Directory, Peer},
    limits::CONTROL_FRAME_BYTES_MAX,
    time::Time,
    wire::{self, CHUNK_HEADER_BYTES_MAX, WireError},
};
use tokio::sync::mpsc;

use super::{
    NetworkEvent,
    limits::{
        PROGRESS_BYTES, PROGRESS_INTERVAL, SKIP_BUFFER_BYTES, UNEXPECTED_CHUNKS_MAX,
        WRITE_BATCH_BYTES,
    },
    outbox::{ChunkJob, Mailbox, Outbox},
};
use crate::{buffers::Buffer, clock::Clock};

/// How much of a chunk is written before the write counts as traffic.
const WRITE_BYTES: usize = 256 << 10;

/// How much memory is kept from one message that is read to the next: almost all are shorter.
const FRAME_BYTES_KEPT: usize = 4096;

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    /// The peer or the network closed it.
    #[error("{0}")]
    Closed(#[from] io::Error),
    /// The peer sent what no node of ours sends.
    #[error("{0}")]
    Garbage(#[from] WireError),
    /// The peer announced a frame over the bound.
    #[error("it announced a frame of {0} bytes, over {1}")]
    FrameTooLong(usize, usize),
    /// The peer sent chunk after chunk that nobody asked for.
    #[error("it sent {UNEXPECTED_CHUNKS_MAX} chunks in a row that nobody had asked for")]
    Unexpected,
    /// The driver is gone.
    #[error("this node is shutting down")]
    Shutdown,
}

impl StreamError {
    /// Whether the peer is to blame.
    pub(super) fn is_violation(&self) -> bool {
        matches!(
            self,
            Self::Garbage(_) | Self::FrameTooLong(..) | Self::Unexpected
        )
    }
}

/// When bytes last moved on a connection, in either direction.
#[derive(Clone)]
pub(super) struct Activity {
    clock: Clock,
    last: Arc<AtomicU64>,
}

impl Activity {
    pub(super) fn new(clock: Clock) -> Self {
        let activity = Self {
            clock,
            last: Arc::default(),
        };
        activity.note();
        activity
    }

    pub(super) fn note(&self) {
        let now = self.clock.now().as_nanos();
        self.last.store(now, Ordering::Relaxed);
    }

    /// How long ago that was.
    pub(super) fn idle(&self) -> Duration {
        let last = Time::from_nanos(self.last.load(Ordering::Relaxed));
        self.clock.now().since(last)
    }
}

/// What a reader needs besides its stream.
pub(super) struct Inlet {
    pub(super) from: Peer,
    pub(super) directory: Directory,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) events: mpsc::Sender<NetworkEvent>,
    pub(super) activity: Activity,
}

impl Inlet {
    /// Waits while the driver is behind, so that this stream is not read meanwhile.
    async fn emit(&self, event: NetworkEvent) -> Result<(), StreamError> {
        let sent = self.events.send(event).await;
        sent.map_err(|_| StreamError::Shutdown)
    }

    /// Hands on the messages of a control stream until it ends.
    pub(super) async fn read_messages<S>(self, mut stream: S) -> Result<(), StreamError>
    where
        S: AsyncRead + Unpin,
    {
        let mut frame = Vec::new();
        loop {
            read_frame(&mut stream, &mut frame, CONTROL_FRAME_BYTES_MAX).await?;
            self.activity.note();
            let message = wire::decode_message(&frame, &self.directory)?;
            // A long one must not keep its megabytes for good.
            frame.clear();
            frame.shrink_to(FRAME_BYTES_KEPT);
            let from = self.from;
            self.emit(NetworkEvent::Message { from, message }).await?;
        }
    }

    /// Hands on the expected chunks of a bulk stream until it ends.
    pub(super) async fn read_chunks<S>(self, mut stream: S) -> Result<(), StreamError>
    where
        S: AsyncRead + Unpin,
    {
        let mut unexpected = 0;
        let mut frame = Vec::new();
        loop {
            read_frame(&mut stream, &mut frame, CHUNK_HEADER_BYTES_MAX).await?;
            self.activity.note();
            let header = wire::decode_chunk_header(&frame)?;
            if !self.mailbox.unexpect(header.blob, header.index) {
                unexpected += 1;
                if unexpected >= UNEXPECTED_CHUNKS_MAX {
                    return Err(StreamError::Unexpected);
                }
                self.skip(&mut stream, header.wire_len()).await?;
                continue;
            }
            unexpected = 0;
            let mut bytes = Buffer::of(header.wire_len() as usize);
            let mut at = 0;
            let (mut told, mut told_at) = (0, self.activity.clock.now());
            while at < bytes.len() {
                at += read_some(&mut stream, &mut bytes[at..]).await?;
                self.activity.note();
                let received = at as u32;
                let now = self.activity.clock.now();
                if received - told >= PROGRESS_BYTES || now.since(told_at) >= PROGRESS_INTERVAL {
                    (told, told_at) = (received, now);
                    // Only a hint: where the driver is behind, it can do without.
                    let _ = self.events.try_send(NetworkEvent::ChunkProgress {
                        from: self.from,
                        blob: header.blob,
                        index: header.index,
                        received,
                        total: header.wire_len(),
                    });
                }
            }
            let bytes = bytes.freeze();
            let from = self.from;
            self.emit(NetworkEvent::Chunk {
                from,
                header,
                bytes,
            })
            .await?;
        }
    }

    async fn skip<S: AsyncRead + Unpin>(
        &self,
        stream: &mut S,
        length: u32,
    ) -> Result<(), StreamError> {
        let mut scratch = vec![0; SKIP_BUFFER_BYTES];
        let mut left = length as usize;
        while left > 0 {
            let part = left.min(scratch.len());
            left -= read_some(stream, &mut scratch[..part]).await?;
            self.activity.note();
        }
        Ok(())
    }
}

async fn read_some<S: AsyncRead + Unpin>(stream: &mut S, into: &mut [u8]) -> io::Result<usize> {
    match stream.read(into).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        count => Ok(count),
    }
}

/// Reads the next frame into `frame`, in the place of the one before.
async fn read_frame<S>(
    stream: &mut S,
    frame: &mut Vec<u8>,
    bytes_max: usize,
) -> Result<(), StreamError>
where
    S: AsyncRead + Unpin,
{
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    let length = u32::from_be_bytes(length) as usize;
    if length > bytes_max {
        return Err(StreamError::FrameTooLong(length, bytes_max));
    }
    frame.clear();
    frame.resize(length, 0);
    stream.read_exact(frame).await?;
    Ok(())
}

fn put_frame(out: &mut Vec<u8>, frame: &[u8]) {
    out.extend_from_slice(&(frame.len() as u32).to_be_bytes());
    out.extend_from_slice(frame);
}

/// Writes the messages of an outbox to a control stream until it breaks.
pub(super) async fn write_messages<S: AsyncWrite + Unpin>(
    mut stream: S,
    outbox: &Outbox<Vec<u8>>,
    activity: Activity,
) -> Result<(), StreamError> {
    let mut batch = Vec::new();
    loop {
        put_frame(&mut batch, &outbox.pop().await);
        while batch.len() < WRITE_BATCH_BYTES
            && let Some(message) = outbox.try_pop()
        {
            put_frame(&mut batch, &message);
        }
        stream.write_all(&batch).await?;
        stream.flush().await?;
        activity.note();
        batch.clear();
        // A burst must not keep its megabytes for good.
        batch.shrink_to(WRITE_BATCH_BYTES);
    }
}

/// Writes the chunks of an outbox to a bulk stream until it breaks.
pub(super) async fn write_chunks<S: AsyncWrite + Unpin>(
    mut stream: S,
    outbox: &Outbox<ChunkJob>,
    activity: Activity,
    damage: super::faults::Damage,
) -> Result<(), StreamError> {
    let mut head = Vec::new();
    loop {
        let job = outbox.pop().await;
        if job.done.is_closed() {
            // Whoever wanted it sent has given up.
            continue;
        }
        head.clear();
        put_frame(&mut head, &wire::encode(&job.header));
        stream.write_all(&head).await?;
        for part in damage.apply(job.bytes).chunks(WRITE_BYTES) {
            stream.write_all(part).await?;
            activity.note();
        }
        stream.flush().await?;
        // A waiter that is gone does not need to know.
        let _ = job.done.send(Ok(()));
    }
}
