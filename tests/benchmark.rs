//! Shoal beside what people use today, on one topology in one run: `tests/bench`.
//!
//! Hosts are network namespaces with shaped links, one for the origin, one for a contender that
//! needs a host of its own, and one for each node. All is real: registries, caches, BitTorrent
//! clients, the built `shoal`.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the results are the output"
)]

#[path = "benchmark/contender.rs"]
mod contender;
#[path = "benchmark/figure.rs"]
mod figure;
#[path = "benchmark/race.rs"]
mod race;
#[allow(
    dead_code,
    reason = "it is the other benchmark's too, which needs more of it"
)]
#[path = "benchmark/server.rs"]
mod server;
#[allow(
    dead_code,
    unused_imports,
    reason = "it is the end-to-end tests', which need more of it"
)]
mod support;
#[path = "benchmark/table.rs"]
mod table;
#[path = "benchmark/usage.rs"]
mod usage;

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use crate::contender::Contender;
use crate::race::{Outcome, Rules, Scenario};
use crate::support::MIB;
use crate::support::image::Image;

/// Measures Shoal beside what people use today, on hosts with shaped links.
#[derive(Debug, Parser)]
#[command(name = "tests/bench")]
struct Arguments {
    /// How many nodes pull; may be given several times.
    #[arg(long, default_values_t = [1, 4, 8, 16])]
    nodes: Vec<usize>,
    /// Which scenarios; may be given several times.
    #[arg(long, value_enum, default_values_t = Scenario::ALL)]
    scenario: Vec<Scenario>,
    /// Which contenders; may be given several times.
    #[arg(long, value_enum, default_values_t = Contender::ALL)]
    contender: Vec<Contender>,
    /// The rate of every link, in Mbit/s. Sixteen nodes at 50 keep two cores 80 % busy; with more
    /// the cores are what is measured.
    #[arg(long, default_value_t = 50)]
    link: u64,
    /// The size of the image, in MiB, in five layers of unequal size.
    #[arg(long, default_value_t = 128)]
    size: u64,
    /// Half of the bytes are repetitive, as in layers that nobody compressed.
    #[arg(long)]
    compressible: bool,
    /// Writes the outcomes here too, a JSON object on each line.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Tells the outcomes of these files, written with --json, instead of measuring, with --size and
    /// --link as they were then; may be given several times.
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    from: Vec<PathBuf>,
    /// Draws the outcomes into this directory too, a picture for each scenario.
    #[arg(long, value_name = "DIRECTORY")]
    plots: Option<PathBuf>,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Parts of the image's size, as real images have them.
const LAYERS: [f64; 5] = [0.5, 0.275, 0.125, 0.075, 0.025];

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Where tests/bench was called: files are named from there.
    if let Some(directory) = env::var_os("BENCH_DIRECTORY")
        && let Err(error) = env::set_current_dir(&directory)
    {
        eprintln!("cannot work in {}: {error}", directory.display());
        return ExitCode::FAILURE;
    }
    let (outcomes, mut failed) = if arguments.from.is_empty() {
        measure(&arguments)
    } else {
        read(&arguments.from)
    };
    print!("{}", table::markdown(&outcomes));
    if let Some(path) = &arguments.json {
        let lines: Vec<String> = outcomes
            .iter()
            .filter_map(|outcome| serde_json::to_string(outcome).ok())
            .collect();
        if let Err(error) = fs::write(path, lines.join("\n") + "\n") {
            eprintln!("cannot write {}: {error}", path.display());
            failed = true;
        }
    }
    if let Some(directory) = &arguments.plots {
        let about = format!(
            "{} MiB in {} layers, every link at {} Mbit/s",
            arguments.size,
            LAYERS.len(),
            arguments.link
        );
        for (name, picture) in figure::pictures(&outcomes, &about) {
            let path = directory.join(name);
            if let Err(error) =
                fs::create_dir_all(directory).and_then(|()| fs::write(&path, picture))
            {
                eprintln!("cannot write {}: {error}", path.display());
                failed = true;
            }
        }
    }
    if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// Every contender in every scenario, and whether any of them failed.
fn measure(arguments: &Arguments) -> (Vec<Outcome>, bool) {
    let layers = LAYERS.map(|part| (part * (arguments.size * MIB) as f64) as u64);
    let image = if arguments.compressible {
        Image::compressible(4, &layers)
    } else {
        Image::generate(4, &layers)
    };
    let rules = Rules {
        link: arguments.link,
        image,
    };
    let mut outcomes = Vec::new();
    let mut failed = false;
    for scenario in &arguments.scenario {
        for nodes in &arguments.nodes {
            if *scenario == Scenario::Cached && *nodes < 2 {
                continue;
            }
            for contender in &arguments.contender {
                match race::run(&rules, *scenario, *nodes, *contender) {
                    Ok(outcome) => {
                        eprint!("{}", table::row(&outcome));
                        outcomes.push(outcome);
                    }
                    Err(error) => {
                        eprintln!(
                            "{}, {nodes} nodes, {}: {error}",
                            scenario.name(),
                            contender.name()
                        );
                        failed = true;
                    }
                }
            }
        }
    }
    (outcomes, failed)
}

/// What was written before, and whether any of it cannot be read.
fn read(files: &[PathBuf]) -> (Vec<Outcome>, bool) {
    let mut outcomes: Vec<Outcome> = Vec::new();
    let mut failed = false;
    for path in files {
        let read = fs::read_to_string(path).map_err(|error| error.to_string());
        let parsed = read.and_then(|text| {
            let lines = text.lines().map(serde_json::from_str);
            lines
                .collect::<Result<Vec<Outcome>, _>>()
                .map_err(|error| error.to_string())
        });
        match parsed {
            Ok(parsed) => outcomes.extend(parsed),
            Err(error) => {
                eprintln!("cannot read {}: {error}", path.display());
                failed = true;
            }
        }
    }
    let place = |outcome: &Outcome| {
        let scenario = |one: &Scenario| one.name() == outcome.scenario;
        let contender = |one: &Contender| one.name() == outcome.contender;
        (
            Scenario::ALL.iter().position(scenario),
            outcome.nodes,
            Contender::ALL.iter().position(contender),
        )
    };
    outcomes.sort_by_key(place);
    (outcomes, failed)
}
