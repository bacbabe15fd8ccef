//! Tags that move at the origin while nodes pull.

use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::support::clock::wait_until;
use crate::support::daemon::{Node, Options, swarm_address};
use crate::support::image::{Image, digest_of};
use crate::support::place::Place;
use crate::support::registry::Registry;
use crate::support::swarm::{ClusterKey, loopback};
use crate::support::{MIB, REPOSITORY, UPSTREAM, client, machine, push};

/// How long the nodes use a tag before they ask again.
const TAG_TTL: &str = "100ms";

/// How often each client pulls.
const PULLS: usize = 6;

/// Nodes of one cluster that ask the origin often what a tag names.
fn nodes(count: usize, registry: &Registry) -> Vec<Node> {
    let key = ClusterKey::new();
    let places = loopback(count);
    let seed = swarm_address(&places[0]);
    let start = |(number, place): (usize, &Place)| {
        let options = Options {
            origin: registry.url(),
            join: (number > 0).then(|| seed.clone()).into_iter().collect(),
            cluster_key: Some(key.path()),
            tag_ttl: Some(TAG_TTL),
            ..Options::default()
        };
        Node::start(place, options)
    };
    let nodes: Vec<_> = places.iter().enumerate().map(start).collect();
    wait_until(
        "every node knows all others",
        Duration::from_secs(20),
        || {
            nodes
                .iter()
                .all(|node| node.members_alive() == count as u64)
        },
    );
    nodes
}

/// Which of the images this manifest is.
fn which(manifest: &[u8], images: &[Image]) -> usize {
    let digest = digest_of(Sha256::new_with_prefix(manifest));
    let found = images
        .iter()
        .position(|image| image.manifest.digest == digest);
    found.unwrap_or_else(|| panic!("neither image: {}", String::from_utf8_lossy(manifest)))
}

/// Pulls by tag as a client does, and checks that all of it is of one image.
fn pull(node: &Node, tag: &str, images: &[Image]) -> usize {
    let manifest = client::manifest(&node.place, &node.mirror_url(), tag).body();
    let found = which(&manifest.expect("the manifest comes"), images);
    for blob in &images[found].blobs {
        node.read(blob).expect("every blob of it comes");
    }
    found
}

fn pull_with_skopeo(node: &Node, tag: &str, images: &[Image]) -> usize {
    let directory = TempDir::new().expect("temporary directories can be made");
    let name = format!("{}/{UPSTREAM}/{REPOSITORY}:{tag}", node.mirror());
    client::skopeo_into(directory.path(), &node.place, &name).expect("skopeo pulls");
    let target = directory.path().join("image");
    let manifest = fs::read(target.join("manifest.json")).expect("skopeo wrote it");
    let found = which(&manifest, images);
    client::holds_blobs(&target, &images[found]).expect("skopeo wrote all blobs");
    found
}

#[test]
fn two_tags_that_move_back_and_forth_give_every_client_one_whole_image() {
    let _machine = machine();
    let images = [70, 71].map(|seed| Image::generate(seed, &[3 * MIB, MIB]));
    let registry = Registry::empty(&Place::loopback());
    push::image(&registry, REPOSITORY, "one", &images[0]);
    push::image(&registry, REPOSITORY, "two", &images[1]);
    let nodes = nodes(4, &registry);

    let pulled = AtomicBool::new(false);
    let seen = Mutex::new([[0; 2]; 2]);
    let count =
        |tag: usize, image: usize| seen.lock().expect("no client panicked")[tag][image] += 1;
    thread::scope(|scope| {
        let moving = scope.spawn(|| {
            let mut turn = 0;
            // No rhythm that the nodes' own could fall into.
            let pauses = [20, 70, 110, 30, 90, 50, 130];
            while !pulled.load(Ordering::Relaxed) {
                turn += 1;
                push::tag(&registry, REPOSITORY, "one", &images[turn % 2]);
                push::tag(&registry, REPOSITORY, "two", &images[(turn + 1) % 2]);
                thread::sleep(Duration::from_millis(pauses[turn % pauses.len()]));
            }
            turn
        });
        let clients: Vec<_> = nodes
            .iter()
            .flat_map(|node| ["one", "two"].map(|tag| (node, tag)))
            .map(|(node, tag)| {
                let (images, count) = (&images, &count);
                scope.spawn(move || {
                    let number = usize::from(tag == "two");
                    for _ in 0..PULLS {
                        count(number, pull(node, tag, images));
                        thread::sleep(Duration::from_millis(500));
                    }
                    count(number, pull_with_skopeo(node, tag, images));
                })
            })
            .collect();
        let ended: Vec<_> = clients
            .into_iter()
            .map(thread::ScopedJoinHandle::join)
            .collect();
        pulled.store(true, Ordering::Relaxed);
        let turns = moving.join().expect("the registry takes the tags");
        assert!(ended.iter().all(Result::is_ok), "a client failed");
        assert!(turns > 10, "the tags moved {turns} times");
    });
    let seen = seen.into_inner().expect("no client panicked");
    println!("pulls by tag and image: {seen:?}");
    // Under one tag or the other; the registry fails while it writes, and then the last known image is
    // given.
    for image in 0..2 {
        let pulls = seen[0][image] + seen[1][image];
        assert!(pulls > 0, "both images: {seen:?}");
    }

    // They rest, and all nodes agree.
    push::tag(&registry, REPOSITORY, "one", &images[1]);
    push::tag(&registry, REPOSITORY, "two", &images[1]);
    for node in &nodes {
        for tag in ["one", "two"] {
            wait_until(
                "the node knows where the tag rests",
                Duration::from_secs(5),
                || pull(node, tag, &images) == 1,
            );
        }
        assert!(!node.log().contains("panicked"));
    }
}
