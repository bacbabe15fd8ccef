//! Who is alive: SWIM through `foca`, plus an exchange of full member lists.
//!
//! foca spreads changes but has no full synchronization, so after a mass boot many nodes would
//! hold different views and each blob would have several self-appointed stewards. So whenever two
//! nodes connect, and every 30 seconds with a random member, they compare a hash of their lists
//! and exchange them in full where they differ.

use std::{collections::BTreeMap, num::NonZeroU8, num::NonZeroUsize, sync::Arc};

use bytes::{Buf, BufMut, Bytes};
use foca::{Foca, Header, Identity, Member, NoCustomBroadcast, Notification, Runtime, Timer};
use rand::{RngExt as _, SeedableRng as _, rngs::Xoshiro256PlusPlus};
use serde::{Deserialize, Serialize};

use crate::{
    directory::{Directory, NodeId, NodeRecord, Peer, mix},
    limits::MEMBER_PAGE_MAX,
    message::{MemberEntry, Message},
    time::{Duration, Time},
    wire,
};

/// How foca sees a node: its record, shared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Id(Arc<NodeRecord>);

impl Identity for Id {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        let mut record = (*self.0).clone();
        record.generation += 1;
        Some(Self(Arc::new(record)))
    }

    fn addr(&self) -> NodeId {
        self.0.id
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.0.generation > adversary.0.generation
    }
}

struct SwimCodec;

impl SwimCodec {
    fn put<T: Serialize>(value: &T, mut buf: impl BufMut) -> Result<(), wire::WireError> {
        let bytes = wire::encode(value);
        if buf.remaining_mut() < bytes.len() {
            return Err(wire::WireError::OutOfBounds("packet is full"));
        }
        buf.put_slice(&bytes);
        Ok(())
    }

    fn take<T: for<'de> Deserialize<'de>>(mut buf: impl Buf) -> Result<T, wire::WireError> {
        let (value, used) = wire::decode_prefix(buf.chunk())?;
        buf.advance(used);
        Ok(value)
    }
}

impl foca::Codec<Id> for SwimCodec {
    type Error = wire::WireError;

    fn encode_header(&mut self, header: &Header<Id>, buf: impl BufMut) -> Result<(), Self::Error> {
        Self::put(header, buf)
    }

    fn decode_header(&mut self, buf: impl Buf) -> Result<Header<Id>, Self::Error> {
        Self::take(buf)
    }

    fn encode_member(&mut self, member: &Member<Id>, buf: impl BufMut) -> Result<(), Self::Error> {
        Self::put(member, buf)
    }

    fn decode_member(&mut self, buf: impl Buf) -> Result<Member<Id>, Self::Error> {
        Self::take(buf)
    }
}

/// What membership wants done or known.
#[derive(Debug)]
pub(crate) enum Output {
    Send(Peer, Box<Message>),
    Up(Peer),
    Down(Peer),
}

/// The effects that foca asks for, gathered while it runs.
struct Effects {
    directory: Directory,
    now: Time,
    next_timer: u64,
    timers: BTreeMap<(Time, u64), Timer<Id>>,
    outputs: Vec<Output>,
    renewed: Option<Id>,
}

impl Runtime<Id> for Effects {
    fn notify(&mut self, notification: Notification<'_, Id>) {
        match notification {
            Notification::MemberUp(id) => {
                let peer = self.directory.intern(&id.0);
                self.outputs.push(Output::Up(peer));
            }
            Notification::MemberDown(id) => {
                let peer = self.directory.intern(&id.0);
                self.outputs.push(Output::Down(peer));
            }
            Notification::Rename(_, id) => {
                // It was started again before anyone missed it, and knows nothing any more.
                let peer = self.directory.intern(&id.0);
                self.outputs.push(Output::Up(peer));
            }
            Notification::Rejoin(id) => self.renewed = Some(id.clone()),
            Notification::Active | Notification::Idle | Notification::Defunct => {}
        }
    }

    fn send_to(&mut self, to: Id, data: &[u8]) {
        let peer = self.directory.intern(&to.0);
        let packet = Message::Swim(Bytes::copy_from_slice(data));
        self.outputs.push(Output::Send(peer, Box::new(packet)));
    }

    fn submit_after(&mut self, event: Timer<Id>, after: Duration) {
        self.next_timer += 1;
        self.timers
            .insert((self.now + after, self.next_timer), event);
    }
}

/// The members of the cluster as this node sees them.
pub(crate) struct Membership {
    foca: Foca<Id, SwimCodec, Xoshiro256PlusPlus, NoCustomBroadcast>,
    effects: Effects,
    rng: Xoshiro256PlusPlus,
    sync_at: Time,
    sync_interval: Duration,
}

/// Probes once a second; half a second for a direct answer leaves as much for the indirect ones.
/// A suspect has 4 seconds to object: a loaded machine may well be silent for two.
fn swim_config() -> foca::Config {
    let at_most_one = |seconds| foca::PeriodicParams {
        frequency: Duration::from_secs(seconds),
        num_members: NonZeroUsize::MIN,
    };
    foca::Config {
        probe_period: Duration::from_secs(1),
        probe_rtt: Duration::from_millis(500),
        num_indirect_probes: NonZeroUsize::MIN.saturating_add(2),
        max_transmissions: NonZeroU8::MIN.saturating_add(9),
        suspect_to_down_after: Duration::from_secs(4),
        remove_down_after: Some(Duration::from_secs(24 * 3600)),
        max_packet_size: NonZeroUsize::MIN.saturating_add(1399),
        notify_down_members: true,
        periodic_announce: None,
        periodic_announce_to_down_members: Some(at_most_one(30)),
        periodic_gossip: Some(foca::PeriodicParams {
            frequency: Duration::from_millis(200),
            num_members: NonZeroUsize::MIN.saturating_add(2),
        }),
    }
}

