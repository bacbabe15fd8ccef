#[cfg(feature = "mutations")]
mod mutations;

use shoal_protocol::time::Duration;

use crate::{
    report::Report,
    scenario::{MIB, NAMES, Scenario},
    world::World,
};

/// The scenario of this name, with 8 nodes, 1 % of the rate and 64 MiB.
fn small(name: &str) -> Scenario {
    let mut scenario = Scenario::named(name, 1).expect("a scenario");
    let slower = scenario.up / (100e6 / 8.0);
    scenario.nodes = 8;
    scenario.settled &= scenario.two_views;
    scenario.layout.racks = 2;
    scenario.up /= slower;
    scenario.down /= slower;
    scenario.origin.rate /= slower;
    scenario.warm = scenario.warm.min(3);
    for image in &mut scenario.images {
        image.bytes = 64 * MIB / scenario.images_each as u64;
        image.layers = image.layers.min(3);
    }
    // What a fault costs is a larger part of a small image; and where one node in twenty crashes,
    // the same five do among eight.
    let most = if name == "crash-slow" { 1.1 } else { 1.05 };
    scenario.limits.copies = scenario.limits.copies.map(|copies| copies.max(most));
    // So is what an origin that throttles is left alone for: 1.6 to 2.2 bounds, as the seed has it.
    let most = if name == "throttled" { 2.5 } else { 1.5 };
    scenario.limits.ratio = scenario.limits.ratio.map(|limit| limit.max(most));
    scenario.limits.p99 = None;
    scenario.limits.control = None;
    scenario.limits.upload = None;
    scenario
}

fn named(name: &str) -> Scenario {
    Scenario::named(name, 1).expect("a scenario")
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
        assert!(report.max_seconds.is_finite(), "{report}");
    }
}

#[test]
fn a_name_may_say_how_many_nodes() {
    assert_eq!(named("racks-250").nodes, 250);
    assert_eq!(named("crash-slow-40").nodes, 40);
    assert_eq!(named("crash-slow").slow_share.to_bits(), 0.05f64.to_bits());
    assert!(Scenario::named("cold-", 1).is_none() && Scenario::named("warmer-5", 1).is_none());
}

#[test]
fn the_origin_is_read_once_and_the_manifest_once() {
    let report = sound(small("lan"));
    assert!(report.origin_copies <= 1.01, "{report}");
    assert_eq!(report.manifest_requests, 1, "{report}");
}

#[test]
fn sixteen_nodes_take_little_longer_than_two() {
    let ends = |nodes: usize| sound(named(&format!("lan-{nodes}"))).max_seconds;
    let (two, sixteen) = (ends(2), ends(16));
    assert!(sixteen <= 1.25 * two, "{two} s, {sixteen} s");
}

#[test]
fn nodes_that_begin_one_after_the_other_stay_near_the_bound() {
    let ratio = |seed| {
        let mut scenario = Scenario::named("lan-16", seed).expect("a scenario");
        let rate = 50e6 / 8.0;
        scenario.up = rate;
        scenario.down = rate;
        scenario.origin.rate = rate;
        scenario.images[0].bytes = 64 * MIB;
        scenario.stagger = Duration::from_secs(8);
        // Whoever begins first is alone with the origin for a while.
        scenario.limits.holder = None;
        let report = sound(scenario);
        report.max_seconds / report.lower_bound_seconds
    };
    let ratios: Vec<f64> = (1..=6).map(ratio).collect();
    let mean = ratios.iter().sum::<f64>() / ratios.len() as f64;
    // Were what was sent before to keep out what was not, it would be 1.23.
    assert!(mean <= 1.19, "{ratios:?}");
}

#[test]
fn a_fast_swarm_stays_near_the_bound() {
    let mut scenario = named("gigabit-32");
    scenario.images[0].bytes = 1024 * MIB;
    let report = sound(scenario);
    let bound = report.lower_bound_seconds;
    assert!(report.max_seconds <= 1.2 * bound + 0.5, "{report}");
    assert!(report.origin_copies <= 1.01, "{report}");
}

#[test]
fn a_fault_costs_the_others_three_seconds_at_most() {
    let without = sound(named("lan"));
    for name in ["killed", "frozen", "steward-killed", "steward-frozen"] {
        let report = sound(named(name));
        let most = without.max_seconds + 3.0;
        assert!(report.max_seconds <= most, "{without}{report}");
        let ended = !report.struck_seconds.is_empty();
        assert!(ended, "the victim never ended: {report}");
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
    // Ten of the twelve that a pull begins with, and fewer with each halving.
    assert!(report.origin_refused <= 20, "{report}");
    assert!(report.peak_origin_streams <= 2, "{report}");
}

#[test]
fn a_liar_is_found_and_nobody_else() {
    let report = sound(small("liar"));
    assert!(report.bans > 0, "{report}");
    let report = sound(small("corrupt"));
    assert!(report.chunks_rejected > 0 && report.bans == 0, "{report}");
}

#[test]
fn what_a_node_read_and_spoils_is_read_again_at_once() {
    // A tenth of all, in layers of up to a thousand chunks; SHA-256 then takes up to 3 s.
    let report = sound(named("corrupt-10"));
    assert!(report.origin_copies >= 1.05, "{report}");
    let late = report.max_seconds - report.lower_bound_seconds;
    assert!(late <= 6.0, "{report}");
}

#[test]
fn the_same_seed_is_the_same_run() {
    let trace = |seed| {
        let mut scenario = small("killed");
        scenario.seed = seed;
        sound(scenario).trace_hash
    };
    assert_eq!(trace(7), trace(7));
    assert_ne!(trace(7), trace(8));
}

#[test]
fn a_settled_world_goes_on_as_one_that_booted() {
    let ends = |settled| {
        let mut scenario = named("lan");
        scenario.settled = settled;
        sound(scenario).max_seconds
    };
    let (booted, settled) = (ends(false), ends(true));
    assert!(
        (booted - settled).abs() <= 0.05 * booted,
        "{booted} s, {settled} s"
    );
}
