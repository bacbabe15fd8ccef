//! What a campaign keeps, and what its table says.

use super::*;

fn run(seed: u64, p99: f64, version: &str) -> Run {
    Run {
        scenario: "cold-100".to_owned(),
        seed,
        lower_bound_seconds: 8.0,
        p50_seconds: 8.2,
        p99_seconds: p99,
        max_seconds: p99,
        origin_copies: 1.0,
        control_share: 0.0002,
        peak_origin_streams: 32,
        upload_most: 1.1,
        peak_memory_bytes: Some(20_000_000),
        invariants_broken: 0,
        violations: Vec::new(),
        trace_hash: String::new(),
        version: version.to_owned(),
    }
}

#[test]
fn a_world_shows_its_worst_seed_and_the_versions_that_ran() {
    let (one, other) = (run(100, 8.4, "b"), run(101, 8.7, "a"));
    let table = table::markdown(&[&one, &other]);
    let row = table.lines().nth(2).unwrap();
    assert_eq!(
        row,
        "| `cold-100` | 2 | 8.00 | 0.70 | 0.90 | 1.0000 | 0.020 % | 32 | 1.10 | 20 | 0 | a, b |"
    );
    assert_eq!(table.lines().count(), 3);
}

#[test]
fn a_campaign_goes_on_where_it_was_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let mut first = Campaign::open(directory.path()).unwrap();
    let old = run(101, 8.4, "another version");
    first.runs.insert(old.name(), old);
    first.add(run(100, 8.4, "")).unwrap();
    let second = Campaign::open(directory.path()).unwrap();
    assert_eq!(second.runs, first.runs);
    assert!(second.has(&("cold-100".to_owned(), 100)));
    assert!(!second.has(&("cold-100".to_owned(), 101)));
}

#[test]
fn a_file_that_is_none_is_not_overwritten() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join(RUNS), "{}\n").unwrap();
    let Err(error) = Campaign::open(directory.path()) else {
        panic!("it was read");
    };
    assert!(error.to_string().starts_with("line 1 of "), "{error}");
}

#[test]
fn each_world_is_run_once_with_each_seed() {
    let plan = plan();
    let names: std::collections::BTreeSet<&Name> = plan.iter().collect();
    assert_eq!(names.len(), plan.len());
    for (world, seed) in &plan {
        assert!(Scenario::named(world, *seed).is_some(), "{world}");
    }
    assert!(plan.iter().any(|(world, _)| world == "warm3"));
}
