//! The commands, one module each, and what they share: runtime, log, exit codes.

pub(crate) mod demo;
pub(crate) mod node;

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
};

use anyhow::Context;
use shoal_node::config::ConfigError;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::args::{Cli, Command};

/// Something on the command line that clap cannot judge. Exits with 2, as clap does.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// Runs what the command line asks for.
pub(crate) fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    // The daemon's filter may stand in its configuration, so it starts its own log.
    if !matches!(cli.command, Command::Node(_)) {
        let variable = || std::env::var("SHOAL_LOG").ok();
        start_log(&cli.log.clone().or_else(variable).unwrap_or("warn".into()))?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the threads of the runtime")?;
    runtime.block_on(async {
        match cli.command {
            Command::Node(args) => node::run(*args, cli.log).await,
            Command::Demo(args) => demo::run(args).await,
        }
    })
}

/// Prints an error and its causes on one line, once. 2 means that the user can fix it on the
/// command line or in the configuration, 1 that the run failed.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    // Nobody is left to tell if stderr is closed.
    let _ = writeln!(io::stderr(), "shoal: {error:#}");
    let usage = error.is::<ConfigError>() || error.is::<Usage>();
    ExitCode::from(if usage { 2 } else { 1 })
}

/// Writes events that pass the filter to stderr.
fn start_log(filter: &str) -> anyhow::Result<()> {
    let parsed = EnvFilter::builder().parse(filter).map_err(|error| {
        Usage(format!(
            "--log: `{filter}` is not a log filter ({error}); write error, warn, info, debug or \
             trace, or target=level pairs separated by commas"
        ))
    })?;
    tracing_subscriber::fmt()
        .with_env_filter(parsed)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
    Ok(())
}

/// Resolves at the first SIGINT or SIGTERM, with the exit code that shells expect of it.
async fn interrupted() -> anyhow::Result<u8> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    Ok(tokio::select! {
        _ = interrupt.recv() => 130,
        _ = terminate.recv() => 143,
    })
}
