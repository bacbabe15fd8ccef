//! `shoal`: a registry mirror on every host, one read of the origin.

mod args;
mod commands;
mod demo;
mod layout;
mod output;
mod progress;
mod setup;

use std::process::ExitCode;

use args::Cli;
use clap::Parser;

fn main() -> ExitCode {
    let cli = Cli::parse();
    commands::run(cli).unwrap_or_else(|error| commands::report(&error))
}
