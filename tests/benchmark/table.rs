//! The outcomes as a table in Markdown.

use std::fmt::Write as _;

use crate::race::Outcome;

/// The columns, and which of them are numbers.
const HEAD: &str = "\
| scenario | nodes | contender | p50, s | p99, s | longest, s | p99 / bound | p99 / own bound | \
first byte, s | origin copies | CPU s/GiB | memory, MB | bottleneck |\n\
|---|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|\n";

/// One row for each outcome.
pub(crate) fn markdown(outcomes: &[Outcome]) -> String {
    outcomes
        .iter()
        .fold(HEAD.to_owned(), |table, outcome| table + &row(outcome))
}

/// The row of one outcome.
pub(crate) fn row(outcome: &Outcome) -> String {
    let p99 = outcome.percentile(0.99);
    let own = outcome.star_bound_seconds.map_or(String::new(), |bound| {
        format!("{:.2} ({bound:.1} s)", p99 / bound)
    });
    let daemons = if outcome.peak_bytes == 0 {
        "| | |".to_owned()
    } else {
        let megabytes = outcome.peak_bytes as f64 / 1e6;
        format!("| {:.2} | {megabytes:.0} |", outcome.cpu_seconds_per_gib)
    };
    let mut row = String::new();
    let _ = writeln!(
        row,
        "| {} | {} | {} | {:.2} | {p99:.2} | {:.2} | {:.2} | {own} | {:.2} | {:.3} {daemons} {} |",
        outcome.scenario,
        outcome.nodes,
        outcome.contender,
        outcome.percentile(0.5),
        outcome.percentile(1.0),
        p99 / outcome.bound_seconds,
        outcome.first_byte_seconds,
        outcome.origin_copies,
        outcome.bottleneck(),
    );
    row
}
