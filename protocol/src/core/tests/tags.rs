//! Whose word about a tag is taken.

use super::world::{SECOND, World, blob, hint};
use crate::{
    directory::NodeId,
    event::{Action, Event},
    message::{TagAnswer, TagFailure, TagKey, TagRecord},
};

fn key(number: usize) -> TagKey {
    let hint = hint();
    TagKey {
        upstream: hint.upstream,
        repository: hint.repository,
        tag: format!("v{number}").parse().unwrap(),
    }
}

fn record(number: u8) -> TagRecord {
    TagRecord {
        digest: blob(number),
        asked_at: 0,
        asked_by: NodeId([number; 32]),
    }
}

fn asked(world: &World) -> Vec<usize> {
    let asks = |action: &Action| matches!(action, Action::AskOrigin { .. }).then_some(());
    world
        .logged(asks)
        .into_iter()
        .map(|(_, node, ())| node)
        .collect()
}

fn resolve(world: &mut World, node: usize, key: &TagKey) -> TagAnswer {
    let (key, known) = (key.clone(), None);
    world.event(node, Event::ResolveTag { key, known });
    let answer = |action: &Action| match action {
        Action::TagResolved { answer, .. } => Some(answer.clone()),
        _ => None,
    };
    let before = world.logged(answer).len();
    world.run_until(SECOND * 20, |world| world.logged(answer).len() > before);
    let mut answers = world.logged(answer);
    assert_eq!(answers.len(), before + 1, "no answer");
    let (_, by, answer) = answers.remove(before);
    assert_eq!(by, node);
    answer
}

/// A world and a tag whose signers are two other nodes than the first.
fn signers(count: usize) -> (World, TagKey, Vec<usize>) {
    for number in 0..100 {
        let mut world = World::new(count);
        let key = key(number);
        resolve(&mut world, 0, &key);
        let signers = asked(&world);
        if !signers.contains(&0) {
            let world = World::new(count);
            return (world, key, signers);
        }
    }
    panic!("no tag has other signers than the first node");
}

#[test]
fn two_that_agree_are_believed() {
    let (mut world, key, signers) = signers(4);
    let answer = resolve(&mut world, 0, &key);
    assert!(matches!(answer, TagAnswer::Fresh(record) if record.digest == blob(200)));
    let mut by = asked(&world);
    by.sort_unstable();
    let mut expected = signers;
    expected.sort_unstable();
    assert_eq!(by, expected);
    assert_eq!(by.len(), 2);
}

#[test]
fn when_two_disagree_the_node_asks_the_origin_itself() {
    let (mut world, key, signers) = signers(4);
    world.nodes[signers[0]].tag = Ok(blob(66));
    let answer = resolve(&mut world, 0, &key);
    assert!(matches!(answer, TagAnswer::Fresh(record) if record.digest == blob(200)));
    assert_eq!(asked(&world).iter().filter(|node| **node == 0).count(), 1);
}

#[test]
fn many_questions_cost_the_origin_two() {
    let (mut world, key, signers) = signers(6);
    for node in (0..6).filter(|node| !signers.contains(node)) {
        resolve(&mut world, node, &key);
    }
    assert_eq!(asked(&world).len(), 2, "{:?}", asked(&world));
}

fn outage(count: usize) -> World {
    let mut world = World::new(count);
    for node in &mut world.nodes {
        node.tag = Err(TagFailure::Unreachable("no route".to_owned()));
    }
    world
}

#[test]
fn in_an_outage_one_memory_is_not_enough() {
    let mut world = outage(4);
    world.nodes[2].tag_known = Some(record(7));
    let answer = resolve(&mut world, 0, &key(0));
    assert!(
        matches!(answer, TagAnswer::Failed(TagFailure::Unreachable(_))),
        "{answer:?}"
    );
}

#[test]
fn in_an_outage_two_memories_that_agree_are_believed() {
    let mut world = outage(4);
    world.nodes[2].tag_known = Some(record(7));
    world.nodes[3].tag_known = Some(record(7));
    let answer = resolve(&mut world, 0, &key(0));
    assert!(
        matches!(&answer, TagAnswer::Stale(record, _) if record.digest == blob(7)),
        "{answer:?}"
    );
}

#[test]
fn in_an_outage_two_memories_that_differ_are_not() {
    let mut world = outage(4);
    world.nodes[2].tag_known = Some(record(7));
    world.nodes[3].tag_known = Some(record(8));
    let answer = resolve(&mut world, 0, &key(0));
    assert!(matches!(answer, TagAnswer::Failed(_)), "{answer:?}");
}

