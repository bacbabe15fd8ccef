//! What this node knows of each peer as a source of chunks, and of its own download rate.

use crate::time::{Duration, Time};

/// How long bytes take, from the latest transfers. Blobs have chunks of different sizes: both times
/// and bytes are added up, each transfer counting three quarters of what it did when the next came,
/// so that a short chunk says little of a long one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pace {
    seconds: f64,
    bytes: f64,
}

impl Pace {
    const KEPT: f64 = 0.75;

    pub(crate) fn sample(&mut self, took: Duration, bytes: u64) {
        self.seconds = Self::KEPT * self.seconds + took.as_secs_f64();
        self.bytes = Self::KEPT * self.bytes + bytes as f64;
    }

    /// How long so many bytes would take, where anything was measured.
    pub(crate) fn of(&self, bytes: u64) -> Option<Duration> {
        let seconds = self.seconds / self.bytes * bytes as f64;
        (self.bytes > 0.0).then(|| Duration::from_secs_f64(seconds))
    }
}

/// One peer as a source of chunks.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Link {
    /// Chunks requested from it and not yet received, over all blobs.
    pub(crate) outstanding: usize,
    /// And their bytes.
    pub(crate) outstanding_bytes: u64,
    /// From request (or the chunk before it) to arrival.
    pub(crate) pace: Pace,
    /// When it will have sent what waits in its upload queue, as it last said.
    pub(crate) busy_until: Time,
    /// Not asked before this time: busy, stalled, or it sent wrong bytes.
    pub(crate) avoid_until: Time,
    /// Until then it does not count as having anything: it stalled, or sent wrong bytes.
    pub(crate) shunned_until: Time,
    /// Requests that it left unanswered in a row.
    pub(crate) stalls: u32,
    /// Chunks with wrong bytes.
    pub(crate) strikes: u32,
    /// When it last delivered a chunk,
    pub(crate) delivered_at: Time,
    /// some bytes of one,
    pub(crate) progress_at: Time,
    /// and when it last said anything at all.
    pub(crate) heard_at: Time,
}

impl Link {
    pub(crate) fn is_usable(&self, now: Time) -> bool {
        self.avoid_until <= now
    }

    /// Whether a request would wait behind those of others.
    pub(crate) fn is_busy(&self, now: Time) -> bool {
        self.busy_until > now
    }

    /// How long a further chunk of so many bytes from it would take.
    pub(crate) fn expected(&self, now: Time, bytes: u64) -> Duration {
        let takes = self.pace.of(self.outstanding_bytes + bytes);
        self.busy_until.since(now) + takes.unwrap_or_default()
    }
}

/// A rate over windows of at least a quarter of a second, smoothed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rate {
    since: Time,
    bytes: u64,
    bytes_per_second: f64,
}

impl Rate {
    const WINDOW: Duration = Duration::from_millis(250);

    pub(crate) fn add(&mut self, now: Time, bytes: u64) {
        let elapsed = now.since(self.since);
        if elapsed > Self::WINDOW * 8 {
            // After a pause the old rate says nothing.
            *self = Self {
                since: now,
                bytes,
                bytes_per_second: self.bytes_per_second,
            };
            return;
        }
        self.bytes += bytes;
        if elapsed >= Self::WINDOW {
            let newest = self.bytes as f64 / elapsed.as_secs_f64();
            self.bytes_per_second = if self.bytes_per_second == 0.0 {
                newest
            } else {
                0.5 * self.bytes_per_second + 0.5 * newest
            };
            self.since = now;
            self.bytes = 0;
        }
    }

    pub(crate) fn get(&self) -> f64 {
        self.bytes_per_second
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_follows_the_bytes() {
        let mut rate = Rate::default();
        for tick in 0..40u64 {
            rate.add(Time::from_nanos(tick * 100_000_000), 1_000_000);
        }
        assert!((9.0e6..12.0e6).contains(&rate.get()), "{}", rate.get());
    }
}
