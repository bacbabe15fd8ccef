//! From a mirror to its client, where it has the blob and where it has to get it: beside nginx and
//! docker-registry that serve the same file.
//!
//! Clients are `curl` processes that throw the bytes away; their time is not counted.

use std::path::Path;
use std::process::{Child, Stdio};
use std::rc::Rc;

use tempfile::TempDir;

use crate::measure::{self, Entry, Measured, Outcome};
use crate::server::Server;
use crate::support::client;
use crate::support::clock;
use crate::support::daemon::{Node, Options};
use crate::support::image::{Blob, Image};
use crate::support::netns::Lab;
use crate::support::place::Place;
use crate::support::registry::Registry;
use crate::support::{MIB, REPOSITORY, TAG, UPSTREAM};
use crate::usage;

/// The rate of the link between a mirror and its clients where it has one.
const RATE: &str = "10gbit";

/// Clients at once.
const CLIENTS: [usize; 2] = [1, 8];

/// A mirror that has the blob: over the bare loopback, and where that is shaped to a fast link.
pub(crate) fn cached(mebibytes: usize, rounds: usize) -> Result<Vec<Outcome>, String> {
    let image = Image::generate(11, &[mebibytes as u64 * MIB]);
    let mut outcomes = Vec::new();
    for shaped in [false, true] {
        let lab = Lab::new(1, None);
        let host = &lab.hosts()[0];
        if shaped {
            shape_loopback(host)?;
        }
        let servers = Rc::new(Servers::start(host, &image));
        for clients in CLIENTS {
            let link = if shaped { "10 Gbit/s" } else { "loopback" };
            let setting = format!("cached blob to {clients} client(s), {link}");
            // Each round moves about the same, however many clients share it.
            let repeats = 8 / clients;
            let entry =
                |name: &str, url: fn(&Servers) -> String, pids: fn(&Servers) -> Vec<u32>| {
                    let servers = Rc::clone(&servers);
                    Entry::new(name, move || {
                        servers.measured(&url(&servers), &pids(&servers), clients, repeats)
                    })
                };
            let entries = vec![
                entry("nginx, sendfile", Servers::nginx, |servers| {
                    servers.nginx.processes()
                })
                .base(),
                entry("docker-registry", Servers::registry, |servers| {
                    vec![servers.registry.pid()]
                }),
                entry("Shoal", Servers::mirror, |servers| vec![servers.node.pid()]),
            ];
            outcomes.extend(measure::in_turns(&setting, entries, rounds)?);
        }
    }
    Ok(outcomes)
}

/// A mirror that has an image of five layers, and skopeo, which checks every digest and writes what it
/// gets to a disk.
pub(crate) fn pulled(mebibytes: usize, rounds: usize) -> Result<Vec<Outcome>, String> {
    let image = Image::generate(12, &[mebibytes as u64 * MIB / 5; 5]);
    let lab = Lab::new(1, None);
    let servers = Rc::new(Servers::start(&lab.hosts()[0], &image));
    let entry = |name: &str, reference: String, pid: u32| {
        let (servers, bytes) = (Rc::clone(&servers), image.bytes() as f64);
        Entry::new(name, move || {
            let directory = TempDir::new().map_err(|error| error.to_string())?;
            let before = usage::cpu_seconds(pid);
            let took = client::skopeo_into(directory.path(), &servers.host, &reference);
            Ok(Measured {
                bytes,
                seconds: took?.as_secs_f64(),
                cpu_seconds: usage::cpu_seconds(pid) - before,
                first_byte_seconds: None,
            })
        })
    };
    let entries = vec![
        entry(
            "docker-registry",
            format!("{}/{REPOSITORY}:{TAG}", servers.registry.address()),
            servers.registry.pid(),
        )
        .base(),
        entry(
            "Shoal",
            format!("{}/{UPSTREAM}/{REPOSITORY}:{TAG}", servers.node.mirror()),
            servers.node.pid(),
        ),
    ];
    measure::in_turns(
        "cached image of 5 layers to skopeo, loopback",
        entries,
        rounds,
    )
}

