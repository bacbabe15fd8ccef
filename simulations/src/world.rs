//! The world: real machines, one for each host, on a network, an origin and disks that exist only
//! as numbers. One seed decides everything.

mod boot;
mod chunks;
mod client;
mod connections;
mod content;
mod ending;
mod machines;
mod origin;
mod trouble;

use std::collections::BTreeMap;

use rand::{SeedableRng as _, rngs::StdRng};
use shoal_protocol::{
    directory::Directory,
    event::Event,
    message::{Hint, Message},
};

use self::{
    chunks::{Arrival, Tag},
    content::Content,
    origin::Registry,
};
use crate::{
    checkers::Checkers,
    host::{BlobIndex, Host},
    machines::{Machines, Turn},
    net::{Fact, MILLISECOND, Net, NodeIndex, SECOND},
    report::Report,
    scenario::Scenario,
    trace::Trace,
};

/// What the world reminds itself of.
#[derive(Debug)]
enum Happening {
    /// A host's machine asked to be called now.
    Wake(u32),
    /// A turn ends.
    Turn,
    /// A host learns a fact, if it is still in that epoch.
    Fact(u32, u32, Box<Event>),
    /// A chunk is checked and written.
    Stored(Box<Arrival>),
    /// The whole of a blob is hashed.
    Hashed {
        host: u32,
        epoch: u32,
        blob: BlobIndex,
    },
    /// A chunk is read and goes out.
    Send {
        from: u32,
        epoch: u32,
        to: u32,
        blob: BlobIndex,
        index: u32,
    },
    /// A bulk connection stands.
    Bulk {
        from: u32,
        to: u32,
        epoch: u32,
    },
    /// A control connection stands, or is tried again.
    Dialed {
        from: u32,
        to: u32,
        epoch: u32,
        tries: u16,
    },
    /// The origin begins to answer a read.
    Answer(u32),
    /// A host's client begins, or tries again what it was refused.
    Pull(u32),
    Retry(u32, BlobIndex),
    Fault(u32),
    /// A fault is over.
    Mend(Box<trouble::Mend>),
}

type Network = Net<Message, Tag, Happening>;

pub(crate) struct World {
    scenario: Scenario,
    directory: Directory,
    net: Network,
    rng: StdRng,
    hosts: Vec<Host>,
    /// The origin's place: the last.
    origin: NodeIndex,
    content: Content,
    registry: Registry,
    /// What each host pulls.
    wanted: Vec<Vec<usize>>,
    hint: Hint,
    began: u64,
    /// Restarts that are still to come.
    restarts: usize,
    /// Whether some hosts lie, so that signers have to be remembered.
    liars: bool,
    /// Requests for bulk connections under way, with the chunks that wait for them.
    opening: BTreeMap<(NodeIndex, NodeIndex), Vec<Tag>>,
    trace: Trace,
    checkers: Checkers,
    machines: Machines,
    /// What the machines are told in this turn, and when it ends.
    turn: Turn,
    turn_ends: u64,
    /// Whether the turn before is being carried out.
    turn_before: bool,
    /// Memory for turns to come.
    spare_turns: Vec<Turn>,
}

/// The network begins at this time, so that no clock shows zero.
const BEGINNING: u64 = SECOND;

/// How often the end of the world is looked for.
const LOOK: u64 = 5 * MILLISECOND;

impl World {
    pub(crate) fn new(scenario: Scenario) -> Self {
        let mut rng = StdRng::seed_from_u64(scenario.seed);
        let slow = scenario.slow();
        let (directory, mut hosts) = boot::hosts(&scenario, &mut rng);
        let content = Content::new(&scenario.layer_sizes(), &mut rng);
        for (host, slow) in hosts.iter_mut().zip(slow) {
            host.slow = slow;
            host.blobs.resize_with(content.blobs.len(), || None);
        }
        let net = Net::new(
            &scenario.links(),
            scenario.topology(),
            scenario.machine.cores,
            scenario.seed,
        );
        let checkers = Checkers::new(&scenario);
        Self {
            origin: scenario.nodes,
            wanted: scenario.wanted(),
            liars: scenario.has_liars(),
            machines: Machines::new(scenario.nodes, 64 + content.chunks()),
            turn: Turn::default(),
            turn_ends: 0,
            turn_before: false,
            spare_turns: Vec::new(),
            registry: Registry::new(&scenario.origin),
            scenario,
            directory,
            net,
            rng,
            hosts,
            content,
            hint: Hint {
                upstream: "registry.test".parse().expect("a name"),
                repository: "team/image".parse().expect("a name"),
            },
            began: 0,
            restarts: 0,
            opening: BTreeMap::new(),
            trace: Trace::new(),
            checkers,
        }
    }

