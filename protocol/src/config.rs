//! What an operator or an experiment may tune, with the defaults and their reasons.
//!
//! Numbers marked \[sim\] come from simulations of this algorithm on FIFO links.

use crate::{mutation::Mutation, time::Duration};

/// Settings of the exchange of one node.
#[derive(Clone, Debug)]
pub struct Config {
    /// Neighbours that a node looks for in each blob's mesh. 16 makes a near-regular random graph
    /// whose diameter is 3 at 1,000 nodes.
    pub degree: usize,
    /// Where nodes say in which rack they are: neighbours in the same one,
    pub degree_near: usize,
    /// and elsewhere. Whoever is to bring a chunk into a rack has to know somebody who has it: with
    /// racks of 20, oversubscribed 10:1, 2 GB end 1.06 s after the bound with 6, 0.55 s with 10
    /// \[sim\].
    pub degree_far: usize,
    /// How long a node with little requested, and then nothing, waits for what other members are to
    /// bring into its rack or zone before it fetches that from afar itself, a chunk at a time. Those
    /// that fetch too soon fill the pipe that the others wait for: 3.2 s after 100 ms and four at a
    /// time, 2.6 s after 300 ms and one at a time \[sim\].
    pub hungry_after: Duration,
    /// Neighbours that it accepts, so that late joiners find room.
    pub degree_max: usize,
    /// Below so many neighbours it asks the steward for more.
    pub degree_low: usize,

    /// Chunks requested and not yet received, at least. The smallest chunks take 20 ms at
    /// 100 Mbit/s, and a request may wait for 100 ms in the queues of two busy links: with fewer a
    /// node idles between answers. With 16 nodes at 100 Mbit/s the last one ends 1.3 s after the
    /// bound with 16, 2.2 s with 12 \[sim\]; on real links of 50 Mbit/s 384 MiB take 75 s with 16
    /// or 20, 79 s with 12, 80 s and more with 24.
    pub outstanding_min: usize,
    /// And at most, in bytes: they are receive buffers.
    pub outstanding_bytes_max: u64,
    /// The part of a second of its own download rate that a node keeps requested. At 1 Gbit/s 64
    /// nodes end after 10.2 s with 100 ms, 10.8 s with 50 ms, for a bound of 8.6 s \[sim\].
    pub outstanding_window: Duration,
    /// Chunks outstanding at one neighbour, where there are neighbours enough: with fewer at each,
    /// more uplinks have something to send.
    pub outstanding_per_peer: usize,

    /// Chunks sent at once, at least. More share the uplink and make every one of them late; with
    /// fewer the uplink idles whenever a receiver's link is shared: 2 slots cost 7 % against 4
    /// \[sim\]. TCP takes its time to fill what another connection leaves free, which no simulation
    /// here knows: on links of 50 Mbit/s 16 nodes end 384 MiB after 78.5 s with 4 slots, 71.8 s with
    /// 6, 70.8 s with 8; simulated, 6 and 8 take up to 3 % more than 4.
    pub upload_slots: usize,
    /// And at most. 100 nodes at 10 Gbit/s use 92 % of their uplinks with 4 slots, 95 % with 8, 96 %
    /// with 16 \[sim\].
    pub upload_slots_max: usize,
    /// How long the chunks that are sent at once take together: on fast links chunks are short, and
    /// the receivers' links more often the narrower ones for a while.
    pub upload_time: Duration,
    /// Requests that wait for a slot; the next one is told that we are busy. A request that waits
    /// here keeps its sender from asking an idle neighbour: with 16 nodes at 100 Mbit/s the last
    /// one ends after 30.3 s with queues of 12, 28.5 s with 2, in chunks of 4 MiB \[sim\].
    pub upload_queue: usize,
    /// More may wait while the uplink sends them all within this time: small chunks on a fast link
    /// are gone before anybody can ask again. 39 nodes that pull from one at 10 Gbit/s end 0.87 s
    /// after the bound with 4 ms, 0.99 s with none \[sim\].
    pub upload_queue_time: Duration,
    /// But no more than so many.
    pub upload_queue_max: usize,

