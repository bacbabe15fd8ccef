//! How a world begins: nodes that find each other, or that have known each other for a while.

use rand::{RngExt as _, rngs::StdRng};
use shoal_protocol::{
    core::Core,
    directory::{Directory, NodeId, NodeRecord, Peer, Place},
    event::Event,
    time::Time,
};

use super::{BEGINNING, Happening, World};
use crate::{
    host::{Host, store::Stored},
    net::{NodeIndex, SECOND},
    scenario::Scenario,
};

/// Booting nodes have to find each other within this time.
const BOOT_MAX: u64 = 30 * SECOND;

/// The daemons of a cluster have been up for a while when an image is pulled: right after a change
/// of membership a steward hesitates.
const RUN_IN: u64 = 3 * SECOND;

/// Settled nodes have spoken to others at random for so long as the daemon keeps an idle control
/// connection.
const CONNECTION_IDLE_SECONDS: f64 = 60.0;

/// Messages that SWIM sends to a random member each second: 3 members five times, and a probe.
const SWIM_PER_SECOND: f64 = 16.0;

/// The hosts of a world and the origin, which comes last, named in a common directory.
pub(super) fn hosts(scenario: &Scenario, rng: &mut StdRng) -> (Directory, Vec<Host>) {
    let directory = Directory::new();
    let layout = &scenario.layout;
    let racks = u32::from(layout.racks) * u32::from(layout.zones);
    // Operators say where nodes stand where the pipes between are narrow.
    let place = |number: usize| {
        let rack = number as u32 % racks.max(1);
        Place {
            zone: 1 + rack % u32::from(layout.zones.max(1)),
            rack: 1 + rack,
        }
    };
    let labelled = layout.rack_oversubscribed.is_some() || layout.zone_oversubscribed.is_some();
    let hosts = (0..=scenario.nodes)
        .map(|number| {
            let [_, _, a, b] = (number as u32).to_be_bytes();
            let record = NodeRecord {
                id: NodeId(rng.random()),
                generation: 1,
                addresses: vec![([10, 0, a, b], 5004).into()],
                place: if labelled {
                    place(number)
                } else {
                    Place::default()
                },
            };
            let peer = directory.intern(&record);
            debug_assert_eq!(peer, Peer(number as u32));
            Host::new(record, scenario.nodes + 1, 0)
        })
        .collect();
    (directory, hosts)
}

impl World {
    /// Until the pulls begin.
    pub(super) fn boot(&mut self) {
        self.until(BEGINNING, |_| false);
        if self.scenario.settled {
            self.settle();
        } else {
            self.find_each_other();
        }
        self.until(self.net.now() + RUN_IN, |_| false);
        for host in 0..self.scenario.warm {
            self.hold_all(host);
        }
        self.until(self.net.now() + SECOND, |_| false);
    }

    fn find_each_other(&mut self) {
        for host in 0..self.origin {
            let seed = self.rng.random();
            self.start(host, seed);
            if host > 0 {
                self.dial(host, 0);
            }
        }
        let booted = self.net.now();
        let members = self.origin;
        let settled = self.until(booted + BOOT_MAX, |world| {
            (0..members).all(|host| {
                let knows = |core: &mut Core| core.member_count() == members;
                world.machines.with(host, knows).unwrap_or_default()
            })
        });
        self.checkers.ensure(settled, || {
            "the members never all saw each other".to_owned()
        });
        self.checkers.settled_nanos = self.net.now() - booted;
    }

    /// All know all, and are connected to those that they spoke to lately.
    fn settle(&mut self) {
        let all: Vec<Peer> = (0..self.origin as u32).map(Peer).collect();
        let half = self.origin / 2;
        let chance =
            1.0 - (-2.0 * SWIM_PER_SECOND * CONNECTION_IDLE_SECONDS / self.origin as f64).exp();
        for a in 0..self.origin {
            for b in a + 1..self.origin {
                if self.rng.random::<f64>() < chance {
                    self.hosts[a].connected.insert(b);
                    self.hosts[b].connected.insert(a);
                }
            }
        }
        // Not all at once: their timers go round for ever from when they start.
        let mut order: Vec<(u64, NodeIndex)> = (0..self.origin)
            .map(|host| (self.net.now() + self.rng.random_range(0..SECOND), host))
            .collect();
        order.sort_unstable();
        for (at, host) in order {
            self.until(at, |_| false);
            let seed = self.rng.random();
            self.start(host, seed);
            let knows = if self.scenario.two_views && host < half {
                &all[..half]
            } else {
                &all[..]
            };
            let others: Vec<Peer> = knows
                .iter()
                .copied()
                .filter(|peer| peer.0 as usize != host)
                .collect();
            let deadline = self.machines.with(host, |core| {
                core.recall(&others);
                core.deadline()
            });
            self.wants_call(host, deadline);
        }
    }

    /// Starts a host's process.
    pub(super) fn start(&mut self, host: NodeIndex, seed: u64) {
        let mut config = self.scenario.config.clone();
        config.wait_for_members = self.hosts[host].epoch > 0;
        self.hosts[host].boot();
        let Host {
            record,
            epoch,
            clock_ahead,
            ..
        } = &self.hosts[host];
        let core = Core::new(
            config,
            record.clone(),
            self.directory.clone(),
            seed.wrapping_add(u64::from(*epoch) << 32),
            Time::from_nanos(self.net.now() + clock_ahead),
        );
        let deadline = core.deadline();
        self.machines.start(host, *epoch, core);
        self.wants_call(host, Some(deadline));
    }

    fn hold_all(&mut self, host: NodeIndex) {
        for index in 0..self.content.blobs.len() {
            let blob = &self.content.blobs[index];
            let (digest, kind, size) = (blob.digest, blob.kind, blob.size);
            self.hosts[host].blobs[index] = Some(Box::new(Stored::complete(kind, size)));
            let held = Event::Held {
                blob: digest,
                kind,
                size,
            };
            self.feed(host, held);
        }
    }

    /// The pulls begin.
    pub(super) fn begin(&mut self) {
        self.began = self.net.now();
        self.net.count_anew();
        self.checkers.began();
        let bound = self.scenario.lower_bound() * 1e9;
        let stagger = self.scenario.stagger.as_nanos() as u64;
        let first_late = self.origin - self.scenario.late.min(self.origin);
        for host in 0..self.origin {
            if self.wanted[host].is_empty() {
                continue;
            }
            let mut at = self.began + self.rng.random_range(0..stagger.max(1));
            if host >= first_late {
                at += (bound / 2.0) as u64;
            }
            self.net.at(at, Happening::Pull(host as u32));
        }
        for (number, planned) in self.scenario.faults.iter().enumerate() {
            if planned.left_out {
                continue;
            }
            let at = self.began + (bound * planned.at_share) as u64;
            self.net.at(at, Happening::Fault(number as u32));
        }
    }
}
