//! A worker, and a handler that the test holds.

use super::{Coordinator, LIMIT};
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tranche_worker::handlers::Noop;
use tranche_worker::{
    CommitLease, Config, Handler, HandlerError, Progress, RollbackLease, StageLease, Staged, TaskFailure,
    Token, Worker, WorkerError,
};

/// Long enough that no test depends on it.
pub const TTL: Duration = Duration::from_mins(1);

/// Holds its leases until the test lets them go; stops slowly when cancelled.
pub struct Held {
    pub started: Semaphore,
    pub go: Semaphore,
    pub cancelled: Notify,
    pub stop: Semaphore,
    pub stopped: AtomicBool,
    /// So many rollbacks fail.
    pub failing: AtomicUsize,
    /// The attempts that were rolled back.
    pub removed: mpsc::UnboundedSender<Vec<Token>>,
}

impl Held {
    fn new(removed: mpsc::UnboundedSender<Vec<Token>>) -> Arc<Self> {
        let none = || Semaphore::new(0);
        Arc::new(Self {
            started: none(),
            go: none(),
            cancelled: Notify::new(),
            stop: none(),
            stopped: AtomicBool::new(false),
            failing: AtomicUsize::new(0),
            removed,
        })
    }

    pub async fn started(&self) {
        tokio::time::timeout(LIMIT, self.started.acquire()).await.expect("a lease starts").unwrap().forget();
    }
}

#[async_trait]
impl Handler for Held {
    fn name(&self) -> &'static str {
        "held"
    }

    async fn stage(
        &self,
        lease: &StageLease,
        cancel: &CancellationToken,
        progress: &Progress,
    ) -> Result<Staged, HandlerError> {
        match lease.tasks.at(0).expect("one").key {
            "panic" => panic!("the cat is on the keyboard"),
            "wrong" => {
                return Ok(Staged { failures: vec![TaskFailure::new(99, "X", "")], ..Default::default() });
            }
            _ => {}
        }
        progress.add(1);
        self.started.add_permits(1);
        tokio::select! {
            biased;
            permit = self.go.acquire() => permit.unwrap().forget(),
            () = cancel.cancelled() => {
                self.cancelled.notify_one();
                self.stop.acquire().await.unwrap().forget();
                self.stopped.store(true, Ordering::SeqCst);
                return Err(HandlerError::Cancelled);
            }
        }
        Ok(Staged { failures: vec![TaskFailure::new(2, "BAD", "is bad")], receipt: Bytes::from_static(b"r") })
    }

    async fn commit(&self, lease: &CommitLease) -> Result<u64, HandlerError> {
        if lease.attempt > 0 { Ok(7) } else { Err(HandlerError::Retryable("not yet".into())) }
    }

    async fn rollback(&self, lease: &RollbackLease) -> Result<u64, HandlerError> {
        let once_less = |failing: usize| failing.checked_sub(1);
        if self.failing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, once_less).is_ok() {
            return Err(HandlerError::Retryable("the disk is away".into()));
        }
        self.removed.send(lease.attempts.iter().map(|attempt| attempt.token).collect()).ok();
        Ok(lease.range.len())
    }

    async fn sweep(&self, _: &tranche_worker::BatchInfo) -> Result<u64, HandlerError> {
        Ok(3)
    }
}

pub struct Running {
    pub held: Arc<Held>,
    pub removed: mpsc::UnboundedReceiver<Vec<Token>>,
    pub shutdown: CancellationToken,
    pub worker: JoinHandle<Result<(), WorkerError>>,
}

impl Running {
    pub fn start(config: Config) -> Self {
        let (removals, removed) = mpsc::unbounded_channel();
        let held = Held::new(removals);
        let shutdown = CancellationToken::new();
        let handlers: Vec<Arc<dyn Handler>> = vec![held.clone(), Arc::new(Noop::new())];
        let worker = tokio::spawn(Worker::new(config, handlers).run(shutdown.clone()));
        Self { held, removed, shutdown, worker }
    }

    /// The next rollback that succeeded: the attempts' counters.
    pub async fn removed(&mut self) -> Vec<u64> {
        let removed = tokio::time::timeout(LIMIT, self.removed.recv()).await.expect("something is removed");
        removed.unwrap().iter().map(|token| token.counter).collect()
    }

    pub async fn ended(self) {
        tokio::time::timeout(LIMIT, self.worker).await.expect("the worker ends").unwrap().unwrap();
    }
}

pub fn config(coordinators: &[&Coordinator], slots: usize) -> Config {
    Config {
        slots,
        id: "w1".into(),
        reconnect_min: Duration::from_millis(5),
        reconnect_max: Duration::from_millis(50),
        ..Config::new(coordinators.iter().map(|coordinator| coordinator.url()))
    }
}
