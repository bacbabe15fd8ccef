//! What a tag names.
//!
//! A tag cannot be verified by content, so nobody's word alone is taken for it: a node asks the
//! origin itself, or takes an answer that two nodes give alike. Those two are the best-ranked live
//! nodes for the tag, so that a mass pull costs the origin two questions and not one for each node.
//!
//! What an operator imported is the one exception, and comes last: it is told where no origin can be
//! asked and neither this node nor two others remember what one said.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    ctx::{Ctx, Ranks},
    directory::Peer,
    event::Action,
    message::{Message, TagAnswer, TagFailure, TagKey, TagRecord},
    time::{Duration, Time},
};

/// A question of this node's clients.
struct Question {
    /// Who was asked and has not answered.
    waiting: BTreeSet<Peer>,
    answers: Vec<TagAnswer>,
    /// When the origin is asked instead.
    deadline: Time,
    /// What this node itself knew.
    known: Option<TagRecord>,
    /// What an operator imported.
    imported: Option<TagRecord>,
    /// Why the origin could not be asked; from then on only the memory of others is left.
    unsure: Option<TagFailure>,
}

#[derive(Default)]
pub(crate) struct Tags {
    questions: BTreeMap<TagKey, Question>,
    /// Questions to the origin under way, and the peers that wait for the answer.
    asking: BTreeMap<TagKey, BTreeSet<Peer>>,
    /// What was answered lately, after the origin was asked.
    fresh: BTreeMap<TagKey, (TagAnswer, Time)>,
}

/// Answers remembered at most; the oldest go first when there are more.
const FRESH_MAX: usize = 10_000;

/// Members that are asked what they remember while the origin cannot be reached.
const WITNESSES: usize = 8;

/// How many nodes have to give the same answer.
const SIGNERS: usize = 2;

fn key_hash(key: &TagKey) -> u64 {
    let text = format!("{}/{}:{}", key.upstream, key.repository, key.tag);
    let mut first = [0; 8];
    first.copy_from_slice(&blake3::hash(text.as_bytes()).as_bytes()[..8]);
    u64::from_be_bytes(first)
}

impl Tags {
    pub(crate) fn deadline(&self) -> Time {
        self.questions
            .values()
            .map(|question| question.deadline)
            .min()
            .unwrap_or(Time::NEVER)
    }

    pub(crate) fn tick(&mut self, ctx: &mut Ctx) {
        let due: Vec<TagKey> = self
            .questions
            .iter()
            .filter(|(_, question)| question.deadline <= ctx.now)
            .map(|(key, _)| key.clone())
            .collect();
        for key in due {
            if let Some(question) = self.questions.get_mut(&key) {
                question.deadline = Time::NEVER;
                question.waiting.clear();
            }
            self.decide(ctx, key);
        }
    }

    /// A client of this node asks.
    pub(crate) fn resolve(
        &mut self,
        ctx: &mut Ctx,
        key: TagKey,
        known: Option<(TagRecord, Duration)>,
    ) {
        if let Some((record, age)) = &known
            && *age < ctx.config.tag_ttl
        {
            let answer = TagAnswer::Fresh(record.clone());
            ctx.act(Action::TagResolved { key, answer });
            return;
        }
        if self.questions.contains_key(&key) {
            return;
        }
        let ranks: Ranks = ctx
            .ranks(key_hash(&key))
            .into_iter()
            .take(SIGNERS)
            .collect();
        let known = known.map(|(record, _)| record);
        let mut question = Question {
            waiting: BTreeSet::new(),
            answers: Vec::new(),
            deadline: Time::NEVER,
            known,
            imported: None,
            unsure: None,
        };
        if ranks.contains(&ctx.me) || ranks.len() < SIGNERS {
            self.questions.insert(key.clone(), question);
            self.ask_origin(ctx, key, None);
            return;
        }
        question.deadline = ctx.now + ctx.config.tag_timeout;
        for peer in ranks {
            question.waiting.insert(peer);
            ctx.send(peer, Message::AskTag { key: key.clone() });
        }
        self.questions.insert(key, question);
    }

    /// A peer asks.
    pub(crate) fn asked(&mut self, ctx: &mut Ctx, from: Peer, key: TagKey) {
        if let Some((answer, at)) = self.fresh.get(&key)
            && ctx.now.since(*at) < ctx.config.tag_ttl
        {
            let answer = answer.clone();
            ctx.send(from, Message::Tag { key, answer });
            return;
        }
        self.ask_origin(ctx, key, Some(from));
    }

