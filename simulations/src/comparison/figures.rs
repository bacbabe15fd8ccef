//! The pictures of a comparison.

use shoal_simulations::{
    percentile,
    plot::{Axis, Ink, Line, Plot, Scale, Shape, whole},
};

use super::{Comparison, figure};
use crate::baselines::{Contender, Outcome};

/// A picture and the name of its file.
#[derive(Debug)]
pub(super) struct Figure {
    pub(super) file: String,
    pub(super) plot: Plot,
}

/// Times that are further apart than so many bounds need a logarithmic axis.
const LINEAR_BOUNDS: f64 = 12.0;
/// Uplinks are shown until so many bounds after the last start: later only stragglers are left.
const UPLINKS_BOUNDS: f64 = 3.0;
/// Points of a line over time.
const UPLINKS_POINTS: f64 = 120.0;

/// All pictures: over the sizes of each scenario that was run with several, and over time for each
/// scenario and size.
pub(super) fn all(comparisons: &[Comparison]) -> Vec<Figure> {
    let mut figures = Vec::new();
    for (place, first) in comparisons.iter().enumerate() {
        let family = |one: &&Comparison| one.family == first.family;
        let sizes: Vec<&Comparison> = comparisons.iter().filter(family).collect();
        if sizes.len() == 1 || comparisons[..place].iter().any(|one| family(&one)) {
            continue;
        }
        figures.push(Figure {
            file: format!("ratio-{}.svg", first.family),
            plot: ratio(&sizes),
        });
        figures.push(Figure {
            file: format!("origin-{}.svg", first.family),
            plot: origin(&sizes),
        });
    }
    for one in comparisons {
        figures.push(Figure {
            file: format!("completion-{}.svg", one.scenario()),
            plot: completion(one),
        });
        figures.push(Figure {
            file: format!("uplinks-{}.svg", one.scenario()),
            plot: uplinks(one),
        });
    }
    figures
}

fn ink(contender: Contender) -> Ink {
    match contender {
        Contender::Shoal => Ink::BLUE,
        Contender::Torrent => Ink::PURPLE,
        Contender::Hashing => Ink::ORANGE,
        Contender::Layers => Ink::GREEN,
        Contender::Direct => Ink::VERMILION,
    }
}

fn line(contender: Contender, note: String, shape: Shape, points: Vec<(f64, f64)>) -> Line {
    Line {
        name: contender.name().into(),
        note,
        ink: ink(contender),
        shape,
        points,
    }
}

fn bound(note: String, points: Vec<(f64, f64)>) -> Line {
    Line {
        name: "Lower bound".into(),
        note,
        ink: Ink::BOUND,
        shape: Shape::Straight,
        points,
    }
}

/// The share of nodes that are done, over time.
fn completion(one: &Comparison) -> Plot {
    let curve = |(contender, outcome): &(Contender, Outcome)| {
        let times = &outcome.times;
        let share = |done: usize| 100.0 * done as f64 / one.nodes as f64;
        let begin = times.first().map(|time| (*time, 0.0));
        let rises = times.iter().enumerate();
        let rises = rises.map(|(place, time)| (*time, share(place + 1)));
        let note = format!("99 % after {} s", figure(percentile(&outcome.times, 0.99)));
        line(
            *contender,
            note,
            Shape::Steps,
            begin.into_iter().chain(rises).collect(),
        )
    };
    let slowest = one
        .outcomes
        .iter()
        .filter_map(|(_, outcome)| outcome.times.last());
    let scale = if slowest.copied().fold(0.0, f64::max) > one.bound * LINEAR_BOUNDS {
        Scale::Logarithmic
    } else {
        Scale::Linear
    };
    let mut lines: Vec<Line> = one.outcomes.iter().map(curve).collect();
    let upright = vec![(one.bound, 0.0), (one.bound, 100.0)];
    lines.push(bound(format!("{} s", figure(one.bound)), upright));
    Plot {
        title: format!("How soon {} nodes have the image", whole(one.nodes as f64)),
        about: one.about.clone(),
        x: Axis::new("seconds since a node began", scale),
        y: Axis::new("nodes that have all of it, verified, %", Scale::Linear).until(100.0),
        lines,
    }
}

