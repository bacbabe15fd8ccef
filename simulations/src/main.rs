//! The exchange in virtual time: `cargo sim --list`.
//!
//! A world is the real state machines of `shoal-protocol`, one for each host, over links and an
//! origin that exist only as numbers. One seed decides everything, so that every run can be run
//! again.

mod arguments;
mod baselines;
mod bytes;
mod checkers;
mod comparison;
mod host;
mod machines;
mod net;
mod plot;
mod report;
mod scenario;
mod swarm;
#[cfg(test)]
mod tests;
mod trace;
mod world;

use std::process::ExitCode;

use clap::Parser as _;

use crate::{arguments::Arguments, world::World};

/// A large world is some 100 MB that every event touches at random: on huge pages, which this
/// allocator asks for and the system's does not, a run takes a quarter less time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[expect(clippy::print_stdout, reason = "the output of a command")]
fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if arguments.list {
        for (name, about) in scenario::NAMES {
            println!("{name:16} {about}");
        }
        println!(
            "{:16} 5 to 60 nodes, and everything else as the seed draws it",
            scenario::RANDOM
        );
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(count) = arguments.swarm {
        let sound = swarm::run(count, arguments.seed_from, |line| println!("{line}"));
        return Ok(exit(sound));
    }
    if arguments.follow.is_some() {
        let world = World::new(arguments.scenario(arguments.seed)?);
        for line in world.run_logged(usize::MAX, arguments.follow) {
            println!("{line}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(directory) = &arguments.report {
        comparison::write(directory, arguments.seed, |line| println!("{line}"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut sound = true;
    for seed in arguments.seed..arguments.seed + arguments.seeds {
        let report = World::new(arguments.scenario(seed)?).run();
        sound &= report.violations.is_empty();
        if arguments.json {
            println!("{}", serde_json::to_string(&report)?);
        } else if arguments.timeline {
            print!("{report:#}");
        } else {
            print!("{report}");
        }
    }
    Ok(exit(sound))
}

fn exit(sound: bool) -> ExitCode {
    if sound {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
