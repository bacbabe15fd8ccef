//! `shoal setup`: make a container client of this host pull through the mirror.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail};
use shoal_node::config::{Config, MIRROR_CA_FILE, MirrorTls, RawConfig};
use shoal_protocol::reference::{Reference, Upstream};
use tokio::process::Command;

use super::admin::{AdminArgs, AdminClient};
use crate::{
    output,
    setup::{Change, Client, Mirror, MirrorArg, Plan, Site},
};

/// Registries that most images come from, for clients that want each named.
const REGISTRIES: [&str; 8] = [
    "docker.io",
    "gcr.io",
    "ghcr.io",
    "mcr.microsoft.com",
    "nvcr.io",
    "public.ecr.aws",
    "quay.io",
    "registry.k8s.io",
];

/// How long the mirror may take to say that it is one.
const MIRROR_TIMEOUT: Duration = Duration::from_secs(5);

/// Make a container client of this host pull through the mirror
///
/// Writes the mirror into the client's own configuration, keeps what is there, and says what has to
/// be restarted. Running it again changes nothing. Where the mirror is down, clients go on to the
/// registry itself.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct SetupArgs {
    /// Which client
    #[arg(value_enum)]
    client: Client,
    /// Where the mirror answers [default: as in the node's configuration, 127.0.0.1:5005 without]
    #[arg(long, value_name = "[https://]HOST:PORT")]
    mirror: Option<MirrorArg>,
    /// The certificate of the authority that signed the mirror's, in PEM [default: the node's own
    /// where its configuration says --mirror-tls generated, else the system's]
    #[arg(long, value_name = "FILE")]
    mirror_ca: Option<PathBuf>,
    /// A registry to mirror besides the large public ones and those of the node's configuration, for
    /// clients that want each named; repeatable
    #[arg(long, value_name = "NAME")]
    registry: Vec<Upstream>,
    /// The node's configuration file [default: /etc/shoal/shoal.toml if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the host's files are: another directory to prepare an image of a host
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Print what the files would be, and change nothing
    #[arg(long, conflicts_with = "check")]
    print: bool,
    /// Take out again what was written; all else stays as it is, byte for byte
    #[arg(long)]
    undo: bool,
    /// Does the client come through the mirror? With an image, have the client pull it and see
    #[arg(long, value_name = "IMAGE", conflicts_with = "undo")]
    #[expect(clippy::option_option, reason = "a flag that may have a value")]
    check: Option<Option<Reference>>,
    #[command(flatten)]
    admin: AdminArgs,
}

const EXAMPLES: &str = "\
Examples:
  shoal setup containerd
  shoal setup podman --registry registry.example
  shoal setup docker --print
  shoal setup docker --check redis:7
  shoal setup k3s --undo";

