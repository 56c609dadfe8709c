//! Transactions whose answer was lost are read back before anything else is done.
//!
//! A transaction is known by what it writes: it was carried out when every key that it puts holds
//! exactly its value, all at one revision newer than those it compares, and every key that it deletes
//! is gone (or was made again later). That is sound under three rules, which our writers keep:
//!
//! * **One owner, one at a time.** The records of a batch are written by the owner of its lock alone,
//!   with one transaction in flight, so that nobody overwrites a key between the write and the
//!   read-back.
//! * **What several may write carries a nonce.** A decision, a request record, a lock: two writers never
//!   put the same bytes, so that another's write isn't taken for ours.
//! * **Its own success makes it fail.** It compares the revision of what it changes, so that a copy
//!   that arrives late changes nothing. One that makes a batch compares that there is none, which holds again
//!   once the batch was deleted: so it compares the last deletion too ([`super::keys::deletion`]).
//!
//! A transaction that only deletes leaves nothing to be known by. It is sent again; when it is refused
//! then, and the keys are gone, and only compares of those very keys don't hold, it is taken for
//! carried out (at the revision of the reading). One that changes nothing is just sent again.

use super::{Compare, Entry, Op, RangeOptions, Revision, Store, StoreError, Txn, TxnOutcome};
use backon::{BackoffBuilder, ExponentialBuilder};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tranche_guards::Guard;

#[cfg(test)]
mod tests;

/// How long [`commit`] tries. Longer than a new leader of etcd takes (about a second) and a member's
/// restart; shorter than anybody would wait for an answer.
pub const COMMIT_LIMIT: Duration = Duration::from_secs(30);

/// The pauses between attempts.
const PAUSES: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(10))
    .with_max_delay(Duration::from_secs(1))
    .with_jitter()
    .without_max_times();

/// Carries out a transaction and settles a lost answer, within [`COMMIT_LIMIT`].
///
/// # Errors
/// [`StoreError::Unavailable`]: the limit passed, and nothing changed. [`StoreError::Unknown`]: the
/// limit passed, and it still isn't known; the caller must read before it does anything else. Others
/// as the store gives them.
pub async fn commit(store: &dyn Store, txn: &Txn) -> Result<TxnOutcome, StoreError> {
    commit_within(store, txn, COMMIT_LIMIT).await
}

/// The same, and tells whether an answer was lost on the way. A refusal leaves no doubt only when none was:
/// otherwise the transaction may have been carried out, and what it put changed or deleted since.
///
/// # Errors
/// As [`commit`].
pub async fn commit_telling(store: &dyn Store, txn: &Txn) -> Result<(TxnOutcome, bool), StoreError> {
    let mut doubt = None;
    let outcome = settle(store, txn, COMMIT_LIMIT, PAUSES, &mut doubt).await?;
    Ok((outcome, doubt.is_some()))
}

/// The same within another limit. The last call is not cut off by it: it has a limit of its own.
///
/// # Errors
/// As [`commit`].
pub async fn commit_within(store: &dyn Store, txn: &Txn, limit: Duration) -> Result<TxnOutcome, StoreError> {
    settle(store, txn, limit, PAUSES, &mut None).await
}

/// `doubt` is set once an answer was lost: that attempt may have been carried out.
async fn settle(
    store: &dyn Store,
    txn: &Txn,
    limit: Duration,
    pauses: ExponentialBuilder,
    doubt: &mut Option<String>,
) -> Result<TxnOutcome, StoreError> {
    let deadline = Instant::now() + limit;
    let mut pauses = pauses.build();
    loop {
        let failure = match attempt(store, txn, doubt).await {
            // Somebody has to make room first; the caller may have better to do than to wait.
            full @ Err(StoreError::Full(_)) if doubt.is_none() => return full,
            Err(failure) if failure.retryable() => failure,
            settled => return settled,
        };
        let pause = pauses.next().unwrap_or_default();
        if Instant::now() + pause >= deadline {
            return Err(doubt.take().map_or(failure, StoreError::Unknown));
        }
        tracing::debug!(error = %failure, in_doubt = doubt.is_some(), "transaction is tried again");
        store.tried_again();
        sleep(pause).await;
    }
}

