//! Chunks on their way between stores.

use shoal_protocol::{core::Core, event::Event};

use super::{Happening, World, connections::RESET, peer};
use crate::{
    host::{BlobIndex, State},
    net::{NodeIndex, StreamId},
};

/// Names a stream of bulk bytes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Tag {
    /// One chunk between two nodes.
    Chunk {
        from: u32,
        to: u32,
        blob: BlobIndex,
        index: u32,
        /// Who signed it; `u32::MAX` where nobody asks.
        signer: u32,
        bytes: Bytes,
    },
    /// A chunk of an origin read.
    Origin { read: u32, index: u32 },
}

/// What the bytes of a chunk are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bytes {
    Right,
    /// Not the blob's, though their signer vouches for them.
    Wrong,
    /// Not what the signer vouches for.
    Corrupt,
}

/// A chunk that is in and being checked and written.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) host: NodeIndex,
    pub(super) epoch: u32,
    pub(super) blob: BlobIndex,
    pub(super) index: u32,
    /// `None` from the origin.
    pub(super) from: Option<NodeIndex>,
    pub(super) signer: u32,
    pub(super) bytes: Bytes,
    /// The origin read that it is part of, and whether it is the read's last.
    pub(super) read: Option<(u32, bool)>,
}

impl World {
    // --- out ---

    /// A machine wants a chunk sent: it is read from the disk first.
    pub(super) fn send_chunk(
        &mut self,
        from: NodeIndex,
        to: NodeIndex,
        blob: BlobIndex,
        index: u32,
    ) {
        let has = self.hosts[from]
            .blob(blob)
            .is_some_and(|stored| stored.have.contains(index));
        // What an audit made a host drop may still be promised to someone.
        self.checkers.ensure(has || self.liars, || {
            format!("node {from} sends chunk {index}, which it does not have")
        });
        let len = f64::from(self.content.chunk_len(blob, index));
        let now = self.net.now();
        let host = &mut self.hosts[from];
        host.sending += 1;
        self.checkers.sending(from, host.sending);
        host.read_at = host.read_at.max(now) + (len / self.scenario.machine.disk_read * 1e9) as u64;
        let send = Happening::Send {
            from: from as u32,
            epoch: host.epoch,
            to: to as u32,
            blob,
            index,
        };
        let at = host.read_at;
        self.net.at(at, send);
    }

    pub(super) fn transmit(&mut self, from: NodeIndex, to: NodeIndex, blob: BlobIndex, index: u32) {
        let Some(stored) = self.hosts[from].blob(blob) else {
            return;
        };
        let has = stored.have.contains(index);
        let signer = if stored.verified {
            Some(from)
        } else {
            stored.signer(index)
        };
        let bytes = if self.hosts[from].lies.as_server {
            Bytes::Corrupt
        } else if stored.wrong.contains(&index) {
            Bytes::Wrong
        } else {
            Bytes::Right
        };
        let tag = Tag::Chunk {
            from: from as u32,
            to: to as u32,
            blob,
            index,
            signer: signer.map_or(u32::MAX, |signer| signer as u32),
            bytes,
        };
        if !has || self.hosts[to].state == State::Down || !self.net.reaches(from, to) {
            self.unsent(tag);
        } else if self.bulk_stands(from, to, tag) {
            self.launch(tag);
        }
    }

    pub(super) fn launch(&mut self, tag: Tag) {
        if let Tag::Chunk {
            from,
            to,
            blob,
            index,
            ..
        } = tag
        {
            let len = u64::from(self.content.chunk_len(blob, index));
            self.net.start(from as usize, to as usize, len, tag);
        }
    }

    /// A chunk that could not be sent; its sender is told so soon.
    pub(super) fn unsent(&mut self, tag: Tag) {
        if let Tag::Chunk {
            from,
            to,
            blob,
            index,
            ..
        } = tag
        {
            self.sends_one_less(from);
            let unsent = Event::ChunkUnsent {
                to: peer(to as usize),
                blob: self.content.blob(blob).digest,
                index,
            };
            self.fact(RESET, from as usize, unsent);
        }
    }

    fn sends_one_less(&mut self, host: u32) {
        let sending = &mut self.hosts[host as usize].sending;
        *sending = sending.saturating_sub(1);
    }

