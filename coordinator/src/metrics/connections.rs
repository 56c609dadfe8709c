//! What is counted of the connections of the gRPC port.

use super::One;
use crate::connections::Why;
use tranche_ops::prometheus_client::metrics::counter::Counter;
use tranche_ops::prometheus_client::metrics::family::Family;
use tranche_ops::prometheus_client::metrics::gauge::Gauge;
use tranche_ops::prometheus_client::registry::Registry;

/// What is counted of connections.
#[derive(Clone, Debug)]
pub struct ConnectionMetrics {
    /// Connections that are open.
    pub(crate) open: Gauge,
    /// The most.
    pub(crate) limit: Gauge,
    /// Connections of which nothing was read for a while.
    pub(crate) held: Counter,
    /// Streams that were reset because their answer wasn't read.
    pub(crate) unread_streams: Counter,
    refused: Family<One, Counter>,
    ended: Family<One, Counter>,
}

impl Default for ConnectionMetrics {
    fn default() -> Self {
        let (refused, ended) = (Family::<One, Counter>::default(), Family::<One, Counter>::default());
        for limit in ["all", "peer", "conduct"] {
            refused.get_or_create_owned(&[("limit", limit)]);
        }
        for why in Why::ALL {
            ended.get_or_create_owned(&[("reason", why.name())]);
        }
        Self {
            open: Gauge::default(),
            limit: Gauge::default(),
            held: Counter::default(),
            unread_streams: Counter::default(),
            refused,
            ended,
        }
    }
}

impl ConnectionMetrics {
    /// A connection was refused by this limit.
    pub(crate) fn refused(&self, limit: &'static str) {
        self.refused.get_or_create(&[("limit", limit)]).inc();
    }

    /// A connection ended.
    pub(crate) fn ended(&self, why: Why) {
        self.ended.get_or_create(&[("reason", why.name())]).inc();
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("connections", "Connections of the gRPC port that are open", self.open.clone());
        registry.register(
            "connections_limit",
            "The most connections of the gRPC port at once",
            self.limit.clone(),
        );
        registry.register(
            "connections_refused",
            "Connections that found no seat, by limit: of all, of their address, or by how others of it ended",
            self.refused.clone(),
        );
        registry.register(
            "connections_ended",
            "Connections that ended, by reason; closed: in order, or by their peer",
            self.ended.clone(),
        );
        registry.register(
            "connections_held",
            "Connections that had to wait before they began, because too many of their address ended badly",
            self.held.clone(),
        );
        registry.register(
            "unread_streams",
            "Calls and streams that were reset because their answer wasn't read",
            self.unread_streams.clone(),
        );
    }
}
