//! The commands, one module each, and what they share: runtime, log, exit codes.

mod admin;
pub(crate) mod cluster;
pub(crate) mod demo;
pub(crate) mod export;
pub(crate) mod import;
pub(crate) mod node;
pub(crate) mod origin;
pub(crate) mod pull;
pub(crate) mod setup;
pub(crate) mod stats;

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use shoal_node::config::ConfigError;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::args::{Cli, Command};

/// How long an ending process waits for calls that cannot be cancelled, such as a look-up of a
/// name or the hashing of an image.
const BLOCKED_GRACE: Duration = Duration::from_secs(3);

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
    let result = runtime.block_on(async {
        match cli.command {
            Command::Node(args) => node::run(*args, cli.log).await,
            Command::Pull(args) => pull::run(args).await.map(|()| ExitCode::SUCCESS),
            Command::Export(args) => export::run(args).await.map(|()| ExitCode::SUCCESS),
            Command::Import(args) => import::run(args).await.map(|()| ExitCode::SUCCESS),
            Command::Stats(args) => stats::run(args).await.map(|()| ExitCode::SUCCESS),
            Command::Setup(args) => setup::run(args).await,
            Command::Origin(args) => origin::run(args).await,
            Command::Cluster(args) => cluster::run(args),
            Command::Demo(args) => demo::run(args).await,
        }
    });
    runtime.shutdown_timeout(BLOCKED_GRACE);
    result
}

/// Prints an error and its causes on one line, once. 2 means that the user can fix it on the
/// command line or in the configuration, 1 that the run failed.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    // Nobody is left to tell if stderr is closed.
    let _ = writeln!(io::stderr(), "shoal: {}", one_line(error));
    let usage = error.is::<ConfigError>() || error.is::<Usage>();
    ExitCode::from(if usage { 2 } else { 1 })
}

/// An error and its causes, outermost first. A cause that the text before it already ends with is
/// not said twice.
fn one_line(error: &anyhow::Error) -> String {
    error
        .chain()
        .map(ToString::to_string)
        .fold(String::new(), |line, cause| {
            if line.is_empty() {
                cause
            } else if line.ends_with(&cause) {
                line
            } else {
                format!("{line}: {cause}")
            }
        })
}

/// Writes events that pass the filter to stderr.
fn start_log(filter: &str) -> anyhow::Result<()> {
    let parsed = EnvFilter::builder().parse(filter).map_err(|error| {
        Usage(format!(
            "`{filter}` is not a log filter ({error}); set --log or SHOAL_LOG to error, warn, info, \
             debug or trace, or to target=level pairs separated by commas"
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

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn an_error_is_said_once_with_its_causes() {
        let error = anyhow!("no such file")
            .context("cannot read x: no such file")
            .context("node 1");
        assert_eq!(one_line(&error), "node 1: cannot read x: no such file");
    }

    #[test]
    fn what_the_user_can_fix_exits_with_2_and_the_rest_with_1() {
        let usage = anyhow::Error::from(Usage("write it so".into()));
        let config = anyhow::Error::from(ConfigError::NoDataDir);
        assert_eq!(report(&usage), ExitCode::from(2));
        assert_eq!(report(&config), ExitCode::from(2));
        assert_eq!(report(&anyhow!("port in use")), ExitCode::from(1));
    }
}
