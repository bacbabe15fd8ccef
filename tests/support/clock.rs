//! The one place of the tests that reads a clock.

use std::thread::sleep;
use std::time::{Duration, Instant};

/// How often a condition is looked at again.
const POLL: Duration = Duration::from_millis(50);

/// The monotonic clock.
#[expect(
    clippy::disallowed_methods,
    reason = "the tests measure real processes"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Polls `condition` until it gives a value; fails the test with `what` after `limit`.
pub(crate) fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Option<T>,
) -> T {
    let start = now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < limit, "waited {limit:?} in vain: {what}");
        sleep(POLL);
    }
}

/// Polls `condition` until it holds; fails the test with `what` after `limit`.
pub(crate) fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    wait_for(what, limit, || condition().then_some(()));
}
