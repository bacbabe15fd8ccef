//! One contender in one scenario with so many nodes.

use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::contender::{Contender, Course};
use crate::support::daemon::peak_resident_bytes;
use crate::support::image::Image;
use crate::support::netns::Lab;
use crate::usage::{self, Machine};

/// What is set up is left alone for so long: nobody's first seconds are measured.
const SETTLE: Duration = Duration::from_secs(4);

/// Who has what, and when the nodes begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Scenario {
    /// Nobody has anything, and all begin at once.
    Cold,
    /// Nobody has anything, and the nodes begin one after the other, within the time that one pull
    /// needs at least.
    Staggered,
    /// One node has pulled the image before, and all others begin at once. That node is the one seed:
    /// the origin's own BitTorrent client has left. Registries stay, since mirrors look there for the
    /// tag.
    Cached,
}

impl Scenario {
    pub(crate) const ALL: [Self; 3] = [Self::Cold, Self::Staggered, Self::Cached];

    /// On the command line and in the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Staggered => "staggered",
            Self::Cached => "cached",
        }
    }
}

/// What all races have in common.
pub(crate) struct Rules {
    /// Every link, in Mbit/s.
    pub(crate) link: u64,
    pub(crate) image: Image,
}

/// What came of a race.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) scenario: String,
    pub(crate) nodes: usize,
    pub(crate) contender: String,
    /// What no contender can beat: every node receives the image over its link, the origin sends it
    /// once over its own.
    pub(crate) bound_seconds: f64,
    /// What the last node cannot beat if the bytes of all nodes pass one host's link: that is as long
    /// busy, less what the node that begins last comes later than the first.
    pub(crate) star_bound_seconds: Option<f64>,
    /// From each node's own start to its last byte, checked; sorted.
    pub(crate) seconds: Vec<f64>,
    /// To its first byte of a blob, at the median node; BitTorrent hands none out before the end.
    pub(crate) first_byte_seconds: f64,
    /// What the origin sent while it was measured, as multiples of the image.
    pub(crate) origin_copies: f64,
    /// Processor time of all that distributes, per GiB that was delivered.
    pub(crate) cpu_seconds_per_gib: f64,
    /// The most memory that one of its processes has had.
    pub(crate) peak_bytes: u64,
    /// The part of all processors in use, the clients' and the origin's work included.
    pub(crate) machine_busy: f64,
}

impl Outcome {
    /// The time that a share of the nodes did not exceed.
    pub(crate) fn percentile(&self, share: f64) -> f64 {
        shoal_simulations::percentile(&self.seconds, share)
    }

    /// What set the pace: above nine tenths of the processors the links cannot be filled.
    pub(crate) fn bottleneck(&self) -> &'static str {
        if self.machine_busy > 0.9 {
            "CPU"
        } else {
            "network"
        }
    }
}

/// Runs it.
///
/// # Errors
///
/// A node did not get the image.
pub(crate) fn run(
    rules: &Rules,
    scenario: Scenario,
    nodes: usize,
    contender: Contender,
) -> Result<Outcome, String> {
    let lab = Lab::new(nodes + 2, Some(rules.link));
    let (origin, rest) = lab.hosts().split_first().expect("it has hosts");
    let (helper, places) = rest.split_first().expect("it has hosts");
    let course = Course {
        origin,
        helper,
        nodes: places,
        image: &rules.image,
    };
    let bound = rules.image.bytes() as f64 / (rules.link as f64 * 1e6 / 8.0);
    let entrant = contender.enter(&course);
    thread::sleep(SETTLE);
    let first = usize::from(scenario == Scenario::Cached);
    for node in 0..first {
        entrant.pull(node)?;
        entrant.leave_to_nodes();
    }
    let pulling = nodes - first;
    let pause = match scenario {
        Scenario::Staggered => bound / nodes as f64,
        Scenario::Cold | Scenario::Cached => 0.0,
    };
    let cpu = |pids: Vec<u32>| pids.into_iter().map(usage::cpu_seconds).sum::<f64>();
    let (machine, cpu_before) = (Machine::now(), cpu(entrant.processes()));
    let copies_before = entrant.origin_copies();
    let pulls: Result<Vec<_>, String> = thread::scope(|scope| {
        let pull = |node: usize| {
            let entrant = &entrant;
            scope.spawn(move || {
                thread::sleep(Duration::from_secs_f64(pause * node as f64));
                entrant.pull(node)
            })
        };
        let workers: Vec<_> = (first..nodes).map(pull).collect();
        workers
            .into_iter()
            .map(|worker| worker.join().expect("a client does not panic"))
            .collect()
    });
    let machine_busy = Machine::now().busy_since(machine);
    let pulls = pulls?;
    let sorted = |of: fn(&crate::support::client::Pull) -> Duration| {
        let mut seconds: Vec<f64> = pulls.iter().map(|pull| of(pull).as_secs_f64()).collect();
        seconds.sort_by(f64::total_cmp);
        seconds
    };
    let delivered = rules.image.bytes() as f64 * pulling as f64 / f64::from(1 << 30);
    let processes = entrant.processes();
    Ok(Outcome {
        scenario: scenario.name().to_owned(),
        nodes,
        contender: contender.name().to_owned(),
        bound_seconds: bound,
        star_bound_seconds: contender
            .is_star()
            .then_some(bound * pulling as f64 - pause * (pulling - 1) as f64),
        seconds: sorted(|pull| pull.took),
        first_byte_seconds: sorted(|pull| pull.first_byte)[pulling / 2],
        origin_copies: entrant.origin_copies() - copies_before,
        cpu_seconds_per_gib: (cpu(processes.clone()) - cpu_before) / delivered,
        peak_bytes: processes
            .into_iter()
            .filter_map(peak_resident_bytes)
            .max()
            .unwrap_or(0),
        machine_busy,
    })
}
