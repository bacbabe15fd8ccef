//! Room: what the blobs take, how much they may, and what goes when more is wanted.

use std::sync::{Arc, Mutex, atomic::Ordering};

use shoal_protocol::digest::Digest;

use super::{Entry, Shared, Slot, error::StoreError, lock};

/// How full the store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of all blobs, for partial ones their whole size.
    pub bytes_used: u64,
    /// The quota in bytes, where there is one.
    pub quota: Option<u64>,
    /// Bytes free on the disk.
    pub free: u64,
    /// Complete blobs.
    pub blobs: usize,
    /// Partial blobs.
    pub partials: usize,
}

/// The account of bytes. A blob's whole size is taken when it is begun. Sidecars, 160 bytes for
/// each 4 MiB, are not counted.
#[derive(Debug)]
pub(super) struct Room {
    quota: Option<u64>,
    min_free: u64,
    used: Mutex<u64>,
}

impl Room {
    pub(super) fn new(quota: Option<u64>, min_free: u64, used: u64) -> Self {
        Self {
            quota,
            min_free,
            used: Mutex::new(used),
        }
    }

    pub(super) fn used(&self) -> u64 {
        *lock(&self.used)
    }

    pub(super) fn quota(&self) -> Option<u64> {
        self.quota
    }

    /// Gives back what was reserved.
    pub(super) fn release(&self, size: u64) {
        let mut used = lock(&self.used);
        *used = used.saturating_sub(size);
    }

    /// Reserves `size` bytes, or says how many are wanting and why.
    fn reserve(&self, size: u64, free: u64) -> Result<(), (u64, StoreError)> {
        let mut used = lock(&self.used);
        let of_quota = self
            .quota
            .map_or(0, |quota| used.saturating_add(size).saturating_sub(quota));
        let of_disk = size.saturating_add(self.min_free).saturating_sub(free);
        // Nothing can be wanting for nothing: a blob of no bytes fits a full disk.
        let short = if size == 0 {
            of_quota
        } else {
            of_quota.max(of_disk)
        };
        if short == 0 {
            *used += size;
            return Ok(());
        }
        let full = StoreError::Full {
            needed: size,
            used: *used,
            quota: self.quota,
            free,
            min_free: self.min_free,
        };
        Err((short, full))
    }
}

impl Shared {
    /// Reserves room for `size` bytes, evicting what is not in use, least recently used first.
    /// Evicts nothing where that would not be enough.
    pub(super) fn make_room(&self, size: u64) -> Result<(), StoreError> {
        loop {
            let free = self.layout.free_bytes()?;
            let Err((short, full)) = self.room.reserve(size, free) else {
                return Ok(());
            };
            let idle = self.idle();
            if idle.iter().map(|entry| entry.size).sum::<u64>() < short {
                return Err(full);
            }
            let mut freed = 0;
            for entry in idle {
                if freed >= short {
                    break;
                }
                // Another thread may have opened or evicted it by now; then the loop looks again.
                if entry.size > 0 && self.evict(&entry)? {
                    freed += entry.size;
                }
            }
        }
    }

    /// Blobs that nobody has open, least recently used first. Partial ones too: what nobody
    /// fetches must not hold its place for ever.
    fn idle(&self) -> Vec<Arc<Entry>> {
        let mut idle: Vec<_> = lock(&self.entries)
            .values()
            .filter(|entry| entry.slot.try_lock().is_ok_and(|slot| is_idle(&slot)))
            .map(Arc::clone)
            .collect();
        idle.sort_by_key(|entry| entry.used.load(Ordering::Relaxed));
        idle
    }

    fn evict(&self, entry: &Arc<Entry>) -> Result<bool, StoreError> {
        // Whoever holds it is about to open it, and may be waiting for room itself.
        let Ok(mut slot) = entry.slot.try_lock() else {
            return Ok(false);
        };
        if !is_idle(&slot) {
            return Ok(false);
        }
        let digest: Digest = entry.digest;
        tracing::debug!("evicting {digest:?} of {} bytes", entry.size);
        self.delete(entry, &mut slot)?;
        Ok(true)
    }
}

fn is_idle(slot: &Slot) -> bool {
    matches!(slot, Slot::Stored(blob) if blob.strong_count() == 0)
}
