//! The one place that reads the machine's clocks.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use shoal_protocol::time::Time;

/// Monotonic time since the daemon started, as the machines of `shoal-protocol` want it.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock that starts at zero now.
    pub fn start() -> Self {
        Self { start: instant() }
    }

    /// The time since the start.
    pub fn now(&self) -> Time {
        Time::ZERO + self.start.elapsed()
    }

    /// The instant at which [`now`](Self::now) will be `time`, for the runtime's timers.
    pub fn instant_of(&self, time: Time) -> Instant {
        let offset = time.since(Time::ZERO);
        self.start
            .checked_add(offset)
            .unwrap_or_else(|| self.start + YEAR)
    }
}

const YEAR: std::time::Duration = std::time::Duration::from_secs(365 * 24 * 3600);

/// The monotonic clock.
#[expect(clippy::disallowed_methods, reason = "this is the clock module")]
pub fn instant() -> Instant {
    Instant::now()
}

/// Seconds since 1970 by the wall clock; zero before that.
#[expect(clippy::disallowed_methods, reason = "this is the clock module")]
pub fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs())
}
