//! The worlds that can be asked for by name.

use shoal_protocol::{config::Config, time::Duration};

/// A world before it runs.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    /// As on the command line.
    pub(crate) name: &'static str,
    /// All randomness of the run.
    pub(crate) seed: u64,
    /// Hosts that pull, the origin not counted.
    pub(crate) nodes: usize,
    /// Each host's link, each way, in bytes per second.
    pub(crate) rate: f64,
    /// The origin's, in bytes per second.
    pub(crate) origin_rate: f64,
    /// Bytes of the image's layers together.
    pub(crate) image_bytes: u64,
    /// How many layers share them.
    pub(crate) layers: usize,
    /// One way, between any two hosts.
    pub(crate) latency: Duration,
    /// From an origin request to its first byte.
    pub(crate) first_byte: Duration,
    /// Layers that a client pulls at once.
    pub(crate) parallel: usize,
    /// Nodes that hold the image from the start.
    pub(crate) warm: usize,
    /// Whether the origin refuses everybody.
    pub(crate) origin_away: bool,
    /// Streams beyond which the origin answers 429.
    pub(crate) origin_streams: Option<usize>,
    /// Nodes that begin only when the others have half of the image.
    pub(crate) late: usize,
    /// What goes wrong, and when.
    pub(crate) faults: Vec<Planned>,
    /// Settings of every node.
    pub(crate) config: Config,
}

/// A fault, at a share of the lower bound after the pulls began.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    pub(crate) at_share: f64,
    pub(crate) fault: Fault,
    pub(crate) victim: Victim,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The process is killed; it starts again with its chunks after that time, if at all.
    Kill { restart_after: Option<Duration> },
    /// The process handles and sends nothing for that time.
    Freeze { thaw_after: Duration },
}

/// Whom it strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Victim {
    /// A node that is reading from the origin.
    Holder,
    /// The steward of a blob in transfer.
    Steward,
    /// Any node, as the seed has it.
    #[cfg_attr(not(test), expect(dead_code, reason = "random worlds are tests"))]
    Any,
}

const MBIT: f64 = 1e6 / 8.0;
const MIB: u64 = 1 << 20;

/// Names and what they are about.
pub(crate) const NAMES: [(&str, &str); 10] = [
    (
        "cold",
        "64 nodes at 1 Gbit/s pull 1 GiB at once, the origin as fast as a node",
    ),
    (
        "cold-slow",
        "16 nodes at 100 Mbit/s pull 256 MiB in 5 layers of unequal size",
    ),
    (
        "killed",
        "cold-slow, a node that reads from the origin is killed and comes back",
    ),
    (
        "frozen",
        "cold-slow, a node that reads from the origin freezes for 20 seconds",
    ),
    (
        "steward-killed",
        "cold-slow, the steward of a layer is killed",
    ),
    (
        "steward-frozen",
        "cold-slow, the steward of a layer freezes for 20 seconds",
    ),
    (
        "warm",
        "cold-slow, two nodes hold the image and the origin is away",
    ),
    (
        "late",
        "cold-slow, four nodes come when the others have half",
    ),
    (
        "throttled",
        "cold-slow, the origin answers 429 beyond two streams",
    ),
    (
        "many-layers",
        "16 nodes at 1 Gbit/s pull 2 GiB in 40 layers",
    ),
];