/// One node without anything, and its registry.
pub(crate) fn cold(mebibytes: usize, rounds: usize) -> Result<Vec<Outcome>, String> {
    let image = Image::generate(11, &[mebibytes as u64 * MIB]);
    let lab = Lab::new(1, None);
    let host = lab.hosts()[0].clone();
    let registry = Rc::new(Registry::serving(&image, &host));
    let blob = layer(&image).clone();
    let direct = {
        let (host, registry, blob) = (host.clone(), Rc::clone(&registry), blob.clone());
        Entry::new("the registry itself", move || {
            let url = client::blob_url(&registry.url(), &blob.digest);
            measured(&host, &url, &blob, &[registry.pid()], 1, 1)
        })
    };
    let through = Entry::new("Shoal in between", move || {
        let options = Options {
            origin: registry.url(),
            ..Options::default()
        };
        let node = Node::start(&host, options);
        let url = client::blob_url(&node.mirror_url(), &blob.digest);
        measured(&host, &url, &blob, &[node.pid()], 1, 1)
    });
    measure::in_turns(
        "cold blob from a registry to one client, loopback",
        vec![direct.base(), through],
        rounds,
    )
}

/// Three servers of the same blob on one host.
struct Servers {
    host: Place,
    blob: Blob,
    registry: Registry,
    nginx: Server,
    nginx_base: String,
    node: Node,
}

impl Servers {
    fn start(host: &Place, image: &Image) -> Self {
        let registry = Registry::serving(image, host);
        let (nginx, nginx_base) = Server::nginx_files(host, &image.registry_storage());
        let options = Options {
            origin: registry.url(),
            ..Options::default()
        };
        let node = Node::start(host, options);
        node.pull(image).expect("the mirror gets the image");
        Self {
            host: host.clone(),
            blob: layer(image).clone(),
            registry,
            nginx,
            nginx_base,
            node,
        }
    }

    fn nginx(&self) -> String {
        let hex = self.blob.digest.trim_start_matches("sha256:");
        let path = Path::new("docker/registry/v2/blobs/sha256").join(&hex[..2]);
        format!("{}/{}/{hex}/data", self.nginx_base, path.display())
    }

    fn registry(&self) -> String {
        client::blob_url(&self.registry.url(), &self.blob.digest)
    }

    fn mirror(&self) -> String {
        client::blob_url(&self.node.mirror_url(), &self.blob.digest)
    }

    fn measured(
        &self,
        url: &str,
        pids: &[u32],
        clients: usize,
        repeats: usize,
    ) -> Result<Measured, String> {
        measured(&self.host, url, &self.blob, pids, clients, repeats)
    }
}

fn layer(image: &Image) -> &Blob {
    image.blobs.last().expect("an image has layers")
}

/// Lets that many clients read the blob at once, so often each, over one connection.
fn measured(
    host: &Place,
    url: &str,
    blob: &Blob,
    pids: &[u32],
    clients: usize,
    repeats: usize,
) -> Result<Measured, String> {
    let cpu = || pids.iter().copied().map(usage::cpu_seconds).sum::<f64>();
    let before = cpu();
    let start = clock::now();
    let curls: Vec<Child> = (0..clients)
        .map(|_| curl(host, url, repeats))
        .collect::<Result<_, String>>()?;
    let mut first = f64::INFINITY;
    for curl in curls {
        let output = curl.wait_with_output().map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        for line in said.lines() {
            let mut words = line.split(' ');
            let size = words.next().and_then(|size| size.parse::<u64>().ok());
            if !output.status.success() || size != Some(blob.size()) {
                return Err(format!("{url}: {line}"));
            }
            let seconds = words.next().and_then(|seconds| seconds.parse().ok());
            first = first.min(seconds.unwrap_or(f64::INFINITY));
        }
    }
    Ok(Measured {
        bytes: blob.size() as f64 * (clients * repeats) as f64,
        seconds: start.elapsed().as_secs_f64(),
        cpu_seconds: cpu() - before,
        first_byte_seconds: Some(first),
    })
}

fn curl(host: &Place, url: &str, repeats: usize) -> Result<Child, String> {
    let mut command = client::curl(host);
    command.args(["-w", "%{size_download} %{time_starttransfer}\n"]);
    for _ in 0..repeats {
        command.args(["-o", "/dev/null", url]);
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("curl (a Debian package) not started: {error}"))
}

/// Limits what a host sends to itself.
fn shape_loopback(host: &Place) -> Result<(), String> {
    let shaping = format!("qdisc add dev lo root tbf rate {RATE} burst 8mb latency 50ms");
    let status = host.command("tc").args(shaping.split(' ')).status();
    let status = status.map_err(|error| error.to_string())?;
    status
        .success()
        .then_some(())
        .ok_or_else(|| "tc cannot shape the loopback".into())
}
