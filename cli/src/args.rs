//! The command line as a whole; each command's own arguments stand beside the command.

use clap::{Parser, Subcommand};

use crate::commands::{
    cluster::ClusterArgs, demo::DemoArgs, export::ExportArgs, import::ImportArgs, node::NodeArgs,
    origin::OriginArgs, pull::PullArgs, setup::SetupArgs, stats::StatsArgs,
};

/// Pull container images through a swarm: a registry mirror on every host, one read of the origin.
#[derive(Debug, Parser)]
#[command(name = "shoal", version, max_term_width = 100, after_help = EXAMPLES)]
pub(crate) struct Cli {
    /// What to log on stderr: error, warn, info, debug, trace, or target=level pairs [default:
    /// warn; info for `node`]
    #[arg(long, global = true, value_name = "FILTER")]
    pub(crate) log: Option<String>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What each one is for stands on its arguments, where clap finds it.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Node(Box<NodeArgs>),
    Pull(PullArgs),
    Export(ExportArgs),
    Import(ImportArgs),
    Stats(StatsArgs),
    Setup(SetupArgs),
    Origin(OriginArgs),
    Cluster(ClusterArgs),
    Demo(DemoArgs),
}

const EXAMPLES: &str = "\
Examples:
  shoal demo                               see what a swarm does, on this machine alone
  shoal node                               mirror every public registry at 127.0.0.1:5005
  docker pull 127.0.0.1:5005/docker.io/library/redis:7
  shoal setup containerd                   have containerd pull through it by itself

A swarm of hosts:
  shoal cluster init --cluster-key key     make a key once; copy it to every host
  shoal node --cluster-key key             on the first host
  shoal node --cluster-key key --join FIRST:5004    on the others";

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
