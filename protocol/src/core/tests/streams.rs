//! The keeper of an upstream, as its stewards see it.

use super::world::{MS, SECOND, World, blob, hint};
use crate::{
    config::Config,
    core::Core,
    directory::{Directory, NodeId, NodeRecord, Peer, Place},
    event::{Action, Event},
    message::Message,
    time::Time,
};

/// A keeper that may give 8 streams, and what it grants when a steward speaks.
struct Keeper {
    core: Core,
    now: Time,
}

impl Keeper {
    fn new() -> Self {
        let directory = Directory::new();
        let me = NodeRecord {
            id: NodeId([1; 32]),
            generation: 1,
            addresses: Vec::new(),
            place: Place::default(),
        };
        let config = Config {
            streams_start: 8,
            streams_max: 8,
            ..Config::default()
        };
        let core = Core::new(config, me, directory.clone(), 1, Time::ZERO);
        for number in 2..4 {
            directory.intern_id(NodeId([number; 32]));
        }
        Self {
            core,
            now: Time::ZERO,
        }
    }

    /// What is granted, and to whom, when the steward on that peer has so many streams open.
    fn wanted(&mut self, from: u32, wanted: u16, open: u16) -> Vec<(u32, u16)> {
        self.now = self.now + MS * 20;
        let message = Message::StreamsWanted {
            upstream: hint().upstream,
            blob: blob(from as u8),
            wanted,
            bytes: 0,
            throttled: false,
            open,
        };
        let from = Peer(from);
        let mut actions = Vec::new();
        self.core
            .handle(self.now, Event::Message { from, message }, &mut actions);
        let granted = |action| match action {
            Action::Send {
                to,
                message: Message::StreamsGranted { streams, .. },
            } => Some((to.0, streams)),
            _ => None,
        };
        actions.into_iter().filter_map(granted).collect()
    }
}

#[test]
fn what_a_steward_gives_up_is_granted_again_when_its_leases_have_ended() {
    let mut keeper = Keeper::new();
    assert_eq!(keeper.wanted(1, 100, 0), [(1, 8)]);
    // The first has 8 open, or is about to: none is left, whatever its new share is.
    assert_eq!(keeper.wanted(2, 100, 0), [(1, 4), (2, 0)]);
    assert_eq!(keeper.wanted(1, 100, 6), [(1, 4)]);
    assert_eq!(keeper.wanted(1, 100, 6), [(1, 4), (2, 2)]);
    assert_eq!(keeper.wanted(1, 100, 4), [(1, 4), (2, 4)]);
    assert_eq!(keeper.wanted(2, 100, 4), [(2, 4)]);
}

#[test]
fn a_steward_that_wants_none_leaves_all_to_the_others() {
    let mut keeper = Keeper::new();
    assert_eq!(keeper.wanted(1, 100, 0), [(1, 8)]);
    assert_eq!(keeper.wanted(2, 100, 0), [(1, 4), (2, 0)]);
    assert_eq!(keeper.wanted(1, 0, 0), [(2, 8)]);
}

#[test]
fn a_keeper_that_does_not_answer_is_passed_over() {
    let mut world = World::new(5);
    let key = crate::keeper::key(&hint().upstream);
    let keeper = world.nodes[0].core.ctx.ranks(key)[0];
    let keeper = world.number(keeper);
    // It goes on with everything else: SWIM has no reason to call it dead.
    world.rule = Box::new(move |from, _, message| {
        let mute = from == keeper && matches!(message, Message::StreamsGranted { .. });
        (!mute).then_some(MS)
    });
    let blobs = (1..).map(blob);
    let blob = { blobs }
        .find(|blob| world.ranks(*blob)[0] != keeper)
        .unwrap();
    let puller = (keeper + 1) % 5;
    world.pull(puller, blob, 40);
    let done = world.run_until(SECOND * 3, |world| world.has_all(puller, blob));
    assert!(done.is_some(), "{} chunks", world.stored(puller, blob));
    let granted = world.logged(|action| match action {
        Action::Send {
            message: Message::StreamsGranted { streams, .. },
            ..
        } => Some(*streams),
        _ => None,
    });
    let by_another = |(_, from, streams): &(Time, usize, u16)| *from != keeper && *streams > 1;
    assert!(granted.iter().any(by_another), "{granted:?}");
}
