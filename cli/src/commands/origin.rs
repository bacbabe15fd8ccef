//! `shoal origin`: whether the places that images come from do what they should.

use std::{path::PathBuf, process::ExitCode, str::FromStr};

use serde::Serialize;
use shoal_node::{
    config::Config,
    origin::{OriginCheck, Origins, OriginsConfig},
};
use shoal_protocol::reference::{DEFAULT_UPSTREAM, ReferenceError, Repository, Tag, Upstream};

use super::{Usage, node};
use crate::output;

/// Look at the origins that a node would read
#[derive(Debug, clap::Args)]
pub(crate) struct OriginArgs {
    #[command(subcommand)]
    command: OriginCommand,
}

#[derive(Debug, clap::Subcommand)]
enum OriginCommand {
    Check(CheckArgs),
}

/// Reach each origin as the daemon would, and say what works, what it costs and what to do
///
/// No daemon need run. Settings are read as `shoal node` reads them: run it as the same user, with the
/// same environment and flags. The exit code is 1 where something is not as it should be.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
struct CheckArgs {
    /// Which upstreams, with all of their origins [default: all that are configured; docker.io where none
    /// is]
    #[arg(value_name = "UPSTREAM")]
    upstreams: Vec<Upstream>,
    /// An image of the upstream: is its tag there, and do blobs come? Asks for the tag by HEAD, reads a
    /// manifest, which Docker Hub counts as a pull, and a byte of a blob
    #[arg(long, value_name = "REPOSITORY:TAG")]
    image: Option<Image>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The node's configuration file [default: /etc/shoal/shoal.toml if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    origins: node::OriginSettings,
}

const EXAMPLES: &str = "\
Examples:
  shoal origin check
  shoal origin check docker.io --image library/redis:7
  shoal origin check corp --origin corp=https://registry.corp.example --origin-ca corp=ca.pem
  shoal origin check --json | jq -e .ok";

/// An image as its upstream knows it.
#[derive(Clone, Debug)]
struct Image {
    repository: Repository,
    tag: Tag,
}

impl FromStr for Image {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let (repository, tag) = text.rsplit_once(':').unwrap_or((text, "latest"));
        Ok(Self {
            repository: repository.parse()?,
            tag: tag.parse()?,
        })
    }
}

impl Image {
    /// The repository as `upstream` has it: docker's short names stand for Docker Hub's own images.
    fn repository_of(&self, upstream: &Upstream) -> Result<Repository, ReferenceError> {
        let Self { repository, .. } = self;
        if upstream.as_str() == DEFAULT_UPSTREAM && !repository.as_str().contains('/') {
            return format!("library/{repository}").parse();
        }
        Ok(repository.clone())
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    /// Whether all of it is as it should be.
    ok: bool,
    origins: Vec<OriginCheck>,
}

/// Runs the command.
///
/// # Errors
/// Settings that cannot be used. What is wrong with an origin is printed, and is the exit code.
pub(crate) async fn run(args: OriginArgs) -> anyhow::Result<ExitCode> {
    let OriginCommand::Check(args) = args.command;
    let mut report = Report {
        ok: true,
        origins: Vec::new(),
    };
    output::unless_reader_left(check(args, &mut report).await)?;
    Ok(if report.ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn check(args: CheckArgs, report: &mut Report) -> anyhow::Result<()> {
    let CheckArgs {
        upstreams,
        image,
        json,
        config,
        origins,
    } = args;
    let environment = |name: &str| std::env::var_os(name);
    let config = Config::load(origins.into_raw()?, config.as_deref(), &environment)?;
    let upstreams = which(upstreams, &config);
    if let (Some(_), [_, _, ..]) = (&image, upstreams.as_slice()) {
        let names: Vec<&str> = upstreams.iter().map(Upstream::as_str).collect();
        let text = format!(
            "--image is of one upstream, and there are {}; write shoal origin check UPSTREAM --image …",
            names.join(", ")
        );
        return Err(Usage(text).into());
    }
    let origins = Origins::new(OriginsConfig {
        upstreams: config.origins,
        docker_config: config.docker_config,
        reserve: config.origin_reserve,
    })?;
    for upstream in &upstreams {
        let image = match &image {
            Some(image) => Some((image.repository_of(upstream)?, &image.tag)),
            None => None,
        };
        let image = image.as_ref().map(|(repository, tag)| (repository, *tag));
        for origin in origins.check(upstream, image).await? {
            report.ok &= origin.ok();
            if json {
                report.origins.push(origin);
            } else {
                output::print(&for_people(&origin))?;
            }
        }
    }
    if json {
        output::print(&serde_json::to_string(report)?)?;
    }
    Ok(())
}

/// What is checked.
fn which(named: Vec<Upstream>, config: &Config) -> Vec<Upstream> {
    if !named.is_empty() {
        return named;
    }
    let configured: Vec<Upstream> = config.origins.keys().cloned().collect();
    if configured.is_empty() {
        vec![Upstream::default()]
    } else {
        configured
    }
}

fn for_people(origin: &OriginCheck) -> String {
    let mut lines = vec![format!("{} at {}", origin.upstream, origin.url)];
    for check in &origin.checks {
        lines.push(format!(
            "  {:<6}  {:<11}  {} ({})",
            if check.ok { "ok" } else { "failed" },
            check.what.as_str(),
            check.detail,
            output::duration(check.seconds)
        ));
        let todo = check.todo.iter();
        lines.extend(todo.map(|todo| format!("  {:<6}  {:<11}  {todo}", "", "to do:")));
    }
    lines.push(format!("  {:<6}  {:<11}  {}", "", "cost:", cost(origin)));
    lines.join("\n")
}

/// What the check took of the origin.
fn cost(origin: &OriginCheck) -> String {
    let requests = match origin.requests {
        0 => return "no request".to_owned(),
        1 => "1 request".to_owned(),
        requests => format!("{requests} requests"),
    };
    match origin.manifest_gets {
        0 => format!("{requests}, none that counts as a pull"),
        1 => format!("{requests}, among them 1 GET of a manifest: a pull, where pulls are counted"),
        gets => format!(
            "{requests}, among them {gets} GETs of manifests: {gets} pulls, where each is counted"
        ),
    }
}
