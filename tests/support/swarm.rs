//! A cluster: its key, its nodes, and what is done with all of them at once.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::clock::wait_until;
use super::daemon::{Node, Options, shoal, swarm_address};
use super::image::Image;
use super::place::Place;
use super::{SHOAL, client};

/// How long all nodes may take to know of each other.
const GATHER_LIMIT: Duration = Duration::from_secs(20);

/// How many nodes each new one is told to join: two, so that either may be down when a node
/// restarts.
const JOINED: usize = 2;

/// The key of a cluster, in a file.
pub(crate) struct ClusterKey {
    directory: TempDir,
}

impl ClusterKey {
    /// Makes a key with `shoal cluster init`.
    pub(crate) fn new() -> Self {
        let directory = TempDir::new().expect("temporary directories can be made");
        let key = Self { directory };
        let file = key.path().display().to_string();
        shoal(&["cluster", "init", "--cluster-key", &file]);
        key
    }

    /// The file.
    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("cluster.key")
    }
}

/// Nodes that know of each other.
pub(crate) struct Swarm {
    /// The nodes, in the order of their places.
    pub(crate) nodes: Vec<Node>,
    origin: String,
    key: ClusterKey,
    arguments: Vec<String>,
}

impl Swarm {
    /// One node at each place, all of one cluster and of the same origin.
    pub(crate) fn start(places: &[Place], origin: &str) -> Self {
        Self::start_with_faults(places, origin, &[])
    }

    /// `count` nodes on the loopback.
    pub(crate) fn on_loopback(count: usize, origin: &str) -> Self {
        Self::start(&loopback(count), origin)
    }

    /// As [`on_loopback`](Self::on_loopback), each with these arguments besides.
    pub(crate) fn with_arguments(count: usize, origin: &str, arguments: &[&str]) -> Self {
        Self::start_all(&loopback(count), origin, &[], arguments)
    }

    /// As [`start`](Self::start); the first nodes get these values of `SHOAL_FAULT`.
    pub(crate) fn start_with_faults(places: &[Place], origin: &str, faults: &[&str]) -> Self {
        Self::start_all(places, origin, faults, &[])
    }

    fn start_all(places: &[Place], origin: &str, faults: &[&str], arguments: &[&str]) -> Self {
        let mut swarm = Self {
            nodes: Vec::new(),
            origin: origin.to_owned(),
            key: ClusterKey::new(),
            arguments: arguments.iter().map(ToString::to_string).collect(),
        };
        for (number, place) in places.iter().enumerate() {
            let seeds = places.iter().take(JOINED).enumerate();
            let others = seeds.filter(|(seed, _)| *seed != number);
            let options = Options {
                join: others.map(|(_, place)| swarm_address(place)).collect(),
                fault: faults.get(number).map(ToString::to_string),
                ..swarm.options()
            };
            swarm.nodes.push(Node::spawn(place, options));
        }
        swarm.nodes.iter_mut().for_each(Node::wait_ready);
        swarm.wait_gathered();
        swarm
    }

    /// Of nodes that were started by themselves, of one cluster.
    pub(crate) fn of(nodes: Vec<Node>, origin: String, key: ClusterKey) -> Self {
        let swarm = Self {
            nodes,
            origin,
            key,
            arguments: Vec::new(),
        };
        swarm.wait_gathered();
        swarm
    }

    /// Adds a node with an empty store.
    pub(crate) fn join(&mut self, place: &Place) -> &Node {
        let seeds = self.nodes.iter().take(JOINED);
        let options = Options {
            join: seeds.map(Node::swarm_address).collect(),
            ..self.options()
        };
        self.nodes.push(Node::start(place, options));
        self.wait_gathered();
        self.nodes.last().expect("it was pushed")
    }

    /// The file with the cluster's key.
    pub(crate) fn key_file(&self) -> PathBuf {
        self.key.path()
    }

    fn options(&self) -> Options {
        Options {
            origin: self.origin.clone(),
            cluster_key: Some(self.key.path()),
            arguments: self.arguments.clone(),
            ..Options::default()
        }
    }

    /// Waits until every node sees all of them alive.
    pub(crate) fn wait_gathered(&self) {
        let all = self.nodes.len() as u64;
        wait_until("every node knows all others", GATHER_LIMIT, || {
            self.nodes.iter().all(|node| node.members_alive() == all)
        });
    }

    /// Pulls `image` through every node's mirror at the same moment; every digest is checked.
    pub(crate) fn pull_everywhere(&self, image: &Image) -> Vec<Result<Duration, String>> {
        client::all_at_once(&self.nodes, |node| node.pull(image))
    }

    /// As [`pull_everywhere`](Self::pull_everywhere), where every pull has to succeed: the time of
    /// the slowest.
    pub(crate) fn slowest_pull(&self, image: &Image) -> Duration {
        slowest(self.pull_everywhere(image))
    }

    /// What `shoal stats --json` says on this node's host.
    pub(crate) fn stats(&self, node: usize) -> Value {
        let node = &self.nodes[node];
        let mut command = node.place.command(SHOAL);
        let output = command
            .args(["stats", "--json", "--admin", &node.admin()])
            .output();
        let output = output.expect("the built binary starts");
        assert!(output.status.success(), "`shoal stats` failed: {output:?}");
        serde_json::from_slice(&output.stdout).expect("`shoal stats --json` prints JSON")
    }
}

/// `count` addresses of the loopback.
pub(crate) fn loopback(count: usize) -> Vec<Place> {
    (0..count).map(|_| Place::loopback()).collect()
}

/// The longest of the times; fails the test if there is an error among them.
pub(crate) fn slowest(results: Vec<Result<Duration, String>>) -> Duration {
    let times: Result<Vec<_>, _> = results.into_iter().collect();
    times
        .expect("every client gets the image")
        .into_iter()
        .max()
        .expect("there are clients")
}
