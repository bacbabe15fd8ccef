//! Who is measured, and how each of them is set up.

mod torrents;

use self::torrents::Torrents;
use crate::server::Server;
use crate::support::TAG;
use crate::support::access::AccessLog as _;
use crate::support::client::{self, Pull};
use crate::support::daemon::Node;
use crate::support::image::Image;
use crate::support::place::Place;
use crate::support::registry::Registry;
use crate::support::swarm::Swarm;

/// A way to get an image to many hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Contender {
    /// Every host reads from the registry.
    Direct,
    /// docker-registry as a pull-through cache on a host of its own.
    Registry,
    /// nginx with `proxy_cache` on a host of its own.
    Nginx,
    /// libtorrent at every host, the origin seeds.
    Torrent,
    /// A Shoal daemon on every host.
    Shoal,
}

/// The hosts, and what they are to get.
pub(crate) struct Course<'a> {
    /// Where the image comes from.
    pub(crate) origin: &'a Place,
    /// A host with a link like all others, for contenders that need one.
    pub(crate) helper: &'a Place,
    /// Who pulls.
    pub(crate) nodes: &'a [Place],
    pub(crate) image: &'a Image,
}

/// A contender that is set up.
pub(crate) trait Entrant: Sync {
    /// Pulls the image at a node; every digest is checked.
    fn pull(&self, node: usize) -> Result<Pull, String>;

    /// Has the nodes that have pulled the image give it to all others; the origin is no source beside
    /// them.
    fn leave_to_nodes(&self) {}

    /// The processes that distribute the image, without the origin's and those of HTTP clients.
    fn processes(&self) -> Vec<u32>;

    /// What the origin has sent, as multiples of the image.
    fn origin_copies(&self) -> f64;
}

impl Contender {
    pub(crate) const ALL: [Self; 5] = [
        Self::Direct,
        Self::Registry,
        Self::Nginx,
        Self::Torrent,
        Self::Shoal,
    ];

    /// For people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct pulls",
            Self::Registry => "docker-registry as a cache",
            Self::Nginx => "nginx proxy_cache",
            Self::Torrent => "BitTorrent (libtorrent)",
            Self::Shoal => "Shoal",
        }
    }

    /// Whether all bytes pass the link of one host.
    pub(crate) fn is_star(self) -> bool {
        matches!(self, Self::Direct | Self::Registry | Self::Nginx)
    }

    /// Sets it up: everything runs and waits when this is done.
    pub(crate) fn enter<'a>(self, course: &'a Course<'a>) -> Box<dyn Entrant + 'a> {
        if self == Self::Torrent {
            return Box::new(Torrents::start(course));
        }
        let registry = Registry::serving(course.image, course.origin);
        let mut mirrors = Mirrors {
            bases: Vec::new(),
            server: None,
            swarm: None,
            registry,
            course,
        };
        let origin = mirrors.registry.url();
        let base = match self {
            Self::Direct => origin,
            Self::Registry => {
                let (server, base) = Server::registry_cache(course.helper, &origin);
                mirrors.server = Some(server);
                base
            }
            Self::Nginx => {
                let (server, base) = Server::nginx_cache(course.helper, &origin);
                mirrors.server = Some(server);
                base
            }
            Self::Torrent | Self::Shoal => {
                let swarm = Swarm::start(course.nodes, &origin);
                mirrors.bases = swarm.nodes.iter().map(Node::mirror_url).collect();
                mirrors.swarm = Some(swarm);
                return Box::new(mirrors);
            }
        };
        mirrors.bases = vec![base; course.nodes.len()];
        Box::new(mirrors)
    }
}

/// Everything that speaks the registry's protocol.
struct Mirrors<'a> {
    /// Where each node's client pulls from.
    bases: Vec<String>,
    server: Option<Server>,
    swarm: Option<Swarm>,
    registry: Registry,
    course: &'a Course<'a>,
}

impl Entrant for Mirrors<'_> {
    fn pull(&self, node: usize) -> Result<Pull, String> {
        let Course { nodes, image, .. } = *self.course;
        client::timed_pull(&nodes[node], &self.bases[node], image, TAG)
    }

    fn processes(&self) -> Vec<u32> {
        let nodes = self.swarm.iter().flat_map(|swarm| &swarm.nodes);
        let server = self.server.iter().flat_map(Server::processes);
        server.chain(nodes.map(Node::pid)).collect()
    }

    fn origin_copies(&self) -> f64 {
        self.registry.copies(self.course.image)
    }
}