    /// The last byte of a chunk has left its sender.
    pub(super) fn left(&mut self, id: StreamId, tag: Tag) {
        match tag {
            Tag::Chunk {
                from,
                to,
                blob,
                index,
                ..
            } => {
                self.sends_one_less(from);
                let sent = Event::ChunkSent {
                    to: peer(to as usize),
                    blob: self.content.blob(blob).digest,
                    index,
                };
                self.feed(from as usize, sent);
            }
            Tag::Origin { read, .. } => self.origin_sent(id, read),
        }
    }

    // --- in ---

    pub(super) fn progress(&mut self, tag: Tag, bytes: u64) {
        match tag {
            Tag::Chunk {
                from,
                to,
                blob,
                index,
                ..
            } => {
                let expected = (from as usize, blob, index);
                if self.hosts[to as usize].expected.contains(&expected) {
                    let from = peer(from as usize);
                    let blob = self.content.blob(blob).digest;
                    self.feed(to as usize, Event::ChunkProgress { from, blob, index });
                }
            }
            Tag::Origin { read, .. } => self.origin_progress(read, bytes),
        }
    }

    /// The last byte of a chunk is in.
    pub(super) fn read(&mut self, tag: Tag, bytes: u64) {
        match tag {
            Tag::Chunk {
                from,
                to,
                blob,
                index,
                signer,
                bytes: content,
            } => {
                let (from, to) = (from as usize, to as usize);
                let len = u64::from(self.content.chunk_len(blob, index));
                let expected = self.hosts[to].expected.contains(&(from, blob, index));
                self.checkers.chunk(len, expected);
                if !expected && self.hosts[to].withdrawn.remove(&(from, blob, index)) {
                    self.checkers.uncancelled += 1;
                }
                if expected {
                    self.checked_and_written(Arrival {
                        host: to,
                        epoch: self.hosts[to].epoch,
                        blob,
                        index,
                        from: Some(from),
                        signer,
                        bytes: content,
                        read: None,
                    });
                }
            }
            Tag::Origin { read, index } => {
                self.origin_progress(read, bytes);
                self.origin_read(read, index);
            }
        }
    }

    /// Hashing a chunk takes a core, of which there are enough; writing it takes the disk.
    pub(super) fn checked_and_written(&mut self, arrival: Arrival) {
        let machine = &self.scenario.machine;
        let len = f64::from(self.content.chunk_len(arrival.blob, arrival.index));
        let checked = self.net.now() + (len / machine.blake3 * 1e9) as u64;
        let host = &mut self.hosts[arrival.host];
        host.written_at = host.written_at.max(checked) + (len / machine.disk_write * 1e9) as u64;
        let at = host.written_at;
        self.net.at(at, Happening::Stored(Box::new(arrival)));
    }

    pub(super) fn stored(&mut self, arrival: Arrival) {
        let Arrival {
            host: id,
            epoch,
            blob: index_of_blob,
            index,
            from,
            signer,
            bytes,
            read,
        } = arrival;
        let host = &mut self.hosts[id];
        if host.epoch != epoch {
            return;
        }
        let blob = self.content.blob(index_of_blob).digest;
        let len = self.content.chunk_len(index_of_blob, index);
        let accepted = signer == u32::MAX || {
            let hash = super::trouble::hash(&blob, index, bytes == Bytes::Wrong);
            let accepts =
                |core: &mut Core| core.accepts(&blob, index, peer(signer as usize), &hash);
            self.machines.with(id, accepts) != Some(false)
        };
        if let (Some(from), true) = (from, bytes == Bytes::Corrupt || !accepted) {
            let rejected = Event::ChunkRejected {
                from: peer(from),
                blob,
                index,
                corrupt: bytes == Bytes::Corrupt,
            };
            self.checkers.rejected += 1;
            self.feed(id, rejected);
            return;
        }
        if host.full {
            self.abandon(id, index_of_blob);
            return;
        }
        let Some(stored) = host.blob_mut(index_of_blob) else {
            return;
        };
        let signer = (signer != u32::MAX).then_some(signer as usize);
        let now = self.net.now();
        stored.insert(index, signer, bytes != Bytes::Right);
        let host = &mut self.hosts[id];
        let since = host.progress_at.max(host.started_at.unwrap_or(now));
        host.progress_at = now;
        if !host.victim && !host.slow && host.done_at.is_none() {
            self.checkers.gap((now - since.min(now)) as f64 / 1e9);
        }
        self.goes_on(id, index_of_blob);
        self.feed(
            id,
            Event::ChunkStored {
                from: from.map(peer),
                blob,
                index,
                len,
            },
        );
        if let Some((read, true)) = read {
            self.read_ended(read, None);
        }
    }
}
