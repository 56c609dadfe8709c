//! DeleteBatch.

use super::Node;
use crate::driver::ledger;
use crate::error::Error;
use crate::store::keys::{self, BatchKey};
use crate::store::{RangeOptions, Txn, TxnOutcome, commit};
use tranche_proto::stored::Stored;
use tranche_proto::v1;

/// Keys deleted by one transaction.
const CHUNK: usize = 100;

impl Node {
    /// Deletes the records of a batch that ended. The state goes last: until then a delete that was
    /// interrupted can be repeated. The transaction that made the batch may still be on its way a second time: a
    /// record of the deletion, which it compares, keeps it from making the batch again.
    pub async fn delete(&self, batch: &BatchKey) -> Result<(), Error> {
        let view = self.stored_view(batch).await?;
        if !view.state.swept {
            let wanted = if view.is_final() {
                "its staging area is still being swept; try again shortly"
            } else {
                "only a batch that ended can be deleted; cancel it first"
            };
            return Err(Error::WrongState { batch: batch.clone(), state: view.state.state(), wanted });
        }
        let store = &*self.shared.store;
        for prefix in [keys::ranges(batch), keys::segments(batch)] {
            loop {
                let options = RangeOptions { limit: CHUNK, ..RangeOptions::default() };
                let page = store.range(&prefix, options).await?;
                if page.entries.is_empty() {
                    break;
                }
                let txn = page.entries.into_iter().fold(Txn::new(), |txn, entry| txn.delete(entry.key));
                commit::commit(store, &txn).await?;
            }
        }
        self.shared.objects.delete_batch(batch).await?;
        while let Some(state) = store.get(&keys::state(batch)).await? {
            let request_id = &view.spec.request_id;
            let record = v1::DeletionRecord { batch: batch.to_string() };
            // The request id may be used again from here on: a late copy must not delete what that makes.
            let mut txn = Txn::new()
                .created(keys::state(batch), state.create_revision)
                .put(keys::deletion(batch, request_id), Stored::new(record).encode())
                .delete(keys::decision(batch))
                .delete(keys::cutoff(batch))
                .delete(keys::spec(batch))
                // It was given back at the end; but a copy of the transaction that took it may have come since, and
                // whoever is told of it finds nothing to drive. Without the state no other can come.
                .delete(keys::lock(batch))
                .delete(keys::state(batch));
            if !request_id.is_empty() {
                let request = keys::request(&batch.namespace, request_id);
                if let Some(entry) = store.get(&request).await?
                    && ledger::decode::<v1::RequestRecord>(&entry)?.value.batch == batch.to_string()
                {
                    txn = txn.delete(request);
                }
            }
            // Refused: another call deleted it, or this one did and another deletion was recorded since.
            if let TxnOutcome::Applied(_) = commit::commit(store, &txn).await? {
                break;
            }
        }
        tracing::info!(batch.id = %batch, "batch deleted");
        Ok(())
    }
}
