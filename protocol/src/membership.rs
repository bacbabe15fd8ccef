//! Who is alive: SWIM through `foca`, plus an exchange of full member lists.
//!
//! foca spreads changes but has no full synchronization, so after a mass boot many nodes would
//! hold different views and each blob would have several self-appointed stewards. So whenever two
//! nodes connect, and every 30 seconds with a random member, they compare a hash of their lists
//! and exchange them in full where they differ.

use std::{collections::BTreeMap, num::NonZeroU8, num::NonZeroUsize};

use bytes::{Buf, BufMut, Bytes};
use foca::{Foca, Header, Identity, Member, NoCustomBroadcast, Notification, Runtime, Timer};
use rand::{RngExt as _, SeedableRng as _, rngs::Xoshiro256PlusPlus};
use serde::{Deserialize, Serialize};

use crate::{
    directory::{Directory, NodeRecord, Peer, mix},
    limits::MEMBER_PAGE_MAX,
    message::{MemberEntry, Message},
    time::{Duration, Time},
    view::PeerSet,
    wire,
};

/// How foca sees a node: its number here and which start of its daemon this is. foca keeps all
/// members in one list and looks through it for every packet, so that they are small; on the wire a
/// node is its whole record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Id {
    peer: Peer,
    /// In halves, so that a member takes 16 bytes in foca's list, not 24.
    generation: [u32; 2],
}

impl Id {
    fn new(peer: Peer, generation: u64) -> Self {
        let generation = [(generation >> 32) as u32, generation as u32];
        Self { peer, generation }
    }

    fn generation(self) -> u64 {
        u64::from(self.generation[0]) << 32 | u64::from(self.generation[1])
    }
}

impl Identity for Id {
    type Addr = Peer;

    fn renew(&self) -> Option<Self> {
        Some(Self::new(self.peer, self.generation() + 1))
    }

    fn addr(&self) -> Peer {
        self.peer
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.generation > adversary.generation
    }
}

/// The same header with nodes named otherwise.
fn map_header<A, B>(header: &Header<A>, name: impl Fn(&A) -> B) -> Header<B> {
    use foca::Message as Swim;
    let message = match &header.message {
        Swim::Ping(number) => Swim::Ping(*number),
        Swim::Ack(number) => Swim::Ack(*number),
        Swim::PingReq {
            target,
            probe_number,
        } => Swim::PingReq {
            target: name(target),
            probe_number: *probe_number,
        },
        Swim::IndirectPing {
            origin,
            probe_number,
        } => Swim::IndirectPing {
            origin: name(origin),
            probe_number: *probe_number,
        },
        Swim::IndirectAck {
            target,
            probe_number,
        } => Swim::IndirectAck {
            target: name(target),
            probe_number: *probe_number,
        },
        Swim::ForwardedAck {
            origin,
            probe_number,
        } => Swim::ForwardedAck {
            origin: name(origin),
            probe_number: *probe_number,
        },
        Swim::Announce => Swim::Announce,
        Swim::Feed => Swim::Feed,
        Swim::Gossip => Swim::Gossip,
        Swim::Broadcast => Swim::Broadcast,
        Swim::TurnUndead => Swim::TurnUndead,
    };
    Header {
        src: name(&header.src),
        src_incarnation: header.src_incarnation,
        dst: name(&header.dst),
        message,
    }
}

struct SwimCodec(Directory);

impl SwimCodec {
    fn record(&self, id: Id) -> NodeRecord {
        let mut record = (*self.0.record(id.peer)).clone();
        record.generation = id.generation();
        record
    }

    fn id(&self, record: &NodeRecord) -> Id {
        Id::new(self.0.intern(record), record.generation)
    }

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
        Self::put(&map_header(header, |id| self.record(*id)), buf)
    }

    fn decode_header(&mut self, buf: impl Buf) -> Result<Header<Id>, Self::Error> {
        let header: Header<NodeRecord> = Self::take(buf)?;
        Ok(map_header(&header, |record| self.id(record)))
    }

    fn encode_member(&mut self, member: &Member<Id>, buf: impl BufMut) -> Result<(), Self::Error> {
        let record = self.record(*member.id());
        let member = Member::new(record, member.incarnation(), member.state());
        Self::put(&member, buf)
    }

    fn decode_member(&mut self, buf: impl Buf) -> Result<Member<Id>, Self::Error> {
        let member: Member<NodeRecord> = Self::take(buf)?;
        let id = self.id(member.id());
        Ok(Member::new(id, member.incarnation(), member.state()))
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
    /// Whom foca calls active.
    active: PeerSet,
    /// The sum of their [`Effects::mark`]s: two nodes compare it instead of their lists.
    marks: u64,
}

