//! Calling the machines, and causing what they ask for.

use shoal_protocol::{
    event::{Action, Event},
    message::Message,
    time::Time,
};

use super::{Happening, World, peer};
use crate::{
    host::State,
    net::{MILLISECOND, NodeIndex},
};

/// Calls in a row that each want another one at once.
const SPINS_MAX: u32 = 20;

impl World {
    /// Tells a host's machine a fact and carries out what it wants.
    pub(super) fn feed(&mut self, id: NodeIndex, event: Event) {
        let host = &mut self.hosts[id];
        match host.state {
            State::Up => {}
            State::Frozen => {
                if !matches!(event, Event::Tick) {
                    host.backlog.push(event);
                }
                return;
            }
            State::Down => return,
        }
        let Some(core) = &mut host.core else { return };
        let mut actions = std::mem::take(&mut self.actions);
        let now = self.net.now();
        core.handle(
            Time::from_nanos(now + host.clock_ahead),
            event,
            &mut actions,
        );
        host.events += 1;
        if host.events.is_multiple_of(self.check_every) {
            self.checkers
                .invariants(now - self.began.min(now), id, core);
        }
        for action in actions.drain(..) {
            self.trace.action(now, id, &action);
            self.act(id, action);
        }
        self.actions = actions;
        self.after_feed(id);
    }

    /// Sees to it that the machine is called when it wants to be.
    pub(super) fn after_feed(&mut self, id: NodeIndex) {
        let now = self.net.now();
        let host = &mut self.hosts[id];
        let Some(core) = &host.core else { return };
        let at = core.deadline().as_nanos().saturating_sub(host.clock_ahead);
        // What was just set off may be due at once, but not again and again: a daemon would spin.
        host.spins = if at <= now { host.spins + 1 } else { 0 };
        let spins = host.spins;
        let at = at.max(now + if spins < SPINS_MAX { 1 } else { MILLISECOND });
        if at < host.wake_at {
            host.wake_at = at;
            self.net.at(at, Happening::Wake(id as u32));
        }
        if spins == SPINS_MAX {
            let seconds = self.seconds();
            self.checkers
                .violation(format!("{seconds:.3} s: node {id} spins"));
        }
    }

    pub(super) fn wake(&mut self, id: NodeIndex) {
        let now = self.net.now();
        let host = &mut self.hosts[id];
        if host.wake_at != now {
            // It was to be called earlier, and that has set the next time.
            return;
        }
        host.wake_at = u64::MAX;
        let due = host
            .core
            .as_ref()
            .is_some_and(|core| core.deadline().as_nanos().saturating_sub(host.clock_ahead) <= now);
        if due {
            self.feed(id, Event::Tick);
        } else {
            self.after_feed(id);
        }
    }

    fn act(&mut self, id: NodeIndex, action: Action) {
        match action {
            Action::Send { to, message } => self.send(id, to.0 as usize, message),
            Action::SendChunk { to, blob, index } => {
                let blob = self.content.index(&blob);
                self.send_chunk(id, to.0 as usize, blob, index);
            }
            Action::Expect { from, blob, index } => {
                let blob = self.content.index(&blob);
                self.hosts[id]
                    .expected
                    .insert((from.0 as usize, blob, index));
            }
            Action::Unexpect { from, blob, index } => {
                let blob = self.content.index(&blob);
                let chunk = (from.0 as usize, blob, index);
                let host = &mut self.hosts[id];
                host.expected.remove(&chunk);
                if self.scenario.limits.uncancelled.is_some() && self.scenario.faults.is_empty() {
                    host.withdrawn.insert(chunk);
                }
            }
            Action::ReadOrigin { blob, lease, .. } => {
                let blob = self.content.index(&blob);
                self.read_origin(id, blob, lease);
            }
            Action::StopOrigin { blob, lease } => {
                let blob = self.content.index(&blob);
                if let Some(read) = self.hosts[id].reads.remove(&(blob, lease)) {
                    self.stop_read(read);
                }
            }
            Action::Sized { blob, size, .. } => {
                let index = self.content.index(&blob);
                self.sized(id, index, size);
            }
            Action::Failed { blob, failure } => {
                let blob = self.content.index(&blob);
                self.gave_up(id, blob, &failure);
            }
            Action::Note(note) => {
                let seconds = self.seconds();
                self.checkers.note(seconds, id, &note);
            }
            Action::MemberDown(down) => {
                let host = &self.hosts[down.0 as usize];
                if host.state == State::Up && !host.victim && !self.hosts[id].victim {
                    let seconds = self.seconds();
                    let what = format!("calls {down:?} dead, which is not");
                    self.checkers.note(seconds, id, &what);
                }
            }
            Action::Discard { blob } => {
                let blob = self.content.index(&blob);
                if let Some(stored) = self.hosts[id].blob_mut(blob) {
                    stored.discard();
                }
            }
            Action::DropForeign { blob } => {
                let blob = self.content.index(&blob);
                self.drop_chunks(id, blob, |stored, index| stored.signer(index) != Some(id));
            }
            Action::DropDiffering { blob, .. } => {
                let blob = self.content.index(&blob);
                self.drop_chunks(id, blob, |stored, index| stored.wrong.contains(&index));
            }
            Action::SendHashes { to, blob } => self.send_hashes(id, to.0 as usize, &blob),
            // What is stored is what was vouched for; nothing rots here.
            Action::CheckChunk { .. } | Action::MemberUp(_) => {}
            Action::CheckProof {
                blob,
                index,
                attestation,
            } => self.check_proof(id, &blob, index, attestation),
            Action::Ban { peer: banned, .. } => self.ban(id, banned.0 as usize),
            Action::AskOrigin { .. } | Action::TagResolved { .. } => {
                self.checkers.violation(format!(
                    "node {id} wants {action:?} in a world without tags"
                ));
            }
        }
    }

    /// Bytes of a message are counted, and it goes out.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "most messages are not watched"
    )]
    pub(super) fn post(&mut self, from: NodeIndex, to: NodeIndex, message: Message) {
        let bytes = crate::bytes::on_the_wire(&message);
        self.checkers.control(&message, bytes);
        match &message {
            Message::Cancel { blob, index } => {
                let blob = self.content.index(blob);
                self.hosts[from].withdrawn.remove(&(to, blob, *index));
            }
            Message::Announce { held, .. } => {
                for (blob, ..) in held {
                    let index = self.content.index(blob);
                    let verified = self.hosts[from]
                        .blob(index)
                        .is_some_and(|stored| stored.verified);
                    self.checkers.ensure(verified, || {
                        format!("node {from} calls {} complete, which is not", blob.short())
                    });
                }
            }
            _ => {}
        }
        self.net.send(from, to, bytes, message);
    }

    /// Everybody that is connected hears that a node is gone.
    pub(super) fn disconnect(&mut self, gone: NodeIndex, from: impl Fn(NodeIndex) -> bool) {
        for other in 0..self.origin {
            if other != gone && from(other) && self.hosts[other].connected.remove(gone) {
                self.fact(
                    super::connections::RESET,
                    other,
                    Event::Disconnected(peer(gone)),
                );
            }
        }
    }
}
