//! What this node knows of each peer as a source of chunks, and of its own download rate.

use crate::time::{Duration, Time};

/// An exponentially weighted mean of durations, a quarter of the weight on the newest.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ewma(Option<Duration>);

impl Ewma {
    pub(crate) fn sample(&mut self, value: Duration) {
        self.0 = Some(self.0.map_or(value, |mean| (mean * 3 + value) / 4));
    }

    pub(crate) fn get(&self) -> Duration {
        self.0.unwrap_or_default()
    }
}

/// One peer as a source of chunks.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Link {
    /// Chunks requested from it and not yet received, over all blobs.
    pub(crate) outstanding: usize,
    /// From request (or the chunk before it) to arrival.
    pub(crate) chunk_time: Ewma,
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

    /// How long a further chunk from it would take.
    pub(crate) fn expected(&self, now: Time) -> Duration {
        self.busy_until.since(now) + self.chunk_time.get() * (self.outstanding as u32 + 1)
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
