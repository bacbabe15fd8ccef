//! Worlds that broke something once, as the command line of each.

/// What follows `cargo sim --scenario random`, and what broke.
#[cfg(test)]
pub(super) const REGRESSIONS: &[(&str, &str)] = &[
    (
        "--seed 1",
        "a mismatch was forgotten that was told before the members were known",
    ),
    (
        "--seed 25",
        "nobody told a steward that had started again who holds what",
    ),
    (
        "--seed 244",
        "a stream that was read before it had left was never said to have left",
    ),
    (
        "--seed 369",
        "an auditor kept what was being written when its audit began",
    ),
    (
        "--seed 258",
        "two liars among the stewards blamed the origin",
    ),
    (
        "--seed 479",
        "nodes that had started again coordinated before they had the list of members",
    ),
    (
        "--seed 481",
        "a node that may fetch from afar did so once and never again",
    ),
    (
        "--seed 773",
        "who sent wrong bytes was leased all that others then lacked",
    ),
    (
        "--seed 788",
        "those that had nothing took all places from those that had all",
    ),
    ("--seed 1163", "an auditor that was asleep never went on"),
    (
        "--seed 1323",
        "nodes that turned out to stand in the same rack became neighbours beyond the bound",
    ),
    (
        "--seed 1532",
        "neighbours that had taken a node for dead told it nothing, and kept its places",
    ),
    (
        "--seed 1857",
        "everyone audited for itself, and a slow origin sent the blob to none",
    ),
    (
        "--seed 3122",
        "what an audit had found wrong came again from those who had not heard of it",
    ),
    (
        "--seed 3776",
        "every layer met the refusals of an origin that gives one stream anew",
    ),
    (
        "--seed 3859",
        "two stewards started again, and no holder told them what it holds",
    ),
    (
        "--seed 5587",
        "a steward forgot the holders to whom its connection broke",
    ),
];

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::REGRESSIONS;
    use crate::{arguments::Arguments, swarm::attempt};

    #[test]
    fn what_broke_once_holds() {
        for (line, what) in REGRESSIONS {
            let line = format!("sim --scenario random {line}");
            let arguments = Arguments::parse_from(line.split_whitespace());
            let scenario = arguments.scenario(arguments.seed).expect("a scenario");
            if let Err(broken) = attempt(&scenario) {
                panic!("{line} ({what}):\n{broken}");
            }
        }
    }
}
