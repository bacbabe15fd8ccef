//! Several origins for one upstream.

use std::thread;
use std::time::Duration;

use crate::support::access::AccessLog;
use crate::support::clock::wait_until;
use crate::support::daemon::{Node, Options, swarm_address};
use crate::support::fake_origin::{FakeOrigin, Faults};
use crate::support::image::Image;
use crate::support::place::Place;
use crate::support::registry::Registry;
use crate::support::swarm::{ClusterKey, Swarm, loopback, slowest};
use crate::support::{MIB, REPOSITORY, TAG, UPSTREAM, client, machine, push};

const NODES: usize = 3;

/// Allowed beside the bytes of a copy: what was on the way when the first origin died.
const SLACK: f64 = 0.05;

/// A swarm whose upstream has these origins, in this order.
fn swarm(origins: &[&str]) -> Swarm {
    let (first, others) = origins.split_first().expect("there are origins");
    let key = ClusterKey::new();
    let places = loopback(NODES);
    let mut nodes = Vec::<Node>::new();
    for place in &places {
        let others = others.iter();
        let options = Options {
            origin: (*first).to_owned(),
            join: nodes
                .iter()
                .map(|node| swarm_address(&node.place))
                .collect(),
            cluster_key: Some(key.path()),
            tag_ttl: Some("100ms"),
            arguments: others
                .flat_map(|url| ["--origin".to_owned(), format!("{UPSTREAM}={url}")])
                .collect(),
            ..Options::default()
        };
        nodes.push(Node::start(place, options));
    }
    Swarm::of(nodes, (*first).to_owned(), key)
}

/// What each member says of the state of an origin, by its place in the list.
fn states(swarm: &Swarm, number: usize) -> Vec<String> {
    let stats = swarm.stats(0);
    let members = stats["members"].as_array().expect("members are listed");
    let states = members.iter().map(|member| {
        let origins = member["origins"].as_array().expect("origins are listed");
        let mine = origins.iter().filter(|one| one["upstream"] == UPSTREAM);
        let one = mine.clone().nth(number).expect("both are listed");
        one["state"].as_str().expect("it is a word").to_owned()
    });
    states.collect()
}

fn tag_is_there(node: &Node) -> bool {
    let head = client::manifest(&node.place, &node.mirror_url(), TAG).option(&["-I"]);
    let head = head.start().text();
    head.starts_with("HTTP/1.1 200") && !head.to_ascii_lowercase().contains("warning")
}

#[test]
fn an_origin_that_dies_in_the_middle_of_a_pull_is_followed_by_the_next_and_used_again_later() {
    let _machine = machine();
    let image = Image::generate(51, &[48 * MIB, 16 * MIB]);
    let limited = || Faults {
        bytes_per_second: Some(16_000_000),
        ..Faults::default()
    };
    let mut first = FakeOrigin::serving(&image, limited());
    let second = FakeOrigin::serving(&image, limited());
    let swarm = swarm(&[&first.url(), &second.url()]);
    let half = image.bytes() / 2;
    thread::scope(|scope| {
        let pulls = scope.spawn(|| swarm.pull_everywhere(&image));
        wait_until(
            "half of the image has left",
            Duration::from_secs(20),
            || first.log().iter().map(|access| access.bytes).sum::<u64>() >= half,
        );
        assert!(second.log().is_empty(), "the first is asked first");
        first.stop();
        slowest(pulls.join().expect("no client panicked"));
    });
    let copies = first.copies(&image) + second.copies(&image);
    println!(
        "{copies:.3} copies: {:.3} from the first, {:.3} from the second",
        first.copies(&image),
        second.copies(&image)
    );
    assert!(copies <= 1.0 + SLACK, "{copies:.3} copies were read");
    assert!(states(&swarm, 0).contains(&"away".to_owned()));
    let lines = swarm.nodes.iter().map(Node::log).collect::<String>();
    assert!(lines.contains("the origin is away"), "{lines}");

    let seen = first.log().len();
    first.start();
    wait_until("the first is asked again", Duration::from_secs(10), || {
        swarm.nodes.iter().all(tag_is_there) && first.log().len() > seen
    });
    // Two nodes ask what a tag names, for all; the third may not have had a reason to try it again.
    wait_until(
        "those who ask take it for up",
        Duration::from_secs(10),
        || {
            let told = |state: &&String| *state == "up";
            swarm.nodes.iter().all(tag_is_there)
                && states(&swarm, 0).iter().filter(told).count() >= 2
        },
    );
    let asked = second.log().len();
    assert!(swarm.nodes.iter().all(tag_is_there));
    assert_eq!(second.log().len(), asked, "the first is asked first again");
}

#[test]
fn a_private_registry_stands_before_a_public_one() {
    let _machine = machine();
    let [private, public] = [52, 53].map(|seed| Image::generate(seed, &[3 * MIB, MIB]));
    let before = Registry::empty(&Place::loopback());
    push::image(&before, REPOSITORY, "internal", &private);
    let behind = FakeOrigin::serving(&public, Faults::default());
    let swarm = swarm(&[&before.url(), &behind.url()]);
    for node in &swarm.nodes {
        node.pull(&public).expect("the public one has it");
        let pull = client::timed_pull(&node.place, &node.mirror_url(), &private, "internal");
        pull.expect("the private one has it");
        let none = client::manifest(&node.place, &node.mirror_url(), "nowhere").finish();
        assert_eq!(none.expect("there is an answer").status, 404);
    }
    let asked = behind.log();
    assert!(asked.iter().all(|access| !access.path.contains("internal")));
    assert!((behind.copies(&public) - 1.0).abs() < SLACK);
    for number in 0..2 {
        assert!(states(&swarm, number).iter().all(|state| state == "up"));
    }
}

#[test]
fn an_origin_that_limits_its_clients_is_followed_by_the_next() {
    let _machine = machine();
    let image = Image::generate(54, &[12 * MIB, 3 * MIB]);
    let busy = Faults {
        busy: Some(Duration::from_secs(600)),
        ..Faults::default()
    };
    let first = FakeOrigin::serving(&image, busy);
    let second = FakeOrigin::serving(&image, Faults::default());
    let swarm = swarm(&[&first.url(), &second.url()]);
    let took = swarm.slowest_pull(&image);
    println!("pulled in {took:.1?} past an origin that says 429");
    assert!(second.copies(&image) <= 1.0 + SLACK);
    assert!(first.log().iter().any(|access| access.status == 429));
    let stats = swarm.stats(0);
    let origins = stats["origins"].as_array().expect("origins are listed");
    assert_eq!(origins.len(), 2);
    assert_eq!(origins[0]["url"], format!("{}/", first.url()));
    assert!(origins[0]["failures"].as_u64() > Some(0), "{origins:?}");
    assert_eq!(origins[1]["failures"], 0, "{origins:?}");
}
