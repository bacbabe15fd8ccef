//! `shoal node`: the daemon.

use std::{collections::BTreeMap, io, path::PathBuf, process::ExitCode, thread, time::Duration};

use shoal_node::config::{Config, DEFAULT_FILE, RawConfig};
use tokio_util::sync::CancellationToken;

/// How long a daemon whose parent is gone may take to stop cleanly.
const ORPHAN_GRACE: Duration = Duration::from_secs(5);

/// Run the daemon: a registry mirror on this host, and a member of the swarm
///
/// With no option at all it mirrors every public registry for this host alone. Each option is
/// also a variable (`--data-dir` is SHOAL_DATA_DIR, lists separated by commas) and a key of the
/// TOML file (data_dir). A flag wins over a variable, a variable over the file.
#[derive(Debug, clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\nThe same in {DEFAULT_FILE}:\n{FILE_EXAMPLE}"))]
pub(crate) struct NodeArgs {
    /// Configuration file [default: /etc/shoal/shoal.toml if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where blobs are kept [default: /var/lib/shoal for root, else ~/.local/share/shoal]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Where clients on this host pull from [default: 127.0.0.1:5005]
    #[arg(long, value_name = "ADDR")]
    mirror: Option<String>,
    /// Speak https to clients: with a certificate of the node's own making, or with this one (PEM)
    /// [default: plain http]
    #[arg(long, value_name = "generated|FILE")]
    mirror_tls: Option<String>,
    /// The key of that certificate (PEM)
    #[arg(long, value_name = "FILE")]
    mirror_tls_key: Option<String>,
    /// A name of this host for the generated certificate, besides localhost; repeatable
    #[arg(long, value_name = "NAME")]
    mirror_tls_name: Vec<String>,
    /// Where other nodes connect; repeatable [default: 0.0.0.0:5004]
    #[arg(long, value_name = "ADDR")]
    listen: Vec<String>,
    /// Where other nodes are told to connect; repeatable [default: the address that reaches them]
    #[arg(long, value_name = "ADDR")]
    advertise: Vec<String>,
    /// Health, readiness, metrics and status [default: 127.0.0.1:5006]
    #[arg(long, value_name = "ADDR")]
    admin: Option<String>,
    /// A node of the swarm to join, or a DNS name of many; repeatable
    #[arg(long, value_name = "HOST:PORT")]
    join: Vec<String>,
    /// The cluster's key, made by `shoal cluster init`
    #[arg(long, value_name = "FILE")]
    cluster_key: Option<String>,
    /// A ticket instead of the key, made by `shoal cluster ticket`
    #[arg(long, value_name = "FILE")]
    ticket: Option<String>,
    /// The zone that this node is in, by any name: a data centre, or a part of one
    #[arg(long, value_name = "NAME")]
    zone: Option<String>,
    /// The rack that it is in, within its zone
    #[arg(long, value_name = "NAME")]
    rack: Option<String>,
    #[command(flatten)]
    origins: OriginSettings,
    /// Who may read an upstream: open, or origin (whom the origin lets); repeatable [default: open]
    #[arg(long, value_name = "UPSTREAM=RULE")]
    access: Vec<String>,
    /// Most bytes to keep, such as 200GB [default: what the disk holds]
    #[arg(long, value_name = "SIZE")]
    quota: Option<String>,
    /// Disk to leave free [default: 1GiB]
    #[arg(long, value_name = "SIZE")]
    min_free: Option<String>,
    /// How long a tag is used before the origin is asked again [default: 10s]
    #[arg(long, value_name = "TIME")]
    tag_ttl: Option<String>,
    /// How long its last known answer is given while the origin cannot be asked [default: 7d]
    #[arg(long, value_name = "TIME")]
    tag_stale: Option<String>,
    /// Stop when stdin ends, so that no daemon outlives the program that started it.
    #[arg(long, hide = true)]
    exit_with_parent: bool,
}

/// Where content comes from, and as whom this node asks for it.
#[derive(Debug, clap::Args)]
pub(super) struct OriginSettings {
    /// Where an upstream is read: a registry, file:///PATH or s3://BUCKET; repeatable, for one upstream too, in the
    /// order in which they are asked [default: https://UPSTREAM]
    #[arg(long, value_name = "UPSTREAM=URL")]
    origin: Vec<String>,
    /// PEM certificates to trust for an upstream; repeatable
    #[arg(long, value_name = "UPSTREAM=FILE")]
    origin_ca: Vec<String>,
    /// Credentials of the origins [default: $DOCKER_CONFIG/config.json or ~/.docker/config.json]
    #[arg(long, value_name = "FILE")]
    docker_config: Option<String>,
    /// Pulls to keep for what only the origin can serve, where a registry says how many it gives, as
    /// Docker Hub does: a share of its limit, or a number [default: 10%]
    #[arg(long, value_name = "PULLS")]
    origin_reserve: Option<String>,
}

const EXAMPLES: &str = "\
Examples:
  shoal node
  shoal node --origin registry.test=http://10.0.0.1:5000
  docker pull 127.0.0.1:5005/registry.test/team/image:tag
  shoal node --cluster-key /etc/shoal/key --join node-1.example:5004 --quota 200GB";

const FILE_EXAMPLE: &str = "\
  cluster_key = '/etc/shoal/key'
  join = ['node-1.example:5004']
  quota = '200GB'

  [origin]
  'registry.test' = 'http://10.0.0.1:5000'";

