//! How each contender looks: colour, dashes, mark.

use std::fmt::Write as _;

/// A line's looks. Colours are those of Okabe and Ito, which people with any colour vision can tell
/// apart (<https://jfly.uni-koeln.de/color/>).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ink {
    colour: &'static str,
    dashes: &'static str,
    width: f64,
    mark: Mark,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Disc,
    Square,
    Up,
    Down,
    Diamond,
    None,
}

impl Ink {
    /// Shoal.
    pub const BLUE: Self = Self::solid("#0072b2", 3.0, Mark::Disc);
    /// Direct pull; dashed, as whole layers often do just as well.
    pub const VERMILION: Self = Self {
        dashes: "8 6",
        ..Self::solid("#d55e00", 2.0, Mark::Square)
    };
    /// Complete layers only.
    pub const GREEN: Self = Self::solid("#009e73", 2.0, Mark::Up);
    /// Static hashing.
    pub const ORANGE: Self = Self::solid("#e69f00", 2.0, Mark::Down);
    /// BitTorrent-like.
    pub const PURPLE: Self = Self::solid("#cc79a7", 2.0, Mark::Diamond);
    /// What nobody can beat.
    pub const BOUND: Self = Self {
        colour: "#57606a",
        dashes: "5 4",
        width: 1.5,
        mark: Mark::None,
    };

    const fn solid(colour: &'static str, width: f64, mark: Mark) -> Self {
        Self {
            colour,
            dashes: "",
            width,
            mark,
        }
    }

    /// Draws a path, within the axes where that is asked.
    pub(super) fn stroke(self, out: &mut String, path: &str, clipped: bool) {
        let Self {
            colour,
            dashes,
            width,
            ..
        } = self;
        let _ = write!(
            out,
            r#"<path d="{path}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-linejoin="round""#
        );
        if !dashes.is_empty() {
            let _ = write!(out, r#" stroke-dasharray="{dashes}""#);
        }
        if clipped {
            out.push_str(r#" clip-path="url(#area)""#);
        }
        out.push_str("/>\n");
    }

    /// Draws the contender's mark.
    pub(super) fn mark(self, out: &mut String, (x, y): (f64, f64)) {
        let path = match self.mark {
            Mark::Disc => "m-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z",
            Mark::Square => "m-4 -4h8v8h-8z",
            Mark::Up => "m0 -5l5 9h-10z",
            Mark::Down => "m0 5l5 -9h-10z",
            Mark::Diamond => "m0 -5.5l5.5 5.5l-5.5 5.5l-5.5 -5.5z",
            Mark::None => return,
        };
        let _ = writeln!(
            out,
            r##"<path d="M{x:.1} {y:.1}{path}" fill="{}" stroke="#ffffff"/>"##,
            self.colour
        );
    }
}
