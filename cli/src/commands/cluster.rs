//! `shoal cluster`: who may become a member.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context;
use shoal_node::{
    clock,
    cluster::{ClusterKey, Identity, Roles},
    config::{Config, Period, RawConfig},
};
use shoal_protocol::directory::NodeId;

use super::Usage;

/// Make the key of a cluster, and tickets for nodes that are not to hold the key
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ClusterArgs {
    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(Debug, clap::Subcommand)]
enum ClusterCommand {
    /// Make a new cluster: write its key to a file that only you can read
    Init {
        /// The file to write; it must not exist yet
        #[arg(long, value_name = "FILE")]
        cluster_key: PathBuf,
    },
    /// Print a ticket with which one node is a member for a while
    Ticket {
        /// The cluster's key
        #[arg(long, value_name = "FILE")]
        cluster_key: PathBuf,
        /// The node, as `shoal cluster identity` prints it there
        #[arg(long, value_name = "ID", value_parser = parse_node)]
        node: NodeId,
        /// How long the ticket holds
        #[arg(long, value_name = "TIME", default_value = "365d")]
        valid: Period,
    },
    /// Print this host's node ID, making its identity if there is none yet
    Identity {
        /// Where the node keeps its data [default: as for `shoal node`]
        #[arg(long, value_name = "DIR")]
        data_dir: Option<String>,
    },
}

const EXAMPLES: &str = "\
One key on every host:
  shoal cluster init --cluster-key cluster.key
  shoal node --cluster-key cluster.key --join FIRST:5004

The key kept offline, a ticket for each host:
  shoal cluster identity                                        on the host: prints ID
  shoal cluster ticket --cluster-key cluster.key --node ID > ticket
  shoal node --ticket ticket --join FIRST:5004";

/// Runs `shoal cluster`.
pub(crate) fn run(args: ClusterArgs) -> anyhow::Result<ExitCode> {
    let out = &mut io::stdout().lock();
    match args.command {
        ClusterCommand::Init { cluster_key } => {
            let key = ClusterKey::create(&cluster_key)?;
            let file = cluster_key.display();
            writeln!(
                out,
                "Made cluster {} with its key in {file}. Copy it to every host and start each with\n  \
                 shoal node --cluster-key {file} --join FIRST:5004\n\
                 (the first host without --join). Whoever holds the key can admit any node.",
                key.cluster(),
            )?;
        }
        ClusterCommand::Ticket {
            cluster_key,
            node,
            valid,
        } => {
            let not_after = clock::unix_seconds().saturating_add(valid.0.as_secs());
            let key = ClusterKey::load(&cluster_key)?;
            writeln!(out, "{}", key.issue(node, not_after, Roles::MEMBER))?;
        }
        ClusterCommand::Identity { data_dir } => {
            let flags = RawConfig {
                data_dir,
                ..RawConfig::default()
            };
            let dir = Config::load(flags, None, &|name| std::env::var_os(name))?.data_dir;
            std::fs::create_dir_all(&dir)
                .with_context(|| format!("cannot make the data directory {}", dir.display()))?;
            let identity = Identity::load_or_create(&dir)?;
            writeln!(out, "{}", hex::encode(identity.node_id().0))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn parse_node(text: &str) -> Result<NodeId, Usage> {
    let mut id = [0; 32];
    hex::decode_to_slice(text, &mut id).map_err(|_| {
        Usage("a node ID has 64 hex digits; `shoal cluster identity` prints it on the node".into())
    })?;
    Ok(NodeId(id))
}

#[cfg(test)]
mod tests {
    use shoal_node::cluster::Admission;

    use super::*;

    #[test]
    fn a_ticket_admits_the_node_it_names() {
        let identity = Identity::generate();
        let node = parse_node(&hex::encode(identity.node_id().0)).unwrap();
        let ticket = ClusterKey::generate().issue(node, clock::unix_seconds() + 60, Roles::MEMBER);
        assert!(Admission::with_ticket(ticket, &identity).is_ok());
        assert!(Admission::with_ticket(ticket, &Identity::generate()).is_err());
    }

    #[test]
    fn an_id_that_is_none_is_refused() {
        for text in ["", "ab", &"g".repeat(64), &"a".repeat(66)] {
            assert!(parse_node(text).is_err(), "{text}");
        }
    }
}
