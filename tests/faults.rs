//! Nodes that die, freeze, damage what they send, or lie.

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::support::access::AccessLog;
use crate::support::client::WRONG_BYTES;
use crate::support::clock::{now, wait_for, wait_until};
use crate::support::daemon::Node;
use crate::support::fake_origin::{FakeOrigin, Faults};
use crate::support::image::Image;
use crate::support::netns::Lab;
use crate::support::registry::Registry;
use crate::support::swarm::{Swarm, loopback, slowest};
use crate::support::{CHUNK, MIB, machine};

const NODES: usize = 8;

/// The rate of every link, the registry's too, in Mbit/s: the pull takes about 10 s, time enough
/// to strike in its middle.
const LINK: u64 = 200;

const LAYERS: [u64; 4] = [128 * MIB, 72 * MIB, 40 * MIB, 8 * MIB];

/// What a dead and a frozen node may cost the others.
const COST_MAX: Duration = Duration::from_secs(3);

/// A victim has at least this share of the image when it is struck, so that there is something to
/// keep over a restart.
const HELD_MIN: f64 = 0.25;

fn image() -> Image {
    Image::generate(3, &LAYERS)
}

/// Hosts, registry and swarm for one mass pull.
struct Stage {
    // Fields drop in this order: processes before the network they live in.
    swarm: Swarm,
    registry: Registry,
    _lab: Lab,
}

impl Stage {
    fn new(image: &Image) -> Self {
        let lab = Lab::new(NODES + 1, Some(LINK));
        let (origin, hosts) = lab.hosts().split_first().expect("it has hosts");
        let registry = Registry::serving(image, origin);
        let swarm = Swarm::start(hosts, &registry.url());
        Self {
            swarm,
            registry,
            _lab: lab,
        }
    }
}

/// How long the same pull takes when nothing goes wrong; measured once.
fn clean_time(image: &Image) -> Duration {
    static CLEAN: OnceLock<Duration> = OnceLock::new();
    *CLEAN.get_or_init(|| Stage::new(image).swarm.slowest_pull(image))
}

/// What a node in the middle of the transfer says of itself.
struct Midway {
    node: usize,
    /// Bytes of the image that it has.
    held: u64,
    /// It holds a lease for a blob that it does not have whole.
    leases: bool,
    /// It stewards a layer that it does not have whole.
    stewards: bool,
}

fn midway(node: usize, stats: &Value, image: &Image) -> Midway {
    let list = |name: &str| stats[name].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let blobs = list("blobs");
    let layers = blobs.iter().filter(|blob| {
        image
            .blobs
            .iter()
            .any(|layer| blob["digest"].as_str() == Some(&layer.digest))
    });
    let held = layers
        .clone()
        .filter_map(|blob| blob["have_bytes"].as_u64())
        .sum();
    let unfinished: BTreeSet<String> = layers
        .filter(|blob| blob["complete"] == false && blob["have_bytes"].as_u64() > Some(0))
        .filter_map(|blob| text(&blob["digest"]))
        .collect();
    let of_unfinished = |digest: Option<String>| digest.is_some_and(|d| unfinished.contains(&d));
    Midway {
        node,
        held,
        leases: list("leases")
            .iter()
            .any(|lease| of_unfinished(text(&lease["blob"]))),
        stewards: list("stewarding")
            .iter()
            .any(|digest| of_unfinished(text(digest))),
    }
}

/// Waits for the middle of the transfer and picks two nodes that hold leases and have bytes in
/// flight: the first as `wanted`, the second any other.
fn pick_victims(nodes: &[Node], image: &Image, wanted: fn(&Midway) -> bool) -> (Midway, Midway) {
    let enough = (image.bytes() as f64 * HELD_MIN) as u64;
    wait_for(
        "two lease holders in the middle of the transfer",
        Duration::from_secs(15),
        || {
            let mut midway: Vec<_> = (nodes.iter().enumerate())
                .map(|(number, node)| midway(number, &node.stats(), image))
                .filter(|midway| midway.leases && midway.held >= enough)
                .collect();
            let first = midway.remove(midway.iter().position(wanted)?);
            Some((first, midway.pop()?))
        },
    )
}

