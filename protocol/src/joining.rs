//! How a puller keeps in touch with the stewards of its blob.
//!
//! It joins the two best-ranked live nodes, repeats what is not answered, and asks the next-ranked
//! one to act when those before it stay silent.

use std::collections::BTreeMap;

use crate::{
    ctx::{Ctx, Ranks},
    directory::Peer,
    mutation::Mutation,
    time::Time,
};

pub(crate) struct Joining {
    /// When the next join goes out.
    pub(crate) next_at: Time,
    /// For each steward asked: when the first question was sent that it has not answered since.
    unanswered: BTreeMap<Peer, Time>,
    last_sent: Time,
    /// No join goes out before, whatever changes.
    not_before: Time,
    /// When any steward last answered.
    pub(crate) answered_at: Time,
    /// The steward that answered last.
    pub(crate) acting: Option<Peer>,
}

/// One join to be sent.
pub(crate) struct Join {
    pub(crate) to: Peer,
    pub(crate) takeover: bool,
}

impl Joining {
    pub(crate) fn new(now: Time) -> Self {
        Self {
            next_at: now,
            unanswered: BTreeMap::new(),
            last_sent: Time::ZERO,
            not_before: Time::ZERO,
            answered_at: now,
            acting: None,
        }
    }

    /// Whom to send a join now; schedules the next one.
    pub(crate) fn due(&mut self, ctx: &Ctx, ranks: &Ranks) -> Vec<Join> {
        self.unanswered.retain(|peer, _| ranks.contains(peer));
        let mut joins = Vec::new();
        let mut waiting = false;
        // Whether every better-ranked steward has been silent for too long.
        let mut takeover = false;
        for (rank, steward) in ranks.iter().copied().enumerate() {
            if rank >= 2 && !takeover {
                break;
            }
            joins.push(Join {
                to: steward,
                takeover,
            });
            // The others only listen: their silence means nothing until they are asked to act.
            if rank > 0 && !takeover {
                self.unanswered.remove(&steward);
                continue;
            }
            let since = *self.unanswered.entry(steward).or_insert(ctx.now);
            takeover = ctx.now.since(since) >= ctx.config.takeover_after
                && !ctx.config.makes(Mutation::NoTakeover);
            waiting |= !takeover;
        }
        self.last_sent = ctx.now;
        let pause = if waiting || takeover {
            ctx.config.join_resend
        } else {
            ctx.config.join_interval
        };
        self.next_at = ctx.now + pause;
        joins
    }

    /// A steward answered.
    pub(crate) fn answered(&mut self, ctx: &Ctx, from: Peer) {
        self.unanswered.remove(&from);
        self.answered_at = ctx.now;
        self.acting = Some(from);
        self.next_at = self.next_at.max(self.last_sent + ctx.config.join_interval);
    }

    /// Something changed that the steward should know, or should answer.
    pub(crate) fn hurry(&mut self, at: Time) {
        let earliest = self.not_before.max(self.last_sent + MIN_GAP);
        self.next_at = self.next_at.min(at.max(earliest));
    }

    /// Others pull the blob too, and some of them have joined: there is time until then.
    pub(crate) fn hold_off(&mut self, until: Time) {
        self.not_before = until;
        self.next_at = self.next_at.max(until);
    }

    /// Nobody else pulls the blob: only the steward can help.
    pub(crate) fn go_ahead(&mut self, now: Time) {
        if self.not_before > now {
            self.not_before = now;
            self.next_at = now;
        }
    }

    /// The connection to a node broke: do not wait for its answer.
    pub(crate) fn gone(&mut self, ctx: &Ctx, peer: Peer) {
        if let Some(since) = self.unanswered.get_mut(&peer) {
            *since = Time::ZERO;
        }
        if self.acting == Some(peer) {
            self.acting = None;
            self.unanswered.insert(peer, Time::ZERO);
            self.next_at = ctx.now;
        }
    }
}

/// Joins of one blob are at least so far apart, whatever changes.
const MIN_GAP: crate::time::Duration = crate::time::Duration::from_millis(50);