    fn ask_origin(&mut self, ctx: &mut Ctx, key: TagKey, asker: Option<Peer>) {
        let under_way = self.asking.contains_key(&key);
        self.asking.entry(key.clone()).or_default().extend(asker);
        if !under_way {
            ctx.act(Action::AskOrigin { key });
        }
    }

    /// The origin answered, or could not be asked.
    pub(crate) fn origin_said(
        &mut self,
        ctx: &mut Ctx,
        key: TagKey,
        result: Result<TagRecord, TagFailure>,
        known: Option<TagRecord>,
        imported: Option<TagRecord>,
        spared: Option<String>,
    ) {
        let own = imported.clone().filter(|record| {
            record.asked_by == ctx.directory.id(ctx.me)
                && known
                    .as_ref()
                    .is_none_or(|known| known.asked_at <= record.asked_at)
        });
        let answer = match (result, known, own) {
            (Ok(record), known, _) => {
                let known = known.or_else(|| self.remembered_by_others(&key));
                let answer = match (known, spared) {
                    (Some(known), Some(reason)) if known.digest != record.digest => {
                        TagAnswer::Stale(known, reason)
                    }
                    _ => TagAnswer::Fresh(record),
                };
                if self.fresh.len() >= FRESH_MAX {
                    let ttl = ctx.config.tag_ttl;
                    self.fresh.retain(|_, (_, at)| ctx.now.since(*at) < ttl);
                }
                self.fresh.insert(key.clone(), (answer.clone(), ctx.now));
                answer
            }
            // This node's own operator vouches for it.
            (Err(TagFailure::Unreachable(_) | TagFailure::Throttled(_)), _, Some(record)) => {
                TagAnswer::Imported(record)
            }
            (Err(TagFailure::Unreachable(reason)), Some(record), None) => {
                TagAnswer::Stale(record, reason)
            }
            (Err(TagFailure::Throttled(_)), Some(record), None) => {
                TagAnswer::Stale(record, "the origin is limiting its clients".to_owned())
            }
            (Err(failure), ..) => TagAnswer::Failed(failure),
        };
        let unsure = matches!(
            answer,
            TagAnswer::Failed(TagFailure::Unreachable(_) | TagFailure::Throttled(_))
        );
        // Peers ask others besides, and weigh this against what those remember.
        let told = match &imported {
            Some(record) if unsure => TagAnswer::Imported(record.clone()),
            _ => answer.clone(),
        };
        for peer in self.asking.remove(&key).unwrap_or_default() {
            ctx.send(
                peer,
                Message::Tag {
                    key: key.clone(),
                    answer: told.clone(),
                },
            );
        }
        let Some(question) = self.questions.get_mut(&key) else {
            return;
        };
        question.imported = imported;
        match answer {
            TagAnswer::Failed(
                failure @ (TagFailure::Unreachable(_) | TagFailure::Throttled(_)),
            ) => {
                question.unsure = Some(failure);
                self.ask_around(ctx, key);
            }
            answer @ (TagAnswer::Fresh(_)
            | TagAnswer::Stale(..)
            | TagAnswer::Imported(_)
            | TagAnswer::Failed(_)) => {
                self.questions.remove(&key);
                ctx.act(Action::TagResolved { key, answer });
            }
        }
    }

    /// What those who were asked remember of a tag alike.
    fn remembered_by_others(&self, key: &TagKey) -> Option<TagRecord> {
        match agreed(&self.questions.get(key)?.answers)? {
            TagAnswer::Stale(record, _) => Some(record),
            TagAnswer::Fresh(_) | TagAnswer::Imported(_) | TagAnswer::Failed(_) => None,
        }
    }

    /// This node has neither the origin nor a memory of its own: who else remembers?
    fn ask_around(&mut self, ctx: &mut Ctx, key: TagKey) {
        let Some(question) = self.questions.get_mut(&key) else {
            return;
        };
        let mut others: Vec<Peer> = ctx.ranks(key_hash(&key)).into_iter().collect();
        others.extend(ctx.sample_members(WITNESSES));
        others.retain(|peer| *peer != ctx.me);
        others.truncate(WITNESSES);
        for peer in others {
            if question.waiting.insert(peer) {
                ctx.send(peer, Message::AskTag { key: key.clone() });
            }
        }
        question.deadline = ctx.now + ctx.config.tag_timeout * 2;
        if question.waiting.is_empty() {
            self.decide(ctx, key);
        }
    }

