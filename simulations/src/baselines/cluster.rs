//! What all contenders share: nodes and an origin on the simulated network, an image, and the
//! costs that nobody escapes.

use std::collections::BTreeSet;

use rand::{SeedableRng as _, rngs::StdRng};

use super::Setting;
use crate::net::{self, Net, NodeIndex, StreamId};

/// What came of a run. Times in seconds of virtual time.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outcome {
    /// Of the nodes that ended, from the start of their pull to the last layer verified; ascending.
    pub(crate) times: Vec<f64>,
    /// What the origin sent, as a multiple of the image.
    pub(crate) origin_copies: f64,
    /// For each tenth of a second, the part of the nodes' uplinks that was used.
    pub(crate) uplinks: Vec<f64>,
}

/// Every run ends within so long, or has failed: a day.
const LIMIT: u64 = 86_400 * net::SECOND;

/// Layers that a node has not asked for yet, in the image's order.
#[derive(Clone, Debug)]
pub(super) struct Queue(std::ops::Range<usize>);

impl Queue {
    pub(super) fn new(setting: &Setting) -> Self {
        Self(0..setting.layers.len())
    }

    pub(super) fn next(&mut self) -> Option<usize> {
        self.0.next()
    }
}

/// Names a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket(usize);

/// What happens.
pub(super) enum Fact<T> {
    /// A node begins to pull.
    Pull(usize),
    /// A transfer has arrived, or a timer is due.
    Happened(T),
}

/// What the network reminds us of.
#[derive(Debug)]
enum Due<T> {
    Pull(usize),
    /// The first byte of a transfer can leave.
    Begin(Ticket),
    Timer(T),
    /// A node has verified everything.
    Ended(usize),
}

/// A transfer on its way.
struct Transfer<T> {
    from: NodeIndex,
    to: NodeIndex,
    bytes: u64,
    tag: T,
    /// When its first byte can leave.
    begins: u64,
    state: State,
}

enum State {
    Requested,
    Streaming(StreamId),
    Over,
}

/// How far a layer is at a node.
#[derive(Clone, Debug)]
struct Layer {
    /// Which of its chunks are here.
    here: Vec<bool>,
    /// Chunks from the start that went into the SHA-256, and when it is through with them.
    hashed: usize,
    hash_free: u64,
    /// When its first byte was sent, if it comes as a whole.
    began: u64,
}

/// Nodes that pull an image over the simulated network.
pub(super) struct Cluster<T> {
    setting: Setting,
    /// The image's chunks: layer and bytes.
    chunks: Vec<(usize, u64)>,
    /// Each layer's first chunk.
    first: Vec<u32>,
    net: Net<(), Ticket, Due<T>>,
    transfers: Vec<Transfer<T>>,
    connected: BTreeSet<(NodeIndex, NodeIndex)>,
    rng: StdRng,
    /// By node and layer.
    layers: Vec<Vec<Layer>>,
    /// By node: layers that have not arrived, and when those that have are verified.
    missing: Vec<(usize, u64)>,
    times: Vec<f64>,
}

impl<T: Copy> Cluster<T> {
    pub(super) fn new(setting: &Setting) -> Self {
        let mut net = Net::new(
            &setting.links,
            setting.topology.clone(),
            setting.cores,
            setting.seed,
        );
        let nodes = setting.nodes();
        for (node, at) in setting.starts.iter().enumerate() {
            net.at(*at, Due::Pull(node));
        }
        let chunks = setting.chunks();
        let empty: Vec<Layer> = (0..setting.layers.len())
            .map(|layer| Layer {
                here: vec![false; chunks.iter().filter(|chunk| chunk.0 == layer).count()],
                hashed: 0,
                hash_free: 0,
                began: 0,
            })
            .collect();
        let first = empty.iter().scan(0, |next, layer| {
            let first = *next;
            *next += layer.here.len() as u32;
            Some(first)
        });
        Self {
            first: first.collect(),
            chunks,
            net,
            transfers: Vec::new(),
            connected: BTreeSet::new(),
            rng: StdRng::seed_from_u64(setting.seed),
            missing: vec![(empty.len(), 0); nodes],
            layers: vec![empty; nodes],
            times: Vec::new(),
            setting: setting.clone(),
        }
    }

    /// What happens next; `None` when all nodes have ended.
    pub(super) fn next(&mut self) -> Option<Fact<T>> {
        while self.times.len() < self.setting.nodes() {
            match self.net.next(LIMIT)? {
                net::Fact::Due(Due::Pull(node)) => return Some(Fact::Pull(node)),
                net::Fact::Due(Due::Timer(tag)) => return Some(Fact::Happened(tag)),
                net::Fact::Due(Due::Begin(ticket)) => self.begin(ticket),
                net::Fact::Due(Due::Ended(node)) => {
                    let took = self.net.now() - self.setting.starts[node];
                    self.times.push(took as f64 / 1e9);
                }
                net::Fact::Read { tag: ticket, .. } => {
                    let transfer = &mut self.transfers[ticket.0];
                    transfer.state = State::Over;
                    return Some(Fact::Happened(transfer.tag));
                }
                net::Fact::Message { .. } | net::Fact::Progress { .. } | net::Fact::Left { .. } => {
                }
            }
        }
        None
    }