/// Starts a mass pull, kills one node that is as `wanted` and freezes another; the others have to
/// finish in time, then the victims too.
fn strike(wanted: fn(&Midway) -> bool) {
    let image = &image();
    let clean = clean_time(image);
    let mut stage = Stage::new(image);
    let nodes = &stage.swarm.nodes;
    let (killed, frozen, others) = thread::scope(|scope| {
        let pull = |node| scope.spawn(move || Node::pull(node, image));
        let mut pulls: Vec<_> = nodes.iter().map(pull).map(Some).collect();
        let (killed, frozen) = pick_victims(nodes, image, wanted);
        nodes[killed.node].signal_kill();
        nodes[frozen.node].freeze();

        let mut join = |node: usize| {
            let pull = pulls[node].take().expect("it is joined once");
            pull.join().expect("a client does not panic")
        };
        let others: Vec<_> = (0..NODES)
            .filter(|node| ![killed.node, frozen.node].contains(node))
            .map(&mut join)
            .collect();
        nodes[frozen.node].thaw();
        let dead = join(killed.node);
        assert!(dead.is_err(), "the fault struck during the transfer");
        join(frozen.node).expect("a node that was frozen finishes");
        (killed, frozen, slowest(others))
    });
    println!(
        "clean {clean:.2?}, with node {} killed and node {} frozen {others:.2?}",
        killed.node, frozen.node
    );
    assert!(
        others <= clean + COST_MAX,
        "the others took {others:?}, without the faults {clean:?}"
    );

    let victim = &mut stage.swarm.nodes[killed.node];
    victim.kill();
    victim.restart();
    stage.swarm.wait_gathered();
    let victim = &stage.swarm.nodes[killed.node];
    victim
        .pull(image)
        .expect("the killed node finishes after a restart");
    let traffic = victim.traffic();
    let read = traffic.from_origin + traffic.from_peers;
    let missing = image.bytes() - killed.held;
    // At the very end one chunk may be asked of two peers: a hedge, no loss.
    let again = read.saturating_sub(missing);
    assert!(
        again <= killed.held / 50 + CHUNK,
        "it read {again} bytes again of the {} that it had: {traffic:?}",
        killed.held
    );
    let copies = stage.registry.copies(image);
    assert!(
        copies <= 1.4,
        "one death does not send the others to the registry: {copies:.3}"
    );
}

#[test]
fn a_killed_and_a_frozen_lease_holder_cost_the_others_three_seconds_at_most() {
    let _machine = machine();
    strike(|midway| midway.leases);
}

#[test]
fn a_killed_steward_of_a_layer_costs_the_others_three_seconds_at_most() {
    let _machine = machine();
    strike(|midway| midway.stewards);
}

/// A machine that runs all nodes and stops for a moment, or has no time for them: none of them is to
/// blame another for it.
#[test]
fn a_pause_of_all_nodes_has_nothing_read_twice() {
    let _machine = machine();
    let image = &image();
    let stage = Stage::new(image);
    let nodes = &stage.swarm.nodes;
    let results = thread::scope(|scope| {
        let pulls = scope.spawn(|| stage.swarm.pull_everywhere(image));
        for _ in 0..4 {
            thread::sleep(Duration::from_millis(150));
            nodes.iter().for_each(Node::freeze);
            thread::sleep(Duration::from_millis(900));
            nodes.iter().for_each(Node::thaw);
        }
        pulls.join().expect("clients do not panic")
    });
    let took = slowest(results);
    let copies = stage.registry.copies(image);
    println!("{took:.2?}, {copies:.3} copies");
    assert_eq!(stage.registry.manifest_gets(), 1);
    assert!(copies <= 1.02, "the registry wrote {copies:.3} copies");
}