/// Runs the daemon until SIGINT, SIGTERM or an error.
pub(crate) async fn run(args: NodeArgs, log: Option<String>) -> anyhow::Result<ExitCode> {
    let exit_with_parent = args.exit_with_parent;
    let file = args.config.clone();
    let config = Config::load(args.into_raw(log)?, file.as_deref(), &|name| {
        std::env::var_os(name)
    })?;
    super::start_log(&config.log)?;
    let shutdown = CancellationToken::new();
    if exit_with_parent {
        follow_parent(shutdown.clone());
    }
    tokio::spawn(stop_on_signal(shutdown.clone()));
    shoal_node::run(config, shutdown).await?;
    Ok(ExitCode::SUCCESS)
}

/// The first signal asks the daemon to stop cleanly; the second does not wait for it.
async fn stop_on_signal(shutdown: CancellationToken) {
    match super::interrupted().await {
        Ok(_) => shutdown.cancel(),
        Err(error) => return tracing::error!("signals will not stop this node cleanly: {error:#}"),
    }
    if let Ok(code) = super::interrupted().await {
        std::process::exit(i32::from(code));
    }
}

/// A thread, because a read of stdin by the runtime would keep the runtime from ending.
fn follow_parent(shutdown: CancellationToken) {
    thread::spawn(move || {
        // An error of stdin means the same as its end.
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        shutdown.cancel();
        thread::sleep(ORPHAN_GRACE);
        std::process::exit(1);
    });
}

impl NodeArgs {
    fn into_raw(self, log: Option<String>) -> anyhow::Result<RawConfig> {
        Ok(RawConfig {
            data_dir: self.data_dir,
            mirror: self.mirror,
            mirror_tls: self.mirror_tls,
            mirror_tls_key: self.mirror_tls_key,
            mirror_tls_name: said(self.mirror_tls_name),
            listen: said(self.listen),
            advertise: said(self.advertise),
            admin: self.admin,
            join: said(self.join),
            cluster_key: self.cluster_key,
            ticket: self.ticket,
            zone: self.zone,
            rack: self.rack,
            quota: self.quota,
            min_free: self.min_free,
            tag_ttl: self.tag_ttl,
            tag_stale: self.tag_stale,
            log,
            access: pairs("access", self.access)?,
            ..self.origins.into_raw()?
        })
    }
}

impl OriginSettings {
    /// The configuration with these settings alone.
    pub(super) fn into_raw(self) -> anyhow::Result<RawConfig> {
        Ok(RawConfig {
            docker_config: self.docker_config,
            origin_reserve: self.origin_reserve,
            origin: said(self.origin)
                .map(|items| RawConfig::flag_lists("origin", &items))
                .transpose()?,
            origin_ca: pairs("origin_ca", self.origin_ca)?,
            ..RawConfig::default()
        })
    }
}

/// A list, if anything was said.
fn said(items: Vec<String>) -> Option<Vec<String>> {
    (!items.is_empty()).then_some(items)
}

fn pairs(
    key: &'static str,
    items: Vec<String>,
) -> anyhow::Result<Option<BTreeMap<String, String>>> {
    let items = said(items).map(|items| RawConfig::flag_pairs(key, &items));
    Ok(items.transpose()?)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, ffi::OsString};

    use clap::{CommandFactory, FromArgMatches};
    use shoal_node::config::variable_of;

    use super::*;
    use crate::args::{Cli, Command};

    /// The settings, as the TOML file spells them.
    fn keys() -> BTreeSet<String> {
        let raw = serde_json::to_value(RawConfig::default()).unwrap();
        raw.as_object().unwrap().keys().cloned().collect()
    }

    fn raw(arguments: &[String]) -> RawConfig {
        let words = ["shoal", "node"].into_iter().map(OsString::from);
        let matches = Cli::command()
            .try_get_matches_from(words.chain(arguments.iter().map(OsString::from)))
            .unwrap();
        let cli = Cli::from_arg_matches(&matches).unwrap();
        let Command::Node(args) = cli.command else {
            unreachable!()
        };
        args.into_raw(cli.log).unwrap()
    }

    #[test]
    fn every_flag_is_a_key_and_every_key_a_flag() {
        let mut command = Cli::command();
        command.build();
        let node = command.find_subcommand("node").unwrap();
        let flags: BTreeSet<String> = node
            .get_arguments()
            .filter(|argument| !argument.is_hide_set())
            .filter_map(|argument| argument.get_long())
            .filter(|long| !["config", "help", "version"].contains(long))
            .map(|long| long.replace('-', "_"))
            .collect();
        assert_eq!(flags, keys());
    }

    #[test]
    fn the_file_in_the_help_is_valid() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("shoal.toml");
        std::fs::write(&file, FILE_EXAMPLE).unwrap();
        let home = |name: &str| (name == "HOME").then(|| OsString::from("/home/someone"));
        let config = Config::load(RawConfig::default(), Some(&file), &home).unwrap();
        assert_eq!(config.join, ["node-1.example:5004"]);
        assert_eq!(config.origins.len(), 1);
    }

    #[test]
    fn every_flag_reaches_its_key_and_every_variable_is_read() {
        let value = |key: &str| match key {
            "origin" | "origin_ca" | "access" => "a.test=http://x",
            _ => "1",
        };
        for key in keys() {
            let set = raw(&[
                format!("--{}", key.replace('_', "-")),
                value(&key).to_owned(),
            ]);
            let set = serde_json::to_value(set).unwrap();
            for (other, value) in set.as_object().unwrap() {
                assert_eq!(value.is_null(), *other != key, "--{key} sets {other}");
            }
            // A list without items and a text that is not UTF-8 are the only ways to see a
            // variable being read from outside.
            let variable = variable_of(&key);
            let broken = std::os::unix::ffi::OsStringExt::from_vec(vec![0xff]);
            let error = Config::load(RawConfig::default(), Some("/dev/null".as_ref()), &|name| {
                (name == variable).then(|| OsString::clone(&broken))
            })
            .unwrap_err();
            assert!(error.to_string().starts_with(&variable), "{error}");
        }
    }
}
