//! The contenders against what can be said of them on paper.

use super::{torrent::PEERS_MAX, *};
use crate::net::{MILLISECOND, NodeLinks, Place, SECOND, Topology};

const MIB: u64 = 1 << 20;
/// 1 Gbit/s.
const RATE: f64 = 125e6;
/// What handshakes, requests, the origin's first byte and the last hash add, in seconds.
const EXTRA: f64 = 0.15;

/// Nodes and an origin at 1 Gbit/s that all begin at once.
fn setting(nodes: usize, layers_mib: &[u64]) -> Setting {
    let link = NodeLinks {
        up: RATE,
        down: RATE,
        place: Place::Rack { zone: 0, rack: 0 },
    };
    let mut links = vec![link; nodes];
    links.push(NodeLinks {
        place: Place::Outside,
        ..link
    });
    let latency = MILLISECOND / 4;
    Setting {
        seed: 7,
        links,
        topology: Topology {
            latency_rack: latency,
            latency_zone: latency,
            latency_far: latency,
            latency_outside: latency,
            ..Topology::default()
        },
        cores: 4,
        layers: layers_mib.iter().map(|mib| mib * MIB).collect(),
        first_byte: 20 * MILLISECOND,
        origin_stream_rate: f64::INFINITY,
        hash_rate: 1.8e9,
        starts: vec![0; nodes],
    }
}

/// The image over one link, in seconds.
fn once(setting: &Setting) -> f64 {
    setting.bytes() as f64 / RATE
}

fn outcome(contender: Contender, setting: &Setting) -> Outcome {
    let outcome = run(contender, setting).expect("a baseline");
    assert_eq!(outcome.times.len(), setting.nodes(), "all nodes end");
    let first = outcome.times[0];
    assert!(first >= once(setting), "{first} s is faster than the link");
    outcome
}

fn last(outcome: &Outcome) -> f64 {
    *outcome.times.last().expect("at least one node")
}

fn baselines() -> impl Iterator<Item = Contender> {
    let all = Contender::ALL.into_iter();
    all.filter(|contender| *contender != Contender::Shoal)
}

#[track_caller]
fn about(seconds: f64, expected: f64) {
    let within = expected * 0.999..expected + EXTRA;
    assert!(within.contains(&seconds), "{seconds} s, not {expected} s");
}

#[test]
fn a_node_alone_reads_one_copy_at_the_speed_of_the_link() {
    let setting = setting(1, &[200, 50, 6]);
    for contender in baselines() {
        let outcome = outcome(contender, &setting);
        // The torrent's next piece is on its way only when the last one is here.
        let pauses = setting.chunks().len() as f64 * setting.topology.latency_outside as f64 / 1e9;
        assert!(last(&outcome) <= once(&setting) + pauses + EXTRA);
        assert!((outcome.origin_copies - 1.0).abs() < 1e-9);
    }
}

#[test]
fn the_same_seed_gives_the_same_outcome() {
    let setting = setting(12, &[40, 20]);
    for contender in baselines() {
        assert_eq!(run(contender, &setting), run(contender, &setting));
    }
}

#[test]
fn nobody_ends_before_the_last_layer_is_hashed() {
    let mut setting = setting(3, &[60, 20]);
    setting.hash_rate = 10e6;
    for contender in baselines() {
        let outcome = outcome(contender, &setting);
        let least = 60.0 * MIB as f64 / 10e6;
        assert!(outcome.times[0] >= least, "{}", contender.name());
    }
}

#[test]
fn direct_pull_takes_what_the_origin_needs_for_as_many_copies_as_there_are_nodes() {
    let setting = setting(8, &[100, 50, 40, 10]);
    let outcome = outcome(Contender::Direct, &setting);
    about(last(&outcome), 8.0 * once(&setting));
    assert!((outcome.origin_copies - 8.0).abs() < 1e-9);
    assert!(outcome.uplinks.iter().all(|share| *share == 0.0));
}

#[test]
fn direct_pull_is_no_faster_than_the_streams_that_the_origin_allows() {
    let mut setting = setting(1, &[800, 800]);
    setting.origin_stream_rate = RATE / 10.0;
    let last = last(&outcome(Contender::Direct, &setting));
    let expected = 800.0 * MIB as f64 / (RATE / 10.0);
    // The network paces by frames, and the last one is not waited for.
    assert!(
        (0.97 * expected..expected + EXTRA).contains(&last),
        "{last} s"
    );
}

#[test]
fn direct_pull_from_a_fast_origin_takes_what_a_node_needs_to_receive() {
    let mut setting = setting(4, &[100, 50, 40, 10]);
    setting.links[4].up = 10.0 * RATE;
    about(last(&outcome(Contender::Direct, &setting)), once(&setting));
}

#[test]
fn whole_layers_are_no_help_to_nodes_that_begin_together() {
    let outcome = outcome(Contender::Layers, &setting(5, &[50, 50, 50]));
    assert!((outcome.origin_copies - 5.0).abs() < 1e-9);
}

#[test]
fn whole_layers_spare_the_origin_a_node_that_comes_later() {
    let mut setting = setting(2, &[50, 50, 50]);
    setting.starts[1] = 10 * SECOND;
    let outcome = outcome(Contender::Layers, &setting);
    assert!((outcome.origin_copies - 1.0).abs() < 1e-9);
    about(last(&outcome), once(&setting));
}

#[test]
fn hashed_owners_read_once_and_the_one_with_most_chunks_holds_up_all() {
    let setting = setting(40, &[400]);
    let most = hashing::Hashing::new(&setting).owned_most() as f64;
    let outcome = outcome(Contender::Hashing, &setting);
    assert!((outcome.origin_copies - 1.0).abs() < 1e-9);
    let chunk = setting.bytes() as f64 / setting.chunks().len() as f64 / RATE;
    let busiest = most * 39.0 * chunk;
    let last = last(&outcome);
    assert!(last >= busiest, "{last} s, {busiest} s for one uplink");
    assert!(last <= once(&setting) + busiest * 1.2 + EXTRA, "{last} s");
}

#[test]
fn a_torrent_is_quick_but_reads_pieces_more_than_once() {
    let setting = setting(40, &[300, 60, 40]);
    let outcome = outcome(Contender::Torrent, &setting);
    assert!(last(&outcome) < 2.5 * once(&setting), "{}", last(&outcome));
    assert!((1.02..3.0).contains(&outcome.origin_copies));
}

#[test]
fn a_torrent_serves_a_node_that_comes_later_from_its_peers() {
    let mut setting = setting(20, &[200]);
    let together = outcome(Contender::Torrent, &setting);
    setting.starts[19] = 20 * SECOND;
    let later = outcome(Contender::Torrent, &setting);
    assert!(later.origin_copies <= together.origin_copies + 0.05);
    assert!(last(&later) < 2.0 * once(&setting), "{}", last(&later));
}

#[test]
fn a_torrent_keeps_to_its_number_of_peers() {
    let torrent = torrent::peers_after_joining(&setting(300, &[4]));
    assert!(torrent.iter().all(|peers| *peers <= PEERS_MAX));
    assert!(torrent.iter().all(|peers| *peers >= 20), "{torrent:?}");
}
