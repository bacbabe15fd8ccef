//! Memory that is ready for the daemons' stores.
//!
//! The host of a virtual machine may back memory only when it is touched, and take back what has
//! been free for a second or two. There the 2 GB that eight stores write to the page cache cost 2
//! to 4 of the 14 CPU-seconds that two cores have for the whole pull: the price of an idle machine,
//! which a host that runs containers does not pay. So a scratch file as large as the stores is
//! written before, as they write theirs, and cut shorter while memory is taken: the kernel gives
//! out first what was freed last, if it is of the same kind. (Anonymous memory is not: it leaves
//! single pages, and the page cache takes sixteen at a time.)

use std::{env, fs, fs::File, io::Write as _, time::Duration};

use shoal_node::store::{WRITE_BYTES, free_bytes};
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::sleep,
};

/// Handed over at a time.
const BLOCK_BYTES: u64 = 8 << 20;

/// Handed over before it is taken: what the stores grow by in a few ticks.
const AHEAD_BYTES: u64 = 16 * BLOCK_BYTES;

/// How often it is handed over.
const TICK: Duration = Duration::from_millis(20);

/// Memory that nobody needs, in the page cache.
pub(crate) struct Memory {
    /// It has no name.
    scratch: File,
    bytes: u64,
}

impl Memory {
    /// So many bytes; none where the machine does not have twice as much memory available, and
    /// three times as much room for temporary files, a third of it for the scratch file.
    pub(crate) async fn touch(bytes: u64) -> Option<Self> {
        let fits = meminfo("MemAvailable:").is_some_and(|available| available / 2 >= bytes)
            && free_bytes(&env::temp_dir()).is_ok_and(|available| available / 3 >= bytes);
        if !fits {
            return None;
        }
        let touched = spawn_blocking(move || {
            let mut scratch = tempfile::tempfile()?;
            let piece = vec![1; WRITE_BYTES];
            for _ in 0..bytes / WRITE_BYTES as u64 {
                scratch.write_all(&piece)?;
            }
            std::io::Result::Ok(Self { scratch, bytes })
        });
        // It is only about speed.
        touched.await.ok()?.ok()
    }

    /// Gives it back from now on, so that what is free stays as much as it is, and a little more.
    pub(crate) fn hand_over(self) -> Handover {
        Handover(tokio::spawn(async move {
            let Some(free) = meminfo("MemFree:") else {
                return;
            };
            let mut left = self.bytes;
            while left > 0 {
                let lacking = (free + AHEAD_BYTES).saturating_sub(meminfo("MemFree:").unwrap_or(0));
                if lacking > 0 {
                    left = left.saturating_sub(lacking.next_multiple_of(BLOCK_BYTES));
                    if self.scratch.set_len(left).is_err() {
                        return;
                    }
                }
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

/// One of the kernel's figures about memory, in bytes.
fn meminfo(field: &str) -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn memory_is_touched_only_where_there_is_enough() {
        let memory = Memory::touch(2 * BLOCK_BYTES).await.expect("it is little");
        let length = memory.scratch.metadata().expect("it is open").len();
        assert_eq!(length, 2 * BLOCK_BYTES);
        assert!(Memory::touch(u64::MAX).await.is_none());
    }

    #[tokio::test]
    async fn what_the_page_cache_takes_next_is_given_back() {
        let memory = Memory::touch(2 * BLOCK_BYTES).await.expect("it is little");
        let scratch = memory.scratch.try_clone().expect("it is open");
        let mut handover = memory.hand_over();
        (&mut handover.0).await.expect("it ends by itself");
        assert_eq!(scratch.metadata().expect("it is open").len(), 0);
    }
}
