//! What a client waits for comes first, and what it does not wait for holds nobody up.

use super::world::{MS, SECOND, World, blob};
use crate::{
    config::Config,
    event::{Action, Event},
};

const CHUNKS: u32 = 200;

fn reading(reader: u64, first: u32, end: u32) -> Event {
    Event::Reading {
        blob: blob(1),
        reader,
        first,
        end,
    }
}

/// How many chunks node 0 has sent when the last of these was.
fn sent_until(world: &World, wanted: std::ops::Range<u32>) -> usize {
    let sent = world.logged(|action| match action {
        Action::SendChunk { index, .. } => Some(*index),
        _ => None,
    });
    let place = |chunk: u32| sent.iter().position(|(_, _, index)| *index == chunk);
    let places: Option<Vec<_>> = wanted.map(place).collect();
    places.expect("all were sent").into_iter().max().unwrap()
}

fn read(world: &World, mut chunks: std::ops::Range<u32>) -> bool {
    chunks.all(|chunk| world.reads.contains_key(&(blob(1), chunk)))
}

#[test]
fn a_range_is_read_from_the_origin_before_the_rest() {
    let mut world = World::started(1, Config::default());
    world.origin_time = MS * 50;
    world.pull(0, blob(1), CHUNKS);
    world.run(MS);
    world.event(0, reading(1, 100, 120));
    let took = world.run_until(SECOND * 60, |world| read(world, 100..120));
    assert!(took.is_some());
    assert!(
        world.read(blob(1)) < 60,
        "{} chunks read for 20",
        world.read(blob(1))
    );

    // And another, when all streams are in use.
    let before = world.read(blob(1));
    world.event(0, reading(2, 180, 184));
    let took = world.run_until(SECOND * 60, |world| read(world, 180..184));
    assert!(took.is_some());
    let more = world.read(blob(1)) - before;
    assert!(more < 90, "{more} chunks read for 4");
}

/// Node 1 takes a blob that node 0 has, a client of its in front.
fn one_gives_to_another(reader: Event) -> World {
    let mut world = World::started(2, Config::default());
    world.pull(0, blob(1), CHUNKS);
    let held = world.run_until(SECOND * 20, |world| world.has_all(0, blob(1)));
    assert!(held.is_some());
    world.chunk_time = MS * 20;
    world.log.clear();
    world.pull(1, blob(1), CHUNKS);
    world.event(1, reader);
    world.run(MS * 100);
    world
}

#[test]
fn a_range_is_taken_from_a_peer_before_the_rest() {
    let mut world = one_gives_to_another(reading(1, 100, 120));
    let all = world.run_until(SECOND * 60, |world| world.has_all(1, blob(1)));
    assert!(all.is_some(), "the rest comes after it");
    let place = sent_until(&world, 100..120);
    assert!(place < 40, "the range was complete after {place} chunks");
}

#[test]
fn a_client_that_asked_for_all_and_stands_still_holds_nobody_up() {
    let mut world = one_gives_to_another(reading(1, 0, CHUNKS));
    let before = world.stored(1, blob(1));
    assert!(before < 50);
    world.event(1, reading(2, 150, 158));
    let all = world.run_until(SECOND * 60, |world| world.has_all(1, blob(1)));
    assert!(all.is_some());
    let place = sent_until(&world, 150..158);
    assert!(
        place < before + 50,
        "the range was complete after {place} chunks"
    );
}

#[test]
fn a_client_that_left_waits_for_nothing() {
    let mut world = one_gives_to_another(reading(1, 80, 160));
    let gone = Event::ReaderGone {
        blob: blob(1),
        reader: 1,
    };
    world.event(1, gone);
    world.event(1, reading(2, 180, 184));
    let all = world.run_until(SECOND * 60, |world| world.has_all(1, blob(1)));
    assert!(all.is_some());
    let place = sent_until(&world, 180..184);
    assert!(place < 65, "the range was complete after {place} chunks");
}
