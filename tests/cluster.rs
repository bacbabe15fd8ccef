//! The main job: hosts with a real registry behind them and a real client in front of each.

use crate::support::access::AccessLog;
use crate::support::daemon::Node;
use crate::support::image::Image;
use crate::support::netns::Lab;
use crate::support::registry::Registry;
use crate::support::swarm::{Swarm, slowest};
use crate::support::{MIB, REPOSITORY, TAG, UPSTREAM, client, machine};

const NODES: usize = 8;

/// The rate of each host's link, in Mbit/s: more than two cores can fill eight times over.
const LINK: u64 = 400;

/// Layers of heavy-tailed sizes, 610 MiB in all.
const LAYERS: [u64; 6] = [280 * MIB, 160 * MIB, 96 * MIB, 48 * MIB, 24 * MIB, 2 * MIB];

fn by_tag(node: &Node) -> String {
    format!("{}/{UPSTREAM}/{REPOSITORY}:{TAG}", node.mirror())
}

fn by_digest(node: &Node, image: &Image) -> String {
    format!(
        "{}/{UPSTREAM}/{REPOSITORY}@{}",
        node.mirror(),
        image.manifest.digest
    )
}

#[test]
fn eight_skopeo_clients_pull_at_once_the_registry_is_read_once_and_then_no_longer_needed() {
    let _machine = machine();
    let image = Image::generate(1, &LAYERS);
    let lab = Lab::new(NODES + 2, Some(LINK));
    let (hosts, others) = lab.hosts().split_at(NODES);
    let (registry_host, late_host) = (&others[0], &others[1]);
    let mut registry = Registry::serving(&image, registry_host);
    let mut swarm = Swarm::start(hosts, &registry.url());

    let pull = |node: &Node| client::skopeo(&node.place, &by_tag(node), &image);
    let took = slowest(client::all_at_once(&swarm.nodes, pull));
    println!("8 skopeo clients, {} MiB: {took:?}", image.bytes() / MIB);

    let copies = registry.copies(&image);
    assert!(
        copies <= 1.02,
        "the registry wrote {copies:.3} copies of the blobs"
    );
    assert!(
        copies >= 1.0,
        "{copies:.3} copies: the log does not tell the whole story"
    );
    assert_eq!(
        registry.manifest_gets(),
        1,
        "the manifest is read once for the whole cluster"
    );
    let stats = swarm.stats(0);
    assert_eq!(stats["members_answered"], 8, "{stats}");
    let told = stats["origin_copies"]
        .as_f64()
        .expect("origin_copies is a number");
    assert!(
        (told - copies).abs() < 0.02,
        "stats say {told}, the registry's log {copies}"
    );

    let asked = registry.log().len();
    registry.stop();
    slowest(client::all_at_once(&swarm.nodes, pull));
    slowest(client::all_at_once(&swarm.nodes, |node| {
        client::skopeo(&node.place, &by_digest(node, &image), &image)
    }));

    let late = swarm.join(late_host);
    let by_tag = client::skopeo(late_host, &by_tag(late), &image);
    by_tag.expect("a newcomer pulls by tag what only the swarm has");
    let by_digest = client::skopeo(late_host, &by_digest(late, &image), &image);
    by_digest.expect("and by digest");
    let traffic = late.traffic();
    assert!(
        traffic.from_peers >= image.bytes(),
        "all of it came from peers: {traffic:?}"
    );
    assert_eq!(
        traffic.from_origin, 0,
        "nothing came from a registry that is gone"
    );
    assert_eq!(registry.log().len(), asked);
}

#[test]
fn layers_that_nobody_compressed_take_less_of_a_slow_link() {
    let _machine = machine();
    let layers = [24 * MIB, 8 * MIB];
    let compressible = Image::compressible(7, &layers);
    let lab = Lab::new(3, Some(50));
    let (origin, hosts) = lab.hosts().split_first().expect("it has hosts");
    for (image, saved) in [
        // Half of the bytes shrink to nothing; the first chunks go as they are.
        (compressible, 0.3..0.5),
        (Image::generate(8, &layers), 0.0..0.01),
    ] {
        let registry = Registry::serving(&image, origin);
        let swarm = Swarm::start(hosts, &registry.url());
        let [holder, other] = &swarm.nodes[..] else {
            unreachable!("there are two hosts");
        };
        holder.pull(&image).expect("it comes from the registry");
        other.pull(&image).expect("it comes from the other node");
        let share = holder.metric("shoal_saved_bytes_total") / image.bytes() as f64;
        assert!(saved.contains(&share), "{share:.3} of the bytes were saved");
        assert_eq!(
            holder.traffic().uploaded,
            image.bytes() + image.manifest.size()
        );
    }
}
