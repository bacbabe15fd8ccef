//! Nodes that start again.

use super::world::{MS, Origin, SECOND, World, blob, hint};
use crate::{
    chunk::{Bitfield, Geometry},
    event::{Action, Event},
    message::{BlobKind, Message, OriginFailure},
};

#[test]
fn a_steward_that_starts_again_unnoticed_hears_of_the_holders() {
    let mut world = World::new(5);
    let steward = world.ranks(blob(1))[0];
    let holder = (steward + 1) % 5;
    world.pull(holder, blob(1), 10);
    let held = world.run_until(SECOND * 5, |world| world.has_all(holder, blob(1)));
    assert!(held.is_some());
    world.restart(steward);
    world.run(SECOND * 2);
    for node in &mut world.nodes {
        node.origin = Origin::Fails(OriginFailure::Failed("away".to_owned()));
    }
    let puller = (steward + 2) % 5;
    world.pull(puller, blob(1), 10);
    let took = world.run_until(SECOND * 5, |world| world.has_all(puller, blob(1)));
    assert!(took.is_some(), "nobody tells the puller who has the blob");
}

/// A world in which node `holder` holds `blob(1)`, which no other has, and the origin is away.
fn one_holder(count: usize) -> (World, usize, usize) {
    let mut world = World::new(count);
    let steward = world.ranks(blob(1))[0];
    let holder = (0..count)
        .find(|node| !world.ranks(blob(1)).contains(node))
        .unwrap();
    world.pull(holder, blob(1), 10);
    let held = world.run_until(SECOND * 5, |world| world.has_all(holder, blob(1)));
    assert!(held.is_some());
    // Who only pulled it is forgotten by the stewards.
    world.run(SECOND * 2);
    for node in &mut world.nodes {
        node.origin = Origin::Fails(OriginFailure::Failed("away".to_owned()));
    }
    (world, steward, holder)
}

#[test]
fn stewards_that_all_start_again_unnoticed_hear_of_the_holder() {
    let (mut world, _, holder) = one_holder(6);
    let ranks = world.ranks(blob(1));
    for rank in ranks.clone() {
        world.restart(rank);
    }
    world.run(SECOND * 2);
    let puller = (0..6).find(|node| *node != holder && !ranks.contains(node));
    let puller = puller.unwrap();
    world.pull(puller, blob(1), 10);
    let took = world.run_until(SECOND * 5, |world| world.has_all(puller, blob(1)));
    assert!(took.is_some(), "nobody tells the puller who has the blob");
}

fn disconnect(world: &mut World, a: usize, b: usize) {
    let (peer_a, peer_b) = (world.nodes[a].peer, world.nodes[b].peer);
    world.event(a, Event::Disconnected(peer_b));
    world.event(b, Event::Disconnected(peer_a));
}

#[test]
fn a_steward_knows_the_holders_to_whom_it_has_no_connection() {
    let (mut world, steward, holder) = one_holder(6);
    for rank in world.ranks(blob(1)) {
        disconnect(&mut world, rank, holder);
    }
    world.run(SECOND);
    let puller = (0..6).find(|node| *node != steward && *node != holder);
    let puller = puller.unwrap();
    world.pull(puller, blob(1), 10);
    let took = world.run_until(SECOND * 5, |world| world.has_all(puller, blob(1)));
    assert!(
        took.is_some(),
        "an idle connection was closed, and the holder forgotten"
    );
}

#[test]
fn a_holder_that_was_cut_off_during_a_pull_is_found_again() {
    let (mut world, steward, holder) = one_holder(6);
    let puller = (0..6).find(|node| *node != steward && *node != holder);
    let puller = puller.unwrap();
    world.chunk_time = MS * 300;
    world.pull(puller, blob(1), 10);
    world.run(MS * 500);
    assert!(!world.has_all(puller, blob(1)));
    for other in (0..6).filter(|other| *other != holder) {
        disconnect(&mut world, other, holder);
    }
    let took = world.run_until(SECOND * 8, |world| world.has_all(puller, blob(1)));
    assert!(took.is_some(), "nobody tells the puller who has the blob");
}

#[test]
fn what_is_told_of_a_blob_before_the_members_are_known_is_not_lost() {
    let mut world = World::new(3);
    world.restart(0);
    let size = 1 << 20;
    let chunks = Geometry::new(BlobKind::Blob, size).chunks();
    let pull = Event::Pull {
        blob: blob(1),
        kind: BlobKind::Blob,
        size: Some(size),
        have: Some(Bitfield::full(chunks)),
        hint: hint(),
    };
    // All of it was stored before the restart, and is verified before anyone is there to ask.
    world.handle(0, pull);
    world.handle(0, Event::Verified { blob: blob(1) });
    world.run(SECOND * 3);
    assert!(world.has_all(0, blob(1)));
    assert!(world.nodes[0].core.pulling().is_empty());
}

#[test]
fn a_node_that_starts_again_reads_nothing_before_it_has_the_list_of_members() {
    let mut world = World::new(5);
    let blobs: Vec<_> = (1..=8).map(blob).collect();
    for blob in &blobs {
        world.pull(1, *blob, 10);
    }
    let held = world.run_until(SECOND * 10, |world| {
        blobs.iter().all(|blob| world.has_all(1, *blob))
    });
    assert!(held.is_some());
    // Lists are long and slow; what they hash to is known at once.
    world.rule = Box::new(|_, _, message| {
        let list = matches!(message, Message::Members { .. });
        Some(if list { MS * 100 } else { MS })
    });
    world.log.clear();
    world.restart(0);
    for blob in &blobs {
        world.pull(0, *blob, 10);
    }
    let took = world.run_until(SECOND * 10, |world| {
        blobs.iter().all(|blob| world.has_all(0, *blob))
    });
    assert!(took.is_some());
    let reads = world.logged(|action| matches!(action, Action::ReadOrigin { .. }).then_some(()));
    assert!(reads.is_empty(), "{} reads of what node 1 has", reads.len());
}

#[test]
fn who_takes_over_from_a_steward_that_is_gone_goes_on_in_order() {
    let mut world = World::new(6);
    let ranks = world.ranks(blob(1));
    world.origin_time = MS * 100;
    for node in (0..6).filter(|node| !ranks.contains(node)) {
        world.pull(node, blob(1), 200);
    }
    world.run(SECOND / 2);
    let gone = ranks[0];
    world.nodes[gone].dead = true;
    let peer = world.nodes[gone].peer;
    for other in (0..6).filter(|other| *other != gone) {
        world.event(other, Event::Disconnected(peer));
    }
    world.log.clear();
    world.run(SECOND * 2);
    let grants: Vec<u32> = world
        .logged(|action| match action {
            Action::Send {
                message: Message::Grant { lease, .. },
                ..
            } => Some(lease.first),
            _ => None,
        })
        .into_iter()
        .map(|(.., first)| first)
        .collect();
    assert!(grants.len() > 4, "{grants:?}");
    assert!(grants.iter().all(|first| *first < 150), "{grants:?}");
}
