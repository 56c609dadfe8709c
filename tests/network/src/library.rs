//! A library in memory that all workers share, and the handler that stages into it. It keeps the rules of
//! real ones, and writes down every breach of them.

use async_trait::async_trait;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tranche_worker::lease::count;
use tranche_worker::{
    BatchInfo, CommitLease, Handler, HandlerError, Progress, RollbackLease, StageLease, Staged, TaskFailure,
    Token,
};

/// The handler's name.
pub const HANDLER: &str = "memory";
/// A task with this payload fails.
pub const FAILS: &[u8] = b"fails";

/// What readers see, and what is staged.
#[derive(Clone, Debug, Default)]
pub struct Library(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// By batch and token.
    staged: BTreeMap<(String, Token), BTreeSet<u64>>,
    /// By batch: the tasks, each with the token under which it was staged.
    seen: BTreeMap<String, BTreeMap<u64, Token>>,
    published: BTreeSet<String>,
    breaches: Vec<String>,
    counts: Counts,
}

/// How often what was done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Leases whose staging began.
    pub stages: u64,
    /// Leases whose staging was cancelled.
    pub cancelled: u64,
    /// Staged items that sweeps found.
    pub residue: u64,
}

impl Library {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tasks of a batch that readers see.
    pub fn seen(&self, batch: &str) -> BTreeSet<u64> {
        self.lock().seen.get(batch).map(|tasks| tasks.keys().copied().collect()).unwrap_or_default()
    }

    /// How many tasks are staged, of all batches.
    pub fn staged(&self) -> usize {
        self.lock().staged.values().map(BTreeSet::len).sum()
    }

    /// Whether the batch was published.
    pub fn published(&self, batch: &str) -> bool {
        self.lock().published.contains(batch)
    }

    /// What nobody may do and somebody did.
    pub fn breaches(&self) -> Vec<String> {
        self.lock().breaches.clone()
    }

    /// How often what was done.
    pub fn counts(&self) -> Counts {
        self.lock().counts
    }
}

/// Stages into a [`Library`], each task taking its time.
#[derive(Debug)]
pub struct Memory {
    library: Library,
    task_time: Duration,
}

impl Memory {
    /// A handler of one worker.
    pub fn new(library: Library, task_time: Duration) -> Self {
        Self { library, task_time }
    }
}

#[async_trait]
impl Handler for Memory {
    fn name(&self) -> &'static str {
        HANDLER
    }

    async fn stage(
        &self,
        lease: &StageLease,
        cancel: &CancellationToken,
        progress: &Progress,
    ) -> Result<Staged, HandlerError> {
        let place = (lease.batch.name.clone(), lease.token);
        self.library.lock().counts.stages += 1;
        let mut failures = Vec::new();
        for task in &lease.tasks {
            if cancel.run_until_cancelled(tokio::time::sleep(self.task_time)).await.is_none() {
                self.library.lock().counts.cancelled += 1;
                return Err(HandlerError::Cancelled);
            }
            if task.payload == FAILS {
                failures.push(TaskFailure::new(task.sequence, "FAILS", "its payload says so"));
            } else {
                self.library.lock().staged.entry(place.clone()).or_default().insert(task.sequence);
            }
            progress.add(1);
        }
        Ok(Staged { failures, receipt: Bytes::from(lease.token.to_string()) })
    }

    async fn commit(&self, lease: &CommitLease) -> Result<u64, HandlerError> {
        tokio::time::sleep(self.task_time).await;
        let inner = &mut *self.library.lock();
        let batch = &lease.batch.name;
        for attempt in &lease.attempts {
            if attempt.receipt != attempt.token.to_string() {
                inner.breaches.push(format!("{batch}: {} came with the receipt of another", attempt.token));
            }
            let place = (batch.clone(), attempt.token);
            for sequence in attempt.runs.iter().flat_map(|run| run.first..=run.last) {
                let staged = inner.staged.get_mut(&place).is_some_and(|tasks| tasks.remove(&sequence));
                let seen = inner.seen.entry(batch.clone()).or_default();
                match (staged, seen.get(&sequence)) {
                    (true, None) => {
                        seen.insert(sequence, attempt.token);
                    }
                    (false, Some(token)) if *token == attempt.token => {}
                    (_, found) => {
                        let what =
                            format!("{batch}: commit of {sequence} under {}: {found:?}", attempt.token);
                        inner.breaches.push(what.clone());
                        return Err(HandlerError::Retryable(what));
                    }
                }
            }
            inner.staged.retain(|_, tasks| !tasks.is_empty());
        }
        Ok(lease.attempts.iter().map(|attempt| count(&attempt.runs)).sum())
    }

    async fn rollback(&self, lease: &RollbackLease) -> Result<u64, HandlerError> {
        tokio::time::sleep(self.task_time).await;
        let inner = &mut *self.library.lock();
        for attempt in &lease.attempts {
            inner.staged.remove(&(lease.batch.name.clone(), attempt.token));
        }
        Ok(lease.range.len())
    }

    async fn publish(&self, batch: &BatchInfo) -> Result<(), HandlerError> {
        let inner = &mut *self.library.lock();
        let seen = inner.seen.get(&batch.name).map_or(0, BTreeMap::len) as u64;
        if seen != batch.staged {
            inner.breaches.push(format!("{}: published with {seen} of {} tasks", batch.name, batch.staged));
        }
        inner.published.insert(batch.name.clone());
        Ok(())
    }

    async fn sweep(&self, batch: &BatchInfo) -> Result<u64, HandlerError> {
        let inner = &mut *self.library.lock();
        let before: usize = inner.staged.values().map(BTreeSet::len).sum();
        inner.staged.retain(|(name, _), _| *name != batch.name);
        let found = (before - inner.staged.values().map(BTreeSet::len).sum::<usize>()) as u64;
        inner.counts.residue += found;
        Ok(found)
    }
}
