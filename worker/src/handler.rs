//! What a kind of target has to do: the [`Handler`] trait.

use crate::lease::{BatchInfo, CommitLease, RollbackLease, StageLease};
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio_util::sync::CancellationToken;

/// Stages, commits and rolls back for one kind of target.
///
/// Everything but `stage` may be called again after it succeeded, on this worker or another, and must
/// succeed again. Calls for different leases run at the same time.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// The name by which a batch's target asks for it.
    fn name(&self) -> &str;

    /// Stages the lease's tasks where no reader sees them, under the lease's token.
    ///
    /// A task counts as staged only when its data is durable: make all of it durable before
    /// returning. When `cancel` fires the batch is being rolled back or the lease is lost: stop soon,
    /// and return only when nothing is being written any more, because the worker then tells the
    /// coordinator so. What the call returns after that isn't reported, and [`Handler::rollback`] is called
    /// for it.
    ///
    /// # Errors
    /// The lease failed as a whole; it is given to another worker after a pause. A single task that
    /// can't be staged is no error: it goes into [`Staged::failures`].
    async fn stage(
        &self,
        lease: &StageLease,
        cancel: &CancellationToken,
        progress: &Progress,
    ) -> Result<Staged, HandlerError>;

    /// Makes the winning attempts' tasks final; returns how many are final now. Idempotent.
    ///
    /// # Errors
    /// It is called again after a pause, for ever.
    async fn commit(&self, lease: &CommitLease) -> Result<u64, HandlerError>;

    /// Removes what the lease's attempts staged, those that never reported too, and nothing else: another
    /// attempt at the same tasks may be the one that counts. Returns how many tasks of the range have
    /// nothing staged any more by these attempts (all of them, also when called again). Idempotent.
    ///
    /// It is called in two cases. A batch that is rolled back leases it range by range, with all attempts that
    /// there ever were. And a worker calls it for a staging lease of its own that doesn't count, with that
    /// one attempt, once its `stage` has returned: the batch may be importing, committing, or have ended and
    /// been swept long ago. So it makes nothing that isn't there, and leaves what was committed alone.
    ///
    /// # Errors
    /// It is called again after a pause: for ever in the first case, a few times in the second.
    async fn rollback(&self, lease: &RollbackLease) -> Result<u64, HandlerError>;

    /// Finishes a batch all of whose ranges are committed, in one step. Idempotent.
    ///
    /// # Errors
    /// It is called again after a pause, for ever.
    async fn publish(&self, _batch: &BatchInfo) -> Result<(), HandlerError> {
        Ok(())
    }

    /// Removes whatever is still left of a batch that ended, and returns how many staged items it
    /// found. Idempotent.
    ///
    /// # Errors
    /// It is called again after a pause, for ever.
    async fn sweep(&self, _batch: &BatchInfo) -> Result<u64, HandlerError> {
        Ok(0)
    }

    /// The batch has nothing more for this worker: forget what is remembered of it.
    fn leave(&self, _batch: &str) {}
}

/// What became of a lease's tasks: all that are not among the failures are staged, durably.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Staged {
    /// The tasks that failed.
    pub failures: Vec<TaskFailure>,
    /// What the handler wants back at commit or rollback; at most 64 KiB.
    pub receipt: Bytes,
}

/// Why one task failed.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskFailure {
    /// The task.
    pub sequence: u64,
    /// A word that programs can match, in UPPER_SNAKE_CASE.
    pub code: String,
    /// What happened, for people; cut at 512 bytes.
    pub message: String,
}

impl TaskFailure {
    /// A failure.
    pub fn new(sequence: u64, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { sequence, code: code.into(), message: message.into() }
    }
}

/// A lease failed as a whole.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
pub enum HandlerError {
    /// It may work later, or elsewhere: a full disk, a lost connection.
    #[error("{0}")]
    Retryable(String),
    /// It can't work here: parameters or data are wrong.
    #[error("{0}")]
    Refused(String),
    /// It was cancelled.
    #[error("cancelled")]
    Cancelled,
}

/// Counts the tasks of a lease that are done, for heartbeats. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<AtomicU64>);

impl Progress {
    /// `tasks` more are done, staged or failed.
    pub fn add(&self, tasks: u64) {
        self.0.fetch_add(tasks, Ordering::Relaxed);
    }

    /// How many are done.
    pub fn done(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
