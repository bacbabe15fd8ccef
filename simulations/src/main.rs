//! The exchange in virtual time: `cargo sim --list`.
//!
//! A world is the real state machines of `shoal-protocol`, one for each host, over links and an
//! origin that exist only as numbers. One seed decides everything, so that every run can be run
//! again.

mod arguments;
mod baselines;
mod bytes;
mod campaign;
mod checkers;
mod comparison;
mod host;
mod machines;
mod net;
mod report;
mod scenario;
mod swarm;
#[cfg(test)]
mod tests;
mod trace;
mod world;

use std::{
    io::{Write as _, stdout},
    process::{ExitCode, exit},
};

use clap::Parser as _;

use crate::{arguments::Arguments, world::World};

/// A large world is some 100 MB that every event touches at random: on huge pages, which this
/// allocator asks for and the system's does not, a run takes a quarter less time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A line of output. Whoever stops reading, as `head` does, has what they wanted.
fn say(line: &str) {
    if writeln!(stdout(), "{line}").is_err() {
        exit(0);
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if arguments.list {
        for (name, about) in scenario::NAMES {
            say(&format!("{name:16} {about}"));
        }
        say(&format!(
            "{:16} 5 to 60 nodes, and everything else as the seed draws it",
            scenario::RANDOM
        ));
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(count) = arguments.swarm {
        let sound = swarm::run(count, arguments.seed_from, say);
        return Ok(verdict(sound));
    }
    if let Some(directory) = &arguments.campaign {
        return Ok(verdict(campaign::run(directory, say)?));
    }
    if arguments.follow.is_some() {
        let world = World::new(arguments.scenario(arguments.seed)?);
        for line in world.run_logged(usize::MAX, arguments.follow) {
            say(&line);
        }
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(directory) = &arguments.report {
        comparison::write(directory, arguments.seed, say)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut sound = true;
    for seed in arguments.seed..arguments.seed + arguments.seeds {
        let report = World::new(arguments.scenario(seed)?).run();
        sound &= report.violations.is_empty();
        if arguments.json {
            say(&serde_json::to_string(&report)?);
        } else if arguments.timeline {
            say(format!("{report:#}").trim_end());
        } else {
            say(report.to_string().trim_end());
        }
    }
    Ok(verdict(sound))
}

fn verdict(sound: bool) -> ExitCode {
    if sound {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
