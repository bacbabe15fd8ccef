//! Axes: where a value stands, and which values are named.

/// How values are spread over an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Equal differences are equally far apart; begins at zero.
    Linear,
    /// Equal ratios are; holds only what is above zero.
    Logarithmic,
}

/// One axis of a plot.
#[derive(Clone, Debug)]
pub struct Axis {
    /// What it measures, with the unit.
    pub label: String,
    /// How.
    pub scale: Scale,
    /// Where it ends; by default where the points do.
    pub end: Option<f64>,
}

/// An axis that knows where it begins and ends.
#[derive(Clone, Debug)]
pub(super) struct Spread<'a> {
    axis: &'a Axis,
    low: f64,
    high: f64,
}

/// A value with a line of the grid.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tick {
    pub(super) value: f64,
    /// Named, or only there to show the scale.
    pub(super) label: Option<String>,
}

/// About so many named values on a linear axis.
const TICKS: f64 = 6.0;
/// Up to so many decades 2 and 5 are named too.
const DECADES_NAMED_WITHIN: f64 = 2.0;
/// Rounding of logarithms must not push a value out of its own axis.
const SLACK: f64 = 1e-9;

impl Axis {
    /// An axis that reaches as far as its points.
    pub fn new(label: impl Into<String>, scale: Scale) -> Self {
        Self {
            label: label.into(),
            scale,
            end: None,
        }
    }

    /// Ends here, whatever the points.
    pub fn until(self, end: f64) -> Self {
        Self {
            end: Some(end),
            ..self
        }
    }

    /// Round ends around these values.
    pub(super) fn spread(&self, values: impl Iterator<Item = f64>) -> Spread<'_> {
        let held = values.filter(|value| self.holds(*value));
        let (least, most) = held.fold((f64::MAX, f64::MIN), |(least, most), value| {
            (least.min(value), most.max(value))
        });
        let (least, most) = if least > most {
            (1.0, 1.0)
        } else {
            (least, most)
        };
        let (low, high) = match self.scale {
            Scale::Linear => {
                let most = self.end.unwrap_or(most).max(f64::MIN_POSITIVE);
                let step = mark_above(most / TICKS);
                (0.0, (most / step - SLACK).ceil() * step)
            }
            Scale::Logarithmic => {
                let (low, high) = (mark_below(least), mark_above(most));
                (low, if high > low { high } else { low * 10.0 })
            }
        };
        Spread {
            axis: self,
            low,
            high: self.end.unwrap_or(high),
        }
    }

    fn holds(&self, value: f64) -> bool {
        value.is_finite() && (self.scale == Scale::Linear || value > 0.0)
    }
}

impl Spread<'_> {
    pub(super) fn label(&self) -> &str {
        &self.axis.label
    }

    /// How far along the axis a value stands: 0 at its beginning, 1 at its end, above 1 beyond.
    /// `None` for what the axis does not hold.
    pub(super) fn share(&self, value: f64) -> Option<f64> {
        self.axis.holds(value).then(|| match self.axis.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Logarithmic => (value / self.low).log10() / (self.high / self.low).log10(),
        })
    }

    /// The values with a line, from low to high.
    pub(super) fn ticks(&self) -> Vec<Tick> {
        match self.axis.scale {
            Scale::Linear => {
                let step = mark_above(self.high / TICKS);
                (0..=(self.high / step + SLACK) as u32)
                    .map(|number| {
                        let value = f64::from(number) * step;
                        Tick {
                            value,
                            label: Some(named(value)),
                        }
                    })
                    .collect()
            }
            Scale::Logarithmic => {
                let few = (self.high / self.low).log10() <= DECADES_NAMED_WITHIN + SLACK;
                let first = self.low.log10().floor() as i32;
                let last = self.high.log10().ceil() as i32;
                let inside = self.low * (1.0 - SLACK)..=self.high * (1.0 + SLACK);
                (first..=last)
                    .flat_map(|decade| (1..10).map(move |digit| (digit, decade)))
                    .map(|(digit, decade)| {
                        let value = f64::from(digit) * 10f64.powi(decade);
                        let major = digit == 1 || few && (digit == 2 || digit == 5);
                        Tick {
                            value,
                            label: major.then(|| named(value)),
                        }
                    })
                    .filter(|tick| inside.contains(&tick.value))
                    .collect()
            }
        }
    }
}

/// 1, 2 or 5 times a power of ten, not below.
fn mark_above(value: f64) -> f64 {
    let decade = 10f64.powi(value.log10().floor() as i32);
    let digit = value / decade;
    let marks = [1.0, 2.0, 5.0, 10.0];
    let mark = marks.iter().find(|mark| digit <= **mark + SLACK);
    mark.unwrap_or(&10.0) * decade
}

/// The same, not above.
fn mark_below(value: f64) -> f64 {
    let decade = 10f64.powi((value.log10() + SLACK).floor() as i32);
    let digit = value / decade;
    let marks = [5.0, 2.0, 1.0];
    let mark = marks.iter().find(|mark| digit >= **mark - SLACK);
    mark.unwrap_or(&1.0) * decade
}

/// Without digits that say nothing, thousands apart.
fn named(value: f64) -> String {
    if value >= 1000.0 {
        return whole(value);
    }
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A number of things, thousands apart.
pub fn whole(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
