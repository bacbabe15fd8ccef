//! Making a world that breaks something smaller, as long as it still does.

use super::attempt;
use crate::{scenario::Scenario, world::World};

/// Lines of the event trace of a broken run.
const LINES: usize = 60;

/// Leaves out one fault after the other, then nodes, as long as something still breaks.
pub(super) fn shrink(mut scenario: Scenario) -> Scenario {
    for fault in (0..scenario.faults.len()).rev() {
        let smaller = changed(&scenario, &format!("without={fault}"));
        if let Some(smaller) = smaller.filter(breaks) {
            scenario = smaller;
        }
    }
    let mut step = scenario.nodes / 2;
    while step > 0 {
        let nodes = scenario.nodes.saturating_sub(step);
        let smaller = if nodes > scenario.warm + 1 {
            changed(&scenario, &format!("nodes={nodes}"))
        } else {
            None
        };
        match smaller.filter(breaks) {
            Some(smaller) => scenario = smaller,
            None => step /= 2,
        }
    }
    scenario
}

fn changed(scenario: &Scenario, setting: &str) -> Option<Scenario> {
    let mut smaller = scenario.clone();
    smaller.set(setting).ok()?;
    Some(smaller)
}

fn breaks(scenario: &Scenario) -> bool {
    attempt(scenario).is_err()
}

/// What the machines did last before something broke, and what broke.
pub(super) fn trace(scenario: &Scenario) -> Vec<String> {
    World::new(scenario.clone()).run_logged(LINES, None)
}
