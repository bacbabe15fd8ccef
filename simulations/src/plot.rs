//! Plots as SVG: axes, lines, a legend. The same data give the same bytes.
//!
//! Written by hand as a plot here needs few shapes and no dependency. Every plot paints its own
//! background, so that it reads alike on a light page and on a dark one; a contender has the same
//! colour, mark and dashes in all of them, so that neither colour alone nor the legend alone has
//! to tell two lines apart.

mod axis;
mod ink;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;

pub use self::{
    axis::{Axis, Scale, whole},
    ink::Ink,
};

/// A whole picture's width in pixels: what fits a page of text.
const WIDTH: f64 = 880.0;
const HEIGHT: f64 = 460.0;
/// The area between the axes; what is right of it is the legend's.
const LEFT: f64 = 76.0;
const RIGHT: f64 = 676.0;
const TOP: f64 = 78.0;
const BOTTOM: f64 = 398.0;
/// From one entry of the legend to the next.
const LEGEND_STEP: f64 = 40.0;
/// Points nearer than this to the last one drawn, in pixels, add nothing that can be seen.
const NEAR: f64 = 0.4;

/// Several lines over one pair of axes.
#[derive(Clone, Debug)]
pub struct Plot {
    /// What is shown.
    pub title: String,
    /// Of what: the image, the links, how many nodes.
    pub about: String,
    /// From left to right.
    pub x: Axis,
    /// From bottom to top.
    pub y: Axis,
    /// As the legend names them. The first is drawn last, over the others.
    pub lines: Vec<Line>,
}

/// One contender's points.
#[derive(Clone, Debug)]
pub struct Line {
    /// For the legend.
    pub name: String,
    /// A figure worth reading, below the name; may be empty.
    pub note: String,
    /// Colour, dashes and mark.
    pub ink: Ink,
    /// How the points are joined.
    pub shape: Shape,
    /// In the units of the axes, from left to right. Those that the axes do not hold (nothing on a
    /// logarithmic axis is zero) are left out.
    pub points: Vec<(f64, f64)>,
}

/// How points are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Straight from one to the next.
    Straight,
    /// A value holds until the next point.
    Steps,
    /// Straight, each point with the contender's mark: few points, measured one by one.
    Marked,
}

impl Plot {
    /// The picture. Axes without fixed ends reach as far as the points do.
    pub fn svg(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let x = self.x.spread(points().map(|point| point.0));
        let y = self.y.spread(points().map(|point| point.1));
        let mut out = String::new();
        let _ = writeln!(
            out,
            r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" font-family="system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif" font-size="12" fill="#24292f">
<title>{title}</title>
<desc>{about}</desc>
<clipPath id="area"><rect x="{LEFT}" y="{clip_top}" width="{width}" height="{height}"/></clipPath>
<rect x="0.5" y="0.5" width="{edge_right}" height="{edge_bottom}" rx="8" fill="#ffffff" stroke="#d0d7de"/>
<text x="24" y="32" font-size="17" font-weight="600">{title}</text>
<text x="24" y="53" fill="#57606a">{about}</text>"##,
            title = escaped(&self.title),
            about = escaped(&self.about),
            clip_top = TOP - 4.0,
            width = RIGHT - LEFT,
            height = BOTTOM - TOP + 8.0,
            edge_right = WIDTH - 1.0,
            edge_bottom = HEIGHT - 1.0,
        );
        let across = |value: f64| x.share(value).map(|share| LEFT + share * (RIGHT - LEFT));
        let up = |value: f64| y.share(value).map(|share| BOTTOM - share * (BOTTOM - TOP));
        for tick in x.ticks() {
            if let Some(at) = across(tick.value) {
                grid(&mut out, (at, TOP), (at, BOTTOM), tick.label.is_some());
                if let Some(label) = tick.label {
                    text(&mut out, (at, BOTTOM + 18.0), "middle", &label);
                }
            }
        }
        for tick in y.ticks() {
            if let Some(at) = up(tick.value) {
                grid(&mut out, (LEFT, at), (RIGHT, at), tick.label.is_some());
                if let Some(label) = tick.label {
                    text(&mut out, (LEFT - 8.0, at + 4.0), "end", &label);
                }
            }
        }
        let _ = writeln!(
            out,
            r##"<path d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}" fill="none" stroke="#57606a"/>"##
        );
        let middle = f64::midpoint(LEFT, RIGHT);
        text(&mut out, (middle, BOTTOM + 42.0), "middle", x.label());
        let middle = f64::midpoint(TOP, BOTTOM);
        let _ = writeln!(
            out,
            r#"<text transform="translate(22 {middle}) rotate(-90)" text-anchor="middle">{}</text>"#,
            escaped(y.label())
        );
        for line in self.lines.iter().skip(1).chain(self.lines.first()) {
            let seen = line
                .points
                .iter()
                .filter_map(|(x, y)| Some((across(*x)?, up(*y)?)))
                .collect();
            line.draw(&mut out, seen);
        }
        for (number, line) in self.lines.iter().enumerate() {
            line.legend(&mut out, TOP + 12.0 + number as f64 * LEGEND_STEP);
        }
        out.push_str("</svg>\n");
        out
    }
}

impl Line {
    fn draw(&self, out: &mut String, points: Vec<(f64, f64)>) {
        let Some(first) = points.first() else { return };
        let mut path = format!("M{}", pair(*first));
        let mut drawn = *first;
        for (number, point) in points.iter().enumerate().skip(1) {
            let last = number + 1 == points.len();
            let near = (point.0 - drawn.0).abs() < NEAR && (point.1 - drawn.1).abs() < NEAR;
            if near && !last {
                continue;
            }
            let _ = match self.shape {
                Shape::Steps => write!(path, "H{:.1}V{:.1}", point.0, point.1),
                Shape::Straight | Shape::Marked => write!(path, "L{}", pair(*point)),
            };
            drawn = *point;
        }
        self.ink.stroke(out, &path, true);
        if self.shape == Shape::Marked {
            for point in points {
                self.ink.mark(out, point);
            }
        }
    }

    fn legend(&self, out: &mut String, at: f64) {
        let left = RIGHT + 20.0;
        self.ink.stroke(out, &format!("M{left} {at:.1}h26"), false);
        if self.shape == Shape::Marked {
            self.ink.mark(out, (left + 13.0, at));
        }
        text(out, (left + 34.0, at + 4.0), "start", &self.name);
        if !self.note.is_empty() {
            let _ = writeln!(
                out,
                r##"<text x="{:.1}" y="{:.1}" font-size="11" fill="#57606a">{}</text>"##,
                left + 34.0,
                at + 18.0,
                escaped(&self.note)
            );
        }
    }
}

fn grid(out: &mut String, from: (f64, f64), to: (f64, f64), strong: bool) {
    let colour = if strong { "#d8dee4" } else { "#eff2f5" };
    let _ = writeln!(
        out,
        r#"<path d="M{}L{}" stroke="{colour}"/>"#,
        pair(from),
        pair(to)
    );
}

fn text(out: &mut String, at: (f64, f64), anchor: &str, text: &str) {
    let _ = writeln!(
        out,
        r#"<text x="{:.1}" y="{:.1}" text-anchor="{anchor}">{}</text>"#,
        at.0,
        at.1,
        escaped(text)
    );
}

/// A tenth of a pixel is all that can be seen.
fn pair(point: (f64, f64)) -> String {
    format!("{:.1} {:.1}", point.0, point.1)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
