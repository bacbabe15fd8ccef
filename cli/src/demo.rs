//! The main job on an embedded example: one image, many clients, directly and through Shoal.
//!
//! What is compared is measured in the same way: the same clients, the same image, the same
//! origin on the same limited link, which counts the bytes it writes. The daemons are processes of
//! their own that share nothing but the network, and start with empty stores; the clock starts
//! when they are ready, with the clients' first request.
//!
//! The lower bound is `max(S/B, N·S/(B + Σup))` for an image of `S` bytes, an origin of rate `B`
//! and `N` nodes that send at `up` (DESIGN.md, section 1). On one machine nobody limits `up`, so
//! that `S/B` remains: the origin has to send the image once.

mod client;
pub(crate) mod image;
mod memory;
mod progress;
mod registry;
pub(crate) mod report;
mod swarm;
mod throttle;

use std::{
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
};

use anyhow::Context;
use futures::future::join_all;
use shoal_node::config::{ByteRate, ByteSize};

use client::{Client, Pull, Target};
use image::Image;
use memory::Memory;
use progress::{Progress, say};
use registry::{REPOSITORY, Registry, TAG};
use report::Phase;
pub(crate) use report::Report;
use swarm::{Swarm, UPSTREAM};

/// The same image in every run, so that runs can be compared.
const SEED: u64 = 0x5304_a150;

/// What to run.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) image_size: ByteSize,
    pub(crate) origin_rate: ByteRate,
    /// Where to leave the daemons' logs.
    pub(crate) keep_logs: Option<PathBuf>,
}

/// Runs the comparison once for each count of nodes.
pub(crate) async fn run(plan: &Plan, counts: &[usize]) -> anyhow::Result<Vec<Report>> {
    let size = plan.image_size;
    say(format_args!("Generating an image of {size}"));
    let image = tokio::task::spawn_blocking(move || Arc::new(Image::generate(size, SEED)))
        .await
        .context("cannot generate the image")?;
    let mut reports = Vec::new();
    for &nodes in counts {
        reports.push(compare(plan, &image, nodes).await?);
    }
    Ok(reports)
}

async fn compare(plan: &Plan, image: &Arc<Image>, nodes: usize) -> anyhow::Result<Report> {
    let origin = Registry::start(Arc::clone(image), plan.origin_rate)
        .await
        .context("cannot start the origin on 127.0.0.1")?;

    say(format_args!("Pulling it directly: {nodes} at once"));
    let targets = targets(image, REPOSITORY, vec![origin.address(); nodes]);
    let pulls = pull_all("direct", image.size(), &targets).await;
    let direct = Phase::new(&pulls, origin.served(), Vec::new());

    say(format_args!(
        "Starting Shoal nodes with empty stores: {nodes}"
    ));
    let before = origin.served();
    // The stores, and a quarter more for the daemons.
    let memory = Memory::touch(image.size() * nodes as u64 / 4 * 5).await;
    let swarm = Swarm::start(nodes, origin.address(), plan.keep_logs.as_deref()).await?;
    let through = self::targets(image, &format!("{UPSTREAM}/{REPOSITORY}"), swarm.mirrors());
    say(format_args!("Pulling it through Shoal: {nodes} at once"));
    let handover = memory.map(Memory::hand_over);
    let pulls = pull_all("Shoal", image.size(), &through).await;
    drop(handover);
    let casualties = swarm.stop();
    // Read only now, so that nothing is missed that the daemons read after their clients' last
    // byte.
    let shoal = Phase::new(&pulls, origin.served().since(before), casualties);

    Ok(Report::new(image, plan.origin_rate, direct, shoal))
}

fn targets(image: &Image, repository: &str, servers: Vec<std::net::SocketAddr>) -> Vec<Target> {
    let target = |(number, server)| Target {
        server,
        repository: repository.to_owned(),
        tag: TAG.to_owned(),
        manifest_digest: image.manifest_digest,
        // Engines pull 3 to 6 blobs at a time; so do these.
        parallel: 3 + number % 4,
    };
    servers.into_iter().enumerate().map(target).collect()
}

/// Pulls from all targets at once, each with a client of its own.
async fn pull_all(label: &'static str, bytes: u64, targets: &[Target]) -> Vec<Pull> {
    let received: Vec<Arc<AtomicU64>> = targets.iter().map(|_| Arc::default()).collect();
    let _progress = Progress::start(label, bytes, received.clone());
    join_all(targets.iter().zip(&received).map(|(target, received)| {
        let (target, received) = (target.clone(), Arc::clone(received));
        let pull = tokio::spawn(async move { Client::new().pull(&target, &received).await });
        async { pull.await.expect("a pull does not panic") }
    }))
    .await
}
