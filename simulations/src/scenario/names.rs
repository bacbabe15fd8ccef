//! The worlds that have a name.
//!
//! `NAME-N` is the world NAME with N nodes; NAME alone has the number that stands here.

use shoal_protocol::{config::Config, time::Duration};

use super::{
    BOOTING_MAX, Fault, GBIT, Image, Layout, Limits, MBIT, MIB, Machine, Origin, Planned, Scenario,
    Victim,
};

/// Names, and what they are about.
pub(crate) const NAMES: &[(&str, &str)] = &[
    // The cluster of the acceptance: 10 GB in 12 layers, 10 Gbit/s each way.
    (
        "cold",
        "all nodes pull at once; 10 Gbit/s nodes and origin, 10 GB in 12 unequal layers",
    ),
    ("single", "cold, in one layer"),
    ("small", "cold, 1 GB"),
    ("layers", "cold, in 40 layers"),
    ("staggered", "cold, the nodes begin over 60 s"),
    ("warm1", "cold, one node holds the image"),
    ("warm3", "cold, 3 nodes hold the image"),
    ("warm100", "cold, 100 nodes hold the image"),
    (
        "outage",
        "cold, three nodes hold the image and the origin is away",
    ),
    ("tenth", "cold, the origin has a tenth of a node's rate"),
    ("gigabit", "cold, nodes and origin at 1 Gbit/s"),
    ("crash", "cold, 5 % of the nodes crash"),
    ("slow", "cold, 5 % of the nodes have a tenth of the rate"),
    ("crash-slow", "cold, 5 % crash and 5 % are slow"),
    ("racks", "cold, racks of 20 with pipes oversubscribed 10:1"),
    ("zones", "cold, three zones 1 ms apart, oversubscribed 4:1"),
    ("steward", "cold, the steward of a layer is killed"),
    ("views", "cold, half of the nodes know only their half"),
    ("partition", "cold, two halves are cut apart for 5 s"),
    ("broken", "cold, the origin is away for 5 s in the middle"),
    (
        "refused",
        "cold, the origin answers 429 for 3 s in the middle",
    ),
    (
        "latecomer",
        "cold, one node in ten begins when the others have half",
    ),
    ("corrupt", "cold, a node sends wrong bytes"),
    (
        "liar",
        "cold, a node vouches for wrong bytes of what it reads from the origin",
    ),
    ("images", "8 images of 0.2 to 10 GB, each node pulls two"),
    ("full", "cold, a node's disk is full"),
    ("fast", "100 Gbit/s nodes and origin, 12 equal layers"),
    ("rolling", "cold, every node restarts, one after the other"),
    ("lossy", "cold, one packet in 10,000 is lost"),
    // Small and slow: what real daemons are measured with.
    (
        "lan",
        "16 nodes at 100 Mbit/s pull 256 MiB in 5 layers of unequal size",
    ),
    (
        "killed",
        "lan, a node that reads from the origin is killed and comes back",
    ),
    (
        "frozen",
        "lan, a node that reads from the origin freezes for 20 s",
    ),
    ("steward-killed", "lan, the steward of a layer is killed"),
    (
        "steward-frozen",
        "lan, the steward of a layer freezes for 20 s",
    ),
    (
        "warm",
        "lan, two nodes hold the image and the origin is away",
    ),
    ("late", "lan, four nodes come when the others have half"),
    (
        "throttled",
        "lan, the origin answers 429 beyond two streams",
    ),
];

/// The world of which the seed decides everything.
pub(crate) const RANDOM: &str = "random";

/// Nodes of a world whose name says no number.
const NODES: usize = 100;
const NODES_LAN: usize = 16;

/// Hosts in a rack.
const RACK: usize = 20;

/// Bytes of memory for each node of a large world: 8 GB for 10,000.
const NODE_MEMORY: u64 = 800_000;

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

impl Scenario {
    /// The scenario of this name, with its defaults, and a number of nodes if the name says one.
    pub(crate) fn named(full_name: &str, seed: u64) -> Option<Self> {
        if full_name == RANDOM {
            return Some(Self::random(seed));
        }
        let known = |name: &str| NAMES.iter().any(|(known, _)| *known == name);
        let (name, nodes) = match full_name.rsplit_once('-') {
            _ if known(full_name) => (full_name, None),
            Some((name, number)) if known(name) => (name, Some(number.parse().ok()?)),
            _ => return None,
        };
        let at = NAMES.iter().position(|(known, _)| *known == name)?;
        let lan = at >= NAMES.iter().position(|(known, _)| *known == "lan")?;
        let mut world = if lan {
            Self::lan(nodes.unwrap_or(NODES_LAN))
        } else {
            Self::cluster(nodes.unwrap_or(NODES))
        };
        full_name.clone_into(&mut world.name);
        world.seed = seed;
        world.vary(name);
        Some(world)
    }

