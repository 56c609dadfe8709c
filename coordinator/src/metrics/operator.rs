//! What the ops port tells of a coordinator.

use super::disk::Disk;
use super::live;
use crate::config::StoreConfig;
use crate::node::Node;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tranche_ops::prometheus_client::encoding::text::encode;
use tranche_ops::prometheus_client::registry::Registry;
use tranche_ops::{Operated, Readings};

/// What the ops port tells of a coordinator.
pub struct Operator {
    node: Arc<Node>,
    shutdown: CancellationToken,
    registry: Registry,
    disks: Vec<Disk>,
}

impl Operator {
    /// Of this node, which isn't ready any more once `shutdown` is cancelled. Must be called in a runtime.
    pub fn new(node: Arc<Node>, shutdown: CancellationToken) -> Self {
        let shared = node.shared();
        let mut disks = vec![Disk::new("objects", &shared.config.objects_dir())];
        if let StoreConfig::Embedded { path } = &shared.config.store {
            disks.push(Disk::new("store", path));
        }
        disks.iter().for_each(Disk::look);
        let mut registry = tranche_ops::registry("coordinator");
        let ours = registry.sub_registry_with_prefix("tranche");
        let metrics = &shared.metrics;
        metrics.batches.register(ours);
        metrics.ownership.register(ours);
        shared.dispatch.dealt().register(ours);
        metrics.store.register(ours);
        metrics.calls.register(ours);
        metrics.connections.register(ours);
        let (live, looked, left) = (shared.clone(), disks.clone(), shutdown.clone());
        ours.register_collector(Box::new(Readings(move || live::readings(&live, &looked, &left))));
        Self { node, shutdown, registry, disks }
    }
}

impl Operated for Operator {
    fn ready(&self) -> Result<(), String> {
        live::ready(self.node.shared(), &self.shutdown)
    }

    fn metrics(&self) -> String {
        self.disks.iter().for_each(Disk::look);
        let mut text = String::with_capacity(32 * 1024);
        // Writing into memory doesn't fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
