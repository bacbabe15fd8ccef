//! What processes and the machine have used, as Linux counts it (proc(5)).

use std::fs;

/// Ticks of the kernel's clock in a second, in everything that /proc shows.
const TICKS: f64 = 100.0;

/// Processor seconds of a process so far; none if it is gone.
pub(crate) fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in parentheses may hold spaces; the state is the third field.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks = |field: usize| -> f64 {
        let field = fields.split_whitespace().nth(field - 3);
        field.and_then(|ticks| ticks.parse().ok()).unwrap_or(0.0)
    };
    (ticks(14) + ticks(15)) / TICKS
}

/// Ticks of all processors: those in use, and all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Machine {
    busy: f64,
    all: f64,
}

impl Machine {
    pub(crate) fn now() -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let first = stat.lines().next().unwrap_or_default();
        let ticks: Vec<f64> = first
            .split_whitespace()
            .skip(1)
            .take(8)
            .filter_map(|ticks| ticks.parse().ok())
            .collect();
        let all = ticks.iter().sum();
        // The fourth and fifth are idle, and waiting for a disk.
        let idle: f64 = ticks.iter().skip(3).take(2).sum();
        Self {
            busy: all - idle,
            all,
        }
    }

    /// The share of all processors that was in use since an earlier look.
    pub(crate) fn busy_since(self, before: Self) -> f64 {
        (self.busy - before.busy) / (self.all - before.all).max(1.0)
    }
}
