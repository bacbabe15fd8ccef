//! Whom a holder serves when more is asked of it than it can send.

use super::world::{SECOND, World, blob};
use crate::{
    config::Config,
    event::{Action, Event},
    message::Message,
};

/// A node that has a blob, and sent its first chunk to another a while ago.
struct Holder(World);

impl Holder {
    fn new() -> Self {
        let mut world = World::new(3);
        world.pull(0, blob(1), 16);
        let held = world.run_until(SECOND * 5, |world| world.has_all(0, blob(1)));
        assert!(held.is_some());
        let mut holder = Self(world);
        assert_eq!(holder.asked(1, 0), []);
        holder.0.run(SECOND * 5);
        holder
    }

    /// A node asks for a chunk; who is refused one by that, and which.
    fn asked(&mut self, node: usize, index: u32) -> Vec<(usize, u32)> {
        self.0.log.clear();
        let (from, blob) = (self.0.nodes[node].peer, blob(1));
        let message = Message::Request { blob, index };
        self.0.handle(0, Event::Message { from, message });
        let refused = self.0.logged(|action| match action {
            Action::Send {
                to,
                message: Message::Busy { index, .. },
            } => Some((*to, *index)),
            _ => None,
        });
        let to = |(_, _, (to, index))| (self.0.number(to), index);
        refused.into_iter().map(to).collect()
    }
}

#[test]
fn what_was_never_sent_takes_the_place_of_what_was() {
    let Config {
        upload_slots,
        upload_queue,
        ..
    } = Config::default();
    let mut holder = Holder::new();
    // All slots and all places are taken, one of them by what was sent before.
    let mut new = 1..;
    for index in new.by_ref().take(upload_slots) {
        assert_eq!(holder.asked(1, index), []);
    }
    assert_eq!(holder.asked(2, 0), []);
    for index in new.by_ref().take(upload_queue - 1) {
        assert_eq!(holder.asked(1, index), []);
    }
    let (next, last) = (new.next().unwrap(), new.next().unwrap());
    assert_eq!(holder.asked(2, next), [(2, 0)]);
    // Among equals it is first come, first served.
    assert_eq!(holder.asked(2, last), [(2, last)]);
    assert_eq!(holder.asked(2, 0), [(2, 0)]);
}