    /// How long chunk announcements are gathered before they are sent.
    pub have_interval: Duration,
    /// The part of the requests that take the oldest chunk instead of the rarest. With none of them
    /// the hash of the whole, which is computed in order, ends a tenth of a second after the last
    /// chunk is in; with all of them the neighbours have nothing to give each other: 100 nodes at
    /// 10 Gbit/s end 0.68 s after the bound with none, 0.52 s with half, 0.65 s with all \[sim\].
    pub oldest_share: f64,
    /// Candidates among which the rarest chunk is taken.
    pub rarest_sample: usize,
    /// How far ahead of a reader chunks are taken, in chunks. What comes out of order waits for the
    /// hash of the whole, which is computed in order and not much faster than 10 Gbit/s: 10 GB at
    /// 100 nodes take 9.0 s with 128 chunks, 9.3 s with 256, 10.2 s with 2048, for a bound of 8 s
    /// \[sim\].
    pub window_chunks: u32,

    /// The shortest time without progress after which a request is given up.
    pub request_timeout: Duration,
    /// The shortest age at which the last chunks are asked for twice.
    pub endgame_after: Duration,
    /// How long a neighbour that did not answer is left alone, at first.
    pub stall_penalty: Duration,
    /// Chunks with wrong bytes after which a peer is left alone.
    pub strikes_max: u32,
    /// How long it is left alone then.
    pub strike_penalty: Duration,

    /// With so many members a puller looks for others among them before it joins: were all to join
    /// at once, the connections alone, at a millisecond of CPU time each, would keep 16 cores of the
    /// steward busy for 0.6 s at 10,000 members, for the manifest and again for the layers \[sim\].
    pub crowd: usize,
    /// Where others pull too, the joins are spread over so long for each member,
    pub crowd_spread: Duration,
    /// and over so long at most: less than [`fallback_after`](Self::fallback_after).
    pub crowd_spread_max: Duration,
    /// A puller repeats its join so often.
    pub join_interval: Duration,
    /// It repeats a join that was not answered after so long.
    pub join_resend: Duration,
    /// It asks the next-ranked steward to act after so long.
    pub takeover_after: Duration,
    /// A puller that no steward answers reads from the origin itself after so long.
    pub fallback_after: Duration,
    /// Origin streams of a node without a steward.
    pub fallback_streams: u32,

    /// How long a lease should take: its bytes follow from what the finished ones took.
    pub lease_time: Duration,
    /// And at most while much of the blob is left: 16 nodes with 1 GiB on links of 50 Mbit/s end
    /// after 1.11 times the bound with 250 ms, 1.08 with 4 s \[sim\].
    pub lease_time_max: Duration,
    /// Bytes in a lease at least, or one chunk where that is more. With 4 MiB a few nodes hold all
    /// that is new, and their uplinks are the bottleneck: 1.18 times the bound at 16 nodes on
    /// 100 Mbit/s links, against 1.10 with 1 MiB \[sim\].
    pub lease_bytes_min: u64,
    /// And at most.
    pub lease_bytes_max: u64,
    /// A leaseholder reports at least so often, also while the origin is silent.
    pub report_interval: Duration,
    /// A leaseholder that has not reported for so long loses its leases.
    pub lease_silence: Duration,
    /// A lease without a byte of progress for so long goes to another holder, which may have a
    /// better way to the origin.
    pub lease_stall: Duration,
    /// How long a new steward gathers joins before it grants leases.
    pub rebuild: Duration,
    /// A puller that has not joined for so long is forgotten.
    pub joiner_expiry: Duration,
    /// Origin streams of an upstream to begin with, over the whole cluster: enough that the origin's
    /// link stays full although its readers' links are full too. 4 nodes with 1 GiB on links of
    /// 50 Mbit/s and 20 ms end after 1.075 times the bound with 8, 1.063 with 12 \[sim\].
    pub streams_start: u16,
    /// And at most.
    pub streams_max: u16,
    /// How long a keeper's grant of streams is valid.
    pub streams_expiry: Duration,

