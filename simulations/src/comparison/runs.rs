//! What is compared: a fixed table of scenarios, and everybody in each.

use std::fmt::Write as _;

use super::Comparison;
use crate::{
    baselines::{self, Contender, Outcome, Setting},
    scenario::{GBIT, Scenario},
    world::World,
};

/// Scenarios and their sizes: one family against N; where the nodes do not begin together; where it
/// matters in which rack they stand. What takes longest is last.
pub(super) const TABLE: [(&str, usize); 5] = [
    ("cold", 10),
    ("cold", 100),
    ("staggered", 100),
    ("racks", 100),
    ("cold", 1000),
];

/// Runs everybody in one scenario; `say` hears of each run when it has ended.
///
/// # Errors
/// The exchange broke an invariant, so that its figures are worth nothing.
pub(super) fn compare(
    family: &str,
    nodes: usize,
    seed: u64,
    mut say: impl FnMut(&str),
) -> anyhow::Result<Comparison> {
    let name = format!("{family}-{nodes}");
    let scenario = Scenario::named(&name, seed)
        .ok_or_else(|| anyhow::anyhow!("the scenario {name:?} of the report is gone"))?;
    let setting = Setting::of(&scenario);
    let mut outcomes = Vec::new();
    for contender in Contender::ALL {
        let outcome = match baselines::run(contender, &setting) {
            Some(outcome) => outcome,
            None => exchange(&scenario)?,
        };
        let text = format!(
            "{}: {}, {} of {} nodes, longest {:.1} s, {:.2} origin copies",
            scenario.name,
            contender.name(),
            outcome.times.len(),
            scenario.nodes,
            outcome.times.last().copied().unwrap_or(f64::NAN),
            outcome.origin_copies,
        );
        say(&text);
        outcomes.push((contender, outcome));
    }
    Ok(Comparison {
        family: family.to_owned(),
        about: about(&scenario),
        nodes: scenario.nodes,
        bound: scenario.lower_bound(),
        stagger: scenario.stagger.as_secs_f64(),
        outcomes,
    })
}

/// The exchange in its own world.
fn exchange(scenario: &Scenario) -> anyhow::Result<Outcome> {
    let report = World::new(scenario.clone()).run();
    anyhow::ensure!(
        report.violations.is_empty(),
        "{} with seed {}: {}",
        scenario.name,
        scenario.seed,
        report.violations.join("; ")
    );
    Ok(Outcome {
        times: report.finished_seconds,
        origin_copies: report.origin_copies,
        uplinks: report.used.iter().map(|[_, nodes]| *nodes).collect(),
    })
}

/// The scenario in a line.
fn about(scenario: &Scenario) -> String {
    let layers: usize = scenario.images.iter().map(|image| image.layers).sum();
    let bytes: u64 = scenario.images.iter().map(|image| image.bytes).sum();
    let mut text = format!(
        "{:.0} GB in {layers} layers; nodes with {:.0} Gbit/s, the origin with {:.0}; all begin ",
        bytes as f64 / 1e9,
        scenario.up / GBIT,
        scenario.origin.rate / GBIT,
    );
    let stagger = scenario.stagger.as_secs_f64();
    if stagger < 1.0 {
        text.push_str("at once");
    } else {
        let _ = write!(text, "within {stagger:.0} s");
    }
    if let Some(over) = scenario.layout.rack_oversubscribed {
        let _ = write!(text, "; racks oversubscribed {over:.0}:1");
    }
    text
}
