//! Pulls, leases, and what happens when a steward, a holder or the origin lets the others down.

use std::collections::BTreeSet;

use super::world::{MS, Origin, SECOND, World, blob};
use crate::{
    config::Config,
    event::{Action, Event},
    message::{BlobKind, Lease, Message, OriginFailure},
};

fn read_origin(action: &Action) -> Option<Lease> {
    if let Action::ReadOrigin { lease, .. } = action {
        Some(*lease)
    } else {
        None
    }
}

fn failed(action: &Action) -> Option<OriginFailure> {
    if let Action::Failed { failure, .. } = action {
        Some(failure.clone())
    } else {
        None
    }
}

fn pulled_by(count: usize, chunks: u32) -> World {
    let mut world = World::new(count);
    for node in 0..count {
        world.pull(node, blob(1), chunks);
    }
    world
}

fn every_chunk_is_read_once(count: usize) {
    let mut world = pulled_by(count, 30);
    let took = world.run_until(SECOND * 5, |world| world.all_have(blob(1)));
    assert!(took.is_some(), "the pull does not end");
    assert_eq!(world.reads.len(), 30);
    assert!(
        world.reads.values().all(|times| *times == 1),
        "{:?}",
        world.reads
    );
    // Nothing is left running.
    world.run(SECOND * 3);
    for node in &world.nodes {
        assert!(node.core.leases().is_empty() && node.core.pulling().is_empty());
    }
}

#[test]
fn a_node_alone_reads_at_once() {
    // Nobody can have a pull under way that its first view of the cluster does not show yet.
    let mut world = World::started(1, Config::default());
    world.pull(0, blob(1), 10);
    world.run(MS);
    assert!(!world.logged(read_origin).is_empty());
}

#[test]
fn two_nodes_read_every_chunk_once() {
    every_chunk_is_read_once(2);
}

#[test]
fn eight_nodes_read_every_chunk_once() {
    every_chunk_is_read_once(8);
}

#[test]
fn a_manifest_is_read_once_for_eight_nodes() {
    let mut world = World::new(8);
    world.sizes.insert(blob(1), 7_000);
    for node in 0..8 {
        world.pull_as(node, blob(1), BlobKind::Manifest, None);
    }
    let took = world.run_until(SECOND * 2, |world| world.all_have(blob(1)));
    assert!(took.is_some());
    assert_eq!(world.read(blob(1)), 1);
}

#[test]
fn the_only_holder_of_a_blob_leaves_to_others_what_it_has_sent() {
    let chunks = 200;
    let mut world = World::new(8);
    world.pull(0, blob(1), chunks);
    let held = world.run_until(SECOND * 10, |world| world.has_all(0, blob(1)));
    assert!(held.is_some());
    world.log.clear();
    for node in 1..8 {
        world.pull(node, blob(1), chunks);
    }
    let all = world.run_until(SECOND * 10, |world| world.all_have(blob(1)));
    assert!(all.is_some(), "the pull does not end");
    let sent = world.logged(|action| matches!(action, Action::SendChunk { .. }).then_some(()));
    let by_holder = sent.iter().filter(|(_, by, ())| *by == 0).count() as u32;
    assert!(
        (chunks..chunks * 7 / 4).contains(&by_holder),
        "it sent {by_holder} of {chunks} chunks"
    );
}

#[test]
fn a_late_puller_reads_nothing_from_the_origin() {
    let mut world = World::new(3);
    world.pull(0, blob(1), 10);
    let first = world.run_until(SECOND * 3, |world| world.has_all(0, blob(1)));
    assert!(first.is_some());
    world.pull(2, blob(1), 10);
    let late = world.run_until(SECOND, |world| world.has_all(2, blob(1)));
    assert!(late.is_some());
    assert_eq!(world.read(blob(1)), 10);
}

#[test]
fn a_neighbour_may_leave_to_others_what_it_does_not_have() {
    let mut world = pulled_by(2, 10);
    world.run(MS * 30);
    let from = world.nodes[1].peer;
    for index in [3, 10, u32::MAX] {
        let message = Message::Elsewhere {
            blob: blob(1),
            index,
            retry_ms: 1,
        };
        world.handle(0, Event::Message { from, message });
    }
    let rest = world.run_until(SECOND * 5, |world| world.all_have(blob(1)));
    assert!(rest.is_some());
}

/// A cluster that counts as large: joins are spread over the first second.
fn large_cluster() -> World {
    let config = Config {
        crowd: 10,
        crowd_spread: MS * 100,
        ..Config::default()
    };
    World::with(20, config)
}

fn joins(world: &World) -> usize {
    let joined = |action: &Action| {
        let join = |message: &Message| matches!(message, Message::Join { .. });
        matches!(action, Action::Send { message, .. } if join(message)).then_some(())
    };
    let by: BTreeSet<usize> = world.logged(joined).iter().map(|(_, by, ())| *by).collect();
    by.len()
}

