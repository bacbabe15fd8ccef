//! Connections between nodes: what they cost, and what becomes of them.

use shoal_protocol::{event::Event, message::Message};

use super::{Happening, World, chunks::Tag, peer};
use crate::{
    host::State,
    net::{MILLISECOND, NodeIndex, SECOND},
};

/// A broken connection, or a refused one, is noticed after so long.
pub(super) const RESET: u64 = MILLISECOND;

/// A dial to a host that does not answer is given up after so many tries: after 10 s, as the
/// daemon does.
const DIAL_TRIES: u16 = 100;
const DIAL_PAUSE: u64 = 100 * MILLISECOND;

/// Bulk connections of a node at most, and how long one has to be idle to be given up for another
/// one, as in the daemon.
const BULK_MAX: usize = 64;
const BULK_IN_USE: u64 = SECOND;

impl World {
    pub(super) fn send(&mut self, from: NodeIndex, to: NodeIndex, message: Message) {
        if self.hosts[from].connected.contains(to) {
            self.post(from, to, message);
            return;
        }
        let waiting = self.hosts[from].dialing.entry(to).or_default();
        waiting.push(message);
        if waiting.len() == 1 {
            self.dial(from, to);
        }
    }

    pub(super) fn dial(&mut self, from: NodeIndex, to: NodeIndex) {
        self.hosts[from].dialing.entry(to).or_default();
        let epoch = self.hosts[from].epoch;
        let at = self.net.connected_at(from, to);
        let dialed = Happening::Dialed {
            from: from as u32,
            to: to as u32,
            epoch,
            tries: 0,
        };
        self.net.at(at, dialed);
    }

    /// Whether packets reach a process that listens.
    fn answers(&self, from: NodeIndex, to: NodeIndex) -> bool {
        self.net.reaches(from, to) && self.hosts[to].state != State::Frozen
    }

    pub(super) fn dialed(&mut self, from: NodeIndex, to: NodeIndex, epoch: u32, tries: u16) {
        if self.hosts[from].epoch != epoch {
            return;
        }
        let answers = self.answers(from, to);
        if !answers && tries < DIAL_TRIES {
            let again = Happening::Dialed {
                from: from as u32,
                to: to as u32,
                epoch,
                tries: tries + 1,
            };
            let at = self.net.now() + DIAL_PAUSE;
            self.net.at(at, again);
            return;
        }
        let waiting = self.hosts[from].dialing.remove(&to).unwrap_or_default();
        let refused = self.hosts[to].state != State::Up
            || self.hosts[to].banned.contains(&from)
            || self.hosts[from].banned.contains(&to);
        if !answers || refused {
            self.fact(RESET, from, Event::Unreachable(peer(to)));
            return;
        }
        self.hosts[from].connected.insert(to);
        if self.hosts[to].connected.insert(from) {
            self.fact(0, from, Event::Connected(peer(to)));
            self.fact(0, to, Event::Connected(peer(from)));
        }
        self.checkers
            .connections(from, self.hosts[from].connected.count());
        for message in waiting {
            self.post(from, to, message);
        }
    }

    /// Whether a bulk connection stands; if not, one is opened for the chunk, which waits for it.
    pub(super) fn bulk_stands(&mut self, from: NodeIndex, to: NodeIndex, tag: Tag) -> bool {
        let now = self.net.now();
        let stands =
            self.hosts[from].bulk.contains_key(&to) && self.hosts[to].bulk.contains_key(&from);
        if let Some(waiting) = self.opening.get_mut(&(from, to)) {
            waiting.push(tag);
            return false;
        }
        if !stands && (!self.make_room(from, to) || !self.make_room(to, from)) {
            // Refused: the chunk is not sent.
            self.checkers.bulk_refused += 1;
            self.unsent(tag);
            return false;
        }
        self.hosts[from].bulk.insert(to, now);
        self.hosts[to].bulk.insert(from, now);
        if stands {
            return true;
        }
        self.checkers.bulk(from, self.hosts[from].bulk.len());
        self.checkers.bulk(to, self.hosts[to].bulk.len());
        self.opening.insert((from, to), vec![tag]);
        let at = self.net.connected_at(from, to);
        let epoch = self.hosts[from].epoch;
        let opened = Happening::Bulk {
            from: from as u32,
            to: to as u32,
            epoch,
        };
        self.net.at(at, opened);
        false
    }

    /// A bulk connection stands, unless something came in between: what waited for it goes out.
    pub(super) fn bulk_opened(&mut self, from: NodeIndex, to: NodeIndex, epoch: u32) {
        if self.hosts[from].epoch != epoch {
            return;
        }
        if self.hosts[to].state == State::Frozen && self.net.reaches(from, to) {
            // It will answer when it goes on.
            let again = Happening::Bulk {
                from: from as u32,
                to: to as u32,
                epoch,
            };
            let at = self.net.now() + DIAL_PAUSE;
            self.net.at(at, again);
            return;
        }
        let stands = self.hosts[from].bulk.contains_key(&to);
        for tag in self.opening.remove(&(from, to)).unwrap_or_default() {
            if stands && self.hosts[to].state == State::Up && self.net.reaches(from, to) {
                self.launch(tag);
            } else {
                self.unsent(tag);
            }
        }
    }

    /// Two nodes have no bulk connection any more.
    pub(super) fn bulk_broken(&mut self, a: NodeIndex, b: NodeIndex) {
        self.hosts[a].bulk.remove(&b);
        self.hosts[b].bulk.remove(&a);
        for (from, to) in [(a, b), (b, a)] {
            for tag in self.opening.remove(&(from, to)).unwrap_or_default() {
                self.unsent(tag);
            }
        }
    }

    fn make_room(&mut self, at: NodeIndex, other: NodeIndex) -> bool {
        let now = self.net.now();
        let bulk = &mut self.hosts[at].bulk;
        if bulk.len() < BULK_MAX || bulk.contains_key(&other) {
            return true;
        }
        let idlest = bulk
            .iter()
            .map(|(peer, used)| (*used, *peer))
            .min()
            .filter(|(used, _)| now - used > BULK_IN_USE);
        let Some((_, idlest)) = idlest else {
            return false;
        };
        bulk.remove(&idlest);
        self.hosts[idlest].bulk.remove(&at);
        true
    }
}
