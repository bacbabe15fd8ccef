//! Live progress on stderr: a bar for each client on a terminal, a line now and then elsewhere.

use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use shoal_node::clock;
use tokio::task::JoinHandle;

/// How often bars move.
const REFRESH: Duration = Duration::from_millis(100);

/// How often a line is printed where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// Says on stderr what is being done.
pub(crate) fn say(what: impl Display) {
    // Nobody is left to tell if stderr is closed.
    let _ = writeln!(io::stderr(), "{what}");
}

/// Shows how far clients are until it is dropped.
pub(crate) struct Progress(JoinHandle<()>);

impl Progress {
    /// Follows what each client has `received` of `total` bytes.
    pub(crate) fn start(label: &'static str, total: u64, received: Vec<Arc<AtomicU64>>) -> Self {
        Self(if io::stderr().is_terminal() {
            tokio::spawn(draw(Bars::new(label, total, received)))
        } else {
            tokio::spawn(print_lines(label, total, received))
        })
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Bars {
    all: MultiProgress,
    bars: Vec<(ProgressBar, Arc<AtomicU64>)>,
}

impl Bars {
    fn new(label: &str, total: u64, received: Vec<Arc<AtomicU64>>) -> Self {
        let all = MultiProgress::new();
        let style = ProgressStyle::with_template(
            "{prefix:>10} {bar:30} {decimal_bytes:>11} {decimal_bytes_per_sec:>13} {elapsed:>4}",
        )
        .unwrap_or_else(|_| ProgressStyle::default_bar());
        let bars = (1..).zip(received).map(|(number, received)| {
            let bar = ProgressBar::new(total).with_style(style.clone());
            (
                all.add(bar.with_prefix(format!("{label} {number}"))),
                received,
            )
        });
        let bars = bars.collect();
        Self { all, bars }
    }
}

/// Bars do not stay: the table says it all at the end.
impl Drop for Bars {
    fn drop(&mut self) {
        // Without a terminal nothing was drawn and nothing needs clearing.
        let _ = self.all.clear();
    }
}

async fn draw(bars: Bars) {
    loop {
        for (bar, received) in &bars.bars {
            bar.set_position(received.load(Relaxed));
        }
        tokio::time::sleep(REFRESH).await;
    }
}

async fn print_lines(label: &'static str, total: u64, received: Vec<Arc<AtomicU64>>) {
    let start = clock::instant();
    loop {
        tokio::time::sleep(LINE_EVERY).await;
        let shares: Vec<u64> = received
            .iter()
            .map(|received| 100 * received.load(Relaxed) / total.max(1))
            .collect();
        say(line(label, start.elapsed(), &shares));
    }
}

fn line(label: &str, elapsed: Duration, percents: &[u64]) -> String {
    let mean = percents.iter().sum::<u64>() / (percents.len() as u64).max(1);
    format!(
        "  {label}: {:.0} s, {mean} % on average, slowest {} %, fastest {} %",
        elapsed.as_secs_f64(),
        percents.iter().min().unwrap_or(&0),
        percents.iter().max().unwrap_or(&0),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_sums_up_all_clients() {
        assert_eq!(
            line("Shoal", Duration::from_millis(2003), &[10, 20, 60]),
            "  Shoal: 2 s, 30 % on average, slowest 10 %, fastest 60 %"
        );
    }
}
