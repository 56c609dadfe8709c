//! CreateBatch: one transaction makes the batch, owned by whoever makes it.

use super::{Node, Shared, Term, View, ownership};
use crate::driver::ledger;
use crate::error::Error;
use crate::store::keys::{self, BatchKey};
use crate::store::{StoreError, Txn, TxnOutcome, commit};
use std::sync::Arc;
use tranche_guards::Guard;
use tranche_proto::stored::Stored;
use tranche_proto::v1;

impl Node {
    /// Creates a batch from a validated spec with its defaults filled in. The same request id and spec
    /// give the same batch.
    pub async fn create(&self, namespace: &str, spec: v1::Batch, request_id: &str) -> Result<View, Error> {
        if let Some(view) = self.repeated(namespace, &spec, request_id).await? {
            return Ok(view);
        }
        let shared = &self.shared;
        let term = shared.living()?;
        let batch = BatchKey::new(namespace, shared.host.new_id());
        let now = shared.host.wall_ms();
        let state = v1::StateRecord {
            state: v1::batch::State::Importing.into(),
            update_time_ms: now,
            ..v1::StateRecord::default()
        };
        let record = v1::SpecRecord {
            batch: Some(spec.clone()),
            request_id: request_id.to_owned(),
            create_time_ms: now,
        };
        let mut txn = Txn::new()
            .absent(keys::spec(&batch))
            .put(keys::spec(&batch), Stored::new(record).encode())
            .put(keys::state(&batch), Stored::new(state).encode())
            .put(keys::cutoff(&batch), Stored::new(v1::CutoffRecord::default()).encode())
            .put_held(keys::lock(&batch), ownership::lock_record(shared), term.session());
        if !request_id.is_empty() {
            let request = v1::RequestRecord { batch: batch.to_string() };
            let name = keys::request(namespace, request_id);
            if Guard::RequestOnce.on() {
                txn = txn.absent(name.clone());
            }
            txn = txn.put(name, Stored::new(request).encode());
        }
        // A task of its own, since a caller may hang up: a batch that is made is driven.
        let made = shared.tasks.spawn(make(shared.clone(), batch.clone(), txn, term));
        match made.await.map_err(|_| Error::ShuttingDown)?? {
            TxnOutcome::Applied(_) => self.get(&batch).await,
            // Somebody used the request id in the meantime.
            TxnOutcome::Refused => {
                self.repeated(namespace, &spec, request_id).await?.ok_or(Error::NotOwned { batch })
            }
        }
    }

    /// The batch that this request made before.
    async fn repeated(
        &self,
        namespace: &str,
        spec: &v1::Batch,
        request_id: &str,
    ) -> Result<Option<View>, Error> {
        if request_id.is_empty() {
            return Ok(None);
        }
        let name = keys::request(namespace, request_id);
        let Some(entry) = self.shared.store.get(&name).await? else { return Ok(None) };
        let record = ledger::decode::<v1::RequestRecord>(&entry)?.value;
        let Some(batch) = BatchKey::parse(&record.batch) else {
            let message = format!("{:?} is no batch name", record.batch);
            return Err(Error::Damaged { what: name, message });
        };
        let view = self.get(&batch).await?;
        if view.spec.batch.as_ref() != Some(spec) {
            return Err(Error::RequestReused { request_id: request_id.to_owned(), batch });
        }
        Ok(Some(view))
    }
}

/// Makes the batch and begins to drive it.
async fn make(shared: Arc<Shared>, batch: BatchKey, txn: Txn, term: Term) -> Result<TxnOutcome, Error> {
    let outcome = tokio::select! {
        biased;
        outcome = commit::commit(&*shared.store, &txn) => match outcome {
            // Refused because of that: it may be made with the next one, or by another coordinator.
            Err(StoreError::Rejected(message)) if !term.lives() => {
                let message = format!("the session with the store was lost while {batch} was made: {message}");
                return Err(Error::Store(StoreError::Unknown(message)));
            }
            outcome => outcome?,
        },
        () = shared.cut.cancelled() => {
            let message = format!("the coordinator left before the store answered whether {batch} is made");
            return Err(Error::Store(StoreError::Unknown(message)));
        }
    };
    if let TxnOutcome::Applied(epoch) = outcome {
        tracing::info!(batch.id = %batch, "batch created");
        tokio::select! {
            biased;
            driven = ownership::drive_created(&shared, &batch, epoch, term.session()) => driven?,
            () = shared.cut.cancelled() => {}
        }
    }
    Ok(outcome)
}
