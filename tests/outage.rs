//! Life without the origin: however it is away, what the swarm holds can be pulled, by tag too, and that
//! it is back is noticed.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;

use crate::support::clock::{now, wait_until};
use crate::support::daemon::{Node, Options, swarm_address};
use crate::support::image::Image;
use crate::support::middlebox::{Conduct, Middlebox};
use crate::support::place::Place;
use crate::support::registry::Registry;
use crate::support::swarm::{ClusterKey, loopback};
use crate::support::{MIB, ORIGIN_PORT, REPOSITORY, TAG, UPSTREAM, client, machine, push};

/// Nodes from before the outage.
const NODES: usize = 3;

/// How long the nodes use a tag before they ask again.
const TAG_TTL: &str = "100ms";

/// For the first answer on a node: a time-out or two until it is clear that the origin is away, here or at
/// the nodes that are asked.
const FIRST_LIMIT: Duration = Duration::from_secs(30);

/// Tags that are asked for, one after the other, once it is clear; and how long that may take, where one
/// time-out for each would take 30 s and more.
const REPEATS: u32 = 6;
const REPEATS_LIMIT: Duration = Duration::from_secs(15);

/// How soon it is noticed that the origin is back.
const RECOVERY_LIMIT: Duration = Duration::from_secs(10);

/// An image by `TAG`, and another one that the tag will name.
struct Images {
    old: Image,
    new: Image,
}

impl Images {
    fn pushed(registry: &Registry) -> Self {
        let [old, new] = [61, 62].map(|seed| Image::generate(seed, &[5 * MIB, 100_000]));
        push::image(registry, REPOSITORY, TAG, &old);
        push::image(registry, REPOSITORY, "next", &new);
        Self { old, new }
    }
}

/// A cluster whose nodes ask often what a tag names.
struct Cluster {
    key: ClusterKey,
    nodes: Vec<Node>,
    origin: String,
    authority: Option<PathBuf>,
}

impl Cluster {
    fn start(places: &[Place], origin: String, authority: Option<PathBuf>) -> Self {
        let mut cluster = Self {
            key: ClusterKey::new(),
            nodes: Vec::new(),
            origin,
            authority,
        };
        for place in places {
            cluster.join(place);
        }
        cluster
    }

    /// Adds a node with an empty store.
    fn join(&mut self, place: &Place) {
        let seeds = self.nodes.iter().take(2);
        let mut arguments = Vec::new();
        if let Some(file) = &self.authority {
            let trusted = format!("{UPSTREAM}={}", file.display());
            arguments.extend(["--origin-ca".to_owned(), trusted]);
        }
        let options = Options {
            origin: self.origin.clone(),
            join: seeds.map(|node| swarm_address(&node.place)).collect(),
            cluster_key: Some(self.key.path()),
            tag_ttl: Some(TAG_TTL),
            arguments,
            ..Options::default()
        };
        self.nodes.push(Node::start(place, options));
        let all = self.nodes.len() as u64;
        wait_until(
            "every node knows all others",
            Duration::from_secs(20),
            || self.nodes.iter().all(|node| node.members_alive() == all),
        );
    }
}

/// The head of the answer to HEAD of the tag's manifest.
fn head(node: &Node) -> String {
    let request = client::manifest(&node.place, &node.mirror_url(), TAG).option(&["-I"]);
    request.start().text().to_ascii_lowercase()
}

/// Whether the node says that the tag names this image, and that it does not know it for sure.
fn says(node: &Node, image: &Image, stale: bool) -> bool {
    let head = head(node);
    head.starts_with("http/1.1 200")
        && head.contains(&image.manifest.digest)
        && head.contains("warning: 110") == stale
}

/// Pulls the whole image by its tag, which the node is not sure of.
fn outlasts(node: &Node, image: &Image) {
    // For a moment what the origin said last is fresh.
    wait_until("the tag is given and marked", FIRST_LIMIT, || {
        says(node, image, true)
    });
    node.pull(image).expect("the swarm has all of it");

    let start = now();
    for _ in 0..REPEATS {
        assert!(says(node, image, true), "{}", head(node));
    }
    let took = start.elapsed();
    assert!(took < REPEATS_LIMIT, "{REPEATS} tags took {took:?}");
    assert!(node.metric("shoal_stale_tags_total") > f64::from(REPEATS));
}

/// The states of the origin that the members report.
fn states(node: &Node) -> Vec<String> {
    let stats = shoal_stats(node);
    let members = stats["members"].as_array().expect("members are listed");
    let states = members.iter().map(|member| &member["origins"][0]["state"]);
    states
        .map(|state| state.as_str().expect("it is a word").to_owned())
        .collect()
}

