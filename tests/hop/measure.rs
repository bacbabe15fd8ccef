//! Several ways to do the same, measured in turns, and told beside one of them.

use std::fmt::Write as _;

use serde::Serialize;

/// What one run of an entry took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    pub(crate) bytes: f64,
    pub(crate) seconds: f64,
    /// Of what serves the bytes; between nodes, of both ends.
    pub(crate) cpu_seconds: f64,
    /// Until the client's first byte, where there is a client.
    pub(crate) first_byte_seconds: Option<f64>,
}

impl Measured {
    fn rate(&self) -> f64 {
        self.bytes / self.seconds
    }

    fn cost(&self) -> f64 {
        self.cpu_seconds / (self.bytes / f64::from(1 << 30))
    }
}

type Run = Box<dyn FnMut() -> Result<Measured, String>>;

/// One way to do it.
pub(crate) struct Entry {
    name: String,
    is_base: bool,
    run: Run,
}

impl Entry {
    pub(crate) fn new(name: &str, run: impl FnMut() -> Result<Measured, String> + 'static) -> Self {
        Self {
            name: name.to_owned(),
            is_base: false,
            run: Box::new(run),
        }
    }

    /// The one that the others are compared with.
    pub(crate) fn base(self) -> Self {
        Self {
            is_base: true,
            ..self
        }
    }
}

/// What came of an entry: medians over the rounds.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    setting: String,
    name: String,
    megabytes_per_second: f64,
    cpu_seconds_per_gib: f64,
    first_byte_milliseconds: Option<f64>,
    /// Medians of the ratios to the base in the same round.
    rate_ratio: f64,
    cpu_ratio: f64,
}

/// Runs all entries so many times, in turns, so that what else the machine does falls on all alike.
///
/// # Errors
///
/// One of them failed.
pub(crate) fn in_turns(
    setting: &str,
    mut entries: Vec<Entry>,
    rounds: usize,
) -> Result<Vec<Outcome>, String> {
    let mut measured = Vec::new();
    for _ in 0..rounds {
        let round: Result<Vec<Measured>, String> = entries
            .iter_mut()
            .map(|entry| (entry.run)().map_err(|error| format!("{}: {error}", entry.name)))
            .collect();
        measured.push(round?);
    }
    let base = entries.iter().position(|entry| entry.is_base);
    let base = base.ok_or("nothing to compare with")?;
    let outcome = |(at, entry): (usize, &Entry)| {
        let of = |what: &dyn Fn(&[Measured]) -> f64| {
            median(measured.iter().map(|round| what(round)).collect())
        };
        let first_byte = measured[0][at]
            .first_byte_seconds
            .is_some()
            .then(|| of(&|round| round[at].first_byte_seconds.unwrap_or(f64::NAN) * 1e3));
        Outcome {
            setting: setting.to_owned(),
            name: entry.name.clone(),
            megabytes_per_second: of(&|round| round[at].rate() / 1e6),
            cpu_seconds_per_gib: of(&|round| round[at].cost()),
            first_byte_milliseconds: first_byte,
            rate_ratio: of(&|round| round[at].rate() / round[base].rate()),
            cpu_ratio: of(&|round| round[at].cost() / round[base].cost()),
        }
    };
    Ok(entries.iter().enumerate().map(outcome).collect())
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of.get(of.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The outcomes in Markdown.
pub(crate) fn markdown(outcomes: &[Outcome]) -> String {
    let mut table = "\
| | MB/s | ratio | CPU s/GiB | ratio | first byte, ms |\n\
|---|--:|--:|--:|--:|--:|\n"
        .to_owned();
    let mut setting = "";
    for outcome in outcomes {
        if outcome.setting != setting {
            setting = &outcome.setting;
            let _ = writeln!(table, "| **{setting}** | | | | | |");
        }
        let first_byte = outcome.first_byte_milliseconds;
        let _ = writeln!(
            table,
            "| {} | {:.0} | {:.2} | {:.2} | {:.2} | {} |",
            outcome.name,
            outcome.megabytes_per_second,
            outcome.rate_ratio,
            outcome.cpu_seconds_per_gib,
            outcome.cpu_ratio,
            first_byte.map_or(String::new(), |first| format!("{first:.1}")),
        );
    }
    table
}
