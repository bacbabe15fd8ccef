//! Only members get in.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::support::clock::wait_until;
use crate::support::daemon::{Node, Options};
use crate::support::fake_origin::{FakeOrigin, Faults};
use crate::support::image::Image;
use crate::support::machine;
use crate::support::place::Place;
use crate::support::swarm::{ClusterKey, Swarm};

/// The longest that a stranger may hold a connection open: the handshake's deadline and some.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server's part of a handshake is a few kilobytes at most; more would be content.
const HANDSHAKE_BYTES_MAX: usize = 8 * 1024;

/// Time for a stranger to be let in, if anybody were to.
const TIME_TO_GET_IN: Duration = Duration::from_secs(4);

/// A swarm whose origin is gone, so that what it holds can be had from it alone.
fn guarded() -> (Swarm, Image) {
    let image = Image::generate(40, &[6_000_000]);
    let origin = FakeOrigin::serving(&image, Faults::default());
    let swarm = Swarm::on_loopback(2, &origin.url());
    swarm.slowest_pull(&image);
    (swarm, image)
}

/// Sends `bytes` to the node's swarm port and reads until it hangs up.
fn talk(node: &Node, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(node.swarm_address()).expect("the port is open");
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("timeouts can be set");
    stream.write_all(bytes).expect("it can be written to");
    let (mut heard, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return heard,
            Ok(count) => heard.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return heard,
            Err(error) => panic!("the node did not hang up on a stranger in {PATIENCE:?}: {error}"),
        }
    }
}

fn contains(heard: &[u8], secret: &[u8]) -> bool {
    heard.windows(secret.len()).any(|window| window == secret)
}

#[test]
fn a_process_that_speaks_something_else_learns_nothing() {
    let _machine = machine();
    let (swarm, image) = guarded();
    let node = &swarm.nodes[0];
    let other = swarm.nodes[1].swarm_address();
    let blob = image.blobs[1].content.read(0, 64);
    let multistream = b"\x13/multistream/1.0.0\n\x0b/tls/1.0.0\n\x0c/yamux/1.0.0\n";
    let attempts: [&[u8]; 4] = [
        b"",
        b"GET /v1/node HTTP/1.1\r\nHost: x\r\n\r\n",
        multistream,
        &[0xff; 5000],
    ];
    for attempt in attempts {
        let heard = talk(node, attempt);
        assert!(
            heard.len() <= HANDSHAKE_BYTES_MAX,
            "{} bytes for a stranger",
            heard.len()
        );
        assert!(!contains(&heard, &blob), "a blob's bytes were given away");
        assert!(
            !contains(&heard, other.as_bytes()),
            "a member's address was given away"
        );
    }
    let members: Vec<_> = swarm.nodes.iter().map(Node::members_alive).collect();
    assert_eq!(members, [2, 2]);
}

/// What a node is started with that wants to join the swarm and has no origin of its own.
fn newcomer(swarm: &Swarm) -> Options {
    Options {
        origin: "http://127.0.0.1:9".to_owned(),
        join: swarm.nodes.iter().map(Node::swarm_address).collect(),
        ..Options::default()
    }
}

#[test]
fn a_node_with_a_ticket_needs_no_key() {
    let _machine = machine();
    let (swarm, image) = guarded();
    let key = swarm.key_file();
    let member = Node::start_with_ticket(&Place::loopback(), newcomer(&swarm), &key);
    wait_until(
        "the newcomer knows both members",
        Duration::from_secs(10),
        || member.members_alive() == 3,
    );
    member
        .pull(&image)
        .expect("a member gets what the swarm has");
}

#[test]
fn a_ticket_of_another_cluster_admits_nobody() {
    let _machine = machine();
    let (swarm, image) = guarded();
    let foreign = ClusterKey::new();
    stranger_gets_nothing(&swarm, &image, |options| {
        Node::start_with_ticket(&Place::loopback(), options, &foreign.path())
    });
}

#[test]
fn a_node_with_a_foreign_cluster_key_gets_nothing() {
    let _machine = machine();
    let (swarm, image) = guarded();
    let foreign = ClusterKey::new();
    stranger_gets_nothing(&swarm, &image, |options| {
        let cluster_key = Some(foreign.path());
        Node::start(
            &Place::loopback(),
            Options {
                cluster_key,
                ..options
            },
        )
    });
}

fn stranger_gets_nothing(swarm: &Swarm, image: &Image, start: impl Fn(Options) -> Node) {
    let uploaded = || {
        swarm
            .nodes
            .iter()
            .map(|node| node.traffic().uploaded)
            .sum::<u64>()
    };
    let before = uploaded();
    let stranger = start(newcomer(swarm));
    std::thread::sleep(TIME_TO_GET_IN);
    assert_eq!(
        stranger.members_alive(),
        1,
        "the stranger knows no member but itself"
    );
    stranger
        .pull(image)
        .expect_err("the stranger gets no manifest");
    stranger.read(&image.blobs[1]).expect_err("and no blob");
    let traffic = stranger.traffic();
    assert_eq!((traffic.from_peers, traffic.from_origin), (0, 0));
    for node in &swarm.nodes {
        assert_eq!(
            node.members_alive(),
            2,
            "the members do not count the stranger"
        );
    }
    assert_eq!(uploaded(), before, "the members sent it no chunk");
    wait_until(
        "the stranger's log says what to do",
        Duration::from_secs(10),
        || stranger.log().contains("same cluster key"),
    );
}
