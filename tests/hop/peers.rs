//! From node to node on the loopback: the daemon's network beside what it could be at best.

mod libp2p_shipped;
mod sockets;
mod swarm;
mod work;

use tokio::runtime::Runtime;

use crate::measure::{Entry, Measured};
use crate::support::clock;
use crate::usage;

/// The bytes to be sent, over and over: a chunk's worth.
const BLOCK: usize = 4 << 20;

/// How much is written and read in one go.
const STEP: usize = 256 << 10;

/// A runtime for one end: of one thread, as the ends without a runtime have. With more, on a machine
/// of two cores, what is measured is how they get into each other's way, where two nodes do not.
fn runtime() -> Result<Runtime, String> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let built = builder.worker_threads(1).enable_all().build();
    built.map_err(|error| error.to_string())
}

/// Everything that is measured, each moving so many MiB.
pub(crate) fn entries(mebibytes: usize) -> Vec<Entry> {
    let blocks = (mebibytes << 20) / BLOCK;
    let entry = |name: &str, run: fn(usize) -> Result<(), String>| {
        Entry::new(name, move || measured(blocks, run))
    };
    vec![
        entry("TLS alone: rustls, AES-128", sockets::tls).base(),
        entry("plain TCP", sockets::tcp),
        entry("libp2p as shipped: noise, yamux", libp2p_shipped::noise),
        entry("libp2p as shipped: TLS, yamux", libp2p_shipped::tls),
        entry("Shoal", swarm::run),
        entry("besides: BLAKE3 of each chunk", |blocks| {
            work::blake3(blocks);
            Ok(())
        }),
        entry("besides: SHA-256 of the whole", |blocks| {
            work::sha256(blocks);
            Ok(())
        }),
        entry("besides: writing to a file", work::write),
    ]
}

/// Both ends are in this process, so its time is theirs.
fn measured(blocks: usize, run: fn(usize) -> Result<(), String>) -> Result<Measured, String> {
    let cpu = usage::cpu_seconds(std::process::id());
    let start = clock::now();
    run(blocks)?;
    Ok(Measured {
        bytes: (blocks * BLOCK) as f64,
        seconds: start.elapsed().as_secs_f64(),
        cpu_seconds: usage::cpu_seconds(std::process::id()) - cpu,
        first_byte_seconds: None,
    })
}
