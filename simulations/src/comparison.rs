//! Everybody on the same links, side by side: what `--report` runs and writes.

mod figures;
mod runs;
mod table;
#[cfg(test)]
mod tests;

use std::path::Path;

use anyhow::Context as _;
use shoal_simulations::plot::whole;

use crate::baselines::{Contender, Outcome};

/// Runs a fixed table of scenarios and writes its pictures and its figures into a directory, anew
/// after each scenario; `say` hears of each run when it has ended.
///
/// # Errors
/// The exchange broke an invariant, or the directory cannot be written.
pub(crate) fn write(directory: &Path, seed: u64, mut say: impl FnMut(&str)) -> anyhow::Result<()> {
    let mut comparisons = Vec::new();
    for (family, nodes) in runs::TABLE {
        comparisons.push(runs::compare(family, nodes, seed, &mut say)?);
        save(directory, &comparisons)?;
    }
    Ok(())
}

fn save(directory: &Path, comparisons: &[Comparison]) -> anyhow::Result<()> {
    let save = |name: &str, content: String| {
        let path = directory.join(name);
        std::fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))
    };
    std::fs::create_dir_all(directory)
        .with_context(|| format!("cannot make the directory {}", directory.display()))?;
    save("table.md", table::markdown(comparisons))?;
    for figure in figures::all(comparisons) {
        save(&figure.file, figure.plot.svg())?;
    }
    Ok(())
}

/// One scenario and how everybody did in it.
#[derive(Clone, Debug)]
pub(crate) struct Comparison {
    /// As on the command line, without the number of nodes.
    pub(crate) family: String,
    /// For people: the image, the links, when the nodes begin.
    pub(crate) about: String,
    /// Nodes that pull.
    pub(crate) nodes: usize,
    /// No schedule whatever can be faster, in seconds.
    pub(crate) bound: f64,
    /// The nodes begin within this time, in seconds.
    pub(crate) stagger: f64,
    /// In the order of [`Contender::ALL`].
    pub(crate) outcomes: Vec<(Contender, Outcome)>,
}

impl Comparison {
    /// As on the command line.
    fn scenario(&self) -> String {
        format!("{}-{}", self.family, self.nodes)
    }

    fn outcome(&self, contender: Contender) -> Option<&Outcome> {
        let mut outcomes = self.outcomes.iter();
        outcomes
            .find(|(one, _)| *one == contender)
            .map(|(_, outcome)| outcome)
    }
}

/// Three digits are all that is worth reading.
fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 99.5 => whole(value),
        size if size >= 9.95 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
