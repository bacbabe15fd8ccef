//! Memory for bytes in transit, used again and again.
//!
//! A chunk is up to 4 MiB. Taken from the allocator each time, it leaves a hole in one arena of
//! each thread that ever held one, which doubles what the process keeps; and its pages are zeroed
//! anew, and where a hypervisor backs memory on first use, they cost that too. So buffers are
//! mappings of their own, and a number of them is kept.

use std::{
    collections::BTreeMap,
    ops::{Deref, DerefMut},
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use memmap2::MmapMut;

/// Bytes that are kept for the next user at most. As many are received and sent at once by a busy
/// node with the largest chunks.
const KEPT_BYTES_MAX: usize = 32 << 20;

/// The smallest buffer: shorter ones are the allocator's business.
const CLASS_BYTES_MIN: usize = 64 << 10;

static POOL: Mutex<Pool> = Mutex::new(Pool {
    free: BTreeMap::new(),
    bytes: 0,
});

/// Buffers that nobody uses, by size.
struct Pool {
    free: BTreeMap<usize, Vec<MmapMut>>,
    bytes: usize,
}

impl Pool {
    fn take(&mut self, class: usize) -> Option<MmapMut> {
        let memory = self.free.get_mut(&class)?.pop()?;
        self.bytes -= class;
        Some(memory)
    }

    /// Keeps it, or gives it back where enough is kept.
    fn keep(&mut self, memory: MmapMut) -> Option<MmapMut> {
        if self.bytes + memory.len() > KEPT_BYTES_MAX {
            return Some(memory);
        }
        self.bytes += memory.len();
        self.free.entry(memory.len()).or_default().push(memory);
        None
    }
}

/// A buffer of a certain length, to be filled: it holds what its last user left.
pub(crate) struct Buffer {
    memory: Memory,
    len: usize,
}

enum Memory {
    /// Of a class of the pool.
    Mapped(MmapMut),
    /// Too short for that.
    Owned(Vec<u8>),
}

impl Buffer {
    /// One of `len` bytes.
    pub(crate) fn of(len: usize) -> Self {
        let mapped = (len >= CLASS_BYTES_MIN).then(|| {
            let class = len.next_power_of_two();
            let kept = pool().take(class);
            kept.map_or_else(|| MmapMut::map_anon(class), Ok)
        });
        let memory = match mapped {
            Some(Ok(memory)) => Memory::Mapped(memory),
            // Where there is no memory either, the allocator says so.
            Some(Err(_)) | None => Memory::Owned(vec![0; len]),
        };
        Self { memory, len }
    }

    /// Forgets what comes after the first `len` bytes.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// To be shared, and kept for the next user when the last one drops it.
    pub(crate) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.memory {
            Memory::Mapped(memory) => &memory[..self.len],
            Memory::Owned(memory) => &memory[..self.len],
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Mapped(memory) => &mut memory[..self.len],
            Memory::Owned(memory) => &mut memory[..self.len],
        }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let memory = std::mem::replace(&mut self.memory, Memory::Owned(Vec::new()));
        if let Memory::Mapped(memory) = memory {
            let surplus = pool().keep(memory);
            // Unmapped here, where nobody waits for the lock.
            drop(surplus);
        }
    }
}

fn pool() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(bytes: usize) -> MmapMut {
        MmapMut::map_anon(bytes).expect("there is memory")
    }

    #[test]
    fn a_buffer_has_the_length_that_was_asked_for() {
        for len in [0, 1, 65_536, 65_537, 262_144, 4 << 20] {
            let mut buffer = Buffer::of(len);
            buffer.fill(7);
            assert_eq!(&buffer.freeze()[..], &vec![7; len][..]);
        }
    }

    #[test]
    fn what_is_dropped_is_used_again_up_to_a_bound() {
        let mut pool = Pool {
            free: BTreeMap::new(),
            bytes: 0,
        };
        let class = KEPT_BYTES_MAX / 4;
        assert!(pool.take(class).is_none());
        for _ in 0..4 {
            assert!(pool.keep(mapped(class)).is_none());
        }
        assert!(pool.keep(mapped(class)).is_some(), "the bound holds");
        assert!(pool.take(class * 2).is_none(), "only the size asked for");
        assert!(pool.take(class).is_some());
        assert!(pool.keep(mapped(class)).is_none(), "there is room again");
    }

    #[test]
    fn shared_bytes_stay_while_anyone_has_them() {
        let mut buffer = Buffer::of(CLASS_BYTES_MIN);
        buffer.fill(1);
        let bytes = buffer.freeze();
        let part = bytes.slice(10..20);
        drop(bytes);
        let mut other = Buffer::of(CLASS_BYTES_MIN);
        other.fill(2);
        assert_eq!(&part[..], &[1; 10]);
    }
}
