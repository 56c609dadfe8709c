//! Handlers that think in single tasks.

use crate::handler::{Handler, HandlerError, Progress, Staged, TaskFailure};
use crate::lease::{BatchInfo, CommitLease, RollbackLease, StageLease};
use crate::tasks::StageTask;
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, StreamExt as _};
use futures::{FutureExt as _, TryStreamExt as _};
use std::num::NonZeroUsize;
use std::panic::AssertUnwindSafe;
use tokio_util::sync::CancellationToken;

/// Stages one task at a time; [`PerTask`] makes a [`Handler`] of it.
#[async_trait]
pub trait TaskHandler: Send + Sync + 'static {
    /// As [`Handler::name`].
    fn name(&self) -> &str;

    /// Stages one task under the lease's token. When the lease is cancelled the call is dropped at
    /// its next await; it must leave nothing running behind then.
    ///
    /// # Errors
    /// [`TaskError::Task`] fails this task alone, [`TaskError::Lease`] the lease.
    async fn stage(&self, lease: &StageLease, task: StageTask<'_>) -> Result<(), TaskError>;

    /// Called once all tasks of a lease were tried: makes the staged ones durable, returns the receipt.
    ///
    /// # Errors
    /// The lease fails as a whole.
    async fn finish(&self, _lease: &StageLease) -> Result<Bytes, HandlerError> {
        Ok(Bytes::new())
    }

    /// As [`Handler::commit`].
    async fn commit(&self, lease: &CommitLease) -> Result<u64, HandlerError>;

    /// As [`Handler::rollback`].
    async fn rollback(&self, lease: &RollbackLease) -> Result<u64, HandlerError>;

    /// As [`Handler::publish`].
    async fn publish(&self, _batch: &BatchInfo) -> Result<(), HandlerError> {
        Ok(())
    }

    /// As [`Handler::sweep`].
    async fn sweep(&self, _batch: &BatchInfo) -> Result<u64, HandlerError> {
        Ok(0)
    }

    /// As [`Handler::leave`].
    fn leave(&self, _batch: &str) {}
}

/// Why a task was not staged.
#[derive(Clone, Debug, PartialEq)]
pub enum TaskError {
    /// This task can't be staged; its neighbours can.
    Task {
        /// A word that programs can match, in UPPER_SNAKE_CASE.
        code: String,
        /// What happened, for people.
        message: String,
    },
    /// Nothing of the lease can be staged now.
    Lease(HandlerError),
}

impl TaskError {
    /// A failure of this task alone.
    pub fn task(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Task { code: code.into(), message: message.into() }
    }
}

impl From<HandlerError> for TaskError {
    fn from(error: HandlerError) -> Self {
        Self::Lease(error)
    }
}

/// Runs a lease's tasks through a [`TaskHandler`], some at once.
///
/// A task that panics fails alone, with the code `PANICKED`.
pub struct PerTask<H> {
    handler: H,
    concurrency: NonZeroUsize,
}

impl<H: TaskHandler> PerTask<H> {
    /// At most `concurrency` tasks of a lease are worked on at once.
    pub fn new(handler: H, concurrency: NonZeroUsize) -> Self {
        Self { handler, concurrency }
    }

    async fn stage_one(
        &self,
        lease: &StageLease,
        index: usize,
        progress: &Progress,
    ) -> Result<Option<TaskFailure>, HandlerError> {
        let Some(task) = lease.tasks.at(index) else { return Ok(None) };
        let outcome = AssertUnwindSafe(self.handler.stage(lease, task)).catch_unwind().await;
        let failure = match outcome {
            Ok(Ok(())) => None,
            Ok(Err(TaskError::Task { code, message })) => {
                Some(TaskFailure::new(task.sequence, code, message))
            }
            Ok(Err(TaskError::Lease(error))) => return Err(error),
            Err(panic) => Some(TaskFailure::new(task.sequence, "PANICKED", panic_text(&*panic))),
        };
        progress.add(1);
        Ok(failure)
    }
}

#[async_trait]
impl<H: TaskHandler> Handler for PerTask<H> {
    fn name(&self) -> &str {
        self.handler.name()
    }

    async fn stage(
        &self,
        lease: &StageLease,
        cancel: &CancellationToken,
        progress: &Progress,
    ) -> Result<Staged, HandlerError> {
        let all = async {
            let mut failures: Vec<TaskFailure> = stream::iter(0..lease.tasks.len())
                .map(|index| self.stage_one(lease, index, progress))
                .buffer_unordered(self.concurrency.get())
                .try_filter_map(|failure| async { Ok(failure) })
                .try_collect()
                .await?;
            failures.sort_by_key(|failure| failure.sequence);
            Ok(Staged { failures, receipt: self.handler.finish(lease).await? })
        };
        cancel.run_until_cancelled(all).await.unwrap_or(Err(HandlerError::Cancelled))
    }

