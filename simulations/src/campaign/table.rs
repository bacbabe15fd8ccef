//! What came of a campaign, as a table in Markdown: the worst of all seeds of a world.

use std::{collections::BTreeSet, fmt::Write as _};

use super::{Run, plan};
use crate::scenario::Scenario;

/// One row for each world, in the order of the plan.
pub(super) fn markdown(runs: &[&Run]) -> String {
    let mut out = String::from(
        "| world | seeds | bound, s | 99 % after it, s | allowed, s | origin copies | control | \
         streams | one node sent | memory, MB | broken | version |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|\n",
    );
    let mut worlds: Vec<String> = plan().into_iter().map(|(world, _)| world).collect();
    worlds.dedup();
    for world in worlds {
        let of_it: Vec<&Run> = runs
            .iter()
            .copied()
            .filter(|run| run.scenario == world)
            .collect();
        if !of_it.is_empty() {
            out += &row(&world, &of_it);
        }
    }
    out
}

fn row(world: &str, runs: &[&Run]) -> String {
    let most = |of: fn(&Run) -> f64| runs.iter().map(|run| of(run)).fold(f64::MIN, f64::max);
    let bound = most(|run| run.lower_bound_seconds);
    let late = most(|run| run.p99_seconds - run.lower_bound_seconds);
    let limit = Scenario::named(world, runs[0].seed).and_then(|world| world.limits.p99);
    let allowed = limit.map_or(String::new(), |(times, seconds)| {
        format!("{:.2}", (times - 1.0) * bound + seconds)
    });
    let versions: BTreeSet<&str> = runs.iter().map(|run| run.version.as_str()).collect();
    let versions: Vec<&str> = versions.into_iter().collect();
    let mut row = String::new();
    let _ = writeln!(
        row,
        "| `{world}` | {} | {bound:.2} | {late:.2} | {allowed} | {:.4} | {:.3} % | {} | {:.2} | {:.0} | {} | {} |",
        runs.len(),
        most(|run| run.origin_copies),
        100.0 * most(|run| run.control_share),
        most(|run| run.peak_origin_streams as f64),
        most(|run| run.upload_most),
        most(|run| run.peak_memory_bytes.unwrap_or_default() as f64) / 1e6,
        runs.iter().map(|run| run.invariants_broken).sum::<usize>(),
        versions.join(", "),
    );
    row
}