    /// Whether pulls wait for the first exchange of member lists: set when there is someone to
    /// join.
    pub wait_for_members: bool,
    /// How long they wait at most.
    pub wait_for_members_max: Duration,
    /// Member lists are compared with a random member so often.
    pub sync_interval: Duration,
    /// Complete blobs are announced again to their stewards so often.
    pub announce_interval: Duration,
    /// How long the answer of an origin about a tag stays fresh.
    pub tag_ttl: Duration,
    /// How long a question about a tag may stay without an answer before the next node is asked.
    pub tag_timeout: Duration,
    /// A machine whose clock jumped by more than this was asleep: what it granted or was granted
    /// may be in other hands.
    pub asleep_after: Duration,
    /// A mistake to make on purpose, in tests.
    #[cfg(feature = "mutations")]
    pub mutation: Option<Mutation>,
}

impl Config {
    /// Whether this mistake is to be made.
    #[cfg(feature = "mutations")]
    pub(crate) fn makes(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    /// Whether this mistake is to be made: never.
    #[cfg(not(feature = "mutations"))]
    #[expect(clippy::unused_self, reason = "the same signature as with the feature")]
    pub(crate) fn makes(&self, _: Mutation) -> bool {
        false
    }

    /// Neighbours at most in a mesh, wherever they stand.
    pub(crate) fn degree_most(&self) -> usize {
        let placed = self.degree_near + self.degree_far;
        self.degree_max.max(placed + placed / 4)
    }

    /// Chunks of this size outstanding at most.
    pub(crate) fn outstanding_max(&self, chunk_bytes: u64) -> usize {
        (self.outstanding_bytes_max / chunk_bytes) as usize
    }
}

impl Default for Config {
    fn default() -> Self {
        let ms = Duration::from_millis;
        let s = Duration::from_secs;
        Self {
            degree: 16,
            degree_near: 10,
            degree_far: 10,
            hungry_after: ms(300),
            degree_max: 20,
            degree_low: 12,
            outstanding_min: 16,
            outstanding_bytes_max: 64 << 20,
            outstanding_window: ms(100),
            outstanding_per_peer: 2,
            upload_slots: 6,
            upload_slots_max: 12,
            upload_time: ms(36),
            upload_queue: 4,
            upload_queue_time: ms(4),
            upload_queue_max: 16,
            have_interval: ms(15),
            oldest_share: 0.5,
            rarest_sample: 16,
            window_chunks: 128,
            request_timeout: s(1),
            endgame_after: ms(150),
            stall_penalty: s(2),
            strikes_max: 3,
            strike_penalty: s(60),
            crowd: 2000,
            crowd_spread: Duration::from_micros(100),
            crowd_spread_max: s(1),
            join_interval: s(2),
            join_resend: ms(300),
            takeover_after: ms(700),
            fallback_after: s(2),
            fallback_streams: 2,
            lease_time: ms(250),
            lease_time_max: s(4),
            lease_bytes_min: 1 << 20,
            lease_bytes_max: 16 << 20,
            report_interval: ms(250),
            lease_silence: s(1),
            lease_stall: s(5),
            rebuild: ms(300),
            joiner_expiry: s(10),
            streams_start: 12,
            streams_max: 32,
            streams_expiry: s(5),
            wait_for_members: false,
            wait_for_members_max: s(2),
            sync_interval: s(30),
            announce_interval: s(600),
            tag_ttl: s(10),
            tag_timeout: s(3),
            asleep_after: s(3),
            #[cfg(feature = "mutations")]
            mutation: None,
        }
    }
}
