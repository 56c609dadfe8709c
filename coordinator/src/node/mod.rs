//! What this coordinator can be asked: the one place between the gRPC services and the batches.

mod view;

pub use view::{Live, View};

use crate::error::Error;
use crate::store::keys::BatchKey;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::watch;
use tranche_proto::v1;

/// A coordinator's application: all services share one.
pub struct Node {}

/// What ListBatches asks.
#[derive(Clone, Debug, Default)]
pub struct ListFilter {
    /// Only these states; empty: all.
    pub states: Vec<v1::batch::State>,
    /// Only with all these labels.
    pub labels: HashMap<String, String>,
    /// The most in a page.
    pub page_size: usize,
    /// The id after which (towards the older) the page begins.
    pub after: Option<String>,
}

/// An open append stream into one batch.
///
/// Pushes are written in order; several may be waiting for durability.
pub struct Appender {}

impl Appender {
    /// Grows whenever more tasks are durable; holds the highest durable sequence number.
    /// An `Err` in it ends the stream.
    pub fn durable(&self) -> watch::Receiver<Result<u64, Error>> {
        todo!()
    }

    /// Hands over tasks (validated). Waits while too much is in flight. Tasks that are durable
    /// already are dropped.
    pub async fn push(&mut self, first: u64, tasks: Vec<v1::Task>) -> Result<(), Error> {
        let _ = (first, tasks);
        todo!()
    }

    /// Waits until everything that was pushed is durable.
    pub async fn finish(self) -> Result<u64, Error> {
        todo!()
    }
}

impl Node {
    /// Creates a batch from a validated spec with its defaults filled in. The same request id and spec
    /// give the same batch.
    pub async fn create(&self, namespace: &str, spec: v1::Batch, request_id: &str) -> Result<View, Error> {
        let _ = (namespace, spec, request_id);
        todo!()
    }
    /// Names of the handlers that a new batch may ask for.
    pub fn known_handlers(&self) -> Vec<String> {
        todo!()
    }
    /// Reads a batch.
    pub async fn get(&self, batch: &BatchKey) -> Result<View, Error> {
        let _ = batch;
        todo!()
    }
    /// Lists batches, newest first; the second value is the id to go on after.
    pub async fn list(
        &self,
        namespace: &str,
        filter: ListFilter,
    ) -> Result<(Vec<View>, Option<String>), Error> {
        let _ = (namespace, filter);
        todo!()
    }
    /// Watches a batch: changes with every write of its owner. Closed after the final state.
    pub async fn watch(&self, batch: &BatchKey) -> Result<watch::Receiver<Arc<View>>, Error> {
        let _ = batch;
        todo!()
    }
    /// Opens an append stream.
    pub async fn append(&self, batch: &BatchKey) -> Result<Appender, Error> {
        let _ = batch;
        todo!()
    }
    /// Seals a batch.
    pub async fn seal(&self, batch: &BatchKey, total: Option<i64>) -> Result<View, Error> {
        let _ = (batch, total);
        todo!()
    }
    /// Approves a held batch.
    pub async fn commit(&self, batch: &BatchKey, actor: &str) -> Result<View, Error> {
        let _ = (batch, actor);
        todo!()
    }
    /// Revokes a batch.
    pub async fn cancel(&self, batch: &BatchKey, actor: &str, message: &str) -> Result<View, Error> {
        let _ = (batch, actor, message);
        todo!()
    }
    /// Leases the failed tasks once more; the second value is how many.
    pub async fn retry_failed(&self, batch: &BatchKey) -> Result<(View, u64), Error> {
        let _ = batch;
        todo!()
    }
    /// The failures after a sequence number, at most `limit`; the second value is the sequence number to
    /// go on after, when there are more.
    pub async fn failures(
        &self,
        batch: &BatchKey,
        after: u64,
        limit: usize,
    ) -> Result<(Vec<v1::TaskFailure>, Option<u64>), Error> {
        let _ = (batch, after, limit);
        todo!()
    }
    /// Deletes the records of a final batch.
    pub async fn delete(&self, batch: &BatchKey) -> Result<(), Error> {
        let _ = batch;
        todo!()
    }
    /// The attached workers, by id.
    pub fn workers(&self) -> Vec<v1::Worker> {
        todo!()
    }
    /// The coordinators of this store.
    pub async fn coordinators(&self) -> Result<Vec<v1::Coordinator>, Error> {
        todo!()
    }
    /// The leases out of one batch or all, by batch and range.
    pub async fn leases(&self, batch: Option<&BatchKey>) -> Result<Vec<v1::Lease>, Error> {
        let _ = batch;
        todo!()
    }
}
