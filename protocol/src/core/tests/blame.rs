//! Who is to blame when the whole does not have its digest.

use super::world::{CHUNK, MS, Origin, SECOND, World, blob, hash, hint};
use crate::{
    chunk::ChunkHash,
    directory::Peer,
    event::{Action, Event},
    message::{BlobKind, Message, OriginFailure},
};

fn audits(world: &World) -> Vec<usize> {
    let drops = |action: &Action| matches!(action, Action::DropForeign { .. }).then_some(());
    world
        .logged(drops)
        .into_iter()
        .map(|(_, node, ())| node)
        .collect()
}

/// Five nodes, of which one signs wrong bytes; the others have pulled the blob all the same.
fn with_a_liar() -> (World, usize) {
    let mut world = World::new(5);
    let ranks = world.ranks(blob(1));
    let liar = (0..5).find(|node| !ranks.contains(node)).unwrap();
    world.nodes[liar].origin = Origin::Lies;
    for node in 0..5 {
        world.pull(node, blob(1), 40);
    }
    let honest = move |world: &World| (0..5).all(|n| n == liar || world.has_all(n, blob(1)));
    assert!(
        world.run_until(SECOND * 30, honest).is_some(),
        "a liar stops the others"
    );
    (world, liar)
}

#[test]
fn one_audit_serves_all_and_the_wrong_chunks_are_dropped() {
    let (world, liar) = with_a_liar();
    let auditors = audits(&world);
    assert_eq!(auditors.len(), 1, "auditors: {auditors:?}");
    assert_ne!(auditors[0], liar);
    let drops = |action: &Action| matches!(action, Action::DropDiffering { .. }).then_some(());
    let mut dropped: Vec<usize> = world
        .logged(drops)
        .into_iter()
        .map(|(_, node, ())| node)
        .collect();
    dropped.sort_unstable();
    dropped.dedup();
    assert!(dropped.len() >= 3, "only {dropped:?} drop what is wrong");
    // The auditor reads what others read, and what is dropped comes from it.
    assert!(world.read(blob(1)) <= 80 + 10, "{}", world.read(blob(1)));
}

#[test]
fn a_liar_is_banned_once_by_everyone_and_heard_no_more() {
    let (mut world, liar) = with_a_liar();
    world.run(SECOND);
    let peer = world.nodes[liar].peer;
    let banned = |action: &Action| match action {
        Action::Ban { peer, .. } => Some(*peer),
        _ => None,
    };
    let mut bans: Vec<_> = world
        .logged(banned)
        .into_iter()
        .map(|(_, node, whom)| (node, whom))
        .collect();
    bans.sort_unstable();
    let expected: Vec<_> = (0..5)
        .filter(|node| *node != liar)
        .map(|node| (node, peer))
        .collect();
    assert_eq!(bans, expected);
    let proofs = |action: &Action| match action {
        Action::Send {
            message: Message::Proof { .. },
            to,
        } => Some(*to),
        _ => None,
    };
    assert!(!world.logged(proofs).is_empty());

    let node = usize::from(liar == 0);
    let before = world.log.len();
    let (blob, index) = (blob(1), 0);
    let request = Message::Request { blob, index };
    world.handle(
        node,
        Event::Message {
            from: peer,
            message: request,
        },
    );
    let answered = world.log[before..].iter().any(|(_, _, action)| {
        matches!(action, Action::SendChunk { to, .. } | Action::Send { to, .. } if *to == peer)
    });
    assert!(!answered, "a banned peer is served");
}

