//! Clients that read a part of a blob: lazy snapshotters, and parallel or resumed downloads.

use std::ops::Range;
use std::thread;
use std::time::Duration;

use crate::support::access::AccessLog;
use crate::support::client;
use crate::support::clock::{self, wait_until};
use crate::support::daemon::Node;
use crate::support::fake_origin::{FakeOrigin, Faults};
use crate::support::image::{Blob, Image};
use crate::support::raw::{self, Answer, Raw};
use crate::support::swarm::Swarm;
use crate::support::{MIB, REPOSITORY, TAG, UPSTREAM, machine};

/// The origin's rate, in bytes per second: a blob of [`LAYER`] bytes takes 16 s.
const RATE: u64 = 16 * MIB;

const LAYER: u64 = 256 * MIB;

/// An origin that gives a layer slowly, and nodes whose clients have its manifest.
struct Scene {
    origin: FakeOrigin,
    swarm: Swarm,
    layer: Blob,
}

impl Scene {
    fn of(nodes: usize, seed: u64) -> Self {
        let image = Image::generate(seed, &[LAYER]);
        let faults = Faults {
            bytes_per_second: Some(RATE),
            ..Faults::default()
        };
        let origin = FakeOrigin::serving(&image, faults);
        let swarm = Swarm::on_loopback(nodes, &origin.url());
        for node in &swarm.nodes {
            let manifest = client::manifest(&node.place, &node.mirror_url(), TAG);
            manifest.body().expect("the manifest comes");
        }
        Self {
            origin,
            swarm,
            layer: image.blobs[1].clone(),
        }
    }

    fn read(&self) -> u64 {
        self.origin.bytes_of(&self.layer.digest)
    }

    fn target(&self) -> String {
        format!("/v2/{UPSTREAM}/{REPOSITORY}/blobs/{}", self.layer.digest)
    }

    /// Reads a range through a node; how long that took, and what the origin gave meanwhile.
    fn range(&self, node: &Node, range: Range<u64>) -> (Duration, u64) {
        let (start, before) = (clock::now(), self.read());
        let line = format!("Range: bytes={}-{}", range.start, range.end - 1);
        let answer = raw::get(&node.mirror(), &self.target(), &[&line]);
        assert_eq!(answer.status, 206);
        let wanted = self
            .layer
            .content
            .read(range.start, (range.end - range.start) as usize);
        assert!(answer.body == wanted, "the bytes of {range:?}");
        (start.elapsed(), self.read() - before)
    }
}

/// Says what something cost, and asserts that it was less than so many seconds, and MiB of the origin.
fn check(what: &str, (took, read): (Duration, u64), seconds: u64, mebibytes: u64) {
    println!("{what}: {took:.2?}, {} MiB from the origin", read / MIB);
    assert!(
        took < Duration::from_secs(seconds) && read < mebibytes * MIB,
        "{what}: {took:?}, {read} bytes"
    );
}

#[test]
fn a_range_of_a_cold_blob_comes_before_the_rest_of_it() {
    let _machine = machine();
    let scene = Scene::of(1, 60);
    let node = &scene.swarm.nodes[0];
    let cost = scene.range(node, 128 * MIB..132 * MIB);
    check("4 MiB of 256, cold", cost, 3, 32);

    // The rest follows in the background, and holds up no further range.
    wait_until("the rest follows", Duration::from_secs(20), || {
        scene.read() > 64 * MIB
    });
    let cost = scene.range(node, 200 * MIB..204 * MIB);
    check("4 MiB of 256, the rest under way", cost, 5, 64);
}

#[test]
fn several_ranges_of_a_cold_blob_are_fetched_and_not_what_lies_between() {
    let _machine = machine();
    let scene = Scene::of(2, 61);
    let line = "Range: bytes=209715200-209719295,104857600-104861695,0-1";
    let start = clock::now();
    let answer = raw::get(&scene.swarm.nodes[1].mirror(), &scene.target(), &[line]);
    let cost = (start.elapsed(), scene.read());
    assert_eq!(answer.status, 206);
    let length = answer.body.len().to_string();
    assert_eq!(answer.header("content-length"), Some(&*length));
    let kind = answer.header("content-type").expect("it has one");
    let boundary = kind.rsplit_once('=').expect("with a boundary").1;
    let mut rest = &answer.body[..];
    for range in [209_715_200..209_719_296, 104_857_600..104_861_696, 0..2] {
        let head = format!(
            "\r\n--{boundary}\r\nContent-Type: application/octet-stream\r\n\
             Content-Range: bytes {}-{}/{LAYER}\r\n\r\n",
            range.start,
            range.end - 1
        );
        rest = rest.strip_prefix(head.as_bytes()).expect("a part begins");
        let wanted = scene
            .layer
            .content
            .read(range.start, (range.end - range.start) as usize);
        rest = rest.strip_prefix(&*wanted).expect("the bytes of the part");
    }
    assert_eq!(rest, format!("\r\n--{boundary}--\r\n").as_bytes());
    // Most often 0.2 s and 2 MiB. Where the steward hears of one range before the others, these wait
    // until one of the leases that it granted in between has ended: 3.5 s and 54 MiB.
    check("3 ranges of 256 MiB, cold", cost, 7, 112);
}

/// As containerd 2.1 reads a layer in parallel: each request is open-ended, and dropped after a part.
#[test]
fn open_ended_ranges_that_are_dropped_cost_their_parts_and_leave_nothing() {
    let _machine = machine();
    let scene = Scene::of(2, 62);
    let node = &scene.swarm.nodes[0];
    let before = node.open_files();
    let said_before = node.log().len();
    let part = 2 * MIB as usize;
    let start = clock::now();
    thread::scope(|scope| {
        for number in 0..8 {
            let scene = &scene;
            scope.spawn(move || {
                let from = number * 32 * MIB;
                let mut connection = Raw::connect(&node.mirror());
                let target = scene.target();
                let request =
                    format!("GET {target} HTTP/1.1\r\nHost: x\r\nRange: bytes={from}-\r\n\r\n");
                connection.send(request.as_bytes());
                let first = connection.read_some(MIB as usize);
                let mut answer = Answer::parse(&first);
                assert_eq!(answer.status, 206);
                let rest = connection.read_exactly(part - answer.body.len().min(part));
                answer.body.extend(rest);
                answer.body.truncate(part);
                assert!(
                    answer.body == scene.layer.content.read(from, part),
                    "at {from}"
                );
            });
        }
    });
    let cost = (start.elapsed(), scene.read());
    check("8 parts of 2 MiB, cold", cost, 6, 96);

    // Their tails wait like the rest of the blob.
    let cost = scene.range(node, 250 * MIB..252 * MIB);
    check("2 MiB after them", cost, 4, 64);

    wait_until(
        "the connections are closed",
        Duration::from_secs(10),
        || node.open_files() <= before + 24,
    );
    assert!(node.metric("mirror_aborts") < 1.0);
    let log = node.log();
    let log = &log[said_before..];
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
}
