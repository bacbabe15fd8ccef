//! Whether an origin is worth asking: a circuit breaker.
//!
//! A state machine without a clock, without randomness and without IO; [`Health`](super::health::Health)
//! gives it these. An origin that fails is not asked for a while, so that an outage does not cost each
//! request a time-out. Then one request is let through, and what becomes of it decides; the others
//! meanwhile ask the next origin, or fail at once where there is none.
//!
//! An origin that limits its clients is not away: it is asked after the others until it wants to be
//! asked again, and rather than fail.

use std::time::Duration;

use shoal_protocol::time::Time;

/// The first pause; each further one is twice as long. Shorter than anybody waits for a pull.
const PAUSE_MIN: Duration = Duration::from_millis(500);

/// The longest pause: that an origin is back is noticed within so much.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// A failure that comes later than this after the last one is the first of a new row. Longer than the
/// longest pause, so that an origin which fails again after each pause does not begin anew.
const ROW_GAP: Duration = Duration::from_secs(10);

/// Failures in a row, with no success between them, after which an origin without an alternative is
/// taken for away. One alone may be an accident, and nobody else can be asked.
const FAILURES_ALONE: u32 = 3;

/// A failure that took so long is not to be had twice, alternative or not.
const SLOW: Duration = Duration::from_secs(1);

/// A silence so long is a failure where nobody else can be asked, even of a request that was given up:
/// as long as a connection may take.
const SILENCE_ALONE: Duration = Duration::from_secs(5);

/// When a request that was let through is given up, and another one let through: longer than any
/// request takes to fail.
const PROBE_TIMEOUT: Duration = Duration::from_secs(60);

/// One origin's breaker.
#[derive(Debug)]
pub(super) struct Breaker {
    state: State,
    since: Time,
    /// Whether there are other origins of the same upstream.
    alternatives: bool,
    /// Pauses in a row.
    pauses: u32,
    /// Failures since the last success.
    failures: u32,
    last_failure: Option<Time>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    /// It limits its clients until then.
    Limited(Time),
    /// Not to be asked until then.
    Open(Time),
    /// Being asked by one, who counts as lost after then.
    HalfOpen(Time),
}

/// Whether to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Now.
    Now,
    /// Now, and alone: the outcome decides whether others may.
    Probe,
    /// After the other origins.
    Last,
    /// Not now.
    No,
}

/// How a request ended, as far as it says something of the origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// With an answer, be it a refusal.
    Answered,
    /// With none, after so long.
    Failed(Duration),
    /// With the wish to be left alone, perhaps for so long.
    Limited(Option<Duration>),
    /// With something that is no answer, which says nothing of the next request.
    Nonsense,
}

/// What an operator wants to know of the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// It is asked.
    Up,
    /// It limits its clients.
    Limited,
    /// It is not asked.
    Away,
}

impl Breaker {
    /// That of an origin that nothing is known of; `alternatives` says whether its upstream has others.
    pub(super) fn new(alternatives: bool, now: Time) -> Self {
        Self {
            state: State::Closed,
            since: now,
            alternatives,
            pauses: 0,
            failures: 0,
            last_failure: None,
        }
    }

    /// Whether to ask now. After [`Turn::Probe`] the outcome has to be told.
    pub(super) fn turn(&mut self, now: Time) -> Turn {
        match self.state {
            State::Limited(until) if now < until => Turn::Last,
            State::Closed | State::Limited(_) => Turn::Now,
            State::Open(until) | State::HalfOpen(until) if now < until => Turn::No,
            State::Open(_) | State::HalfOpen(_) => {
                self.state = State::HalfOpen(now + PROBE_TIMEOUT);
                Turn::Probe
            }
        }
    }

    /// What became of a request. `probe` says whether it was let through alone, `jitter` is drawn
    /// evenly from 0 to 1.
    pub(super) fn ended(&mut self, outcome: Outcome, probe: bool, now: Time, jitter: f64) {
        match outcome {
            Outcome::Answered => {
                self.failures = 0;
                // What it gives to those who ask nevertheless does not end a limit.
                let limited = matches!(self.state, State::Limited(until) if now < until);
                if !limited {
                    self.enter(State::Closed, now);
                }
            }
            Outcome::Limited(wait) => {
                self.failures = 0;
                let wait = wait.unwrap_or(PAUSE_MIN).max(PAUSE_MIN);
                self.enter(State::Limited(now + wait), now);
            }
            Outcome::Failed(took) => self.failed(took, probe, now, jitter),
            Outcome::Nonsense if probe => self.failed(Duration::ZERO, probe, now, jitter),
            Outcome::Nonsense => {}
        }
    }