#[test]
fn a_proof_of_a_lie_goes_to_every_member_and_counts_once() {
    let mut world = World::new(4);
    let (blob, index) = (blob(1), 0);
    let attestation = world.lie(3, blob, index);
    let signer = world.id(3);
    for _ in 0..2 {
        world.handle(
            0,
            Event::Lied {
                signer,
                blob,
                index,
                attestation,
            },
        );
    }
    let bans = world.logged(|action| matches!(action, Action::Ban { .. }).then_some(()));
    assert_eq!(bans.len(), 1);
    let mut told: Vec<usize> = world
        .logged(|action| match action {
            Action::Send {
                message: Message::Proof { .. },
                to,
            } => Some(*to),
            _ => None,
        })
        .into_iter()
        .map(|(_, _, to)| world.number(to))
        .collect();
    told.sort_unstable();
    assert_eq!(told, [1, 2]);
    world.run(MS * 10);
    assert!(
        world.nodes[1].core.banned().is_empty(),
        "believed without the blob to check it"
    );
}

#[test]
fn an_origin_whose_bytes_are_wrong_fails_the_pull_after_three_audits() {
    let mut world = World::new(4);
    for node in 0..4 {
        world.nodes[node].origin = Origin::Lies;
        world.pull(node, blob(1), 8);
    }
    let failed = |action: &Action| matches!(action, Action::Failed { .. }).then_some(());
    let all = |world: &World| world.logged(failed).len() >= 4;
    assert!(
        world.run_until(SECOND * 60, all).is_some(),
        "{:?}",
        world.logged(failed)
    );
    assert_eq!(audits(&world).len(), 3);
    let discards = world.logged(|action| matches!(action, Action::Discard { .. }).then_some(()));
    assert_eq!(discards.len(), 1, "those that did not audit keep nothing");
    assert!(world.nodes.iter().all(|node| node.core.banned().is_empty()));
}

#[test]
fn an_auditor_keeps_nothing_that_was_on_its_way_from_a_peer() {
    let mut world = World::new(4);
    let peer = world.nodes[1].peer;
    world.pull(0, blob(1), 10);
    let mismatch = Message::Mismatch {
        blob: blob(1),
        kind: BlobKind::Blob,
        size: 10 * CHUNK,
        hints: vec![hint()],
    };
    world.run(MS);
    world.handle(
        0,
        Event::Message {
            from: peer,
            message: mismatch,
        },
    );
    assert_eq!(audits(&world), [0]);
    // Written while the audit began.
    let stored = Event::ChunkStored {
        from: Some(peer),
        blob: blob(1),
        index: 3,
        len: CHUNK as u32,
    };
    world.handle(0, stored);
    assert_eq!(audits(&world), [0, 0]);
}

/// How often each node asked for an audit.
fn mismatches(world: &World) -> Vec<usize> {
    let asks = |action: &Action| match action {
        Action::Send {
            message: Message::Mismatch { .. },
            ..
        } => Some(()),
        _ => None,
    };
    let asked = world.logged(asks);
    let times = |node| asked.iter().filter(|(_, by, ())| *by == node).count();
    (0..world.nodes.len()).map(times).collect()
}

#[test]
fn what_an_auditor_calls_wrong_is_refused_from_those_who_have_not_heard_of_it() {
    let mut world = World::new(8);
    let ranks = world.ranks(blob(1));
    let mut others = (0..8).filter(|node| !ranks.contains(node));
    let (liar, ignorant) = (others.next().unwrap(), others.next().unwrap());
    world.nodes[liar].origin = Origin::Lies;
    world.rule = Box::new(move |_, to, message| match message {
        Message::Audited { .. } if to == ignorant => Some(SECOND * 10),
        _ => Some(MS),
    });
    for node in 0..8 {
        world.pull(node, blob(1), 80);
    }
    let others = move |world: &World| {
        (0..8).all(|node| node == liar || node == ignorant || world.has_all(node, blob(1)))
    };
    assert!(world.run_until(SECOND * 10, others).is_some());
    assert!(mismatches(&world).iter().all(|times| *times <= 1));
    let ignorant_peer = world.nodes[ignorant].peer;
    let blamed = world.logged(|action| match action {
        Action::Send {
            message: Message::Corrupt { .. },
            to,
        } => Some(*to),
        Action::Ban { peer, .. } => Some(*peer),
        _ => None,
    });
    assert!(blamed.iter().all(|(_, _, whom)| *whom != ignorant_peer));
    let refused = world.logged(|action| match action {
        Action::Unexpect { from, .. } if *from == ignorant_peer => Some(()),
        _ => None,
    });
    assert!(!refused.is_empty(), "nothing was asked of it");
    let all = move |world: &World| world.has_all(ignorant, blob(1));
    assert!(world.run_until(SECOND * 20, all).is_some());
}

