//! What waits to be sent to one peer, and what is expected from it.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use shoal_protocol::{digest::Digest, directory::Peer, message::ChunkHeader};
use tokio::sync::{Notify, oneshot};

use super::{
    SendError,
    limits::{OUTBOX_BYTES_MAX, OUTBOX_CHUNKS_MAX, OUTBOX_MESSAGES_MAX},
};

/// Locks what no thread can leave half-changed.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What an outbox holds.
pub(super) trait Load {
    /// Bytes that count against the outbox's bound.
    fn size(&self) -> usize;
}

/// An encoded message.
impl Load for Vec<u8> {
    fn size(&self) -> usize {
        self.len()
    }
}

/// A chunk to be sent, and who waits for it to be gone.
pub(super) struct ChunkJob {
    pub(super) header: ChunkHeader,
    pub(super) bytes: Bytes,
    pub(super) done: oneshot::Sender<Result<(), SendError>>,
}

impl Load for ChunkJob {
    fn size(&self) -> usize {
        // Whoever waits for the chunk holds its bytes anyway; their number is what is bounded.
        0
    }
}

/// A bounded queue that survives the connections that drain it.
pub(super) struct Outbox<T> {
    queue: Mutex<Queue<T>>,
    filled: Notify,
    length_max: usize,
}

struct Queue<T> {
    items: VecDeque<T>,
    bytes: usize,
    /// Whether a connection drains it.
    served: bool,
}

/// What became of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pushed {
    /// It goes out with what is served already.
    Queued,
    /// It waits for a connection.
    NeedsConnection,
    /// The outbox is full; it was not taken.
    Full,
}

impl<T: Load> Outbox<T> {
    fn new(length_max: usize) -> Self {
        Self {
            queue: Mutex::new(Queue {
                items: VecDeque::new(),
                bytes: 0,
                served: false,
            }),
            filled: Notify::new(),
            length_max,
        }
    }

    pub(super) fn push(&self, item: T) -> (Pushed, Option<T>) {
        let mut queue = lock(&self.queue);
        if queue.items.len() >= self.length_max || queue.bytes + item.size() > OUTBOX_BYTES_MAX {
            return (Pushed::Full, Some(item));
        }
        queue.bytes += item.size();
        queue.items.push_back(item);
        let served = queue.served;
        drop(queue);
        self.filled.notify_one();
        if served {
            (Pushed::Queued, None)
        } else {
            (Pushed::NeedsConnection, None)
        }
    }

    /// The next item, when there is one.
    pub(super) async fn pop(&self) -> T {
        loop {
            if let Some(item) = self.try_pop() {
                return item;
            }
            self.filled.notified().await;
        }
    }

    /// The next item, if there is one.
    pub(super) fn try_pop(&self) -> Option<T> {
        let mut queue = lock(&self.queue);
        let item = queue.items.pop_front()?;
        queue.bytes -= item.size();
        Some(item)
    }

    pub(super) fn clear(&self) -> Vec<T> {
        let mut queue = lock(&self.queue);
        queue.bytes = 0;
        queue.items.drain(..).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.queue).items.is_empty()
    }

    pub(super) fn set_served(&self, served: bool) {
        lock(&self.queue).served = served;
    }
}

/// All that this node has to do with one peer, whether connected or not.
pub(super) struct Mailbox {
    pub(super) messages: Outbox<Vec<u8>>,
    pub(super) chunks: Outbox<ChunkJob>,
    /// Chunks that may come. Bounded by what the core keeps outstanding.
    expected: Mutex<HashSet<(Digest, u32)>>,
}

impl Mailbox {
    fn new() -> Self {
        Self {
            messages: Outbox::new(OUTBOX_MESSAGES_MAX),
            chunks: Outbox::new(OUTBOX_CHUNKS_MAX),
            expected: Mutex::default(),
        }
    }

    pub(super) fn expect(&self, blob: Digest, index: u32) {
        lock(&self.expected).insert((blob, index));
    }

    /// Whether the chunk was expected; it is not any more.
    pub(super) fn unexpect(&self, blob: Digest, index: u32) -> bool {
        lock(&self.expected).remove(&(blob, index))
    }
}

/// The mailboxes of all peers that this process ever dealt with: a few hundred bytes each.
#[derive(Default)]
pub(super) struct Mailboxes(Mutex<HashMap<Peer, Arc<Mailbox>>>);

impl Mailboxes {
    pub(super) fn of(&self, peer: Peer) -> Arc<Mailbox> {
        let mut boxes = lock(&self.0);
        Arc::clone(
            boxes
                .entry(peer)
                .or_insert_with(|| Arc::new(Mailbox::new())),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outbox_is_bounded_by_number_and_by_bytes() {
        let outbox = Outbox::new(2);
        assert_eq!(outbox.push(b"a".to_vec()).0, Pushed::NeedsConnection);
        outbox.set_served(true);
        assert_eq!(outbox.push(b"b".to_vec()).0, Pushed::Queued);
        assert_eq!(outbox.push(b"c".to_vec()).0, Pushed::Full);
        assert_eq!(outbox.try_pop().unwrap(), b"a");
        let large = vec![0; OUTBOX_BYTES_MAX];
        assert_eq!(outbox.push(large.clone()).0, Pushed::Full);
        assert_eq!(outbox.try_pop().unwrap(), b"b");
        assert_eq!(outbox.push(large).0, Pushed::Queued);
    }
}