impl Effects {
    fn mark(&self, id: Id) -> u64 {
        self.directory.id(id.peer).weight(id.generation())
    }
}

impl Runtime<Id> for Effects {
    fn notify(&mut self, notification: Notification<'_, Id>) {
        match notification {
            Notification::MemberUp(id) => {
                self.active.insert(id.peer);
                self.marks = self.marks.wrapping_add(self.mark(*id));
                self.outputs.push(Output::Up(id.peer));
            }
            Notification::MemberDown(id) => {
                self.active.remove(id.peer);
                self.marks = self.marks.wrapping_sub(self.mark(*id));
                self.outputs.push(Output::Down(id.peer));
            }
            // Comes before up or down, of which there is none if it stays what it was.
            Notification::Rename(old, new) if self.active.contains(old.peer) => {
                self.marks = self.marks.wrapping_sub(self.mark(*old));
                self.marks = self.marks.wrapping_add(self.mark(*new));
                // It was started again before anyone missed it, and knows nothing any more.
                self.outputs.push(Output::Up(new.peer));
            }
            Notification::Rejoin(id) => self.renewed = Some(*id),
            Notification::Rename(..)
            | Notification::Active
            | Notification::Idle
            | Notification::Defunct => {}
        }
    }

    fn send_to(&mut self, to: Id, data: &[u8]) {
        let peer = to.peer;
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
        me: &NodeRecord,
        directory: Directory,
        seed: u64,
        now: Time,
        sync_interval: Duration,
    ) -> Self {
        let rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let id = Id::new(directory.intern(me), me.generation);
        Self {
            foca: Foca::new(
                id,
                swim_config(),
                Xoshiro256PlusPlus::seed_from_u64(mix(seed)),
                SwimCodec(directory.clone()),
            ),
            effects: Effects {
                directory,
                now,
                next_timer: 0,
                timers: BTreeMap::new(),
                outputs: Vec::new(),
                renewed: None,
                active: PeerSet::default(),
                marks: 0,
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
            let members = self.effects.active.len();
            if members > 0
                && let Some(peer) = self.effects.active.nth(self.rng.random_range(0..members))
            {
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

    /// What a peer's list hashes to; whether this node's is the same. If not, they exchange them.
    pub(crate) fn members_hash(&mut self, from: Peer, hash: u64) -> bool {
        let same = hash == self.hash();
        if !same {
            self.send_list(from, true);
        }
        same
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
                let state = if entry.down {
                    foca::State::Down
                } else {
                    foca::State::Alive
                };
                let id = Id::new(entry.peer, entry.generation);
                Member::new(id, entry.incarnation, state)
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
        let updates = members.iter().map(|peer| {
            let generation = directory.record(*peer).generation;
            Member::alive(Id::new(*peer, generation))
        });
        let _ = self.foca.apply_many(updates, false, &mut self.effects);
    }

    pub(crate) fn take_outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.effects.outputs)
    }

    /// This node's record, when a false death made it take a new generation.
    pub(crate) fn take_renewed(&mut self) -> Option<NodeRecord> {
        let id = self.effects.renewed.take()?;
        let mut record = (*self.effects.directory.record(id.peer)).clone();
        record.generation = id.generation();
        Some(record)
    }

    fn compare_lists(&mut self, peer: Peer) {
        let hash = self.hash();
        self.effects
            .outputs
            .push(Output::Send(peer, Box::new(Message::MembersHash(hash))));
    }

    /// Independent of order: the sum of a hash of each live member and of this node.
    fn hash(&self) -> u64 {
        let me = self.effects.mark(*self.foca.identity());
        self.effects.marks.wrapping_add(me)
    }

    fn send_list(&mut self, to: Peer, reply: bool) {
        let entry = |id: &Id, incarnation, down| MemberEntry {
            peer: id.peer,
            generation: id.generation(),
            incarnation,
            down,
        };
        let mut entries = vec![entry(self.foca.identity(), 0, false)];
        entries.extend(self.foca.iter_membership_state().map(|member| {
            let down = member.state() == foca::State::Down;
            entry(member.id(), member.incarnation(), down)
        }));
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