    /// What came of it.
    pub(super) fn outcome(mut self) -> Outcome {
        self.times.sort_by(f64::total_cmp);
        let origin = self.net.sent_bulk(self.origin());
        let rates = self.setting.links[..self.setting.nodes()].iter();
        let uplinks: f64 = rates.map(|links| links.up).sum();
        let slot = net::Meter::SLOT as f64 / 1e9;
        let slots = self.net.meter().tenths.iter();
        Outcome {
            times: self.times,
            origin_copies: origin as f64 / self.setting.bytes() as f64,
            uplinks: slots
                .map(|[_, nodes]| *nodes as f64 / (uplinks * slot))
                .collect(),
        }
    }

    // --- what contenders ask ---

    pub(super) fn now(&self) -> u64 {
        self.net.now()
    }

    pub(super) fn rng(&mut self) -> &mut StdRng {
        &mut self.rng
    }

    pub(super) fn origin(&self) -> NodeIndex {
        self.setting.nodes()
    }

    pub(super) fn nodes(&self) -> usize {
        self.setting.nodes()
    }

    pub(super) fn chunk_bytes(&self, chunk: u32) -> u64 {
        self.chunks[chunk as usize].1
    }

    /// One way between two nodes, in nanoseconds.
    pub(super) fn latency(&self, from: NodeIndex, to: NodeIndex) -> u64 {
        self.net.latency(from, to)
    }

    // --- what contenders do ---

    /// Reminds the contender after so many nanoseconds.
    pub(super) fn after(&mut self, nanos: u64, tag: T) {
        self.net.at(self.net.now() + nanos, Due::Timer(tag));
    }

    /// Asks for bytes. The request takes its way; the first one between two nodes needs a
    /// connection, and the origin its time to the first byte.
    pub(super) fn fetch(&mut self, from: NodeIndex, to: NodeIndex, bytes: u64, tag: T) -> Ticket {
        let pair = (from.min(to), from.max(to));
        let mut begins = if self.connected.insert(pair) {
            self.net.connected_at(to, from)
        } else {
            self.net.now()
        };
        begins += self.net.latency(to, from);
        if from == self.origin() {
            begins += self.setting.first_byte;
        }
        self.transfer(from, to, bytes, tag, begins)
    }

    /// Asks for more on a connection that something just came on: the request was there before, so
    /// that nothing has to be waited for.
    pub(super) fn fetch_next(
        &mut self,
        from: NodeIndex,
        to: NodeIndex,
        bytes: u64,
        tag: T,
    ) -> Ticket {
        self.transfer(from, to, bytes, tag, self.net.now())
    }

    fn transfer(
        &mut self,
        from: NodeIndex,
        to: NodeIndex,
        bytes: u64,
        tag: T,
        begins: u64,
    ) -> Ticket {
        let ticket = Ticket(self.transfers.len());
        self.transfers.push(Transfer {
            from,
            to,
            bytes,
            tag,
            begins,
            state: State::Requested,
        });
        self.net.at(begins, Due::Begin(ticket));
        ticket
    }

    /// Asks for a whole layer.
    pub(super) fn fetch_layer(&mut self, from: NodeIndex, to: NodeIndex, layer: usize, tag: T) {
        let ticket = self.fetch(from, to, self.setting.layers[layer], tag);
        self.layers[to][layer].began = self.transfers[ticket.0].begins;
    }

    fn begin(&mut self, ticket: Ticket) {
        let transfer = &mut self.transfers[ticket.0];
        if matches!(transfer.state, State::Requested) {
            let (from, to, bytes) = (transfer.from, transfer.to, transfer.bytes);
            let rate = if from == self.setting.nodes() {
                self.setting.origin_stream_rate
            } else {
                f64::INFINITY
            };
            let stream = self.net.start_paced(from, to, bytes, ticket, rate);
            transfer.state = State::Streaming(stream);
        }
    }

    /// Nobody waits for it any more.
    pub(super) fn cancel(&mut self, ticket: Ticket) {
        let transfer = &mut self.transfers[ticket.0];
        if let State::Streaming(stream) = transfer.state {
            self.net.cancel(stream);
        }
        transfer.state = State::Over;
    }

    // --- what arrives ---

    /// A chunk is at a node: SHA-256 goes on as far as the layer is here without a gap.
    pub(super) fn chunk_arrived(&mut self, node: usize, chunk: u32) {
        let layer = self.chunks[chunk as usize].0;
        let first = self.first[layer];
        let state = &mut self.layers[node][layer];
        state.here[(chunk - first) as usize] = true;
        while state.here.get(state.hashed) == Some(&true) {
            let bytes = self.chunks[first as usize + state.hashed].1;
            let took = bytes as f64 / self.setting.hash_rate * 1e9;
            state.hash_free = state.hash_free.max(self.net.now()) + took as u64;
            state.hashed += 1;
        }
        if state.hashed == state.here.len() {
            let at = state.hash_free;
            self.layer_ends(node, at);
        }
    }

    /// A whole layer has come in order: SHA-256 went along with it. Says when it is verified.
    pub(super) fn layer_arrived(&mut self, node: usize, layer: usize) -> u64 {
        let took = self.setting.layers[layer] as f64 / self.setting.hash_rate * 1e9;
        let began = self.layers[node][layer].began;
        let at = self.net.now().max(began + took as u64);
        self.layer_ends(node, at);
        at
    }

    fn layer_ends(&mut self, node: usize, at: u64) {
        let (missing, until) = &mut self.missing[node];
        *missing -= 1;
        *until = (*until).max(at);
        if *missing == 0 {
            self.net.at(*until, Due::Ended(node));
        }
    }
}
