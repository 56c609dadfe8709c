//! The simulated handler: takes virtual time, writes into the simulated library, and may fail anywhere.

use crate::host::{HostId, Life};
use crate::library::Try;
use crate::stats::Count;
use crate::world::{Order, World};
use async_trait::async_trait;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tranche_proto::v1;
use tranche_worker::{
    BatchInfo, CommitLease, Handler, HandlerError, Progress, RollbackLease, StageLease, Staged, TaskFailure,
    Token,
};

/// The name by which batches ask for it.
pub(crate) const NAME: &str = "sim";
/// What takes longer is made of several writes.
const LONG_WRITE: Duration = Duration::from_millis(300);
/// The parameter that names the batch's plan.
pub(crate) const PLAN: &str = "plan";

/// The handler of one life of a worker.
pub(crate) struct SimHandler {
    world: World,
    host: HostId,
    life: Life,
    /// What one task takes.
    pace: Duration,
    /// Leases that it may work on at once.
    slots: usize,
    at_once: Arc<AtomicUsize>,
}

/// A lease that is worked on.
struct Slot(Arc<AtomicUsize>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl SimHandler {
    /// A handler.
    pub(crate) fn new(world: World, host: HostId, life: Life, pace: Duration, slots: usize) -> Self {
        Self { world, host, life, pace, slots, at_once: Arc::default() }
    }

    /// I10: no more leases at once than there are slots.
    fn slot(&self) -> Slot {
        let now = self.at_once.fetch_add(1, Ordering::Relaxed) + 1;
        if now > self.slots {
            self.world.lock().violated(format!(
                "I10 host {} works on {now} leases, it has {} slots",
                self.host, self.slots
            ));
        }
        Slot(self.at_once.clone())
    }

    /// A call's own time, and whether it fails.
    async fn begin(&self) -> Result<(), HandlerError> {
        let (pause, fails) = {
            let inner = &mut *self.world.lock();
            let fails = inner.chance(inner.knobs.handler_error);
            if fails {
                inner.count(Count::HandlerError);
            }
            (inner.ms(1, 40), fails)
        };
        tokio::time::sleep(pause).await;
        if fails { Err(HandlerError::Retryable("simulated".to_owned())) } else { Ok(()) }
    }

    /// A disk that hangs: nothing can be done about it.
    async fn maybe_stuck(&self) {
        let stuck = {
            let inner = &mut *self.world.lock();
            let stuck = inner.chance(inner.knobs.stuck);
            if stuck {
                inner.count(Count::StuckWrite);
            }
            stuck.then(|| inner.ms(200, 3500))
        };
        if let Some(pause) = stuck {
            tokio::time::sleep(pause).await;
        }
    }
}

/// A call that stages, until it is over.
struct Staging {
    world: World,
    by: (HostId, Life),
    token: Token,
}

impl Staging {
    fn begin(world: &World, by: (HostId, Life), lease: &StageLease) -> Self {
        world.lock().staging(by, lease);
        Self { world: world.clone(), by, token: lease.token }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.world.lock().staged_no_more(self.by, self.token);
    }
}

fn plan_of(batch: &BatchInfo) -> usize {
    batch.params.get(PLAN).and_then(|plan| plan.parse().ok()).unwrap_or(usize::MAX)
}

#[async_trait]
impl Handler for SimHandler {
    fn name(&self) -> &str {
        NAME
    }

    async fn stage(
        &self,
        lease: &StageLease,
        cancel: &CancellationToken,
        progress: &Progress,
    ) -> Result<Staged, HandlerError> {
        let (batch, token, by) = (&lease.batch.name, lease.token, (self.host, self.life));
        let plan = plan_of(&lease.batch);
        let _slot = self.slot();
        let _staging = Staging::begin(&self.world, by, lease);
        self.begin().await?;
        let mut failures = Vec::new();
        // A few writes at a time: a call to the clock for each task would be most of a run's work.
        for tasks in lease.tasks.iter().collect::<Vec<_>>().chunks(4) {
            if cancel.is_cancelled() {
                return Err(HandlerError::Cancelled);
            }
            let pause = self.pace * u32::try_from(tasks.len()).unwrap_or(u32::MAX);
            // A write that was begun is done, whatever is said meanwhile, or after it stood still with its worker.
            if pause < LONG_WRITE && self.world.lock().rng.bool() {
                tokio::time::sleep(pause).await;
            } else if cancel.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return Err(HandlerError::Cancelled);
            }
            self.world.lock().stages_on(by, token);
            self.maybe_stuck().await;
            for task in tasks {
                let sent = v1::Task { key: task.key.to_owned(), payload: task.payload.to_vec().into() };
                let tried = {
                    let inner = &mut *self.world.lock();
                    if sent != crate::plan::task(plan, task.sequence) {
                        inner.violated(format!(
                            "I8 {batch}: task {} isn't what was appended: {sent:?}",
                            task.sequence
                        ));
                    }
                    let tried = inner.try_task(batch, plan, task.sequence);
                    match tried {
                        Try::Staged => inner.write_staged(by, batch, token, task.sequence),
                        Try::Failed => {}
                        Try::Kills => {
                            inner.count(Count::Poison);
                            let pause = inner.ms(100, 500);
                            inner.orders.push(Order::Crash(self.host, pause));
                        }
                    }
                    tried
                };
                match tried {
                    Try::Staged => {}
                    Try::Failed => failures.push(TaskFailure::new(task.sequence, "SIMULATED", "as planned")),
                    Try::Kills => std::future::pending().await,
                }
            }
            progress.add(tasks.len() as u64);
        }
        let sync = self.world.lock().ms(1, 30);
        tokio::time::sleep(sync).await;
        self.world.lock().sync_staged(batch, token);
        Ok(Staged { failures, receipt: bytes::Bytes::copy_from_slice(token.to_string().as_bytes()) })
    }

    async fn commit(&self, lease: &CommitLease) -> Result<u64, HandlerError> {
        let _slot = self.slot();
        let begun = self.begin().await;
        let batch = &lease.batch.name;
        let mut done = 0;
        for attempt in &lease.attempts {
            self.maybe_stuck().await;
            let mut inner = self.world.lock();
            if attempt.receipt != attempt.token.to_string() {
                inner.violated(format!("I4 {batch}: {} came back with another receipt", attempt.token));
            }
            // A call that fails did a part of its work.
            let most = if begun.is_err() { 1 } else { usize::MAX };
            match inner.make_visible(batch, attempt, most) {
                Ok(tasks) => done += tasks,
                Err(error) => {
                    inner.violated(format!("I4 {batch}: commit of {}: {error}", lease.range));
                    return Err(HandlerError::Retryable(error));
                }
            }
        }
        begun.map(|()| done)
    }

    async fn rollback(&self, lease: &RollbackLease) -> Result<u64, HandlerError> {
        self.begin().await?;
        for attempt in &lease.attempts {
            self.maybe_stuck().await;
            self.world.lock().remove_staged(&lease.batch.name, attempt.token);
        }
        Ok(lease.range.len())
    }

    async fn publish(&self, batch: &BatchInfo) -> Result<(), HandlerError> {
        let _slot = self.slot();
        self.begin().await?;
        self.world.lock().publish(&batch.name, batch.staged);
        Ok(())
    }

    async fn sweep(&self, batch: &BatchInfo) -> Result<u64, HandlerError> {
        let _slot = self.slot();
        self.begin().await?;
        Ok(self.world.lock().sweep_staged(&batch.name))
    }
}