impl Membership {
    pub(crate) fn new(
        me: NodeRecord,
        directory: Directory,
        seed: u64,
        now: Time,
        sync_interval: Duration,
    ) -> Self {
        let rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let id = Id(Arc::new(me));
        Self {
            foca: Foca::new(
                id,
                swim_config(),
                Xoshiro256PlusPlus::seed_from_u64(mix(seed)),
                SwimCodec,
            ),
            effects: Effects {
                directory,
                now,
                next_timer: 0,
                timers: BTreeMap::new(),
                outputs: Vec::new(),
                renewed: None,
            },
            rng,
            sync_at: now + sync_interval,
            sync_interval,
        }
    }

    pub(crate) fn deadline(&self) -> Time {
        let timer = self
            .effects
            .timers
            .keys()
            .next()
            .map_or(Time::NEVER, |(at, _)| *at);
        timer.min(self.sync_at)
    }

    pub(crate) fn tick(&mut self, now: Time) {
        self.effects.now = now;
        while let Some(entry) = self.effects.timers.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let timer = entry.remove();
            // An error here is a stale timer of a cycle that was broken off; foca starts anew.
            let _ = self.foca.handle_timer(timer, &mut self.effects);
        }
        if now >= self.sync_at {
            self.sync_at = now + self.sync_interval;
            let members: Vec<Peer> = self.live().collect();
            if !members.is_empty() {
                let peer = members[self.rng.random_range(0..members.len())];
                self.compare_lists(peer);
            }
        }
    }

    /// A peer that proved its ticket is connected: see whether it knows whom we know.
    pub(crate) fn connected(&mut self, peer: Peer) {
        self.compare_lists(peer);
    }

    pub(crate) fn swim(&mut self, now: Time, packet: &Bytes) {
        self.effects.now = now;
        // A packet for an earlier generation of this node, or a malformed one, changes nothing.
        let _ = self.foca.handle_data(packet, &mut self.effects);
    }

    pub(crate) fn members_hash(&mut self, from: Peer, hash: u64) {
        if hash != self.hash() {
            self.send_list(from, true);
        }
    }

    pub(crate) fn members(
        &mut self,
        now: Time,
        from: Peer,
        page: &[MemberEntry<Peer>],
        reply: bool,
    ) {
        self.effects.now = now;
        let updates: Vec<Member<Id>> = page
            .iter()
            .map(|entry| {
                let mut record = (*self.effects.directory.record(entry.peer)).clone();
                record.generation = entry.generation;
                let state = if entry.down {
                    foca::State::Down
                } else {
                    foca::State::Alive
                };
                Member::new(Id(Arc::new(record)), entry.incarnation, state)
            })
            .collect();
        let _ = self
            .foca
            .apply_many(updates.into_iter(), true, &mut self.effects);
        if reply {
            self.send_list(from, false);
        }
    }

    /// Takes these nodes for members. Nobody is told: they know.
    pub(crate) fn recall(&mut self, now: Time, members: &[Peer]) {
        self.effects.now = now;
        let directory = self.effects.directory.clone();
        let updates = members
            .iter()
            .map(|peer| Member::alive(Id(directory.record(*peer))));
        let _ = self.foca.apply_many(updates, false, &mut self.effects);
    }

    pub(crate) fn take_outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.effects.outputs)
    }

    /// This node's record, when a false death made it take a new generation.
    pub(crate) fn take_renewed(&mut self) -> Option<Arc<NodeRecord>> {
        self.effects.renewed.take().map(|id| id.0)
    }

    /// Members that are not declared dead, without this node.
    pub(crate) fn live(&self) -> impl Iterator<Item = Peer> + '_ {
        self.foca
            .iter_members()
            .map(|member| self.effects.directory.intern(&member.id().0))
    }

    fn compare_lists(&mut self, peer: Peer) {
        let hash = self.hash();
        self.effects
            .outputs
            .push(Output::Send(peer, Box::new(Message::MembersHash(hash))));
    }

    /// Independent of order: the sum of a hash of each live member and of this node.
    fn hash(&self) -> u64 {
        let one = |id: &Id| id.0.id.weight(id.0.generation);
        self.foca
            .iter_members()
            .map(|member| one(member.id()))
            .fold(one(self.foca.identity()), u64::wrapping_add)
    }

    fn send_list(&mut self, to: Peer, reply: bool) {
        let me = self.foca.identity().clone();
        let mut entries = vec![(me, 0, false)];
        entries.extend(self.foca.iter_membership_state().map(|member| {
            (
                member.id().clone(),
                member.incarnation(),
                member.state() == foca::State::Down,
            )
        }));
        let directory = self.effects.directory.clone();
        let entries: Vec<_> = entries
            .into_iter()
            .map(|(id, incarnation, down)| MemberEntry {
                peer: directory.intern(&id.0),
                generation: id.0.generation,
                incarnation,
                down,
            })
            .collect();
        let pages = entries.len().div_ceil(MEMBER_PAGE_MAX);
        for (number, page) in entries.chunks(MEMBER_PAGE_MAX).enumerate() {
            let reply = reply && number + 1 == pages;
            let message = Message::Members {
                page: page.to_vec(),
                reply,
            };
            self.effects
                .outputs
                .push(Output::Send(to, Box::new(message)));
        }
    }
}