    fn failed(&mut self, took: Duration, probe: bool, now: Time, jitter: f64) {
        self.failures = self.failures.saturating_add(1);
        let counts = match self.state {
            // Those who were asking already when it was found to be away say nothing new.
            State::Open(_) => false,
            State::HalfOpen(_) => probe,
            State::Closed | State::Limited(_) => {
                self.alternatives || took >= SLOW || self.failures >= FAILURES_ALONE
            }
        };
        let last = self.last_failure.replace(now);
        if !counts {
            return;
        }
        if last.is_none_or(|last| now.since(last) >= ROW_GAP.max(took * 2)) {
            self.pauses = 0;
        }
        let pause = PAUSE_MIN
            .saturating_mul(1 << self.pauses.min(16))
            .min(PAUSE_MAX);
        self.pauses = self.pauses.saturating_add(1);
        // Nodes that lost it together are not to come back together.
        let pause = pause.mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 4.0);
        self.enter(State::Open(now + pause), now);
    }

    /// Whether it was away, and for a good while nobody had a reason to try it again.
    pub(super) fn is_untried(&self, now: Time) -> bool {
        matches!(self.state, State::Open(until) if now.since(until) >= ROW_GAP)
    }

    /// Whether a silence of this length, after which somebody gave up, is a failure. Shorter where there
    /// are other origins: leases are taken away after a second without progress.
    pub(super) fn is_long(&self, silent: Duration) -> bool {
        silent
            >= if self.alternatives {
                SLOW
            } else {
                SILENCE_ALONE
            }
    }

    /// Its state, and since when.
    pub(super) fn condition(&self) -> (Condition, Time) {
        let condition = match self.state {
            State::Closed => Condition::Up,
            State::Limited(_) => Condition::Limited,
            State::Open(_) | State::HalfOpen(_) => Condition::Away,
        };
        (condition, self.since)
    }

    fn enter(&mut self, state: State, now: Time) {
        let before = self.condition().0;
        self.state = state;
        if self.condition().0 != before {
            self.since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Outcome = Outcome::Failed(Duration::from_millis(1));

    fn at(millis: u64) -> Time {
        Time::ZERO + Duration::from_millis(millis)
    }

    fn open(alternatives: bool) -> Breaker {
        let mut breaker = Breaker::new(alternatives, at(0));
        breaker.ended(Outcome::Failed(SLOW), false, at(0), 0.0);
        assert_eq!(breaker.turn(at(0)), Turn::No);
        breaker
    }

    #[test]
    fn one_failure_is_enough_where_another_origin_can_be_asked() {
        let mut breaker = Breaker::new(true, at(0));
        breaker.ended(QUICK, false, at(10), 0.0);
        assert_eq!(breaker.turn(at(11)), Turn::No);
        assert_eq!(breaker.condition(), (Condition::Away, at(10)));
    }

    #[test]
    fn without_another_origin_it_takes_three_in_a_row_or_a_slow_one() {
        let mut breaker = Breaker::new(false, at(0));
        for _ in 0..2 {
            breaker.ended(QUICK, false, at(0), 0.0);
            breaker.ended(QUICK, false, at(0), 0.0);
            assert_eq!(breaker.turn(at(0)), Turn::Now);
            breaker.ended(Outcome::Answered, false, at(0), 0.0);
        }
        for _ in 0..3 {
            breaker.ended(QUICK, false, at(0), 0.0);
        }
        assert_eq!(breaker.turn(at(0)), Turn::No);
        open(false);
    }

    #[test]
    fn silence_is_judged_by_whether_somebody_else_can_be_asked() {
        for (alternatives, silence) in [(true, SLOW), (false, SILENCE_ALONE)] {
            let breaker = Breaker::new(alternatives, at(0));
            assert!(breaker.is_long(silence));
            assert!(!breaker.is_long(silence.mul_f64(0.99)));
        }
    }

    #[test]
    fn after_a_pause_one_request_decides() {
        let mut breaker = open(true);
        assert_eq!(breaker.turn(at(499)), Turn::No);
        assert_eq!(breaker.turn(at(500)), Turn::Probe);
        assert_eq!(breaker.turn(at(500)), Turn::No);
        // A request from before the outage says nothing.
        breaker.ended(QUICK, false, at(600), 0.0);
        assert_eq!(breaker.turn(at(600)), Turn::No);
        breaker.ended(Outcome::Answered, true, at(700), 0.0);
        assert_eq!(breaker.turn(at(700)), Turn::Now);
        assert_eq!(breaker.condition(), (Condition::Up, at(700)));
    }

    #[test]
    fn pauses_double_up_to_five_seconds_and_begin_anew_after_a_good_while() {
        let mut breaker = open(false);
        let mut now = 0;
        for pause in [500, 1000, 2000, 4000, 5000, 5000] {
            assert_eq!(breaker.turn(at(now + pause - 1)), Turn::No);
            now += pause;
            assert_eq!(breaker.turn(at(now)), Turn::Probe, "{pause}");
            breaker.ended(Outcome::Nonsense, true, at(now), 0.0);
        }
        // It answers and fails again at once: no new row.
        now += 5000;
        assert_eq!(breaker.turn(at(now)), Turn::Probe);
        breaker.ended(Outcome::Answered, true, at(now), 0.0);
        breaker.ended(Outcome::Failed(SLOW), false, at(now), 0.0);
        assert_eq!(breaker.turn(at(now + 4999)), Turn::No);
        now += 5000;
        assert_eq!(breaker.turn(at(now)), Turn::Probe);
        breaker.ended(Outcome::Answered, true, at(now), 0.0);
        now += 10_000;
        breaker.ended(Outcome::Failed(SLOW), false, at(now), 0.0);
        assert_eq!(breaker.turn(at(now + 500)), Turn::Probe);
    }

    #[test]
    fn jitter_shortens_a_pause_by_a_quarter_at_most() {
        let mut breaker = Breaker::new(true, at(0));
        breaker.ended(QUICK, false, at(0), 1.0);
        assert_eq!(breaker.turn(at(374)), Turn::No);
        assert_eq!(breaker.turn(at(375)), Turn::Probe);
    }

    #[test]
    fn what_nobody_asks_is_untried_after_a_while_and_tried_by_the_next() {
        let mut breaker = open(false);
        assert!(!breaker.is_untried(at(10_499)));
        assert!(breaker.is_untried(at(10_500)));
        assert_eq!(breaker.turn(at(10_500)), Turn::Probe);
        assert!(!breaker.is_untried(at(30_000)));
    }

    #[test]
    fn a_probe_that_is_lost_is_replaced() {
        let mut breaker = open(true);
        assert_eq!(breaker.turn(at(500)), Turn::Probe);
        assert_eq!(breaker.turn(at(500) + PROBE_TIMEOUT), Turn::Probe);
    }

    #[test]
    fn one_that_limits_its_clients_comes_last_for_as_long_as_it_says() {
        let mut breaker = Breaker::new(true, at(0));
        let wait = Some(Duration::from_secs(30));
        breaker.ended(Outcome::Limited(wait), false, at(0), 0.0);
        assert_eq!(breaker.turn(at(29_999)), Turn::Last);
        breaker.ended(Outcome::Answered, false, at(1000), 0.0);
        assert_eq!(breaker.turn(at(2000)), Turn::Last);
        assert_eq!(breaker.condition(), (Condition::Limited, at(0)));
        // Then it is asked as usual, and counts as limited until it has answered.
        assert_eq!(breaker.turn(at(30_000)), Turn::Now);
        breaker.ended(Outcome::Limited(wait), false, at(30_001), 0.0);
        assert_eq!(breaker.condition(), (Condition::Limited, at(0)));
        assert_eq!(breaker.turn(at(60_001)), Turn::Now);
        breaker.ended(Outcome::Answered, false, at(60_002), 0.0);
        assert_eq!(breaker.condition(), (Condition::Up, at(60_002)));
        // One that fails then is away.
        breaker.ended(Outcome::Limited(None), false, at(61_000), 0.0);
        assert_eq!(breaker.turn(at(61_499)), Turn::Last);
        breaker.ended(QUICK, false, at(61_499), 0.0);
        assert_eq!(breaker.turn(at(61_499)), Turn::No);
    }
}
