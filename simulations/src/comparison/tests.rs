//! What a reader of a report is promised.

use super::*;

fn outcome(last: u32, origin_copies: f64) -> Outcome {
    Outcome {
        times: (1..=last).map(f64::from).collect(),
        origin_copies,
        uplinks: vec![0.5; 40],
    }
}

fn comparison(family: &str, nodes: u32) -> Comparison {
    Comparison {
        family: family.into(),
        about: "a test".into(),
        nodes: nodes as usize,
        bound: 1.0,
        stagger: 0.0,
        outcomes: vec![
            (Contender::Shoal, outcome(nodes, 1.0)),
            (Contender::Direct, outcome(nodes, f64::from(nodes))),
        ],
    }
}

#[test]
fn figures_have_three_digits() {
    let shown = [0.051, 1.234, 12.34, 123.4, 1234.4, 98_765.4].map(figure);
    assert_eq!(shown, ["0.05", "1.23", "12.3", "123", "1,234", "98,765"]);
}

#[test]
fn sizes_of_a_scenario_share_a_picture_and_each_has_its_own() {
    let report = [
        comparison("cold", 10),
        comparison("cold", 100),
        comparison("staggered", 100),
    ];
    let figures = figures::all(&report);
    let files: Vec<&str> = figures.iter().map(|figure| figure.file.as_str()).collect();
    assert_eq!(
        files,
        [
            "ratio-cold.svg",
            "origin-cold.svg",
            "completion-cold-10.svg",
            "uplinks-cold-10.svg",
            "completion-cold-100.svg",
            "uplinks-cold-100.svg",
            "completion-staggered-100.svg",
            "uplinks-staggered-100.svg",
        ]
    );
    let svg = figures[1].plot.svg();
    assert!(svg.contains("Shoal") && svg.contains("Direct pull") && svg.contains("Lower bound"));
    assert!(svg.contains("100 copies at 100 nodes"));
}

#[test]
fn the_table_names_everybody_with_time_ratio_and_copies() {
    let table = table::markdown(&[comparison("cold", 100)]);
    assert!(table.contains("| **cold-100** | lower bound | | | 1.00 | 1 | 1 |"));
    assert!(table.contains("| | Direct pull | 50.0 | 99.0 | 100 | 99.0 | 100 |"));
}