/// One attempt. `doubt` is set, and stays, once an answer was lost.
async fn attempt(store: &dyn Store, txn: &Txn, doubt: &mut Option<String>) -> Result<TxnOutcome, StoreError> {
    if doubt.is_some()
        && let Some(revision) = read_back(store, txn).await?
    {
        return Ok(TxnOutcome::Applied(revision));
    }
    let answer = store.txn(txn).await;
    match answer {
        Ok(TxnOutcome::Applied(_)) | Err(StoreError::Unavailable(_)) => return answer,
        // A change that wasn't made is not in doubt.
        Err(StoreError::Unknown(message)) if txn.ops.is_empty() => {
            return Err(StoreError::Unavailable(message));
        }
        Err(StoreError::Unknown(ref message)) => {
            if Guard::ReadBack.on() {
                *doubt = Some(message.clone());
            }
            return answer;
        }
        Ok(TxnOutcome::Refused) | Err(_) if doubt.is_none() => return answer,
        Ok(TxnOutcome::Refused) | Err(_) => {}
    }
    // It doesn't hold now: because it was carried out, just after it was read back?
    let settled =
        if puts(txn).next().is_some() { read_back(store, txn).await? } else { deleted(store, txn).await? };
    settled.map_or(answer, |revision| Ok(TxnOutcome::Applied(revision)))
}

fn puts(txn: &Txn) -> impl Iterator<Item = (&str, &[u8])> {
    txn.ops.iter().filter_map(|op| match op {
        Op::Put { key, value, .. } => Some((key.as_str(), value.as_ref())),
        Op::Delete { .. } => None,
    })
}

fn revision_of(compare: &Compare) -> Revision {
    let (Compare::Created(_, revision) | Compare::Modified(_, revision)) = compare;
    *revision
}

/// The revision at which the transaction was carried out, if what it puts shows that it was.
async fn read_back(store: &dyn Store, txn: &Txn) -> Result<Option<Revision>, StoreError> {
    let newest_seen = txn.compares.iter().map(revision_of).max().unwrap_or(0);
    let mut applied = None;
    for (key, value) in puts(txn) {
        let Some(entry) = store.get(key).await? else { return Ok(None) };
        let same = entry.value == value && *applied.get_or_insert(entry.mod_revision) == entry.mod_revision;
        if !same || entry.mod_revision <= newest_seen {
            return Ok(None);
        }
    }
    let Some(applied) = applied else { return Ok(None) };
    for op in &txn.ops {
        if let Op::Delete { key } = op
            && let Some(Entry { create_revision, .. }) = store.get(key).await?
            && create_revision <= applied
        {
            return Ok(None);
        }
    }
    Ok(Some(applied))
}

/// For a transaction of deletes alone that was refused: whether nothing but the lack of what it
/// deletes explains that.
async fn deleted(store: &dyn Store, txn: &Txn) -> Result<Option<Revision>, StoreError> {
    let mut newest = 0;
    for op in &txn.ops {
        // A range, not a get: it tells the store's revision too.
        let page = store.range(op.key(), RangeOptions { limit: 1, ..RangeOptions::default() }).await?;
        if page.entries.iter().any(|entry| entry.key == op.key()) {
            return Ok(None);
        }
        newest = newest.max(page.revision);
    }
    for compare in &txn.compares {
        let (Compare::Created(key, wanted) | Compare::Modified(key, wanted)) = compare;
        let ours = txn.ops.iter().any(|op| op.key() == key);
        let found = store.get(key).await?.map_or(0, |entry| match compare {
            Compare::Created(..) => entry.create_revision,
            Compare::Modified(..) => entry.mod_revision,
        });
        if !(found == *wanted || ours && found == 0) {
            return Ok(None);
        }
    }
    Ok(Some(newest))
}
