//! The command line, and the scenario that it names.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;
use shoal_protocol::time::Duration;

use crate::scenario::{GBIT, Scenario};

/// Runs the exchange in virtual time and reports how far it stays from the lower bound.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Arguments {
    /// Which world, with a number of nodes: cold-100, racks-1000; see --list.
    #[arg(long, default_value = "cold-100")]
    pub(crate) scenario: String,
    /// Decides everything that is random.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Runs so many seeds, from --seed on.
    #[arg(long, default_value_t = 1)]
    pub(crate) seeds: u64,
    /// Another value for an option of the world or a setting of every node, as NAME=VALUE; durations
    /// in milliseconds, rates in Gbit/s. A wrong name lists them all.
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) set: Vec<String>,
    /// Adds how much of the links was used in each tenth of a second.
    #[arg(long)]
    pub(crate) timeline: bool,
    /// Tells what this node's machine did instead, until something broke.
    #[arg(long, value_name = "NODE")]
    pub(crate) follow: Option<usize>,
    /// One object for each run, on a line of its own.
    #[arg(long)]
    pub(crate) json: bool,
    /// Runs so many random worlds on all cores until one breaks something.
    #[arg(long, value_name = "COUNT")]
    pub(crate) swarm: Option<u64>,
    /// The first seed of --swarm.
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    pub(crate) seed_from: u64,
    /// Compares everybody on the same links, and writes pictures and a table into this directory.
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) report: Option<PathBuf>,
    /// Runs every world with many seeds, which takes hours, and keeps the runs and a table of them in
    /// this directory; goes on where it was stopped.
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) campaign: Option<PathBuf>,
    /// Names the scenarios.
    #[arg(long)]
    pub(crate) list: bool,
}

impl Arguments {
    /// The world that is asked for.
    ///
    /// # Errors
    /// There is no such world or option.
    pub(crate) fn scenario(&self, seed: u64) -> anyhow::Result<Scenario> {
        let mut scenario = Scenario::named(&self.scenario, seed).with_context(|| {
            format!(
                "there is no scenario {:?}; --list names them",
                self.scenario
            )
        })?;
        for setting in &self.set {
            scenario.set(setting)?;
        }
        anyhow::ensure!(scenario.nodes > scenario.warm, "more nodes are needed");
        let has_bytes = scenario
            .images
            .iter()
            .all(|image| image.layers > 0 && image.bytes > 0);
        anyhow::ensure!(has_bytes, "an image has layers");
        let config = &scenario.config;
        anyhow::ensure!(
            config.lease_bytes_min <= config.lease_bytes_max,
            "lease_bytes_min is more than lease_bytes_max; set both"
        );
        Ok(scenario)
    }
}

/// What `--set` changes, for the message that lists them.
const SETTINGS: &str = "nodes, up, down, rate (both), origin_rate, origin_stream_rate, \
    origin_streams, size, layers, equal_layers, parallel, warm, late, stagger, slow_share, loss, \
    zones, racks, rack_oversubscribed, zone_oversubscribed, latency_us, first_byte, settled, without (a fault, by its number), \
    degree, degree_max, outstanding_min, outstanding_bytes_max, outstanding_per_peer, \
    outstanding_window, upload_slots, upload_queue, rarest_sample, have_interval, \
    request_timeout, endgame_after, lease_time, lease_time_max, lease_bytes_min, lease_bytes_max, streams_start, \
    streams_max, join_interval, crowd, crowd_spread, window_chunks, \
    upload_slots_max, upload_time, oldest_share, hungry_after, degree_near";