fn shoal_stats(node: &Node) -> serde_json::Value {
    let text = String::from_utf8(node.get("/v1/stats").expect("it answers"));
    serde_json::from_str(&text.expect("it is text")).expect("it is JSON")
}

/// The whole of a case: an image is pulled, the origin goes away, the image is pulled again from a node
/// that has it, from another and from one that joins, the tag is moved, and the origin comes back.
fn case(
    name: &str,
    places: &[Place],
    origin: (String, Option<PathBuf>),
    registry: &Registry,
    turn: &mut dyn FnMut(bool),
) {
    let images = Images::pushed(registry);
    let (newcomer, places) = places.split_last().expect("there are places");
    let mut cluster = Cluster::start(places, origin.0, origin.1);
    // Two nodes' word is needed for what a third does not know itself.
    for node in &cluster.nodes[..2] {
        node.pull(&images.old).expect("the origin is there");
        assert!(says(node, &images.old, false));
    }

    turn(true);
    let begun = now();
    outlasts(&cluster.nodes[0], &images.old);
    outlasts(&cluster.nodes[2], &images.old);
    cluster.join(newcomer);
    outlasts(cluster.nodes.last().expect("it joined"), &images.old);
    assert!(
        states(&cluster.nodes[0]).contains(&"away".to_owned()),
        "{:?}",
        states(&cluster.nodes[0])
    );
    let lasted = begun.elapsed();

    push::tag(registry, REPOSITORY, TAG, &images.new);
    turn(false);
    let back = now();
    for node in &cluster.nodes {
        wait_until("the moved tag is seen", RECOVERY_LIMIT, || {
            says(node, &images.new, false)
        });
    }
    println!(
        "{name}: three nodes pulled in {lasted:.1?}, recovery after {:.1?}",
        back.elapsed()
    );
    cluster.nodes[NODES]
        .pull(&images.new)
        .expect("the origin is back");
    for node in &cluster.nodes {
        let log = node.log();
        assert!(!log.contains("panicked"));
        // Once each time, not for each request.
        assert!(log.matches("the origin is away").count() <= 4, "{log}");
    }
}

/// A case with a middlebox before the origin.
fn between(name: &str, tls: bool, conduct: Conduct) {
    let _machine = machine();
    let registry = Registry::empty(&Place::loopback());
    let mut middlebox = if tls {
        Middlebox::tls(&registry.address())
    } else {
        Middlebox::plain(&registry.address())
    };
    let origin = (middlebox.url(), middlebox.authority());
    case(name, &loopback(NODES + 1), origin, &registry, &mut |away| {
        middlebox.begin(if away { conduct } else { Conduct::Passes });
    });
}

#[test]
fn an_origin_that_refuses_connections() {
    between("refused", false, Conduct::Refuses);
}

#[test]
fn an_origin_whose_packets_are_dropped() {
    between("dropped", false, Conduct::Drops);
}

#[test]
fn an_origin_whose_certificate_nobody_vouches_for() {
    between("untrusted certificate", true, Conduct::Untrusted);
}

#[test]
fn an_origin_whose_certificate_has_expired() {
    between("expired certificate", true, Conduct::Expired);
}

#[test]
fn an_origin_that_speaks_no_tls_any_more() {
    between("no TLS", true, Conduct::Babbles);
}

#[test]
fn a_middlebox_that_forbids_with_a_page() {
    between("403 page", false, Conduct::Page(403));
}

#[test]
fn a_middlebox_that_denies_with_a_page_that_there_is_such_a_thing() {
    between("404 page", false, Conduct::Page(404));
}

#[test]
fn a_captive_portal_that_answers_200_with_a_page() {
    between("200 page", false, Conduct::Page(200));
}

#[test]
fn an_origin_whose_name_does_not_resolve() {
    let _machine = machine();
    let registry = Registry::empty(&Place::loopback());
    let mut middlebox = Middlebox::plain(&registry.address());
    let names = TempDir::new().expect("temporary directories can be made");
    // Nobody answers there, and that is known at once.
    let servers = "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n";
    fs::write(names.path().join("resolv.conf"), servers).expect("it is writable");
    let address = middlebox.address();
    let resolve = |away: bool| {
        let known = format!("{address} origin.test\n");
        let hosts = names.path().join("hosts");
        fs::write(hosts, if away { "" } else { &known }).expect("it is writable");
    };
    resolve(false);
    let places = loopback(NODES + 1)
        .into_iter()
        .map(|place| place.with_names(names.path()))
        .collect::<Vec<_>>();
    let url = format!("http://origin.test:{ORIGIN_PORT}");
    case("no DNS", &places, (url, None), &registry, &mut |away| {
        resolve(away);
        // Connections that are open need no name.
        middlebox.begin(Conduct::Passes);
    });
}