/// Runs the command.
///
/// # Errors
/// A file that cannot be read, understood or written; or the check fails.
pub(crate) async fn run(args: SetupArgs) -> anyhow::Result<ExitCode> {
    let site = site(&args)?;
    let client = args.client;
    if let Some(image) = &args.check {
        return check(client, &site, image.as_ref(), &args.admin).await;
    }
    let plan = if args.undo {
        client.undo(&site)?
    } else {
        client.plan(&site)?
    };
    let Plan { files, warnings } = plan;
    if args.print {
        for Change { path, after, .. } in &files {
            match after {
                Some(text) => output::print(&format!("# {}\n{text}", path.display()))?,
                None => output::print(&format!("# {}: removed", path.display()))?,
            }
        }
        return Ok(ExitCode::SUCCESS);
    }
    let changes: Vec<&Change> = files.iter().filter(|change| !change.is_none()).collect();
    for change in &changes {
        change.apply()?;
        let done = match (&change.before, &change.after) {
            (None, _) => "wrote",
            (Some(_), Some(_)) => "changed",
            (Some(_), None) => "removed",
        };
        output::print(&format!("{done} {}", change.path.display()))?;
    }
    if changes.is_empty() {
        let state = if args.undo {
            "has nothing of the mirror"
        } else {
            "has the mirror already"
        };
        output::print(&format!("nothing to do: {client}'s configuration {state}"))?;
    } else {
        let todo = client.restart();
        output::print(&todo.map_or("nothing to restart".into(), |todo| format!("to do: {todo}")))?;
    }
    for warning in &warnings {
        output::print(&format!("note: {warning}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What the arguments say, and the node's own configuration where they do not.
fn site(args: &SetupArgs) -> anyhow::Result<Site> {
    let environment = |name: &str| std::env::var_os(name);
    let config = Config::load(RawConfig::default(), args.config.as_deref(), &environment)?;
    let mirror = mirror(args, &config)?;
    let mut registries: Vec<Upstream> = REGISTRIES
        .iter()
        .map(|name| name.parse().context("a registry of the list"))
        .collect::<anyhow::Result<_>>()?;
    registries.extend(config.origins.into_keys().chain(config.access.into_keys()));
    registries.extend(args.registry.iter().cloned());
    // A name that is none to a client stands for an origin in paths only.
    registries.retain(|registry| Upstream::looks_like_one(registry.as_str()));
    registries.sort();
    registries.dedup();
    Ok(Site {
        root: args.root.clone(),
        mirror,
        registries,
    })
}

/// Where the mirror is, and how clients know it.
fn mirror(args: &SetupArgs, config: &Config) -> anyhow::Result<Mirror> {
    let mut own = config.mirror;
    if own.ip().is_unspecified() {
        own.set_ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    let said = args.mirror.as_ref();
    let tls = said
        .and_then(|mirror| mirror.tls)
        .unwrap_or(args.mirror_ca.is_some() || config.mirror_tls.is_some());
    if !tls && args.mirror_ca.is_some() {
        bail!("--mirror-ca is for a mirror that speaks https; write --mirror https://HOST:PORT");
    }
    let authority = match (&args.mirror_ca, &config.mirror_tls) {
        (Some(file), _) => Some(file.clone()),
        (None, Some(MirrorTls::Generated { .. })) if tls => {
            Some(config.data_dir.join(MIRROR_CA_FILE))
        }
        (None, _) => None,
    };
    Ok(Mirror {
        address: said.map_or_else(|| own.to_string(), |mirror| mirror.address.clone()),
        tls,
        // Clients run elsewhere.
        authority: authority.map(std::path::absolute).transpose()?,
    })
}

/// Says of each step from the client to the mirror whether it is there.
async fn check(
    client: Client,
    site: &Site,
    image: Option<&Reference>,
    admin: &AdminArgs,
) -> anyhow::Result<ExitCode> {
    let mut good = true;
    let mut say = |fine: bool, what: String| {
        good &= fine;
        output::print(&format!("{} {what}", if fine { "ok  " } else { "FAIL" }))
    };
    let Plan { files, warnings } = client.plan(site)?;
    for change in files {
        let path = change.path.display();
        if change.is_none() {
            say(true, format!("{path} names the mirror"))?;
        } else {
            say(
                false,
                format!(
                    "{path} does not name the mirror {}: shoal setup {client}",
                    site.mirror
                ),
            )?;
        }
    }
    match answers(&site.mirror).await {
        Ok(()) => say(true, format!("a mirror answers at {}", site.mirror))?,
        Err(error) => say(
            false,
            format!(
                "no mirror answers at {} ({error:#}): shoal node",
                site.mirror
            ),
        )?,
    }
    let Some(image) = image else {
        output::print(&format!(
            "whether a running {client} has read that shows with an image: shoal setup {client} \
             --check IMAGE"
        ))?;
        return Ok(code(good));
    };
    let Some(command) = client.pull_command(site, image) else {
        bail!(
            "{client} has no command that pulls an image; build one FROM {image}, and look at shoal stats"
        );
    };
    let daemon = AdminClient::new(admin);
    let before = requests(&daemon).await?;
    let (program, arguments) = command.split_first().context("a command has a program")?;
    let pulled = Command::new(program).args(arguments).output().await;
    let pulled =
        pulled.with_context(|| format!("cannot start {program}, with which {client} pulls"))?;
    let shown = command.join(" ");
    if pulled.status.success() {
        say(true, shown)?;
    } else {
        let told = String::from_utf8_lossy(&pulled.stderr);
        say(false, format!("{shown}: {}", told.trim()))?;
    }
    let asked = requests(&daemon).await? - before;
    if asked > 0 {
        say(
            true,
            format!("the mirror answered {asked} requests meanwhile"),
        )?;
    } else {
        say(false, "the mirror was not asked".to_owned())?;
        let restart = client
            .restart()
            .map(|todo| format!("after a change: {todo}"));
        for note in restart.into_iter().chain(warnings) {
            output::print(&format!("note: {note}"))?;
        }
    }
    Ok(code(good))
}

fn code(good: bool) -> ExitCode {
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Whether what listens there is a registry's read API.
async fn answers(mirror: &Mirror) -> anyhow::Result<()> {
    let authorities = match mirror.authority_pem()? {
        Some(pem) => reqwest::Certificate::from_pem_bundle(pem.as_bytes())?,
        None => Vec::new(),
    };
    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(MIRROR_TIMEOUT)
        .tls_certs_merge(authorities)
        .build()?;
    let answer = client.get(format!("{}/v2/", mirror.url())).send().await?;
    if answer.status() != reqwest::StatusCode::OK {
        bail!("it answers {}", answer.status());
    }
    Ok(())
}

/// How many requests the mirror has answered.
async fn requests(daemon: &AdminClient) -> anyhow::Result<u64> {
    let metrics = daemon.text("/metrics").await?;
    Ok(metrics
        .lines()
        .filter(|line| line.starts_with("shoal_mirror_requests_total{"))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum())
}
