//! Where the nodes of a scenario stand, and what links them.

use super::{SLOWER, Scenario};
use crate::net::{NodeLinks, Place, Topology};

impl Scenario {
    /// Each host's links, and the origin's at the end. Hosts are dealt to the racks in turn.
    pub(crate) fn links(&self) -> Vec<NodeLinks> {
        let zones = u32::from(self.layout.zones);
        let racks = u32::from(self.layout.racks) * zones;
        let host = |(number, slow): (usize, bool)| {
            let factor = if slow { 1.0 / SLOWER } else { 1.0 };
            let rack = number as u32 % racks;
            NodeLinks {
                up: self.up * factor,
                down: self.down * factor,
                place: Place::Rack {
                    zone: (rack % zones) as u16,
                    rack: rack as u16,
                },
            }
        };
        let origin = NodeLinks {
            up: self.origin.rate,
            down: self.origin.rate,
            place: Place::Outside,
        };
        let hosts = self.slow().into_iter().enumerate().map(host);
        hosts.chain([origin]).collect()
    }

    /// What lies between them.
    pub(crate) fn topology(&self) -> Topology {
        let layout = &self.layout;
        let (rack_rate, zone_rate) = self.pipe_rates();
        Topology {
            latency_rack: layout.latency_rack.as_nanos() as u64,
            latency_zone: layout.latency_zone.as_nanos() as u64,
            latency_far: layout.latency_far.as_nanos() as u64,
            latency_outside: layout.latency_origin.as_nanos() as u64,
            rack_rate,
            zone_rate,
            loss: layout.loss,
        }
    }
}