    /// Runs the scenario to its end.
    pub(crate) fn run(mut self) -> Report {
        self.live();
        self.report()
    }

    /// Runs the scenario until something breaks; tells the last things that were done before, by one
    /// host or by all.
    pub(crate) fn run_logged(mut self, lines: usize, of: Option<NodeIndex>) -> Vec<String> {
        self.trace.keep_lines(lines, of);
        self.checkers.stop_at_first();
        self.live();
        let mut told = self.trace.into_lines();
        told.extend(self.checkers.violations);
        told
    }

    fn live(&mut self) {
        self.boot();
        self.begin();
        let patience = self.scenario.patience().as_nanos() as u64;
        let ended = self.until(self.began + patience, |world| world.is_over());
        if !ended {
            self.name_the_stuck();
        }
    }

    /// Runs until the condition holds, asked now and then; `false` when the time was up first.
    fn until(&mut self, limit: u64, done: impl Fn(&mut Self) -> bool) -> bool {
        let mut look_at = 0;
        loop {
            if self.net.now() >= look_at {
                if done(self) {
                    return true;
                }
                look_at = self.net.now() + LOOK;
            }
            if self.checkers.is_hopeless() {
                return true;
            }
            match self.net.next(limit) {
                Some(fact) => self.happen(fact),
                None => return done(self),
            }
        }
    }

    fn happen(&mut self, fact: Fact<Message, Tag, Happening>) {
        match fact {
            Fact::Message { from, to, message } => {
                if self.hosts[to].connected.contains(from) {
                    let from = peer(from);
                    self.feed(to, Event::Message { from, message });
                }
            }
            Fact::Progress { tag, bytes, .. } => self.progress(tag, bytes),
            Fact::Left { id, tag } => self.left(id, tag),
            Fact::Read { tag, bytes, .. } => self.read(tag, bytes),
            Fact::Due(happening) => self.due(happening),
        }
    }

    fn due(&mut self, happening: Happening) {
        match happening {
            Happening::Wake(host) => self.wake(host as usize),
            Happening::Turn => self.end_turn(),
            Happening::Fact(host, epoch, event) => {
                if self.hosts[host as usize].epoch == epoch {
                    self.feed(host as usize, *event);
                }
            }
            Happening::Stored(arrival) => self.stored(*arrival),
            Happening::Hashed { host, epoch, blob } => self.hashed(host as usize, epoch, blob),
            Happening::Send {
                from,
                epoch,
                to,
                blob,
                index,
            } => {
                if self.hosts[from as usize].epoch == epoch {
                    self.transmit(from as usize, to as usize, blob, index);
                }
            }
            Happening::Bulk { from, to, epoch } => {
                self.bulk_opened(from as usize, to as usize, epoch);
            }
            Happening::Dialed {
                from,
                to,
                epoch,
                tries,
            } => self.dialed(from as usize, to as usize, epoch, tries),
            Happening::Answer(read) => self.origin_answers(read),
            Happening::Pull(host) => self.start_pull(host as usize),
            Happening::Retry(host, blob) => self.pull(host as usize, blob),
            Happening::Fault(number) => self.strike(number as usize),
            Happening::Mend(mend) => self.mend(*mend),
        }
    }

    /// A host is to learn this after so many nanoseconds.
    fn fact(&mut self, after: u64, host: NodeIndex, event: Event) {
        let epoch = self.hosts[host].epoch;
        let at = self.net.now() + after;
        self.net
            .at(at, Happening::Fact(host as u32, epoch, Box::new(event)));
    }

    /// Seconds since the pulls began.
    fn seconds(&self) -> f64 {
        self.net.now().saturating_sub(self.began) as f64 / 1e9
    }
}

fn peer(node: NodeIndex) -> shoal_protocol::directory::Peer {
    shoal_protocol::directory::Peer(node as u32)
}
