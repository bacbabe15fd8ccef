//! What a plot promises whoever looks at it.

use super::*;

fn plot(x: Axis, y: Axis, points: Vec<(f64, f64)>) -> Plot {
    Plot {
        title: "Time & <space>".into(),
        about: "a test".into(),
        x,
        y,
        lines: vec![Line {
            name: "Shoal".into(),
            note: "1.02".into(),
            ink: Ink::BLUE,
            shape: Shape::Steps,
            points,
        }],
    }
}

fn linear() -> Axis {
    Axis::new("seconds", Scale::Linear)
}

fn logarithmic() -> Axis {
    Axis::new("nodes", Scale::Logarithmic)
}

fn names(axis: &Axis, values: &[f64]) -> Vec<String> {
    let spread = axis.spread(values.iter().copied());
    let ticks = spread.ticks().into_iter();
    ticks.filter_map(|tick| tick.label).collect()
}

#[test]
fn the_same_data_are_the_same_bytes() {
    let points: Vec<_> = (1..500)
        .map(|n| (f64::from(n) / 7.0, 1.0 / f64::from(n)))
        .collect();
    let one = plot(linear(), logarithmic(), points.clone()).svg();
    assert_eq!(one, plot(linear(), logarithmic(), points).svg());
    assert!(one.starts_with("<svg ") && one.ends_with("</svg>\n"));
}

#[test]
fn words_cannot_break_the_picture() {
    let svg = plot(linear(), linear(), vec![(1.0, 1.0)]).svg();
    assert!(svg.contains("Time &amp; &lt;space&gt;"));
    assert!(!svg.contains("<space>"));
}

#[test]
fn a_linear_axis_begins_at_zero_and_names_round_values() {
    assert_eq!(
        names(&linear(), &[3.0, 9.7]),
        ["0", "2", "4", "6", "8", "10"]
    );
    assert_eq!(
        names(&linear(), &[0.3]),
        ["0", "0.05", "0.1", "0.15", "0.2", "0.25", "0.3"]
    );
    assert_eq!(
        names(&linear().until(100.0), &[40.0]),
        ["0", "20", "40", "60", "80", "100"]
    );
}

#[test]
fn a_logarithmic_axis_names_decades_and_where_there_are_few_twos_and_fives() {
    assert_eq!(
        names(&logarithmic(), &[10.0, 1000.0]),
        ["10", "20", "50", "100", "200", "500", "1,000"]
    );
    assert_eq!(
        names(&logarithmic(), &[0.7, 32_000.0]),
        ["1", "10", "100", "1,000", "10,000"]
    );
    let axis = logarithmic();
    let spread = axis.spread([1.0, 100.0].into_iter());
    assert!((spread.share(10.0).unwrap() - 0.5).abs() < 1e-12);
    assert_eq!(spread.share(0.0), None);
}

#[test]
fn what_an_axis_does_not_hold_is_left_out() {
    let svg = plot(
        logarithmic(),
        linear(),
        vec![(0.0, 1.0), (1.0, 2.0), (f64::NAN, 1.0)],
    )
    .svg();
    assert!(!svg.contains("NaN") && !svg.contains("inf"));
    let nothing = plot(logarithmic(), logarithmic(), Vec::new()).svg();
    assert!(!nothing.contains("NaN") && !nothing.contains("inf"));
}

#[test]
fn points_that_cannot_be_told_apart_are_drawn_once() {
    let many = (0..100_000).map(|n| (f64::from(n), f64::from(n))).collect();
    let svg = plot(linear(), linear(), many).svg();
    assert!(svg.len() < 60_000, "{} bytes", svg.len());
    // The last point stands at the end of both axes, whatever was left out before it.
    assert!(svg.contains("H676.0V78.0"), "{svg}");
}
