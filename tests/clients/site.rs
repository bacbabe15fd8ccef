//! One client, a node on its host, a registry elsewhere; and what becomes of a pull there.

use std::thread;
use std::time::Duration;

use super::host::{Host, NAMES};
use super::programs::Client;
use super::system::System;
use crate::support::access::AccessLog;
use crate::support::clock::wait_until;
use crate::support::daemon::{Node, Options};
use crate::support::image::{Blob, Image};
use crate::support::netns::Lab;
use crate::support::registry::Registry;
use crate::support::{MIB, UPSTREAM};

/// The rate, in Mbit/s, of the registry's link until the node is killed: the large layer takes long
/// enough to be interrupted.
const LINK: u64 = 100;

/// Bytes of the image's large layer.
const LAYER: u64 = 20 * MIB;

/// Bytes that the node has read when it is killed: enough that its client has some of them.
const MIDWAY: u64 = 6 * MIB;

/// How long a client may take until the node has read that.
const START_LIMIT: Duration = Duration::from_secs(20);

/// The place of all of it.
pub(super) struct Site {
    lab: Lab,
    system: String,
    image: Image,
    /// What the node reads.
    pub(super) origin: Registry,
    /// The same registry under its own name, as clients reach it without the mirror; apart, so that
    /// its log tells who did.
    pub(super) registry: Registry,
    /// The node on the client's host.
    pub(super) node: Node,
}

impl Site {
    /// A site for a client of this system that pulls from this upstream.
    pub(super) fn new(system: System, upstream: &str) -> Self {
        let lab = Lab::new(2, None);
        let image = Image::runnable(70, LAYER);
        let origin = Registry::serving(&image, &lab.hosts()[0]);
        let registry = Registry::serving_as(&NAMES, &image, &lab.hosts()[0]);
        let node = node(&lab, &origin, upstream);
        Self {
            system: system.root(),
            lab,
            image,
            origin,
            registry,
            node,
        }
    }

    /// A machine on which nothing has been pulled yet, with this client set up and started.
    pub(super) fn host(&self, client: &Client) -> Host {
        let mut host = self.bare_host();
        client.start(&mut host);
        host
    }

    /// A machine with no client set up.
    pub(super) fn bare_host(&self) -> Host {
        let (own, registry) = (&self.lab.hosts()[1], &self.lab.hosts()[0]);
        Host::new(
            own,
            &self.system,
            registry.address,
            &self.registry.certificate(),
        )
    }

    /// Puts a node with an empty store in the place of the node.
    pub(super) fn renew_node(&mut self, upstream: &str) {
        self.node.kill();
        self.node = node(&self.lab, &self.origin, upstream);
    }

    /// Pulls on this machine, and compares what is in the image then.
    pub(super) fn pull(&self, client: &Client, host: &Host) -> Result<(), String> {
        client.pull(host)?;
        self.compare(client, host);
        Ok(())
    }

    /// Whether the image that was pulled is whole: it has to be.
    pub(super) fn compare(&self, client: &Client, host: &Host) {
        let printed = client.print(host).expect("what was pulled can be run");
        assert!(
            printed.starts_with(&self.layer().file_sha256()),
            "{}: {printed}",
            client.name
        );
    }

    /// Pulls, and kills the node in the middle of the large layer.
    pub(super) fn pull_and_kill(&mut self, client: &Client, host: &Host) -> Result<(), String> {
        let read = || self.node.traffic().from_origin;
        self.lab.limit(0, Some(LINK));
        let result = thread::scope(|scope| {
            let pull = scope.spawn(|| client.pull(host));
            wait_until("the node has read some", START_LIMIT, || {
                assert!(
                    !pull.is_finished(),
                    "the pull ended before the node was killed"
                );
                read() >= MIDWAY
            });
            self.node.signal_kill();
            self.lab.limit(0, None);
            pull.join().expect("a pull does not panic")
        });
        self.node.kill();
        result
    }

    /// The large layer.
    pub(super) fn layer(&self) -> &Blob {
        self.image.blobs.last().expect("it has layers")
    }

    /// Copies of the image that the node has read.
    pub(super) fn copies_through_node(&self) -> f64 {
        self.origin.copies(&self.image)
    }

    /// Copies of the image that were read past the node.
    pub(super) fn copies_past_node(&self) -> f64 {
        self.registry.copies(&self.image)
    }

    /// Requests that came past the node.
    pub(super) fn requests_past_node(&self) -> usize {
        let log = self.registry.log();
        log.iter().filter(|access| access.path != "/v2/").count()
    }
}

fn node(lab: &Lab, origin: &Registry, upstream: &str) -> Node {
    let options = Options {
        origin: origin.url(),
        alias: (upstream != UPSTREAM).then(|| upstream.to_owned()),
        ..Options::default()
    };
    Node::start(&lab.hosts()[1], options)
}
