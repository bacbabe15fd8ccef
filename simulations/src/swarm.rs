//! Many random worlds on all cores: until the first that breaks something, which is made smaller
//! and told.

mod regressions;
mod shrink;

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use crate::{report::Report, scenario::Scenario, world::World};

/// What many worlds saw together.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    runs: u64,
    steps: u64,
    actions: u64,
    faults: BTreeMap<String, u64>,
    /// Runs in which a kill, a partition or a liar struck while chunks were on their way.
    struck_in_flight: u64,
    bans: u64,
    most_copies: (f64, u64),
    longest: (f64, u64),
}

impl Tally {
    fn add(&mut self, report: &Report) {
        self.runs += 1;
        self.steps += report.steps;
        self.actions += report.actions;
        self.bans += report.bans;
        self.struck_in_flight += u64::from(report.struck_hard_in_flight);
        for (kind, count) in &report.fault_kinds {
            *self.faults.entry(kind.clone()).or_default() += count;
        }
        let most = |kept: &mut (f64, u64), value: f64| {
            if value > kept.0 {
                *kept = (value, report.seed);
            }
        };
        most(&mut self.most_copies, report.origin_copies);
        most(&mut self.longest, report.ratio);
    }

    fn tell(&self) -> String {
        let share = 100.0 * self.struck_in_flight as f64 / self.runs.max(1) as f64;
        let all: u64 = self.faults.values().sum();
        let faults: Vec<String> = self
            .faults
            .iter()
            .map(|(kind, count)| format!("{count} {kind}"))
            .collect();
        format!(
            "{} runs: {} events on the network, {} actions of the machines, {} faults ({}), {} bans\n\
             in {:.1} % of the runs a kill, a partition or a liar struck while chunks were on their way\n\
             the origin sent {:.2} copies at most (seed {}); the slowest took {:.1} times its bound (seed {})",
            self.runs,
            self.steps,
            self.actions,
            all,
            faults.join(", "),
            self.bans,
            share,
            self.most_copies.0,
            self.most_copies.1,
            self.longest.0,
            self.longest.1,
        )
    }
}

/// Runs a world; a panic of a machine is a violation like any other.
pub(crate) fn attempt(scenario: &Scenario) -> Result<Report, String> {
    let run = catch_unwind(AssertUnwindSafe(|| World::new(scenario.clone()).run()));
    match run {
        Ok(report) if report.violations.is_empty() => Ok(report),
        Ok(report) => Err(report.to_string()),
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            Err(format!(
                "  VIOLATION panicked: {}\n",
                text.unwrap_or_default()
            ))
        }
    }
}

/// Runs `count` random worlds from a seed on. Tells what it saw, and whether all were sound.
pub(crate) fn run(count: u64, from: u64, tell: impl Fn(&str) + Sync) -> bool {
    let next = AtomicU64::new(from);
    let stop = AtomicBool::new(false);
    let tally = Mutex::new(Tally::default());
    let failed: Mutex<Option<(u64, String)>> = Mutex::new(None);
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= from + count {
                break;
            }
            match attempt(&Scenario::random(seed)) {
                Ok(report) => tally
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .add(&report),
                Err(what) => {
                    stop.store(true, Ordering::Relaxed);
                    let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                    // The first of those that were under way.
                    if failed.as_ref().is_none_or(|(first, _)| seed < *first) {
                        *failed = Some((seed, what));
                    }
                }
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let tally = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
    tell(&tally.tell());
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    let Some((seed, what)) = failed else {
        return true;
    };
    tell(&format!("seed {seed} breaks something:\n{what}"));
    let small = shrink::shrink(Scenario::random(seed));
    tell(&format!("again, and smaller: {}", small.replay()));
    for line in shrink::trace(&small) {
        tell(&line);
    }
    false
}
