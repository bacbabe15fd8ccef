//! Direct pull: every node reads every layer from the origin, as clients do without a mirror.
//!
//! The origin's uplink carries N copies, so that nobody ends long before N·S/B.

use super::{
    Baseline, Setting,
    cluster::{Cluster, Queue},
};

/// Layers that dockerd fetches at once for one pull (`max-concurrent-downloads`, default 3:
/// <https://docs.docker.com/reference/cli/dockerd/>); containerd's `max_concurrent_downloads` is 3
/// too (<https://github.com/containerd/containerd/blob/main/docs/cri/config.md>).
pub(super) const LAYERS_AT_ONCE: usize = 3;

/// A layer that has arrived at a node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrived {
    node: usize,
    layer: usize,
}

/// Everybody asks the origin.
pub(super) struct Direct {
    queues: Vec<Queue>,
}

impl Direct {
    pub(super) fn new(setting: &Setting) -> Self {
        Self {
            queues: vec![Queue::new(setting); setting.nodes()],
        }
    }

    fn ask(&mut self, cluster: &mut Cluster<Arrived>, node: usize) {
        if let Some(layer) = self.queues[node].next() {
            let origin = cluster.origin();
            cluster.fetch_layer(origin, node, layer, Arrived { node, layer });
        }
    }
}

impl Baseline for Direct {
    type Tag = Arrived;

    fn pull(&mut self, cluster: &mut Cluster<Arrived>, node: usize) {
        for _ in 0..LAYERS_AT_ONCE {
            self.ask(cluster, node);
        }
    }

    fn handle(&mut self, cluster: &mut Cluster<Arrived>, Arrived { node, layer }: Arrived) {
        cluster.layer_arrived(node, layer);
        self.ask(cluster, node);
    }
}
