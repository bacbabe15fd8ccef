//! Facts that become known in another order than they happened.

use super::world::{MS, blob, hint};
use crate::{
    chunk::Bitfield,
    config::Config,
    core::Core,
    directory::{Directory, NodeId, NodeRecord, Peer, Place},
    event::{Action, Event},
    message::{BlobKind, Message},
    time::Time,
};

struct Node {
    core: Core,
    now: Time,
}

impl Node {
    /// What of `event` comes.
    fn handle(&mut self, event: Event) -> Vec<Action> {
        self.now = self.now + MS;
        let mut actions = Vec::new();
        self.core.handle(self.now, event, &mut actions);
        actions
    }

    /// Begins to pull, from a peer that has all of it; whether that is asked for the chunk.
    fn pull(&mut self, number: u8, kind: BlobKind, size: Option<u64>, from: Peer) -> bool {
        let blob = blob(number);
        self.handle(Event::Pull {
            blob,
            kind,
            size,
            have: None,
            hint: hint(),
        });
        let message = Message::Offer {
            blob,
            kind,
            size: Some(163),
            have: Bitfield::full(1),
            answer: false,
        };
        let actions = self.handle(Event::Message { from, message });
        actions.iter().any(|action| {
            matches!(action, Action::Send { to, message: Message::Request { .. } } if *to == from)
        })
    }
}

#[test]
fn a_blob_that_is_verified_before_its_chunk_is_reported_leaves_no_request_behind() {
    let directory = Directory::new();
    let me = NodeRecord {
        id: NodeId([1; 32]),
        generation: 1,
        addresses: Vec::new(),
        place: Place::default(),
    };
    let core = Core::new(Config::default(), me, directory.clone(), 1, Time::ZERO);
    let peer = directory.intern_id(NodeId([2; 32]));
    let mut node = Node {
        core,
        now: Time::ZERO,
    };
    for number in 1..20 {
        assert!(
            node.pull(number, BlobKind::Manifest, None, peer),
            "{number}"
        );
        let blob = blob(number);
        node.handle(Event::Verified { blob });
        node.handle(Event::ChunkStored {
            from: Some(peer),
            blob,
            index: 0,
            len: 163,
        });
    }
    assert!(node.pull(20, BlobKind::Blob, Some(163), peer));
}