/// A world in which the stewards of the blob have it, and the origin has it no more. The fourth node
/// has some of it, and hears of no audit.
fn all_but_one() -> (World, usize) {
    let mut world = World::new(4);
    let ranks = world.ranks(blob(1));
    let last = (0..4).find(|node| !ranks.contains(node)).unwrap();
    for node in &ranks {
        world.pull(*node, blob(1), 16);
    }
    let held = |world: &World| ranks.iter().all(|node| world.has_all(*node, blob(1)));
    assert!(world.run_until(SECOND * 10, held).is_some());
    for node in &mut world.nodes {
        node.origin = Origin::Fails(OriginFailure::Failed("it is gone".to_owned()));
    }
    world.pull(last, blob(1), 16);
    let begun = move |world: &World| world.stored(last, blob(1)) > 4;
    assert!(world.run_until(SECOND, begun).is_some());
    world.rule = Box::new(|_, _, message| match message {
        Message::Mismatch { .. } | Message::Audited { .. } => None,
        _ => Some(MS),
    });
    (world, last)
}

fn finds_it_wrong(world: &mut World, node: usize) -> Peer {
    let (blob, signers) = (blob(1), Vec::new());
    world.log.clear();
    world.handle(node, Event::Mismatched { blob, signers });
    asked(world)
}

/// Whom a node has asked for an audit last.
fn asked(world: &World) -> Peer {
    let asks = world.logged(|action| match action {
        Action::Send {
            message: Message::Mismatch { .. },
            to,
        } => Some(*to),
        _ => None,
    });
    asks.last().unwrap().2
}

fn answer(world: &mut World, node: usize, from: Peer, hashes: Vec<ChunkHash>) {
    let blob = blob(1);
    let message = Message::Audited { blob, hashes };
    world.handle(node, Event::Message { from, message });
}

#[test]
fn an_auditor_that_lies_holds_a_pull_up_for_a_while_only() {
    let (mut world, last) = all_but_one();
    let auditor = finds_it_wrong(&mut world, last);
    answer(&mut world, last, auditor, vec![ChunkHash([9; 32]); 16]);
    world.run(SECOND * 25);
    assert_eq!(
        world.stored(last, blob(1)),
        0,
        "nothing is as the auditor says"
    );
    let held = move |world: &World| world.has_all(last, blob(1));
    assert!(world.run_until(SECOND * 10, held).is_some());
}

#[test]
fn an_auditor_that_was_given_up_may_still_answer() {
    let (mut world, last) = all_but_one();
    let first = finds_it_wrong(&mut world, last);
    world.run(SECOND * 31);
    assert_ne!(asked(&world), first, "another is asked");
    let mut hashes: Vec<ChunkHash> = (0..16).map(|index| hash(blob(1), index, false)).collect();
    hashes[0] = ChunkHash([9; 32]);
    answer(&mut world, last, first, hashes);
    let but_one = move |world: &World| world.stored(last, blob(1)) == 15;
    assert!(world.run_until(SECOND, but_one).is_some());
}

#[test]
fn an_auditor_blames_the_origin_once() {
    let (mut world, last) = all_but_one();
    let first = finds_it_wrong(&mut world, last);
    for _ in 0..4 {
        answer(&mut world, last, first, Vec::new());
    }
    let asks = mismatches(&world);
    assert_eq!(asks[last], 2, "one other is asked");
    let failed = world.logged(|action| matches!(action, Action::Failed { .. }).then_some(()));
    assert!(failed.is_empty(), "one liar blames the origin");
}
