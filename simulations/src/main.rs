//! The exchange in virtual time: `cargo run --release -p shoal-simulations -- --list`.
//!
//! A world is the real state machines of `shoal-protocol`, one for each host, over links and an
//! origin that exist only as numbers. One seed decides everything, so that every run can be run
//! again.

mod checkers;
mod host;
mod network;
mod report;
mod scenario;
#[cfg(test)]
mod tests;
mod world;

use std::process::ExitCode;

use clap::Parser;

use crate::{scenario::Scenario, world::World};

/// Runs the exchange in virtual time and reports how far it stays from the lower bound.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Which world; see --list.
    #[arg(long, default_value = "cold")]
    scenario: String,
    /// Decides everything that is random.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Runs so many seeds, from --seed on.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// Hosts that pull.
    #[arg(long)]
    nodes: Option<usize>,
    /// Each host's link, in Mbit/s.
    #[arg(long)]
    rate: Option<f64>,
    /// The origin's link, in Mbit/s.
    #[arg(long)]
    origin_rate: Option<f64>,
    /// Bytes of the image.
    #[arg(long)]
    size: Option<u64>,
    /// Layers that share them.
    #[arg(long)]
    layers: Option<usize>,
    /// Another value for a setting of every node, as NAME=NUMBER; durations in milliseconds.
    #[arg(long, value_name = "NAME=NUMBER")]
    set: Vec<String>,
    /// Adds how much of the links was used in each second.
    #[arg(long)]
    timeline: bool,
    /// One object for each run, on a line of its own.
    #[arg(long)]
    json: bool,
    /// Names the scenarios.
    #[arg(long)]
    list: bool,
}

#[expect(clippy::print_stdout, reason = "the output of a command")]
fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if arguments.list {
        for (name, about) in scenario::NAMES {
            println!("{name:16} {about}");
        }
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
    Ok(if sound {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

impl Arguments {
    fn scenario(&self, seed: u64) -> anyhow::Result<Scenario> {
        let mut scenario = Scenario::named(&self.scenario).ok_or_else(|| {
            anyhow::anyhow!(
                "there is no scenario {:?}; --list names them",
                self.scenario
            )
        })?;
        let bytes = |mbit: f64| mbit * 1e6 / 8.0;
        scenario.seed = seed;
        scenario.nodes = self.nodes.unwrap_or(scenario.nodes);
        scenario.rate = self.rate.map_or(scenario.rate, bytes);
        scenario.origin_rate = self.origin_rate.map_or(scenario.origin_rate, bytes);
        scenario.image_bytes = self.size.unwrap_or(scenario.image_bytes);
        scenario.layers = self.layers.unwrap_or(scenario.layers);
        for setting in &self.set {
            scenario.set(setting)?;
        }
        anyhow::ensure!(scenario.nodes > scenario.warm, "more nodes are needed");
        anyhow::ensure!(
            scenario.layers > 0 && scenario.image_bytes > 0,
            "an image has layers"
        );
        Ok(scenario)
    }
}