    /// 10 Gbit/s nodes in racks whose pipes carry everything.
    fn cluster(nodes: usize) -> Self {
        Self {
            name: String::new(),
            seed: 1,
            nodes,
            up: 10.0 * GBIT,
            down: 10.0 * GBIT,
            images: vec![Image {
                bytes: 10_000_000_000,
                layers: 12,
                heavy_tailed: true,
            }],
            images_each: 1,
            layout: Layout {
                zones: 1,
                racks: nodes.div_ceil(RACK) as u16,
                rack_oversubscribed: None,
                zone_oversubscribed: None,
                latency_rack: Duration::from_micros(50),
                latency_zone: Duration::from_micros(100),
                latency_far: Duration::from_micros(1000),
                latency_origin: Duration::from_micros(250),
                loss: 0.0,
            },
            origin: Origin {
                rate: 10.0 * GBIT,
                stream_rate: None,
                first_byte: Duration::from_millis(20),
                streams_max: None,
                away: false,
            },
            machine: Machine::default(),
            parallel: 6,
            warm: 0,
            late: 0,
            stagger: Duration::from_millis(5),
            slow_share: 0.0,
            faults: Vec::new(),
            settled: nodes > BOOTING_MAX,
            two_views: false,
            config: Config::default(),
            limits: Limits {
                // Below that the program itself counts for more than the nodes.
                memory: (nodes >= 1000).then_some(NODE_MEMORY * nodes as u64),
                ..Limits::default()
            },
            changed: Vec::new(),
        }
    }

    /// A few hosts on an office network.
    pub(crate) fn lan(nodes: usize) -> Self {
        let rate = 100.0 * MBIT;
        let mut world = Self::cluster(nodes);
        world.up = rate;
        world.down = rate;
        world.origin.rate = rate;
        world.images[0].bytes = 256 * MIB;
        world.images[0].layers = 5;
        // What a fault may cost is in them; without one the worlds stay well below.
        world.limits = Limits {
            ratio: Some(1.25),
            gap_seconds: Some(2.5),
            copies: Some(1.02),
            wasted: Some(0.02),
            holder: Some(4.0),
            // So slow an uplink has the fewest slots, three times as many where receivers stall.
            sending: Some(3 * world.config.upload_slots),
            uncancelled: Some(0),
            ..world.limits
        };
        let latency = Duration::from_micros(250);
        world.layout.latency_rack = latency;
        world.layout.latency_zone = latency;
        world
    }