    async fn commit(&self, lease: &CommitLease) -> Result<u64, HandlerError> {
        self.handler.commit(lease).await
    }

    async fn rollback(&self, lease: &RollbackLease) -> Result<u64, HandlerError> {
        self.handler.rollback(lease).await
    }

    async fn publish(&self, batch: &BatchInfo) -> Result<(), HandlerError> {
        self.handler.publish(batch).await
    }

    async fn sweep(&self, batch: &BatchInfo) -> Result<u64, HandlerError> {
        self.handler.sweep(batch).await
    }

    fn leave(&self, batch: &str) {
        self.handler.leave(batch);
    }
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("panicked: {}", text.as_deref().unwrap_or("no message"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::{Range, Token};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::Notify;

    #[derive(Default)]
    struct Picky {
        running: AtomicUsize,
        most: AtomicUsize,
        hung: Notify,
    }

    #[async_trait]
    impl TaskHandler for Picky {
        fn name(&self) -> &'static str {
            "picky"
        }
        async fn stage(&self, _: &StageLease, task: StageTask<'_>) -> Result<(), TaskError> {
            let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(running, Ordering::SeqCst);
            tokio::task::yield_now().await;
            self.running.fetch_sub(1, Ordering::SeqCst);
            match task.key {
                "bad" => Err(TaskError::task("BAD", "is bad")),
                "panic" => panic!("oh no {}", task.sequence),
                "full" => Err(HandlerError::Retryable("disk full".into()).into()),
                "hang" => {
                    self.hung.notify_one();
                    std::future::pending().await
                }
                _ => Ok(()),
            }
        }
        async fn finish(&self, lease: &StageLease) -> Result<Bytes, HandlerError> {
            Ok(Bytes::from(lease.token.to_string()))
        }
        async fn commit(&self, _: &CommitLease) -> Result<u64, HandlerError> {
            Ok(0)
        }
        async fn rollback(&self, _: &RollbackLease) -> Result<u64, HandlerError> {
            Ok(0)
        }
    }

    fn lease(keys: &[&'static str]) -> StageLease {
        let range = Range { first: 1, last: keys.len() as u64 };
        let task = |(i, key): (usize, &&'static str)| StageTask { sequence: i as u64 + 1, key, payload: b"" };
        StageLease {
            batch: BatchInfo { name: "b".into(), ..Default::default() },
            token: Token { epoch: 1, counter: 2 },
            range,
            runs: vec![range],
            tasks: keys.iter().enumerate().map(task).collect(),
            attempt: 0,
        }
    }

    fn adapter(concurrency: usize) -> PerTask<Picky> {
        PerTask::new(Picky::default(), NonZeroUsize::new(concurrency).unwrap())
    }

    #[tokio::test]
    async fn a_task_that_fails_or_panics_fails_alone() {
        let progress = Progress::default();
        let handler = adapter(2);
        let lease = lease(&["ok", "bad", "ok", "panic", "ok"]);
        let staged = handler.stage(&lease, &CancellationToken::new(), &progress).await.unwrap();
        assert_eq!(
            staged.failures,
            [TaskFailure::new(2, "BAD", "is bad"), TaskFailure::new(4, "PANICKED", "panicked: oh no 4")]
        );
        assert_eq!(staged.receipt, "1-2");
        assert_eq!(progress.done(), 5);
    }

    #[tokio::test]
    async fn concurrency_is_bounded() {
        let handler = adapter(3);
        let lease = lease(&["ok"; 50]);
        handler.stage(&lease, &CancellationToken::new(), &Progress::default()).await.unwrap();
        assert_eq!(handler.handler.most.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn an_error_of_the_lease_fails_the_lease() {
        let lease = lease(&["ok", "full", "ok"]);
        let error = adapter(1).stage(&lease, &CancellationToken::new(), &Progress::default()).await;
        assert_eq!(error, Err(HandlerError::Retryable("disk full".into())));
    }

    #[tokio::test]
    async fn a_cancelled_lease_stops() {
        let handler = adapter(1);
        let cancel = CancellationToken::new();
        let lease = lease(&["ok", "hang", "ok"]);
        let progress = Progress::default();
        let canceller = async {
            handler.handler.hung.notified().await;
            cancel.cancel();
        };
        let (result, ()) = tokio::join!(handler.stage(&lease, &cancel, &progress), canceller);
        assert_eq!(result, Err(HandlerError::Cancelled));
        assert_eq!(progress.done(), 1);
    }
}
