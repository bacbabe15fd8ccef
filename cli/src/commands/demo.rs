//! `shoal demo`: the main job on an embedded example.

use std::{io, path::PathBuf, process::ExitCode};

use shoal_node::config::{ByteRate, ByteSize};

use super::Usage;
use crate::demo::{
    self, Plan, Report,
    image::{IMAGE_BYTES_MAX, IMAGE_BYTES_MIN},
    report,
};

/// More daemons than this on one machine measure only the machine.
const NODES_MAX: u8 = 64;

/// The swarms that `--scale` compares.
const SCALE: [usize; 4] = [1, 2, 4, 8];

/// Pull a generated image through a swarm on this machine, and compare with direct pulls
///
/// Starts a registry whose link is limited to --origin-rate and lets --nodes clients pull the
/// image from it directly; then starts as many real daemons, each with an address, a store and a
/// process of its own, and lets one client pull through each of them at once. Every client
/// verifies every digest. Nothing is left behind; while it runs, the stores take --nodes times the
/// image in the temporary directory (TMPDIR).
///
/// On one machine the nodes' links are not limited, and so the lower bound is the time that the
/// origin needs to send the image once.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct DemoArgs {
    /// How many daemons, and as many clients
    #[arg(long, value_name = "COUNT", default_value_t = 8,
        value_parser = clap::value_parser!(u8).range(1..=NODES_MAX as i64))]
    nodes: u8,
    /// Size of the generated image
    #[arg(long, value_name = "SIZE", default_value = "256MiB")]
    image_size: ByteSize,
    /// Rate of the origin's link, shared by all that read from it
    #[arg(long, value_name = "RATE", default_value = "50MB/s")]
    origin_rate: ByteRate,
    /// Repeat with 1, 2, 4 and 8 nodes, and show how time and origin bytes grow
    #[arg(long, conflicts_with = "nodes")]
    scale: bool,
    /// Print one JSON object (with --scale an array of them) instead of the table
    #[arg(long)]
    json: bool,
    /// Keep the daemons' logs in this directory
    #[arg(long, value_name = "DIR")]
    keep_logs: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  shoal demo
  shoal demo --nodes 16 --image-size 1GiB --origin-rate 100MB/s
  shoal demo --scale
  shoal demo --json | jq .origin_copies";

/// Runs the demo until it is done, or until SIGINT or SIGTERM; either way it cleans up.
pub(crate) async fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    if args.image_size < IMAGE_BYTES_MIN || args.image_size > IMAGE_BYTES_MAX {
        return Err(Usage(format!(
            "--image-size: {} is not possible; write a size from {IMAGE_BYTES_MIN} to \
             {IMAGE_BYTES_MAX}",
            args.image_size
        ))
        .into());
    }
    if args.origin_rate.0 == 0 {
        return Err(Usage(
            "--origin-rate: nothing moves at 0B/s; write a rate such as 50MB/s".into(),
        )
        .into());
    }
    tokio::select! {
        result = run_all(&args) => result,
        code = super::interrupted() => Ok(ExitCode::from(code?)),
    }
}

async fn run_all(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    let counts = if args.scale {
        SCALE.to_vec()
    } else {
        vec![usize::from(args.nodes)]
    };
    let plan = Plan {
        image_size: args.image_size,
        origin_rate: args.origin_rate,
        keep_logs: args.keep_logs.clone(),
    };
    let reports = demo::run(&plan, &counts).await?;
    let out = &mut io::stdout().lock();
    match reports.as_slice() {
        reports if args.scale && args.json => report::write_json(out, reports)?,
        [report] if args.json => report::write_json(out, report)?,
        reports if args.scale => report::write_scale(out, reports)?,
        reports => reports
            .iter()
            .try_for_each(|report| report::write_table(out, report))?,
    }
    Ok(if reports.iter().all(Report::verified) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
