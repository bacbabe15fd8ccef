//! Worlds that broke something once, as the command line of each.

/// What follows `cargo sim --scenario random`, and what broke.
#[cfg(test)]
pub(super) const REGRESSIONS: &[(&str, &str)] = &[];

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
