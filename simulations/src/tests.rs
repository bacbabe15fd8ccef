use shoal_protocol::time::Duration;

use crate::{
    report::Report,
    scenario::{Fault, NAMES, Planned, Scenario, Victim},
    world::World,
};

/// The scenario of this name, with 8 nodes and 64 MiB.
fn small(name: &str) -> Scenario {
    let mut scenario = Scenario::named(name).expect("a scenario");
    scenario.nodes = 8;
    scenario.rate = 100e6 / 8.0;
    scenario.origin_rate = scenario.rate;
    scenario.image_bytes = 64 << 20;
    scenario.layers = 3;
    scenario
}

/// Runs it; nothing that must not happen has happened, and everyone has ended.
fn sound(scenario: Scenario) -> Report {
    let report = World::new(scenario).run();
    assert!(report.violations.is_empty(), "{report}");
    report
}

#[test]
fn every_scenario_ends_soundly() {
    for (name, _) in NAMES {
        let report = sound(small(name));
        assert!(report.longest.is_finite(), "{report}");
    }
}

#[test]
fn the_origin_is_read_once_and_the_manifest_once() {
    let report = sound(small("cold-slow"));
    assert!(report.origin_copies <= 1.01, "{report}");
    assert_eq!(report.manifest_requests, 1, "{report}");
}

#[test]
fn sixteen_nodes_take_little_longer_than_two() {
    let ends = |nodes| {
        let mut scenario = Scenario::named("cold-slow").expect("a scenario");
        scenario.nodes = nodes;
        sound(scenario).longest
    };
    let (two, sixteen) = (ends(2), ends(16));
    assert!(sixteen <= 1.25 * two, "{two} s, {sixteen} s");
}

#[test]
fn a_fast_swarm_stays_near_the_bound() {
    let mut scenario = Scenario::named("cold").expect("a scenario");
    scenario.nodes = 32;
    let report = sound(scenario);
    assert!(report.longest <= 1.2 * report.lower_bound + 0.5, "{report}");
    assert!(report.origin_copies <= 1.01, "{report}");
}

#[test]
fn a_fault_costs_the_others_three_seconds_at_most() {
    let without = sound(Scenario::named("cold-slow").expect("a scenario"));
    for name in ["killed", "frozen", "steward-killed", "steward-frozen"] {
        let report = sound(Scenario::named(name).expect("a scenario"));
        assert!(report.longest <= without.longest + 3.0, "{without}{report}");
        assert!(
            !report.victims.is_empty(),
            "the victim never ended: {report}"
        );
    }
}

#[test]
fn with_the_origin_away_the_swarm_needs_only_itself() {
    let report = sound(small("warm"));
    assert_eq!(report.origin_requests, 0, "{report}");
}

#[test]
fn an_origin_that_throttles_is_left_alone() {
    let report = sound(small("throttled"));
    assert!(report.origin_refused <= 12, "{report}");
    assert!(report.origin_streams_peak <= 2, "{report}");
}

#[test]
fn the_same_seed_is_the_same_run() {
    let trace = |seed| {
        let mut scenario = small("killed");
        scenario.seed = seed;
        sound(scenario).trace
    };
    assert_eq!(trace(7), trace(7));
    assert_ne!(trace(7), trace(8));
}

#[test]
fn whatever_dies_or_freezes_the_living_end() {
    for seed in 0..60u64 {
        let mut scenario = small("cold-slow");
        scenario.seed = seed;
        scenario.nodes = 3 + (seed as usize % 9);
        scenario.layers = 1 + (seed as usize % 4);
        scenario.image_bytes = (8 << 20) + seed * 1_234_567;
        let victims = [Victim::Holder, Victim::Steward, Victim::Any];
        scenario.faults = (0..=(seed % 2))
            .map(|number| {
                let draw = seed + number * 5;
                let wait = Duration::from_secs(1 + draw % 7);
                Planned {
                    at_share: 0.1 + 0.11 * (draw % 8) as f64,
                    victim: victims[(draw % 3) as usize],
                    fault: match draw % 4 {
                        0 => Fault::Kill {
                            restart_after: None,
                        },
                        1 => Fault::Kill {
                            restart_after: Some(wait),
                        },
                        _ => Fault::Freeze { thaw_after: wait },
                    },
                }
            })
            .collect();
        sound(scenario);
    }
}