    /// What a name changes.
    fn vary(&mut self, name: &str) {
        let fault = |at_share, fault, victim| Planned {
            at_share,
            fault,
            victim,
            left_out: false,
        };
        let kill = Fault::Kill {
            restart_after: Some(s(8)),
        };
        let freeze = Fault::Freeze { thaw_after: s(20) };
        let share = |part: f64, nodes: usize| ((part * nodes as f64).round() as usize).max(1);
        let crashes = |nodes: usize| -> Vec<Planned> {
            let count = share(0.05, nodes);
            (0..count)
                .map(|number| {
                    let at = 0.1 + 0.8 * number as f64 / count as f64;
                    let kill = Fault::Kill {
                        restart_after: None,
                    };
                    fault(at, kill, Victim::Any)
                })
                .collect()
        };
        let slack = if self.nodes < 10_000 { 0.5 } else { 0.8 };
        let without_faults = Limits {
            p99: Some((1.05, slack)),
            copies: Some(1.01),
            control: Some(0.001),
            streams: Some(usize::from(self.config.streams_max)),
            upload: Some(1.5),
            ..self.limits
        };
        match name {
            "cold" => self.limits = without_faults,
            "single" => {
                self.images[0].layers = 1;
                self.limits = without_faults;
            }
            "layers" => {
                self.images[0].layers = 40;
                self.limits = without_faults;
                // While the last chunks of small layers go round, nobody asks for the next ones.
                self.limits.p99 = Some((1.05, 0.8));
            }
            "small" => {
                self.images[0].bytes = 1_000_000_000;
                self.limits.p99 = Some((1.0, 0.5));
            }
            "staggered" => self.stagger = s(60),
            "warm1" => {
                self.warm = 1;
                // All comes out of one uplink, so what it sends twice everyone waits for.
                self.limits.p99 = Some((1.1, 0.8));
            }
            "warm3" => self.warm = 3,
            "warm100" => self.warm = 100.min(self.nodes / 2),
            "outage" => {
                self.warm = 3;
                self.origin.away = true;
            }
            "tenth" => self.origin.rate /= 10.0,
            "gigabit" => {
                self.up = GBIT;
                self.down = GBIT;
                self.origin.rate = GBIT;
            }
            "crash" => self.faults = crashes(self.nodes),
            "slow" => self.slow_share = 0.05,
            "crash-slow" => {
                self.faults = crashes(self.nodes);
                self.slow_share = 0.05;
                self.limits.p99 = Some((1.1, 0.5));
                self.limits.copies = Some(1.05);
            }
            "racks" => {
                self.layout.rack_oversubscribed = Some(10.0);
                self.limits.p99 = Some((1.1, 0.5));
            }
            "zones" => {
                self.layout.zones = 3;
                self.layout.racks = self.nodes.div_ceil(3 * RACK) as u16;
                self.layout.zone_oversubscribed = Some(4.0);
            }
            "steward" => self.faults = vec![fault(0.3, kill, Victim::Steward)],
            "views" => {
                self.settled = true;
                self.two_views = true;
            }
            "partition" => {
                let part = Fault::Partition { heals_after: s(5) };
                self.faults = vec![fault(0.3, part, Victim::World)];
            }
            "broken" => {
                let outage = Fault::OriginOutage { ends_after: s(5) };
                self.faults = vec![fault(0.4, outage, Victim::World)];
            }
            "refused" => {
                let refuses = Fault::OriginRefuses {
                    retry_after: Some(s(1)),
                    ends_after: s(3),
                };
                self.faults = vec![fault(0.4, refuses, Victim::World)];
            }
            "latecomer" => self.late = share(0.1, self.nodes),
            "corrupt" => self.faults = vec![fault(0.1, Fault::CorruptChunks, Victim::Any)],
            "liar" => self.faults = vec![fault(0.1, Fault::LyingHolder, Victim::Holder)],
            "images" => {
                self.images = [0.2, 0.5, 1.0, 1.0, 2.0, 3.0, 5.0, 10.0]
                    .into_iter()
                    .map(|gigabytes| Image {
                        bytes: (gigabytes * 1e9) as u64,
                        layers: 12,
                        heavy_tailed: true,
                    })
                    .collect();
                self.images_each = 2;
            }
            "full" => {
                let full = Fault::FullDisk { ends_after: s(5) };
                self.faults = vec![fault(0.2, full, Victim::Any)];
            }
            "fast" => {
                self.up = 100.0 * GBIT;
                self.down = 100.0 * GBIT;
                self.origin.rate = 100.0 * GBIT;
                self.machine.disk_write = 25e9;
                self.machine.disk_read = 25e9;
                self.images[0].heavy_tailed = false;
                self.parallel = 12;
                self.limits.p99 = Some((1.15, 0.5));
            }
            "rolling" => {
                let rolling = Fault::RollingRestart {
                    down_for: Duration::from_secs(1),
                    pause: Duration::from_millis(500),
                };
                self.faults = vec![fault(0.1, rolling, Victim::World)];
            }
            "lossy" => self.layout.loss = 1e-4,
            "killed" => self.faults = vec![fault(0.4, kill, Victim::Holder)],
            "frozen" => self.faults = vec![fault(0.4, freeze, Victim::Holder)],
            "steward-killed" => self.faults = vec![fault(0.4, kill, Victim::Steward)],
            "steward-frozen" => self.faults = vec![fault(0.4, freeze, Victim::Steward)],
            "warm" => {
                self.limits.ratio = Some(1.6);
                self.limits.wasted = Some(0.08);
                self.warm = 2;
                self.origin.away = true;
            }
            "late" => self.late = 4,
            "throttled" => {
                self.origin.streams_max = Some(2);
                self.limits.ratio = Some(2.0);
                self.limits.wasted = Some(0.08);
            }
            _ => {}
        }
    }
}
