//! What others do, on the same links: contenders to hold Shoal against.
//!
//! Each is the idea of a real tool with that tool's own numbers, and where a model has to choose,
//! it chooses in the contender's favour: look-ups, announcements and requests cost latency but no
//! bandwidth, nobody fails, nothing is lost. All pull the same layers as the exchange does, cut
//! into the same chunks, over the same links, and pay as much for a connection, for the origin's
//! first byte and for SHA-256.

mod cluster;
mod direct;
mod hashing;
mod layers;
mod setting;
#[cfg(test)]
mod tests;
mod torrent;

use self::cluster::Cluster;
pub(crate) use self::{cluster::Outcome, setting::Setting};

/// Everybody that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Contender {
    /// The exchange itself.
    Shoal,
    /// Like BitTorrent with a web seed: [`torrent`].
    Torrent,
    /// Every chunk has an owner: [`hashing`].
    Hashing,
    /// Layers are shared when whole: [`layers`].
    Layers,
    /// Everybody asks the origin: [`direct`].
    Direct,
}

impl Contender {
    /// In the order of legends and tables.
    pub(crate) const ALL: [Self; 5] = [
        Self::Shoal,
        Self::Torrent,
        Self::Hashing,
        Self::Layers,
        Self::Direct,
    ];

    /// For people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Shoal => "Shoal",
            Self::Torrent => "BitTorrent-like",
            Self::Hashing => "Hashed owners",
            Self::Layers => "Whole layers",
            Self::Direct => "Direct pull",
        }
    }
}

/// Lets a contender pull; `None` for the exchange itself, which has a world of its own.
pub(crate) fn run(contender: Contender, setting: &Setting) -> Option<Outcome> {
    Some(match contender {
        Contender::Shoal => return None,
        Contender::Torrent => drive(torrent::Torrent::new(setting), setting),
        Contender::Hashing => drive(hashing::Hashing::new(setting), setting),
        Contender::Layers => drive(layers::Layers::new(setting), setting),
        Contender::Direct => drive(direct::Direct::new(setting), setting),
    })
}

/// A way to get an image to many nodes.
trait Baseline {
    /// What it wants to be reminded of: when a transfer has arrived, or a timer is due.
    type Tag: Copy;

    /// A node begins to pull.
    fn pull(&mut self, cluster: &mut Cluster<Self::Tag>, node: usize);

    /// What was asked for with this tag has happened.
    fn handle(&mut self, cluster: &mut Cluster<Self::Tag>, tag: Self::Tag);
}

fn drive<B: Baseline>(mut baseline: B, setting: &Setting) -> Outcome {
    let mut cluster = Cluster::new(setting);
    while let Some(fact) = cluster.next() {
        match fact {
            cluster::Fact::Pull(node) => baseline.pull(&mut cluster, node),
            cluster::Fact::Happened(tag) => baseline.handle(&mut cluster, tag),
        }
    }
    cluster.outcome()
}