/// The part of the nodes' uplinks that is in use, over time.
fn uplinks(one: &Comparison) -> Plot {
    let until = one.stagger + one.bound * UPLINKS_BOUNDS;
    let width = (until / UPLINKS_POINTS * 10.0).ceil().max(1.0) as usize;
    let curve = |(contender, outcome): &(Contender, Outcome)| {
        let slots = (until * 10.0) as usize;
        let mut shares = outcome.uplinks.clone();
        shares.resize(slots.max(1), 0.0);
        let points = shares.chunks(width).enumerate().map(|(place, chunk)| {
            let middle = (place * width) as f64 / 10.0 + chunk.len() as f64 / 20.0;
            let mean = chunk.iter().sum::<f64>() / chunk.len() as f64;
            (middle, 100.0 * mean)
        });
        let busy = &outcome.uplinks[..outcome.uplinks.len().min(slots)];
        let mean = busy.iter().sum::<f64>() / busy.len().max(1) as f64;
        let note = format!("{:.0} % on average", 100.0 * mean);
        line(*contender, note, Shape::Straight, points.collect())
    };
    Plot {
        title: format!(
            "How much of {} nodes' uplinks is in use",
            whole(one.nodes as f64)
        ),
        about: one.about.clone(),
        x: Axis::new("seconds since the first node began", Scale::Linear).until(until),
        y: Axis::new("of the sum of all uplinks, %", Scale::Linear).until(100.0),
        lines: one.outcomes.iter().map(curve).collect(),
    }
}

/// The 99th percentile over the lower bound, against the number of nodes.
fn ratio(family: &[&Comparison]) -> Plot {
    let value = |one: &Comparison, outcome: &Outcome| percentile(&outcome.times, 0.99) / one.bound;
    let mut lines = against_nodes(family, value, " ×");
    lines.push(bound("1 ×".into(), ends(family, 1.0)));
    Plot {
        title: "How far from the lower bound".into(),
        about: family[0].about.clone(),
        x: Axis::new("nodes that pull at once", Scale::Logarithmic),
        y: Axis::new("99th percentile / lower bound", Scale::Logarithmic),
        lines,
    }
}

/// What the origin sends, against the number of nodes.
fn origin(family: &[&Comparison]) -> Plot {
    let value = |_: &Comparison, outcome: &Outcome| outcome.origin_copies;
    let mut lines = against_nodes(family, value, " copies");
    lines.push(bound("1 copy".into(), ends(family, 1.0)));
    Plot {
        title: "What the origin has to send".into(),
        about: family[0].about.clone(),
        x: Axis::new("nodes that pull at once", Scale::Logarithmic),
        y: Axis::new("copies of the image", Scale::Logarithmic),
        lines,
    }
}

fn against_nodes(
    family: &[&Comparison],
    value: impl Fn(&Comparison, &Outcome) -> f64,
    unit: &str,
) -> Vec<Line> {
    let of = |contender: Contender| {
        let points: Vec<(f64, f64)> = family
            .iter()
            .filter_map(|one| {
                let outcome = one.outcome(contender)?;
                Some((one.nodes as f64, value(one, outcome)))
            })
            .collect();
        let (nodes, last) = *points.last()?;
        let note = format!("{}{unit} at {} nodes", figure(last), whole(nodes));
        Some(line(contender, note, Shape::Marked, points))
    };
    Contender::ALL.into_iter().filter_map(of).collect()
}

fn ends(family: &[&Comparison], value: f64) -> Vec<(f64, f64)> {
    let nodes = family.iter().map(|one| (one.nodes as f64, value));
    nodes.collect()
}
