//! CreateBatch: one transaction makes the batch, owned by whoever makes it.

use super::{Node, Shared, Term, View, ownership};
use crate::driver::ledger::{self, Loaded};
use crate::error::Error;
use crate::store::keys::{self, BatchKey};
use crate::store::{StoreError, Txn, TxnOutcome, commit};
use std::sync::Arc;
use tranche_guards::Guard;
use tranche_proto::stored::Stored;
use tranche_proto::v1;

/// How often a create begins anew because others are in its way: without a request id, deletions, of which few are (see
/// [`keys::deletion`]); with and without, batches that took its slot.
const TRIES: usize = 8;

impl Node {
    /// Creates a batch from a validated spec with its defaults filled in. The same request id and spec
    /// give the same batch, until that is deleted.
    pub async fn create(&self, namespace: &str, spec: v1::Batch, request_id: &str) -> Result<View, Error> {
        let mut left = TRIES;
        loop {
            left -= 1;
            match self.create_once(namespace, &spec, request_id).await {
                Ok(Some(view)) => return Ok(view),
                Ok(None) if left > 0 => self.shared.list_slots(namespace).await?,
                Ok(None) => {
                    let message = format!("other batches took the slots of {namespace} that were free");
                    return Err(StoreError::Unavailable(message).into());
                }
                // Nobody but this call can make its batch again. With a request id it is the caller's turn: it may
                // have given this call up, and what was deleted may be what another call of it had made.
                Err(Error::NotOwned { .. }) if request_id.is_empty() && left > 0 => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// `NotOwned`: something was deleted in the meantime, and nothing was made. `None`: neither, another batch has the
    /// slot.
    async fn create_once(
        &self,
        namespace: &str,
        spec: &v1::Batch,
        request_id: &str,
    ) -> Result<Option<View>, Error> {
        let shared = &self.shared;
        let batch = BatchKey::new(namespace, shared.host.new_id());
        let deletion = keys::deletion(&batch, request_id);
        let repeated = self.repeated(namespace, spec, request_id);
        let (deleted, repeated) =
            tokio::try_join!(async { Ok(shared.store.get(&deletion).await?) }, repeated)?;
        if repeated.is_some() {
            return Ok(repeated);
        }
        let term = shared.living()?;
        let slot = shared.slot_for(&batch).await?;
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
            traceparent: tranche_ops::trace::current(),
            slot,
        };
        let mut txn = Txn::new()
            .absent(keys::spec(&batch))
            .put(keys::spec(&batch), Stored::new(record.clone()).encode())
            .put(keys::state(&batch), Stored::new(state.clone()).encode())
            .put(keys::cutoff(&batch), Stored::new(v1::CutoffRecord::default()).encode())
            .put_held(keys::lock(&batch), ownership::lock_record(shared), term.session());
        // What isn't there was never there only as long as nothing is deleted.
        if Guard::DeletedStaysDeleted.on() {
            txn = txn.modified(deletion, deleted.map_or(0, |entry| entry.mod_revision));
        }
        if let Some(slot) = slot {
            let (key, record) =
                (keys::slot(namespace, slot), v1::SlotRecord { batch: batch.to_string(), bytes: 0 });
            txn = txn.absent(key.clone()).put(key, Stored::new(record).encode());
        }
        if !request_id.is_empty() {
            let request = v1::RequestRecord { batch: batch.to_string() };
            let name = keys::request(namespace, request_id);
            if Guard::RequestOnce.on() {
                txn = txn.absent(name.clone());
            }
            txn = txn.put(name, Stored::new(request).encode());
        }
        // A task of its own, since a caller may hang up: a batch that is made is driven.
        let made = shared.tasks.spawn(make(shared.clone(), batch.clone(), (record, state), txn, term));
        let (outcome, in_doubt) = made.await.map_err(|_| Error::ShuttingDown)??;
        if let TxnOutcome::Applied(_) = outcome {
            return self.get(&batch).await.map(Some);
        }
        // Somebody used the request id in the meantime.
        if let Some(view) = self.repeated(namespace, spec, request_id).await? {
            return Ok(Some(view));
        }
        if !in_doubt {
            let Some(slot) = slot else { return Err(Error::NotOwned { batch }) };
            if shared.store.get(&keys::slot(namespace, slot)).await?.is_some() {
                return Ok(None);
            }
            shared.slots.freed(namespace, slot);
            return Err(Error::NotOwned { batch });
        }
        // It may have been made unheard, and be changed since.
        match self.get(&batch).await {
            Err(Error::NotFound(_)) => {
                let message = format!("{batch} may have been made, and deleted");
                Err(Error::Store(StoreError::Unknown(message)))
            }
            made => made.map(Some),
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
        let view = match self.get(&batch).await {
            // Deleted just now, and its request id with it.
            Err(Error::NotFound(_)) => return Ok(None),
            view => view?,
        };
        if view.spec.batch.as_ref() != Some(spec) {
            return Err(Error::RequestReused { request_id: request_id.to_owned(), batch });
        }
        Ok(Some(view))
    }
}

/// Makes the batch and begins to drive it. The second value: an answer was lost on the way.
async fn make(
    shared: Arc<Shared>,
    batch: BatchKey,
    records: (v1::SpecRecord, v1::StateRecord),
    txn: Txn,
    term: Term,
) -> Result<(TxnOutcome, bool), Error> {
    let settled = tokio::select! {
        biased;
        settled = commit::commit_telling(&*shared.store, &txn) => match settled {
            // Refused because of that: it may be made with the next one, or by another coordinator.
            Err(StoreError::Rejected(message)) if !term.lives() => {
                let message = format!("the session with the store was lost while {batch} was made: {message}");
                return Err(Error::Store(StoreError::Unknown(message)));
            }
            settled => settled?,
        },
        () = shared.cut.cancelled() => {
            let message = format!("the coordinator left before the store answered whether {batch} is made");
            return Err(Error::Store(StoreError::Unknown(message)));
        }
    };
    if let (TxnOutcome::Applied(epoch), in_doubt) = settled {
        tracing::info!(batch.id = %batch, "batch created");
        shared.metrics.batches.created.inc();
        if !in_doubt {
            // Nothing can be other than it was written: it needs no reading.
            let loaded = Loaded::made(&batch, records.0, &records.1, epoch)?;
            ownership::drive_loaded(&shared, &batch, loaded, term.session())?;
        }
        let task = shared.clone();
        let session = term.session();
        let driven = async move {
            tokio::select! {
                biased;
                driven = ownership::drive_created(&task, &batch, epoch, session) => driven,
                () = task.cut.cancelled() => Ok(()),
            }
        };
        if in_doubt {
            driven.await?;
        } else {
            // Whether somebody decided before there was a driver to be told: nobody need wait for that.
            shared.tasks.spawn(driven);
        }
    }
    Ok(settled)
}
