//! Calling the machines, and causing what they ask for.

use shoal_protocol::{
    event::{Action, Event},
    message::Message,
    time::Time,
};

use super::{Happening, World, peer};
use crate::{
    host::State,
    machines::{Answer, Call, TURN},
    net::{MILLISECOND, NodeIndex},
};

/// Calls in a row that each want another one at once.
const SPINS_MAX: u32 = 20;

impl World {
    /// Tells a host's machine a fact. What it wants is carried out when the next turn ends.
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
        if !host.lives() {
            return;
        }
        host.calls += 1;
        self.turn.add(Call {
            host: id as u32,
            epoch: host.epoch,
            now: Time::from_nanos(self.net.now() + host.clock_ahead),
            event,
        });
        self.turn_goes_on();
    }

    /// Sees to it that the turn ends.
    fn turn_goes_on(&mut self) {
        let now = self.net.now();
        let ends = now - now % TURN + TURN;
        if self.turn_ends != ends {
            self.turn_ends = ends;
            self.net.at(ends, Happening::Turn);
        }
    }

    /// A turn ends. Its calls are carried out while the next one goes on; what the machines wanted
    /// in the turn before is done.
    pub(super) fn end_turn(&mut self) {
        let before = std::mem::take(&mut self.turn_before);
        if !self.turn.is_empty() {
            let next = self.spare_turns.pop().unwrap_or_default();
            let turn = std::mem::replace(&mut self.turn, next);
            self.machines.begin(turn);
            self.turn_before = true;
            self.turn_goes_on();
        }
        let answered = if before { self.machines.end() } else { None };
        if let Some(mut turn) = answered {
            for part in &mut turn.parts {
                let mut actions = part.actions.drain(..);
                for answer in part.answers.drain(..) {
                    self.answered(answer, &mut actions);
                }
            }
            self.spare_turns.push(turn);
        }
    }

    fn answered(&mut self, answer: Answer, actions: &mut impl Iterator<Item = Action>) {
        let now = self.net.now();
        let id = answer.host as usize;
        let actions = actions.take(answer.actions);
        if self.hosts[id].epoch != answer.epoch {
            // The process is gone, and what it wanted with it.
            actions.for_each(drop);
            return;
        }
        for action in actions {
            self.trace.action(now, id, &action);
            self.act(id, action);
        }
        let host = &mut self.hosts[id];
        // What was just set off may be due at once, but not again and again: a daemon would spin.
        let at_once = answer.deadline <= answer.now;
        host.spins = if at_once { host.spins + 1 } else { 0 };
        let spins = host.spins == SPINS_MAX;
        let spins = spins.then(|| "spins".to_owned());
        for what in answer
            .broken
            .map(|broken| broken.to_string())
            .into_iter()
            .chain(spins)
        {
            let seconds = self.seconds();
            self.checkers
                .violation(format!("{seconds:.3} s: node {id}: {what}"));
        }
        let host = &mut self.hosts[id];
        host.calls -= 1;
        if host.calls == 0 {
            self.wants_call(id, Some(answer.deadline));
        }
    }

    /// Sees to it that a machine is called when it wants to be.
    pub(super) fn wants_call(&mut self, id: NodeIndex, deadline: Option<Time>) {
        let now = self.net.now();
        let host = &mut self.hosts[id];
        host.deadline = deadline.map_or(u64::MAX, |at| {
            at.as_nanos().saturating_sub(host.clock_ahead)
        });
        let pause = if host.spins < SPINS_MAX {
            1
        } else {
            MILLISECOND
        };
        let at = host.deadline.max(now + pause);
        if at < host.wake_at {
            host.wake_at = at;
            self.net.at(at, Happening::Wake(id as u32));
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
        if host.calls > 0 {
            // The answer will tell.
            return;
        }
        if host.deadline <= now {
            self.feed(id, Event::Tick);
        } else {
            host.wake_at = host.deadline;
            self.net.at(host.deadline, Happening::Wake(id as u32));
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
