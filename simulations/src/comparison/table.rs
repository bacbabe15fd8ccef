//! The same in figures, as a table in Markdown.

use std::fmt::Write as _;

use super::{Comparison, figure};
use shoal_simulations::percentile;

/// One row for each scenario and contender.
pub(super) fn markdown(comparisons: &[Comparison]) -> String {
    let mut out = String::from(
        "| scenario | contender | median, s | 99 %, s | longest, s | 99 % / bound | origin copies |\n\
         |---|---|--:|--:|--:|--:|--:|\n",
    );
    for one in comparisons {
        let (name, bound) = (one.scenario(), figure(one.bound));
        let _ = writeln!(out, "| **{name}** | lower bound | | | {bound} | 1 | 1 |");
        for (contender, outcome) in &one.outcomes {
            let late = percentile(&outcome.times, 0.99);
            let _ = writeln!(
                out,
                "| | {} | {} | {} | {} | {} | {} |",
                contender.name(),
                figure(percentile(&outcome.times, 0.5)),
                figure(late),
                figure(percentile(&outcome.times, 1.0)),
                figure(late / one.bound),
                figure(outcome.origin_copies),
            );
        }
    }
    out
}
