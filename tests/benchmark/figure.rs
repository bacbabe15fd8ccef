//! The outcomes as pictures: the time against the number of nodes.

use shoal_simulations::plot::{Axis, Ink, Line, Plot, Scale, Shape};

use crate::contender::Contender;
use crate::race::{Outcome, Scenario};

/// A picture of each scenario that was run, and the name of its file.
pub(crate) fn pictures(outcomes: &[Outcome], about: &str) -> Vec<(String, String)> {
    Scenario::ALL
        .iter()
        .filter_map(|scenario| {
            let name = scenario.name();
            let lines: Vec<Line> = Contender::ALL
                .iter()
                .rev()
                .filter_map(|contender| line(outcomes, name, *contender))
                .collect();
            let plot = Plot {
                title: format!("Time to the last byte, {name}"),
                about: about.to_owned(),
                x: Axis::new("nodes that pull", Scale::Logarithmic),
                y: Axis::new("99th percentile / lower bound", Scale::Logarithmic),
                lines,
            };
            (!plot.lines.is_empty()).then(|| (format!("{name}.svg"), plot.svg()))
        })
        .collect()
}

fn line(outcomes: &[Outcome], scenario: &str, contender: Contender) -> Option<Line> {
    let points: Vec<(f64, f64)> = outcomes
        .iter()
        .filter(|outcome| outcome.scenario == scenario && outcome.contender == contender.name())
        .map(|outcome| {
            let ratio = outcome.percentile(0.99) / outcome.bound_seconds;
            (outcome.nodes as f64, ratio)
        })
        .collect();
    let last = points.last()?;
    Some(Line {
        name: contender.name().to_owned(),
        note: format!("{:.2} × with {} nodes", last.1, last.0),
        ink: ink(contender),
        shape: Shape::Marked,
        points,
    })
}

fn ink(contender: Contender) -> Ink {
    match contender {
        Contender::Direct => Ink::VERMILION,
        Contender::Registry => Ink::GREEN,
        Contender::Nginx => Ink::ORANGE,
        Contender::Torrent => Ink::PURPLE,
        Contender::Shoal => Ink::BLUE,
    }
}