impl Scenario {
    /// Changes an option of the world or a setting of every node.
    ///
    /// # Errors
    /// Not NAME=VALUE, or a name that is not among those worth an experiment.
    pub(crate) fn set(&mut self, setting: &str) -> anyhow::Result<()> {
        let (name, value) = setting
            .split_once('=')
            .with_context(|| format!("{setting:?} is not NAME=VALUE"))?;
        let number: f64 = value
            .parse()
            .with_context(|| format!("{setting:?} has no number"))?;
        let count = number as usize;
        let ms = Duration::from_secs_f64(number / 1000.0);
        let config = &mut self.config;
        match name {
            "nodes" => {
                self.nodes = count;
                self.settled |= count > crate::scenario::BOOTING_MAX;
            }
            "up" => self.up = number * GBIT,
            "down" => self.down = number * GBIT,
            "rate" => {
                self.up = number * GBIT;
                self.down = number * GBIT;
            }
            "origin_rate" => self.origin.rate = number * GBIT,
            "origin_stream_rate" => self.origin.stream_rate = Some(number * GBIT),
            "origin_streams" => self.origin.streams_max = Some(count),
            "size" => {
                for image in &mut self.images {
                    image.bytes = number as u64;
                }
            }
            "layers" => {
                for image in &mut self.images {
                    image.layers = count;
                }
            }
            "equal_layers" => {
                for image in &mut self.images {
                    image.heavy_tailed = number == 0.0;
                }
            }
            "parallel" => self.parallel = count,
            "warm" => self.warm = count,
            "late" => self.late = count,
            "stagger" => self.stagger = ms,
            "slow_share" => self.slow_share = number,
            "loss" => self.layout.loss = number,
            "zones" => self.layout.zones = count as u16,
            "racks" => self.layout.racks = count as u16,
            "rack_oversubscribed" => self.layout.rack_oversubscribed = Some(number),
            "zone_oversubscribed" => self.layout.zone_oversubscribed = Some(number),
            "latency_us" => {
                self.layout.latency_rack = ms / 1000;
                self.layout.latency_zone = ms / 1000;
            }
            "first_byte" => self.origin.first_byte = ms,
            "settled" => self.settled = number != 0.0,
            "without" => {
                let fault = self.faults.get_mut(count);
                fault
                    .with_context(|| format!("there is no fault {count}"))?
                    .left_out = true;
            }
            #[cfg(feature = "mutations")]
            "mutation" => {
                let mutations = shoal_protocol::mutation::Mutation::ALL;
                let mutation = mutations.get(count).copied();
                config.mutation = Some(mutation.context("there is no such mutation")?);
            }
            "degree" => config.degree = count,
            "degree_max" => config.degree_max = count,
            "outstanding_min" => config.outstanding_min = count,
            "outstanding_bytes_max" => config.outstanding_bytes_max = number as u64,
            "outstanding_per_peer" => config.outstanding_per_peer = count,
            "outstanding_window" => config.outstanding_window = ms,
            "upload_slots" => config.upload_slots = count,
            "upload_queue_max" => config.upload_queue_max = count,
            "upload_queue_time" => config.upload_queue_time = ms,
            "upload_queue" => config.upload_queue = count,
            "rarest_sample" => config.rarest_sample = count,
            "have_interval" => config.have_interval = ms,
            "request_timeout" => config.request_timeout = ms,
            "endgame_after" => config.endgame_after = ms,
            "lease_time" => config.lease_time = ms,
            "lease_time_max" => config.lease_time_max = ms,
            "lease_bytes_min" => config.lease_bytes_min = number as u64,
            "lease_bytes_max" => config.lease_bytes_max = number as u64,
            "streams_start" => config.streams_start = number as u16,
            "streams_max" => config.streams_max = number as u16,
            "join_interval" => config.join_interval = ms,
            "crowd" => config.crowd = count,
            "crowd_spread" => config.crowd_spread = ms,
            "window_chunks" => config.window_chunks = number as u32,
            "upload_slots_max" => config.upload_slots_max = count,
            "upload_time" => config.upload_time = ms,
            "hungry_after" => config.hungry_after = ms,
            "degree_near" => config.degree_near = count,
            "oldest_share" => config.oldest_share = number,
            _ => anyhow::bail!("there is no setting {name:?}; there are: {SETTINGS}"),
        }
        self.changed.push(setting.to_owned());
        Ok(())
    }

    /// The command that runs this world again.
    pub(crate) fn replay(&self) -> String {
        let changed: Vec<String> = self
            .changed
            .iter()
            .map(|setting| format!(" --set {setting}"))
            .collect();
        format!(
            "cargo sim --scenario {} --seed {}{}",
            self.name,
            self.seed,
            changed.concat()
        )
    }
}