#[test]
fn in_a_large_cluster_few_join_while_all_pull() {
    let mut world = large_cluster();
    for node in 0..20 {
        world.pull(node, blob(1), 10);
    }
    world.run(MS * 100);
    let early = joins(&world);
    assert!((1..8).contains(&early), "{early} joined at once");
    let rest = world.run_until(MS * 500, |world| world.all_have(blob(1)));
    assert!(rest.is_some(), "those that did not join get nothing");
    assert_eq!(world.read(blob(1)), 10);
}

#[test]
fn in_a_large_cluster_a_lone_puller_joins_as_soon_as_others_say_that_they_do_not_pull() {
    let mut world = large_cluster();
    let steward = world.ranks(blob(1))[0];
    let puller = (0..20).find(|node| *node != steward).unwrap();
    // One never answers.
    world.rule = Box::new(move |from, _, _| (from != (puller + 1) % 20).then_some(MS));
    world.pull(puller, blob(1), 10);
    world.run(MS * 3);
    assert_eq!(joins(&world), 1);
}

#[test]
fn a_silenced_steward_is_replaced_and_taken_back() {
    let mut world = World::new(6);
    let steward = world.ranks(blob(1))[0];
    let pullers: Vec<usize> = (0..6).filter(|node| *node != steward).collect();
    world.origin_time = MS * 100;
    for node in &pullers {
        world.pull(*node, blob(1), 40);
    }
    world.run(MS * 200);
    assert_eq!(world.nodes[steward].core.stewarding(), [blob(1)]);
    world.rule = Box::new(move |from, _, _| (from != steward).then_some(MS));
    let done = |world: &World| (0..6).all(|n| n == steward || world.has_all(n, blob(1)));
    let took = world.run_until(SECOND * 20, done);
    assert!(took.is_some(), "the pull stops with its steward");
    let read = world.read(blob(1));
    assert!(read <= 52, "{read} chunks read of a blob of 40");
    // It comes back, and coordinates the next pull.
    world.rule = Box::new(|_, _, _| Some(MS));
    for node in pullers.iter().copied() {
        let peer = world.nodes[steward].peer;
        world.event(node, Event::Connected(peer));
        let peer = world.nodes[node].peer;
        world.event(steward, Event::Connected(peer));
    }
    world.run(SECOND * 10);
    for node in &world.nodes {
        assert_eq!(node.core.members().len(), 6);
    }
    world.pull(steward, blob(1), 40);
    let took = world.run_until(SECOND * 5, |world| world.all_have(blob(1)));
    assert!(took.is_some());
    assert_eq!(
        world.read(blob(1)),
        read,
        "what the others hold is read again"
    );
}

#[test]
fn who_is_slow_to_read_gets_leases_after_all_others() {
    // Fewer streams than nodes: not everybody has to read.
    let config = Config {
        streams_start: 3,
        streams_max: 3,
        ..Config::default()
    };
    let mut world = World::with(6, config);
    world.nodes[0].origin = Origin::GivesSlowly;
    for node in 0..6 {
        world.pull(node, blob(1), 200);
    }
    let done = |world: &World| (1..6).all(|node| world.has_all(node, blob(1)));
    assert!(world.run_until(SECOND * 10, done).is_some());
    let mut leases = [0; 6];
    for (_, node, _) in world.logged(read_origin) {
        leases[node] += 1;
    }
    assert_eq!(leases[0], 1, "{leases:?}");
    assert!(leases[1..].iter().all(|count| *count > 4), "{leases:?}");
}

#[test]
fn a_silent_leaseholder_loses_its_lease_within_about_a_second() {
    let mut world = World::new(4);
    let ranks = world.ranks(blob(1));
    let silent = (0..4).find(|node| *node != ranks[0]).unwrap();
    world.origin_time = MS * 300;
    for node in 0..4 {
        world.pull(node, blob(1), 40);
    }
    world.run(MS * 400);
    let lost = world.nodes[silent].core.leases();
    assert!(!lost.is_empty(), "the node was to hold a lease");
    world.rule = Box::new(move |from, _, _| (from != silent).then_some(MS));
    let cut = world.now;
    world.log.clear();
    world.run(MS * 1500);
    let revoked = world.logged(|action| match action {
        Action::Send {
            to,
            message: Message::Revoke { .. },
        } => Some(*to),
        _ => None,
    });
    let (at, by, _) = revoked
        .iter()
        .find(|(_, _, to)| *to == world.nodes[silent].peer)
        .copied()
        .expect("its lease is never revoked");
    assert_eq!(by, ranks[0]);
    assert!(
        at.since(cut) <= MS * 1300,
        "revoked after {:?}",
        at.since(cut)
    );
    let (_, first, _) = lost[0];
    let again = |world: &World| {
        let reads = world.logged(read_origin);
        reads
            .iter()
            .any(|(_, node, lease)| *node != silent && (lease.first..lease.end).contains(&first))
    };
    assert!(world.run_until(SECOND * 2, again).is_some());
}

