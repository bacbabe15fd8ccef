//! How the driver learns what readers wait for.

use shoal_protocol::digest::Digest;
use tokio::{
    runtime::Handle,
    sync::mpsc::{self, error::TrySendError},
};

/// What a reader wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DemandEvent {
    /// A reader of a blob that is not complete waits for, or moves into, a chunk.
    At {
        /// The blob.
        blob: Digest,
        /// The reader.
        reader: u64,
        /// The chunk it is at.
        chunk: u32,
        /// One past the last chunk it wants.
        end_chunk: u32,
    },
    /// A reader that was somewhere has ended or was dropped.
    Gone {
        /// The blob.
        blob: Digest,
        /// The reader.
        reader: u64,
    },
}

/// A reader's line to the driver, on a channel that all readers share.
///
/// No event that matters is lost when the channel is full. A reader that waits goes on trying to
/// say for what, and a reader that is dropped leaves one task behind that delivers its
/// [`Gone`](DemandEvent::Gone): at most one for each reader that there was, gone as soon as the
/// driver drains the channel. Only the news that a reader moved on without waiting may be skipped.
#[derive(Debug)]
pub struct Demand {
    events: mpsc::Sender<DemandEvent>,
    reader: u64,
}

/// A [`Demand`] in use: says `Gone` when dropped, if it ever said anything.
pub(super) struct Line {
    demand: Demand,
    blob: Digest,
    end_chunk: u32,
    /// The chunk that the driver was last told of.
    told: Option<u32>,
}

impl Demand {
    /// A line for the reader that the driver calls `reader`.
    pub fn new(events: mpsc::Sender<DemandEvent>, reader: u64) -> Self {
        Self { events, reader }
    }
}

impl Line {
    pub(super) fn new(demand: Demand, blob: Digest, end_chunk: u32) -> Self {
        Self {
            demand,
            blob,
            end_chunk,
            told: None,
        }
    }

    /// Says that the reader moves into a chunk, if there is room to say so.
    pub(super) fn moves_into(&mut self, chunk: u32) {
        if self.told != Some(chunk) && self.demand.events.try_send(self.at(chunk)).is_ok() {
            self.told = Some(chunk);
        }
    }

    /// Says that the reader waits for a chunk. Returns once it is said; may be dropped before.
    pub(super) async fn waits_for(&mut self, chunk: u32) {
        if self.told == Some(chunk) {
            return;
        }
        if let Ok(permit) = self.demand.events.reserve().await {
            permit.send(self.at(chunk));
        }
        // With no driver there is nobody to tell, now or later.
        self.told = Some(chunk);
    }

    fn at(&self, chunk: u32) -> DemandEvent {
        DemandEvent::At {
            blob: self.blob,
            reader: self.demand.reader,
            chunk,
            end_chunk: self.end_chunk,
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.told.is_none() {
            return;
        }
        let gone = DemandEvent::Gone {
            blob: self.blob,
            reader: self.demand.reader,
        };
        if let Err(TrySendError::Full(gone)) = self.demand.events.try_send(gone)
            && let Ok(runtime) = Handle::try_current()
        {
            let events = self.demand.events.clone();
            runtime.spawn(async move {
                // An error means that there is no driver any more.
                let _ = events.send(gone).await;
            });
        }
    }
}
