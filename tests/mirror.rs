//! What one node's mirror does for the clients in front of it.

use std::thread;
use std::time::Duration;

use crate::support::access::AccessLog;
use crate::support::clock::wait_until;
use crate::support::daemon::Node;
use crate::support::fake_origin::{FakeOrigin, Faults};
use crate::support::image::{Blob, Image};
use crate::support::netns::Lab;
use crate::support::swarm::Swarm;
use crate::support::{MIB, SHOAL, client, machine};

/// A rate at which a test's layer takes a few seconds.
const SLOW: Faults = Faults {
    no_ranges: false,
    busy: None,
    cuts: 0,
    bytes_per_second: Some(16_000_000),
    presigned: None,
    manifests_max: None,
    token_lifetime: None,
};

fn one_layer(seed: u64) -> (Image, Blob) {
    let image = Image::generate(seed, &[48 * MIB]);
    let layer = image.blobs[1].clone();
    (image, layer)
}

fn start_reading(node: &Node, blob: &Blob) -> client::Transfer {
    client::blob(&node.place, &node.mirror_url(), &blob.digest).start()
}

#[test]
fn twenty_clients_asking_one_node_for_a_cold_blob_cost_one_fetch() {
    let _machine = machine();
    let (image, layer) = one_layer(30);
    let origin = FakeOrigin::serving(&image, Faults::default());
    let swarm = Swarm::on_loopback(1, &origin.url());
    let node = &swarm.nodes[0];
    let results = client::all_at_once(&[(); 20], |()| node.read(&layer).map(|answer| answer.bytes));
    for result in results {
        assert_eq!(result, Ok(layer.size()));
    }
    // Nobody has named the blob's size, so that the first answer may hold a little too much.
    let read = origin.bytes_of(&layer.digest);
    assert!(
        (layer.size()..=layer.size() + MIB).contains(&read),
        "the origin is read once, not {read} bytes of {}",
        layer.size()
    );
}

#[test]
fn a_client_that_disconnects_in_the_middle_leaves_the_fetch_going_for_the_others() {
    let _machine = machine();
    let (image, layer) = one_layer(31);
    let origin = FakeOrigin::serving(&image, SLOW);
    let swarm = Swarm::on_loopback(2, &origin.url());
    let node = &swarm.nodes[0];
    let mut first = start_reading(node, &layer);
    first.read_some(MIB);
    thread::scope(|scope| {
        let same_node = scope.spawn(|| node.read(&layer));
        let other_node = scope.spawn(|| swarm.nodes[1].read(&layer));
        first.read_some(4 * MIB);
        first.abort();
        for reader in [same_node, other_node] {
            reader
                .join()
                .expect("it does not panic")
                .expect("it gets the blob to its end");
        }
    });
    let copies = origin.bytes_of(&layer.digest) as f64 / layer.size() as f64;
    assert!(
        copies <= 1.02,
        "{copies:.3} copies: nothing is fetched again"
    );
}

#[test]
fn the_first_bytes_reach_the_client_long_before_the_blob_is_whole() {
    let _machine = machine();
    let (image, layer) = one_layer(32);
    let origin = FakeOrigin::serving(&image, SLOW);
    let swarm = Swarm::on_loopback(1, &origin.url());
    let mut transfer = start_reading(&swarm.nodes[0], &layer);
    transfer.read_some(1);
    assert!(transfer.bytes() > 0, "the client gets bytes");
    let read = origin.bytes_of(&layer.digest);
    assert!(
        read < layer.size() / 2,
        "{read} bytes were read before the client got its first"
    );
    transfer.read_some(u64::MAX);
    assert_eq!(transfer.end().expect("it comes whole").digest, layer.digest);
}

#[test]
fn a_cold_blob_is_read_by_ranges() {
    let _machine = machine();
    let (image, layer) = one_layer(33);
    let origin = FakeOrigin::serving(&image, Faults::default());
    let swarm = Swarm::on_loopback(1, &origin.url());
    let node = &swarm.nodes[0];
    let get = |range: &str| {
        let request = client::blob(&node.place, &node.mirror_url(), &layer.digest);
        let answer = request.range(range).finish().expect("the mirror answers");
        (answer.status, answer.bytes)
    };
    let size = layer.size();
    let middle = format!("{}-{}", size / 2, size / 2 + 999);
    assert_eq!(get(&middle), (206, 1000));
    assert_eq!(get("-500"), (206, 500));
    assert_eq!(get(&format!("{}-", size - 7)), (206, 7));
    assert_eq!(get(&format!("{size}-")).0, 416);
}

#[test]
fn a_node_that_is_asked_to_end_keeps_what_it_has() {
    let _machine = machine();
    let (image, _) = one_layer(34);
    let mut origin = FakeOrigin::serving(&image, Faults::default());
    let mut swarm = Swarm::on_loopback(1, &origin.url());
    swarm.slowest_pull(&image);
    origin.stop();
    let node = &mut swarm.nodes[0];
    node.stop();
    node.restart();
    node.pull(&image)
        .expect("a restarted node serves its store, the tag included");
    assert_eq!(node.traffic().from_origin, 0);
}

#[test]
fn with_no_flag_at_all_a_node_is_a_mirror_on_localhost() {
    let _machine = machine();
    let lab = Lab::new(1, None);
    let host = &lab.hosts()[0];
    // The defaults are paths of the whole machine: the node gets an empty one of each.
    let script = format!(
        "mkdir -p /etc/shoal && mount -t tmpfs none /var/lib && mount -t tmpfs none /etc/shoal \
         && exec {SHOAL} node"
    );
    let mut command = host.command("unshare");
    let environment = std::env::vars().filter(|(name, _)| name.starts_with("SHOAL_"));
    for (name, _) in environment {
        command.env_remove(name);
    }
    let mut node = command
        .args(["-m", "bash", "-c", &script])
        .spawn()
        .expect("unshare runs");
    let answers = |url: &str| client::get(host, url).is_ok();
    wait_until("the node is ready", Duration::from_secs(20), || {
        assert!(
            node.try_wait().expect("its state can be read").is_none(),
            "it ended by itself"
        );
        answers("http://127.0.0.1:5006/readyz") && answers("http://127.0.0.1:5005/v2/")
    });
    node.kill().expect("it runs");
    node.wait().expect("it was killed");
}