#[test]
fn what_a_peer_is_slow_to_send_while_it_talks_is_not_read_again() {
    let mut world = World::new(2);
    world.chunk_time = SECOND * 3;
    for node in 0..2 {
        world.pull(node, blob(1), 24);
    }
    let done = |world: &World| world.all_have(blob(1));
    assert!(world.run_until(SECOND * 60, done).is_some());
    assert_eq!(world.read(blob(1)), 24);
}

#[test]
fn what_a_talking_peer_never_sends_is_read_again_within_seconds() {
    let mut world = World::new(2);
    world.pull(0, blob(1), 8);
    let first = |world: &World| world.has_all(0, blob(1));
    assert!(world.run_until(SECOND * 5, first).is_some());
    world.chunk_time = SECOND * 600;
    world.pull(1, blob(1), 8);
    let done = |world: &World| world.all_have(blob(1));
    let took = world.run_until(SECOND * 60, done);
    assert!(took.is_some_and(|took| took <= SECOND * 8), "{took:?}");
}

#[test]
fn no_node_holds_more_leases_than_its_cap_while_others_have_none() {
    let config = Config {
        streams_start: 8,
        streams_max: 8,
        ..Config::default()
    };
    let mut world = World::with(8, config);
    world.origin_time = SECOND * 2;
    for node in 0..8 {
        world.pull(node, blob(1), 80);
        world.run(MS);
    }
    world.run(SECOND);
    let held: Vec<usize> = world
        .nodes
        .iter()
        .map(|node| node.core.leases().len())
        .collect();
    assert_eq!(
        held.iter().sum::<usize>(),
        8,
        "all streams are used: {held:?}"
    );
    assert!(held.iter().all(|leases| *leases <= 2), "{held:?}");
    assert!(
        held.iter().filter(|leases| **leases > 0).count() >= 4,
        "{held:?}"
    );
}

#[test]
fn nobody_reads_before_retry_after_is_over() {
    let mut world = World::new(3);
    let throttled = OriginFailure::Throttled {
        retry_ms: Some(4_000),
    };
    for node in 0..3 {
        world.nodes[node].origin = Origin::Fails(throttled.clone());
        world.pull(node, blob(1), 20);
    }
    // All that were sent before the first refusal was heard of are refused.
    world.run(MS * 400);
    for node in &mut world.nodes {
        node.origin = Origin::Gives;
    }
    let refused = world.now;
    world.log.clear();
    let took = world.run_until(SECOND * 20, |world| world.all_have(blob(1)));
    assert!(took.is_some(), "nobody tries again");
    assert!(world.logged(failed).is_empty());
    let first = world.logged(read_origin)[0].0;
    assert!(
        first.since(refused) >= MS * 3_600,
        "read after {:?}",
        first.since(refused)
    );
}

#[test]
fn what_one_node_cannot_find_another_reads() {
    let mut world = World::new(3);
    world.nodes[0].origin = Origin::Fails(OriginFailure::NotFound);
    world.nodes[1].origin = Origin::Fails(OriginFailure::Denied);
    for node in 0..3 {
        world.pull(node, blob(1), 20);
    }
    let took = world.run_until(SECOND * 5, |world| world.all_have(blob(1)));
    assert!(took.is_some());
    assert!(world.logged(failed).is_empty());
    assert_eq!(world.read(blob(1)), 20);
}

#[test]
fn what_no_node_can_find_fails_at_all_of_them() {
    let mut world = World::new(3);
    for node in 0..3 {
        world.nodes[node].origin = Origin::Fails(OriginFailure::NotFound);
        world.pull(node, blob(1), 20);
    }
    let all = |world: &World| world.logged(failed).len() >= 3;
    assert!(world.run_until(SECOND * 3, all).is_some());
    world.run(SECOND * 3);
    let mut failures = world.logged(failed);
    failures.sort_by_key(|(_, node, _)| *node);
    let told: Vec<_> = failures
        .into_iter()
        .map(|(_, node, why)| (node, why))
        .collect();
    let not_found = |node| (node, OriginFailure::NotFound);
    assert_eq!(told, [not_found(0), not_found(1), not_found(2)]);
}

#[test]
fn an_origin_without_ranges_is_read_by_one_node_to_the_end() {
    let mut world = World::new(4);
    for node in 0..4 {
        world.nodes[node].origin = Origin::NoRanges;
        world.pull(node, blob(1), 30);
    }
    let took = world.run_until(SECOND * 10, |world| world.all_have(blob(1)));
    assert!(took.is_some());
    assert_eq!(world.read(blob(1)), 30);
    let whole = world.logged(read_origin);
    let whole = whole
        .iter()
        .filter(|(_, _, lease)| (lease.first, lease.end) == (0, 30));
    assert_eq!(whole.count(), 1);
}

