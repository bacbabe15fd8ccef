//! The registry: how it answers, and what it counts.

use std::collections::BTreeMap;

use shoal_protocol::{
    event::Event,
    message::{BlobKind, Lease, OriginFailure},
};

use super::{
    Happening, World,
    chunks::{Arrival, Bytes, Tag},
};
use crate::{
    host::BlobIndex,
    net::{NodeIndex, StreamId},
    scenario,
};

/// A read under a lease.
#[derive(Debug)]
pub(super) struct OriginRead {
    host: NodeIndex,
    epoch: u32,
    blob: BlobIndex,
    lease: Lease,
    /// The next chunk that the origin sends.
    next: u32,
    stream: Option<StreamId>,
}

/// What the origin does, and the reads that it is asked for.
#[derive(Debug)]
pub(super) struct Registry {
    reads: BTreeMap<u32, OriginRead>,
    numbers: u32,
    /// Reads that it answers now.
    open: usize,
    pub(super) away: bool,
    /// It answers this instead.
    pub(super) refuses: Option<OriginFailure>,
}

impl Registry {
    pub(super) fn new(origin: &scenario::Origin) -> Self {
        Self {
            reads: BTreeMap::new(),
            numbers: 0,
            open: 0,
            away: origin.away,
            refuses: None,
        }
    }
}

impl World {
    /// A host begins to read a lease.
    pub(super) fn read_origin(&mut self, host: NodeIndex, blob: BlobIndex, lease: Lease) {
        self.registry.numbers += 1;
        let number = self.registry.numbers;
        let read = OriginRead {
            host,
            epoch: self.hosts[host].epoch,
            blob,
            lease,
            next: lease.first,
            stream: None,
        };
        self.registry.reads.insert(number, read);
        self.hosts[host].reads.insert((blob, lease.id), number);
        let first_byte = self.scenario.origin.first_byte.as_nanos() as u64;
        let at = self.net.now() + 2 * self.net.latency(host, self.origin) + first_byte;
        self.net.at(at, Happening::Answer(number));
    }

    pub(super) fn origin_answers(&mut self, number: u32) {
        let Some(read) = self.registry.reads.get(&number) else {
            return;
        };
        let (id, blob) = (read.host, read.blob);
        let most = self.scenario.origin.streams_max.unwrap_or(usize::MAX);
        let refusal = if self.registry.away {
            Some(OriginFailure::Failed("connection refused".to_owned()))
        } else if self.registry.refuses.is_some() {
            self.registry.refuses.clone()
        } else if self.registry.open >= most {
            Some(OriginFailure::Throttled {
                retry_ms: Some(1000),
            })
        } else {
            None
        };
        if refusal.is_some() {
            self.checkers.refused += 1;
            self.read_ended(number, refusal);
            return;
        }
        self.registry.open += 1;
        let kind = self.content.blob(blob).kind;
        let size = self.content.blob(blob).size;
        self.checkers
            .origin_request(self.registry.open, kind == BlobKind::Manifest);
        let knew = self.hosts[id]
            .blob(blob)
            .is_some_and(|stored| stored.size.is_some());
        if !knew {
            let digest = self.content.blob(blob).digest;
            self.sized(id, blob, size);
            self.feed(id, Event::Sized { blob: digest, size });
        }
        // The machine may have thought better of it.
        let Some(read) = self.registry.reads.get_mut(&number) else {
            return;
        };
        let chunks = self.content.blob(blob).geometry().chunks();
        read.lease.end = read.lease.end.min(chunks);
        let index = read.next;
        let rate = self.scenario.origin.stream_rate.unwrap_or(f64::INFINITY);
        let len = u64::from(self.content.chunk_len(blob, index)).max(1);
        let tag = Tag::Origin {
            read: number,
            index,
        };
        read.next += 1;
        let stream = self.net.start_paced(self.origin, id, len, tag, rate);
        if let Some(read) = self.registry.reads.get_mut(&number) {
            read.stream = Some(stream);
        }
    }

    /// A chunk of a read has left the origin: the answer goes on with the next.
    pub(super) fn origin_sent(&mut self, id: StreamId, number: u32) {
        let Some(read) = self.registry.reads.get_mut(&number) else {
            return;
        };
        if read.next < read.lease.end {
            let index = read.next;
            read.next += 1;
            let len = u64::from(self.content.blob(read.blob).geometry().len(index));
            let tag = Tag::Origin {
                read: number,
                index,
            };
            self.net.extend(id, len, tag);
        }
    }

    pub(super) fn origin_progress(&mut self, number: u32, bytes: u64) {
        let Some(read) = self.registry.reads.get(&number) else {
            return;
        };
        let progress = Event::OriginProgress {
            blob: self.content.blob(read.blob).digest,
            lease: read.lease.id,
            bytes,
        };
        let host = read.host;
        self.feed(host, progress);
    }

    /// A chunk of a read is in: hashed while it came, signed, and being written.
    pub(super) fn origin_read(&mut self, number: u32, index: u32) {
        let Some(read) = self.registry.reads.get(&number) else {
            return;
        };
        let last = index + 1 >= read.lease.end;
        let (host, blob) = (read.host, read.blob);
        self.hosts[host].from_origin += u64::from(self.content.chunk_len(blob, index));
        let lies = self.hosts[host].lies.as_holder;
        let kind = self.content.blob(blob).kind;
        let arrival = Arrival {
            host,
            epoch: read.epoch,
            blob,
            index,
            from: None,
            signer: if self.liars { host as u32 } else { u32::MAX },
            bytes: if lies && kind == BlobKind::Blob {
                Bytes::Wrong
            } else {
                Bytes::Right
            },
            read: Some((number, last)),
        };
        self.checked_and_written(arrival);
    }

    /// The whole range is read, or cannot be.
    pub(super) fn read_ended(&mut self, number: u32, failure: Option<OriginFailure>) {
        let Some(read) = self.registry.reads.get(&number) else {
            return;
        };
        let (host, key) = (read.host, (read.blob, read.lease.id));
        let ended = Event::OriginEnded {
            blob: self.content.blob(read.blob).digest,
            lease: read.lease.id,
            failure,
        };
        self.hosts[host].reads.remove(&key);
        self.stop_read(number);
        self.feed(host, ended);
    }

    /// A read is broken off.
    pub(super) fn stop_read(&mut self, number: u32) {
        if let Some(read) = self.registry.reads.remove(&number)
            && let Some(stream) = read.stream
        {
            self.registry.open -= 1;
            self.net.cancel(stream);
        }
    }

    /// All reads of a host, of one blob or of all, are broken off.
    pub(super) fn stop_reads(&mut self, host: NodeIndex, of: Option<BlobIndex>) {
        let reads = &mut self.hosts[host].reads;
        let concerned = |blob: BlobIndex| of.is_none_or(|of| of == blob);
        let stopped: Vec<u32> = reads
            .iter()
            .filter(|((blob, _), _)| concerned(*blob))
            .map(|(_, number)| *number)
            .collect();
        reads.retain(|(blob, _), _| !concerned(*blob));
        for number in stopped {
            self.stop_read(number);
        }
    }

    /// The origin goes away: what it is sending breaks off.
    pub(super) fn origin_leaves(&mut self) {
        self.registry.away = true;
        let answered: Vec<u32> = self
            .registry
            .reads
            .iter()
            .filter(|(_, read)| read.stream.is_some())
            .map(|(number, _)| *number)
            .collect();
        for number in answered {
            let failure = OriginFailure::Failed("connection reset".to_owned());
            self.read_ended(number, Some(failure));
        }
    }
}
