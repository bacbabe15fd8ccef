//! Memory that is ready for the daemons' stores.
//!
//! The host of a virtual machine may back memory only when it is touched, and take back what has
//! been free for a second or two. There the 2 GB that eight stores write to the page cache cost 4
//! of the 14 CPU-seconds that two cores have for the whole pull: the price of an idle machine, which
//! a host that runs containers does not pay. So as much memory is touched before, and handed over
//! while the stores grow.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use memmap2::MmapMut;
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::sleep,
};

/// Handed over at a time.
const BLOCK_BYTES: u64 = 8 << 20;

/// Handed over before the clients have the bytes: the daemons store them a little earlier.
const AHEAD_BYTES: u64 = 8 * BLOCK_BYTES;

/// How often it is handed over.
const TICK: Duration = Duration::from_millis(20);

/// Touched memory that nobody uses.
#[derive(Default)]
pub(crate) struct Memory(Vec<MmapMut>);

impl Memory {
    /// So many bytes, or none where the machine has not twice as much available.
    pub(crate) async fn touch(bytes: u64) -> Self {
        let fits = available().is_some_and(|available| available / 2 >= bytes);
        let blocks = if fits { bytes / BLOCK_BYTES } else { 0 };
        let touched = spawn_blocking(move || {
            let touch = |_| {
                let mut block = MmapMut::map_anon(BLOCK_BYTES as usize).ok()?;
                block.fill(1);
                Some(block)
            };
            (0..blocks).map_while(touch).collect()
        });
        // It is only about speed.
        Self(touched.await.unwrap_or_default())
    }

    /// Gives it back in step with what the clients receive.
    pub(crate) fn hand_over(self, received: Vec<Arc<AtomicU64>>) -> Handover {
        let Self(mut blocks) = self;
        let all = blocks.len() as u64;
        Handover(tokio::spawn(async move {
            while !blocks.is_empty() {
                let received: u64 = received.iter().map(|bytes| bytes.load(Relaxed)).sum();
                let handed = (received + AHEAD_BYTES) / BLOCK_BYTES;
                blocks.truncate(all.saturating_sub(handed) as usize);
                sleep(TICK).await;
            }
        }))
    }
}

/// Ends with the pull: what is left is given back then.
pub(crate) struct Handover(JoinHandle<()>);

impl Drop for Handover {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Bytes that could be used without swapping.
fn available() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn memory_is_touched_only_where_there_is_enough() {
        let Memory(blocks) = Memory::touch(2 * BLOCK_BYTES).await;
        assert_eq!(blocks.len(), 2);
        assert!(blocks.iter().all(|block| block.len() as u64 == BLOCK_BYTES));
        let Memory(blocks) = Memory::touch(u64::MAX).await;
        assert!(blocks.is_empty());
    }

    #[tokio::test]
    async fn all_is_given_back_once_everything_was_received() {
        let memory = Memory::touch(2 * BLOCK_BYTES).await;
        let received = Arc::new(AtomicU64::new(0));
        let mut handover = memory.hand_over(vec![Arc::clone(&received)]);
        received.store(2 * BLOCK_BYTES, Relaxed);
        (&mut handover.0).await.expect("it ends by itself");
    }
}