    /// All have answered who will.
    fn decide(&mut self, ctx: &mut Ctx, key: TagKey) {
        let Some(question) = self.questions.get(&key) else {
            return;
        };
        let agreed = agreed(&question.answers);
        let Some(unsure) = question.unsure.clone() else {
            match agreed {
                Some(answer @ (TagAnswer::Fresh(_) | TagAnswer::Failed(_))) => {
                    self.questions.remove(&key);
                    ctx.act(Action::TagResolved { key, answer });
                }
                _ => self.ask_origin(ctx, key, None),
            }
            return;
        };
        let reason = if let TagFailure::Unreachable(reason) = &unsure {
            reason.clone()
        } else {
            "the origin is limiting its clients".to_owned()
        };
        let answer = agreed
            .filter(|answer| !matches!(answer, TagAnswer::Failed(_)))
            .or_else(|| {
                question
                    .known
                    .clone()
                    .map(|record| TagAnswer::Stale(record, reason))
            })
            .or_else(|| only_word(ctx, &question.answers))
            .or_else(|| last_import(question))
            .unwrap_or(TagAnswer::Failed(unsure));
        self.questions.remove(&key);
        ctx.act(Action::TagResolved { key, answer });
    }

    /// A peer answered.
    pub(crate) fn answered(&mut self, ctx: &mut Ctx, from: Peer, key: TagKey, answer: TagAnswer) {
        let Some(question) = self.questions.get_mut(&key) else {
            return;
        };
        if !question.waiting.remove(&from) {
            return;
        }
        question.answers.push(answer);
        if question.waiting.is_empty() {
            question.deadline = Time::NEVER;
            self.decide(ctx, key);
        }
    }

    /// A peer cannot be reached: do not wait for its answers.
    pub(crate) fn gone(&mut self, ctx: &mut Ctx, peer: Peer) {
        let lost: Vec<TagKey> = self
            .questions
            .iter()
            .filter(|(_, question)| question.waiting.contains(&peer))
            .map(|(key, _)| key.clone())
            .collect();
        for key in lost {
            let failure = TagFailure::Unreachable("a member went away".to_owned());
            self.answered(ctx, peer, key, TagAnswer::Failed(failure));
        }
    }
}

/// What two answers say alike; the less fresh of the two where they differ in that.
fn agreed(answers: &[TagAnswer]) -> Option<TagAnswer> {
    for (at, one) in answers.iter().enumerate() {
        for other in &answers[at + 1..] {
            match (one, other) {
                (TagAnswer::Fresh(a), TagAnswer::Fresh(b) | TagAnswer::Stale(b, _))
                | (TagAnswer::Stale(a, _), TagAnswer::Fresh(b))
                    if a.digest == b.digest =>
                {
                    return Some(one.clone());
                }
                (TagAnswer::Stale(a, _), TagAnswer::Stale(b, _)) if a.digest == b.digest => {
                    return Some(one.clone());
                }
                (
                    TagAnswer::Failed(a @ TagFailure::NotFound(_)),
                    TagAnswer::Failed(TagFailure::NotFound(_)),
                ) => return Some(TagAnswer::Failed(a.clone())),
                _ => {}
            }
        }
    }
    None
}

/// In a swarm of two there is only one other node to ask.
fn only_word(ctx: &Ctx, answers: &[TagAnswer]) -> Option<TagAnswer> {
    let said = answers
        .iter()
        .find(|answer| matches!(answer, TagAnswer::Fresh(_) | TagAnswer::Stale(..)))?;
    (ctx.view.live().len() < SIGNERS).then(|| said.clone())
}

/// The newest import that this node or anyone it asked has heard of.
fn last_import(question: &Question) -> Option<TagAnswer> {
    let told = question.answers.iter().filter_map(|answer| match answer {
        TagAnswer::Imported(record) => Some(record),
        TagAnswer::Fresh(_) | TagAnswer::Stale(..) | TagAnswer::Failed(_) => None,
    });
    let newest = told
        .chain(&question.imported)
        .max_by_key(|record| record.asked_at)?;
    Some(TagAnswer::Imported(newest.clone()))
}