#[test]
fn without_any_steward_a_lone_puller_reads_by_itself() {
    let mut world = World::new(4);
    let ranks = world.ranks(blob(1));
    let Some(puller) = (0..4).find(|node| !ranks.contains(node)) else {
        panic!("three of four are ranked");
    };
    world.rule = Box::new(|_, _, _| None);
    let start = world.now;
    world.pull(puller, blob(1), 10);
    let took = world.run_until(SECOND * 6, |world| world.has_all(puller, blob(1)));
    assert!(took.is_some(), "it waits for stewards for ever");
    let first = world.logged(read_origin)[0].0.since(start);
    assert!(
        first >= SECOND * 2 && first <= SECOND * 3,
        "read after {first:?}"
    );
    assert_eq!(world.read(blob(1)), 10);
}

#[test]
fn a_chunk_whose_only_holder_went_away_is_leased_again() {
    let mut world = World::new(4);
    let steward = world.ranks(blob(1))[0];
    let holder = (0..4).find(|node| *node != steward).unwrap();
    let other = (0..4)
        .find(|node| ![steward, holder].contains(node))
        .unwrap();
    // The holder reads all of it and stops, without a word, before it has sent a chunk.
    world.chunk_time = SECOND * 100;
    world.pull(holder, blob(1), 8);
    world.pull(other, blob(1), 8);
    world.nodes[other].origin = Origin::Fails(OriginFailure::Failed("no route".to_owned()));
    let all = |world: &World| world.stored(holder, blob(1)) == 8;
    assert!(world.run_until(SECOND * 10, all).is_some());
    assert_eq!(world.stored(other, blob(1)), 0);
    world.nodes[holder].dead = true;
    world.nodes[other].origin = Origin::Gives;
    let took = world.run_until(SECOND * 20, |world| world.has_all(other, blob(1)));
    assert!(took.is_some(), "what only the dead node had is never read");
    assert_eq!(
        world.read(blob(1)),
        16,
        "every chunk once by each of the two"
    );
}

#[test]
fn a_rotten_chunk_is_fetched_from_a_neighbour() {
    let mut world = pulled_by(3, 10);
    let done = |world: &World| world.all_have(blob(1));
    assert!(world.run_until(SECOND * 5, done).is_some());
    world.log.clear();
    let (blob, index) = (blob(1), 4);
    world.lose(1, blob, index);
    assert!(!world.has_all(1, blob));
    assert!(world.run_until(SECOND, done).is_some());
    let fetched = |action: &Action| match action {
        Action::Expect { index, .. } => Some(*index),
        _ => None,
    };
    let fetched = world.logged(fetched);
    assert!(
        fetched
            .iter()
            .all(|(_, node, chunk)| (*node, *chunk) == (1, index))
    );
    assert!(!fetched.is_empty());
    assert_eq!(world.read(blob), 10);
}

#[test]
fn who_waits_for_a_chunk_that_cannot_be_sent_is_told() {
    let mut world = World::new(3);
    world.pull(0, blob(1), 4);
    let held = world.run_until(SECOND * 5, |world| world.has_all(0, blob(1)));
    assert!(held.is_some());
    let (to, index) = (world.nodes[1].peer, 2);
    let request = Message::Request {
        blob: blob(1),
        index,
    };
    world.log.clear();
    world.handle(
        0,
        Event::Message {
            from: to,
            message: request,
        },
    );
    let unsent = Event::ChunkUnsent {
        to,
        blob: blob(1),
        index,
    };
    world.handle(0, unsent);
    let told = world.logged(|action| match action {
        Action::Send {
            message: Message::Busy { index, .. },
            ..
        } => Some(*index),
        _ => None,
    });
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].2, index);
}

#[test]
fn a_chunk_that_a_held_blob_does_not_have_is_missing() {
    let mut world = World::new(2);
    world.pull(0, blob(1), 4);
    let held = world.run_until(SECOND * 5, |world| world.has_all(0, blob(1)));
    assert!(held.is_some());
    // Nobody exchanges it any more: what is held is all that is known of it.
    world.run(SECOND);
    let from = world.nodes[1].peer;
    for index in [4, u32::MAX] {
        let blob = blob(1);
        let message = Message::Request { blob, index };
        world.log.clear();
        world.handle(0, Event::Message { from, message });
        let answers = world.logged(|action| match action {
            Action::Send {
                message: Message::Missing { index, .. },
                ..
            } => Some(*index),
            _ => None,
        });
        assert_eq!(answers.len(), 1, "chunk {index}");
    }
}