#[test]
fn chunks_damaged_in_transit_reach_no_client() {
    let _machine = machine();
    let image = Image::generate(4, &[192 * MIB, 64 * MIB]);
    let origin = FakeOrigin::serving(&image, Faults::default());
    let swarm = Swarm::start_with_faults(&loopback(4), &origin.url(), &["corrupt-out=0.2"]);
    swarm.slowest_pull(&image);
    let honest = &swarm.nodes[1..];
    let rejected: f64 = honest.iter().map(|node| node.metric("rejected")).sum();
    assert!(
        rejected > 0.0,
        "the fault struck: damaged chunks arrived and were rejected"
    );
    let banned = swarm.stats(1)["banned"].clone();
    assert_eq!(
        banned,
        Value::Array(vec![]),
        "damage in transit proves nothing against a peer"
    );
}

#[test]
fn a_lying_lease_holder_completes_no_response_and_is_banned_by_name() {
    let _machine = machine();
    // Many chunks at a limited rate, so that the liar gets its share of the leases.
    let image = Image::generate(5, &[160 * MIB]);
    let faults = Faults {
        bytes_per_second: Some(80_000_000),
        ..Faults::default()
    };
    let origin = FakeOrigin::serving(&image, faults);
    let swarm = Swarm::start_with_faults(&loopback(4), &origin.url(), &["lie"]);
    let (liar, honest) = swarm.nodes.split_first().expect("there are four");
    let name = liar.id();

    // A response completes with the right bytes or not at all; an error is an answer, too.
    let results = swarm.pull_everywhere(&image);
    for result in &results {
        if let Err(error) = result {
            assert!(
                !error.contains(WRONG_BYTES),
                "a client got wrong bytes to the end: {error}"
            );
        }
    }
    assert!(
        liar.traffic().from_origin > 0,
        "the liar held a lease, else nothing was tested"
    );
    assert!(
        results.iter().any(Result::is_err),
        "the lie was noticed at the end of the blob"
    );

    let start = now();
    for node in honest {
        wait_until("a fresh pull succeeds", Duration::from_secs(30), || {
            node.pull(&image).is_ok()
        });
    }
    println!("fresh pulls after the lie: {:.2?}", start.elapsed());
    wait_until(
        "`shoal stats` names the banned peer",
        Duration::from_secs(10),
        || {
            let stats = swarm.stats(1);
            let banned = stats["banned"]
                .as_array()
                .expect("banned is a list")
                .clone();
            assert!(
                banned.iter().all(|ban| ban["id"] == name.as_str()),
                "only the liar: {stats}"
            );
            !banned.is_empty()
        },
    );
    // Each audit reads what the auditor had not read itself. The liar may be asked first, and then
    // another node has to repeat what it did.
    let copies = origin.copies(&image);
    assert!(
        copies <= 4.0,
        "an audit reads one more copy, and there are two at most: {copies:.2}"
    );
}

#[test]
fn a_lone_node_killed_midway_reads_only_the_rest_after_a_restart() {
    let _machine = machine();
    let image = Image::generate(6, &[64 * MIB]);
    let faults = Faults {
        bytes_per_second: Some(16_000_000),
        ..Faults::default()
    };
    let origin = FakeOrigin::serving(&image, faults);
    let mut swarm = Swarm::on_loopback(1, &origin.url());
    let layer = &image.blobs[1];
    let held = thread::scope(|scope| {
        let node = &swarm.nodes[0];
        let pull = scope.spawn(|| node.pull(&image));
        let held = wait_for(
            "half of the layer is there",
            Duration::from_secs(20),
            || {
                let held = midway(0, &node.stats(), &image).held;
                (held >= layer.size() / 2).then_some(held)
            },
        );
        node.signal_kill();
        assert!(
            pull.join().expect("it does not panic").is_err(),
            "it was killed midway"
        );
        held
    });
    swarm.nodes[0].kill();
    let before = origin.bytes_of(&layer.digest);
    swarm.nodes[0].restart();
    swarm.nodes[0]
        .pull(&image)
        .expect("a lone node finishes after a restart");
    let read = origin.bytes_of(&layer.digest) - before;
    let bound = layer.size() - held + held / 50 + CHUNK;
    assert!(
        read <= bound,
        "{read} bytes read after the restart, of which {held} were there"
    );
}