impl Scenario {
    /// The scenario of this name, with its defaults.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let name = NAMES.iter().find(|(known, _)| *known == name)?.0;
        let slow = Self {
            name,
            seed: 1,
            nodes: 16,
            rate: 100.0 * MBIT,
            origin_rate: 100.0 * MBIT,
            image_bytes: 256 * MIB,
            layers: 5,
            latency: Duration::from_micros(250),
            first_byte: Duration::from_millis(20),
            parallel: 6,
            warm: 0,
            origin_away: false,
            origin_streams: None,
            late: 0,
            faults: Vec::new(),
            config: Config::default(),
        };
        let fault = |fault, victim| {
            vec![Planned {
                at_share: 0.4,
                fault,
                victim,
            }]
        };
        let kill = Fault::Kill {
            restart_after: Some(Duration::from_secs(8)),
        };
        let freeze = Fault::Freeze {
            thaw_after: Duration::from_secs(20),
        };
        Some(match name {
            "cold" => Self {
                nodes: 64,
                rate: 1000.0 * MBIT,
                origin_rate: 1000.0 * MBIT,
                image_bytes: 1024 * MIB,
                layers: 1,
                ..slow
            },
            "many-layers" => Self {
                rate: 1000.0 * MBIT,
                origin_rate: 1000.0 * MBIT,
                image_bytes: 2048 * MIB,
                layers: 40,
                ..slow
            },
            "killed" => Self {
                faults: fault(kill, Victim::Holder),
                ..slow
            },
            "frozen" => Self {
                faults: fault(freeze, Victim::Holder),
                ..slow
            },
            "steward-killed" => Self {
                faults: fault(kill, Victim::Steward),
                ..slow
            },
            "steward-frozen" => Self {
                faults: fault(freeze, Victim::Steward),
                ..slow
            },
            "warm" => Self {
                warm: 2,
                origin_away: true,
                ..slow
            },
            "late" => Self { late: 4, ..slow },
            "throttled" => Self {
                origin_streams: Some(2),
                ..slow
            },
            _ => slow,
        })
    }

    /// Changes a setting of every node.
    ///
    /// # Errors
    /// Not NAME=NUMBER, or a name that is not among those worth an experiment.
    pub(crate) fn set(&mut self, setting: &str) -> anyhow::Result<()> {
        let (name, number) = setting
            .split_once('=')
            .ok_or_else(|| anyhow::anyhow!("{setting:?} is not NAME=NUMBER"))?;
        let number: u32 = number.parse()?;
        let ms = Duration::from_millis(u64::from(number));
        let config = &mut self.config;
        match name {
            "degree" => config.degree = number as usize,
            "outstanding_min" => config.outstanding_min = number as usize,
            "outstanding_per_peer" => config.outstanding_per_peer = number as usize,
            "outstanding_window" => config.outstanding_window = ms,
            "upload_slots" => config.upload_slots = number as usize,
            "upload_queue" => config.upload_queue = number as usize,
            "rarest_sample" => config.rarest_sample = number as usize,
            "have_interval" => config.have_interval = ms,
            "request_timeout" => config.request_timeout = ms,
            "endgame_after" => config.endgame_after = ms,
            "lease_bytes_min" => config.lease_bytes_min = u64::from(number),
            "streams_start" => config.streams_start = number as u16,
            "streams_max" => config.streams_max = number as u16,
            "parallel" => self.parallel = number as usize,
            "first_byte" => self.first_byte = ms,
            _ => anyhow::bail!("{name:?} is not a setting that can be changed here"),
        }
        Ok(())
    }

    /// Bytes of each layer: heavy-tailed, as layers are.
    pub(crate) fn layer_sizes(&self) -> Vec<u64> {
        let weight = |layer: usize| 1.0 / ((layer + 1) as f64).powf(1.2);
        let all: f64 = (0..self.layers).map(weight).sum();
        (0..self.layers)
            .map(|layer| (self.image_bytes as f64 * weight(layer) / all) as u64)
            .collect()
    }

    /// No schedule whatever can be faster: the origin has to send every byte once, each node has
    /// to receive every byte, and all that is received has to be sent by someone. In seconds.
    pub(crate) fn lower_bound(&self) -> f64 {
        let bytes = self.layer_sizes().iter().sum::<u64>() as f64;
        let pullers = self.nodes - self.warm;
        let (once, origin) = if self.origin_away {
            (bytes / (self.rate * self.warm.max(1) as f64), 0.0)
        } else {
            (bytes / self.origin_rate, self.origin_rate)
        };
        let everyone = bytes * pullers as f64 / (origin + self.nodes as f64 * self.rate);
        once.max(bytes / self.rate).max(everyone)
    }
}
