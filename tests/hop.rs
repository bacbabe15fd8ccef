//! What one hop costs, beside what others need for it: `tests/bench hop`.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the results are the output"
)]

#[path = "hop/measure.rs"]
mod measure;
#[path = "hop/mirror.rs"]
mod mirror;
#[path = "hop/peers.rs"]
mod peers;
#[allow(
    dead_code,
    reason = "it is the other benchmark's, which needs more of it"
)]
#[path = "benchmark/server.rs"]
mod server;
#[allow(
    dead_code,
    unused_imports,
    reason = "it is the end-to-end tests', which need more of it"
)]
mod support;
#[allow(
    dead_code,
    reason = "it is the other benchmark's, which needs more of it"
)]
#[path = "benchmark/usage.rs"]
mod usage;

use std::process::ExitCode;

use clap::Parser;

use crate::measure::Outcome;

/// Measures what one hop costs: from node to node, from a mirror to its client, from an origin
/// through a mirror.
#[derive(Debug, Parser)]
#[command(name = "tests/bench hop")]
struct Arguments {
    /// Which hops; may be given several times.
    #[arg(long, value_enum, default_values_t = [Hop::Peers, Hop::Mirror, Hop::Pull, Hop::Origin])]
    hop: Vec<Hop>,
    /// How many MiB are moved in a round.
    #[arg(long, default_value_t = 1024)]
    size: usize,
    /// How many rounds; medians are told.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Prints a JSON object on each line instead of the table.
    #[arg(long)]
    json: bool,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Hop {
    /// From node to node.
    Peers,
    /// From a mirror to its client, cached.
    Mirror,
    /// The same with a client that checks and keeps what it gets.
    Pull,
    /// From an origin through a mirror to its client, cold.
    Origin,
}

impl Hop {
    fn run(self, size: usize, rounds: usize) -> Result<Vec<Outcome>, String> {
        match self {
            Self::Peers => {
                measure::in_turns("node to node, one connection", peers::entries(size), rounds)
            }
            Self::Mirror => mirror::cached(size, rounds),
            Self::Pull => mirror::pulled(size, rounds),
            Self::Origin => mirror::cold(size, rounds),
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut outcomes = Vec::new();
    for hop in &arguments.hop {
        match hop.run(arguments.size, arguments.rounds) {
            Ok(of_hop) => outcomes.extend(of_hop),
            Err(error) => {
                eprintln!("{error}");
                return ExitCode::FAILURE;
            }
        }
    }
    if arguments.json {
        for outcome in &outcomes {
            println!("{}", serde_json::to_string(outcome).unwrap_or_default());
        }
    } else {
        print!("{}", measure::markdown(&outcomes));
    }
    ExitCode::SUCCESS
}