#[test]
fn in_a_swarm_of_two_the_other_is_believed() {
    let mut world = outage(2);
    world.nodes[1].tag_known = Some(record(7));
    let answer = resolve(&mut world, 0, &key(0));
    assert!(
        matches!(&answer, TagAnswer::Stale(record, _) if record.digest == blob(7)),
        "{answer:?}"
    );
}

/// Every node has heard that an image was imported.
fn import(world: &mut World, number: u8) {
    for node in &mut world.nodes {
        node.tag_imported = Some(record(number));
    }
}

#[test]
fn where_no_origin_can_be_asked_what_was_imported_is_the_answer() {
    let mut world = outage(4);
    import(&mut world, 9);
    for node in 0..4 {
        let answer = resolve(&mut world, node, &key(0));
        assert!(
            matches!(&answer, TagAnswer::Imported(record) if record.digest == blob(9)),
            "{answer:?}"
        );
    }
}

#[test]
fn a_node_that_has_not_heard_of_an_import_takes_the_newest_that_others_have() {
    let mut world = outage(4);
    import(&mut world, 9);
    let newer = TagRecord {
        asked_at: 1,
        ..record(10)
    };
    world.nodes[0].tag_imported = None;
    world.nodes[2].tag_imported = Some(newer);
    let answer = resolve(&mut world, 0, &key(0));
    assert!(
        matches!(&answer, TagAnswer::Imported(record) if record.digest == blob(10)),
        "{answer:?}"
    );
}

#[test]
fn an_import_never_overrides_an_origin_nor_the_memory_of_what_one_said() {
    let mut world = World::new(4);
    import(&mut world, 9);
    let answer = resolve(&mut world, 0, &key(0));
    assert!(matches!(answer, TagAnswer::Fresh(record) if record.digest == blob(200)));

    let mut world = World::new(4);
    import(&mut world, 9);
    for node in &mut world.nodes {
        node.tag = Err(TagFailure::NotFound("no such tag".to_owned()));
    }
    let answer = resolve(&mut world, 0, &key(0));
    assert!(
        matches!(answer, TagAnswer::Failed(TagFailure::NotFound(_))),
        "{answer:?}"
    );

    for remembering in [&[0][..], &[2, 3]] {
        let mut world = outage(4);
        import(&mut world, 9);
        for node in remembering {
            world.nodes[*node].tag_known = Some(record(7));
        }
        let answer = resolve(&mut world, 0, &key(0));
        assert!(
            matches!(&answer, TagAnswer::Stale(record, _) if record.digest == blob(7)),
            "{remembering:?}: {answer:?}"
        );
    }
}

#[test]
fn what_its_own_operator_imported_since_goes_before_what_a_node_remembers() {
    for (asked_at, expected) in [(1, 9), (0, 9), (3, 7)] {
        let mut world = outage(4);
        let imported = TagRecord {
            asked_at: 2,
            asked_by: world.id(0),
            ..record(9)
        };
        let known = TagRecord {
            asked_at,
            ..record(7)
        };
        world.nodes[0].tag_imported = Some(imported);
        world.nodes[0].tag_known = Some(known);
        let digest = match resolve(&mut world, 0, &key(0)) {
            TagAnswer::Imported(record) | TagAnswer::Stale(record, _) => record.digest,
            other => panic!("{other:?}"),
        };
        assert_eq!(digest, blob(expected), "remembered at {asked_at}");
    }
}

/// Has every origin say that it is to be spared.
fn spare(world: &mut World) {
    for node in &mut world.nodes {
        node.tag_spared = Some("few pulls are left".to_owned());
    }
}

#[test]
fn where_the_origin_is_spared_a_tag_names_what_it_named_for_all() {
    let (mut world, key, _) = signers(4);
    spare(&mut world);
    for node in &mut world.nodes[1..] {
        node.tag_known = Some(record(7));
    }
    for node in 0..4 {
        let answer = resolve(&mut world, node, &key);
        assert!(
            matches!(&answer, TagAnswer::Stale(record, why) if record.digest == blob(7) && why.contains("few")),
            "{node}: {answer:?}"
        );
    }
}

#[test]
fn where_the_origin_is_spared_a_tag_that_nobody_knows_is_still_asked_for() {
    let (mut world, key, _) = signers(4);
    spare(&mut world);
    let answer = resolve(&mut world, 0, &key);
    assert!(matches!(&answer, TagAnswer::Fresh(record) if record.digest == blob(200)));
}
