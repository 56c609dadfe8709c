//! What is counted of the store.

use super::{One, Two};
use crate::store::{StoreError, TxnOutcome};
use std::time::Duration;
use tranche_ops::prometheus_client::metrics::counter::Counter;
use tranche_ops::prometheus_client::metrics::family::Family;
use tranche_ops::prometheus_client::metrics::histogram::Histogram;
use tranche_ops::prometheus_client::registry::{Registry, Unit};
use tranche_ops::seconds;

const OPERATIONS: [&str; 4] = ["get", "range", "txn", "session"];
const KINDS: [&str; 5] = ["unavailable", "unknown", "full", "rejected", "corrupt"];

/// What is counted of the store.
#[derive(Debug)]
pub struct StoreMetrics {
    seconds: Family<One, Histogram, fn() -> Histogram>,
    errors: Family<Two, Counter>,
    transactions: Family<One, Counter>,
    /// Transactions that were tried again.
    pub retries: Counter,
}

impl Default for StoreMetrics {
    fn default() -> Self {
        let times = Family::new_with_constructor(seconds as fn() -> Histogram);
        let (errors, transactions) = (Family::<Two, Counter>::default(), Family::<One, Counter>::default());
        for operation in OPERATIONS {
            times.get_or_create_owned(&[("operation", operation)]);
            for kind in KINDS {
                errors.get_or_create_owned(&[("operation", operation), ("kind", kind)]);
            }
        }
        for outcome in ["applied", "refused", "failed"] {
            transactions.get_or_create_owned(&[("outcome", outcome)]);
        }
        Self { seconds: times, errors, transactions, retries: Counter::default() }
    }
}

/// An error's name among the labels.
pub fn kind_of(error: &StoreError) -> &'static str {
    match error {
        StoreError::Unavailable(_) => "unavailable",
        StoreError::Unknown(_) => "unknown",
        StoreError::Full(_) => "full",
        StoreError::Rejected(_) => "rejected",
        StoreError::Corrupt { .. } => "corrupt",
    }
}

impl StoreMetrics {
    /// A call ended.
    pub fn called<T>(&self, operation: &'static str, took: Duration, result: &Result<T, StoreError>) {
        self.seconds.get_or_create(&[("operation", operation)]).observe(took.as_secs_f64());
        if let Err(error) = result {
            self.errors.get_or_create(&[("operation", operation), ("kind", kind_of(error))]).inc();
        }
    }

    /// A transaction ended.
    pub fn settled(&self, result: &Result<TxnOutcome, StoreError>) {
        let outcome = match result {
            Ok(TxnOutcome::Applied(_)) => "applied",
            Ok(TxnOutcome::Refused) => "refused",
            Err(_) => "failed",
        };
        self.transactions.get_or_create(&[("outcome", outcome)]).inc();
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "store_request",
            "Time of calls to the store, by operation, failed ones too",
            Unit::Seconds,
            self.seconds.clone(),
        );
        registry.register(
            "store_errors",
            "Calls to the store that failed, by operation and kind; full: no space is left",
            self.errors.clone(),
        );
        registry.register(
            "store_transactions",
            "Transactions by outcome; refused: a compare didn't hold",
            self.transactions.clone(),
        );
        registry.register("store_retries", "Transactions that were tried again", self.retries.clone());
    }
}
