//! A store whose calls are counted and timed.

use super::{
    Entry, Page, RangeOptions, Revision, Session, SessionId, Store, StoreError, Txn, TxnOutcome, Watch,
};
use crate::metrics::Metrics;
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// A store whose calls are counted and timed.
pub struct Measured {
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
}

impl Measured {
    /// This store, counted here.
    pub fn new(store: Arc<dyn Store>, metrics: Arc<Metrics>) -> Self {
        Self { store, metrics }
    }

    async fn timed<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let begun = Instant::now();
        let result = call.await;
        self.metrics.store.called(operation, begun.elapsed(), &result);
        result
    }
}

#[async_trait]
impl Store for Measured {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.timed("get", self.store.get(key)).await
    }

    async fn range(&self, prefix: &str, options: RangeOptions) -> Result<Page, StoreError> {
        self.timed("range", self.store.range(prefix, options)).await
    }

    async fn txn(&self, txn: &Txn) -> Result<TxnOutcome, StoreError> {
        let result = self.timed("txn", self.store.txn(txn)).await;
        self.metrics.store.settled(&result);
        result
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        self.store.watch(prefix, after).await
    }

    async fn session(&self, ttl: Duration) -> Result<Session, StoreError> {
        self.timed("session", self.store.session(ttl)).await
    }

    async fn close_session(&self, id: SessionId) -> Result<(), StoreError> {
        self.timed("session", self.store.close_session(id)).await
    }

    fn session_lives(&self, id: SessionId) -> bool {
        self.store.session_lives(id)
    }

    fn transactions(&self) -> u64 {
        self.store.transactions()
    }

    fn tried_again(&self) {
        self.metrics.store.retries.inc();
        self.store.tried_again();
    }
}
