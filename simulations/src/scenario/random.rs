//! A world of which the seed decides everything: how many nodes, what links, what they pull, and
//! what goes wrong.

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use shoal_protocol::time::Duration;

use super::{Fault, Image, Limits, MBIT, MIB, Planned, SLOWER, Scenario, Victim};

/// Nodes of a random world.
const NODES: std::ops::RangeInclusive<usize> = 5..=60;

/// Chunks that all nodes of a world receive together, about: what a fraction of a second of real
/// time simulates.
const TRANSFERS_MAX: u64 = 6000;

/// Bytes of the smallest chunk.
const CHUNK: u64 = 256 << 10;

impl Scenario {
    /// The world that this seed draws.
    pub(crate) fn random(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x0005_eed0_fa11);
        let rng = &mut rng;
        let nodes = rng.random_range(NODES);
        let mut world = Self::lan(nodes);
        "random".clone_into(&mut world.name);
        world.seed = seed;
        world.limits = Limits::default();
        world.draw_links(rng);
        world.draw_images(rng);
        world.draw_start(rng);
        world.draw_faults(rng);
        if chance(rng, 0.3) {
            // It behaves as one of thousands.
            world.config.crowd = rng.random_range(0..nodes);
            world.config.crowd_spread = world.config.crowd_spread_max / nodes as u32;
        }
        world
    }

    fn draw_links(&mut self, rng: &mut StdRng) {
        // From 50 Mbit/s to 1 Gbit/s, every order of magnitude as often.
        let rate = 50.0 * MBIT * 20f64.powf(rng.random());
        self.up = rate;
        self.down = if chance(rng, 0.2) { 2.0 * rate } else { rate };
        self.origin.rate = rate * 10f64.powf(rng.random_range(-0.7..0.7));
        if chance(rng, 0.2) {
            self.origin.stream_rate = Some(self.origin.rate / rng.random_range(1.0..6.0));
        }
        if chance(rng, 0.15) {
            self.origin.streams_max = Some(rng.random_range(1..8));
        }
        self.origin.first_byte = ms(rng, 1, 200);
        let layout = &mut self.layout;
        layout.zones = if chance(rng, 0.2) {
            rng.random_range(2..4)
        } else {
            1
        };
        layout.racks = rng.random_range(1..4);
        if chance(rng, 0.2) {
            layout.rack_oversubscribed = Some(rng.random_range(1.0..10.0));
        }
        if layout.zones > 1 && chance(rng, 0.5) {
            layout.zone_oversubscribed = Some(rng.random_range(1.0..4.0));
        }
        layout.latency_rack = Duration::from_micros(rng.random_range(50..500));
        layout.latency_zone = Duration::from_micros(rng.random_range(50..2000));
        layout.latency_far = ms(rng, 1, 40);
        layout.latency_origin = ms(rng, 1, 60);
        if chance(rng, 0.15) {
            layout.loss = 10f64.powf(rng.random_range(-5.0..-2.5));
        }
    }

    fn draw_images(&mut self, rng: &mut StdRng) {
        let images = if chance(rng, 0.25) {
            rng.random_range(2..4)
        } else {
            1
        };
        self.images_each = rng.random_range(1..=images);
        let all = TRANSFERS_MAX * CHUNK / self.nodes as u64;
        let each = all / self.images_each as u64;
        self.images = (0..images)
            .map(|_| Image {
                bytes: rng.random_range(each / 8..each).max(MIB),
                layers: if chance(rng, 0.2) {
                    1
                } else {
                    rng.random_range(2..20)
                },
                heavy_tailed: chance(rng, 0.8),
            })
            .collect();
        self.parallel = rng.random_range(1..=6);
    }

    fn draw_start(&mut self, rng: &mut StdRng) {
        if chance(rng, 0.2) {
            self.warm = rng.random_range(1..=3);
            // They alone have to be enough: whoever holds everything is not struck for good.
            self.origin.away = chance(rng, 0.3);
        }
        if chance(rng, 0.2) {
            self.late = rng.random_range(1..=self.nodes / 4);
        }
        if chance(rng, 0.3) {
            self.stagger = ms(rng, 10, 5000);
        }
        if chance(rng, 0.2) {
            let share = rng.random_range(0.02..0.2);
            // With less than 10 Mbit/s a node needs minutes for a few chunks at a time, and asks
            // for many of them twice: not what the exchange is made for.
            if self.up >= SLOWER * 10.0 * MBIT {
                self.slow_share = share;
            }
        }
        self.settled = chance(rng, 0.5);
        self.two_views = self.settled && chance(rng, 0.1);
    }

    fn draw_faults(&mut self, rng: &mut StdRng) {
        let count = rng.random_range(1..=5);
        let mut deaths = 0;
        let mut liars = 0;
        for number in 0..count {
            // Most runs have something that takes work away from under the others.
            let kind = if number == 0 && chance(rng, 0.97) {
                [0, 0, 1, 2, 3][rng.random_range(0..5)]
            } else {
                rng.random_range(0..13)
            };
            let fault = match kind {
                0 => Fault::Kill {
                    restart_after: (deaths >= self.nodes / 4 || chance(rng, 0.5))
                        .then(|| ms(rng, 50, 8000)),
                },
                1 => Fault::Partition {
                    heals_after: ms(rng, 200, 15_000),
                },
                // Where most lie, nobody is left to take anything from.
                2 | 3 if liars >= (self.nodes / 6).max(1) => Fault::Freeze {
                    thaw_after: ms(rng, 50, 20_000),
                },
                2 => Fault::LyingHolder,
                3 => Fault::CorruptChunks,
                4 | 5 => Fault::Freeze {
                    thaw_after: ms(rng, 50, 20_000),
                },
                6 => Fault::Slow {
                    factor: rng.random_range(0.02..0.5),
                    ends_after: ms(rng, 100, 10_000),
                },
                7 => Fault::Delay {
                    latency: ms(rng, 5, 400),
                    ends_after: ms(rng, 100, 10_000),
                },
                8 => Fault::ClockJump {
                    ahead: ms(rng, 100, 60_000),
                },
                9 => Fault::FullDisk {
                    ends_after: ms(rng, 100, 8000),
                },
                10 => Fault::OriginOutage {
                    ends_after: ms(rng, 100, 8000),
                },
                11 => Fault::OriginRefuses {
                    retry_after: chance(rng, 0.5).then(|| ms(rng, 100, 2000)),
                    ends_after: ms(rng, 100, 5000),
                },
                _ => Fault::RollingRestart {
                    down_for: ms(rng, 20, 500),
                    pause: ms(rng, 20, 300),
                },
            };
            deaths += usize::from(matches!(fault, Fault::Kill { .. }));
            liars += usize::from(matches!(fault, Fault::LyingHolder | Fault::CorruptChunks));
            let victim = if fault.strikes_all() {
                Victim::World
            } else if fault == Fault::LyingHolder && !self.origin.away {
                Victim::Holder
            } else {
                [Victim::Holder, Victim::Steward, Victim::Any][rng.random_range(0..3)]
            };
            // Without an origin nobody reads from it.
            let victim = if victim == Victim::Holder && self.origin.away {
                Victim::Any
            } else {
                victim
            };
            self.faults.push(Planned {
                at_share: rng.random_range(0.05..0.9),
                fault,
                victim,
                left_out: false,
            });
        }
    }
}

fn chance(rng: &mut StdRng, share: f64) -> bool {
    rng.random::<f64>() < share
}

/// From `least` to `most` milliseconds, short ones more often.
fn ms(rng: &mut StdRng, least: u64, most: u64) -> Duration {
    let (least, most) = (least as f64, most as f64);
    let drawn = least * (most / least).powf(rng.random());
    Duration::from_micros((drawn * 1000.0) as u64)
}
