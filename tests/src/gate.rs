//! A handler that the test holds and lets go.

use async_trait::async_trait;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tranche_worker::{
    BatchInfo, CommitLease, Handler, HandlerError, Progress, Range, RollbackLease, StageLease, Staged,
    TaskFailure, Token,
};

/// What a handler was asked to do.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// The batch's name.
    pub batch: String,
    /// `stage`, `commit`, `rollback`, `publish`, `sweep` or `leave`.
    pub phase: &'static str,
    /// The range; `None` for what is asked of the whole batch.
    pub range: Option<Range>,
    /// The lease's token; `None` for what is asked of the whole batch.
    pub token: Option<Token>,
    /// How often the range was leased before.
    pub attempt: u32,
}

/// Stages nothing, or what the handler inside it stages, and returns from `stage` only when the test lets
/// it. Writes down what it was asked.
pub struct Gate {
    name: String,
    inner: Option<Arc<dyn Handler>>,
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    seen: Vec<Seen>,
    waiting: Vec<StageLease>,
    passes: usize,
    open: bool,
    cancelled: usize,
    failing: HashMap<u64, &'static str>,
    errors: usize,
}

impl Gate {
    /// A closed gate, as handler `name`.
    pub fn new(name: &str) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_owned(),
            inner: None,
            state: Mutex::default(),
            changed: watch::Sender::new(0),
        })
    }

    /// A closed gate behind a handler: what that stages is staged before the gate is waited for.
    pub fn behind(inner: Arc<dyn Handler>) -> Arc<Self> {
        Arc::new(Self {
            name: inner.name().to_owned(),
            inner: Some(inner),
            state: Mutex::default(),
            changed: watch::Sender::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.send_modify(|changes| *changes += 1);
        result
    }

    /// Lets all that wait and all that come pass.
    pub fn open(&self) {
        self.change(|state| state.open = true);
    }

    /// Holds what comes from now on.
    pub fn close(&self) {
        self.change(|state| (state.open, state.passes) = (false, 0));
    }

    /// Lets so many leases pass, those that wait first.
    pub fn pass(&self, leases: usize) {
        self.change(|state| state.passes += leases);
    }

    /// These tasks fail with this code, until said otherwise.
    pub fn fail(&self, tasks: impl IntoIterator<Item = u64>, code: &'static str) {
        self.change(|state| state.failing.extend(tasks.into_iter().map(|task| (task, code))));
    }

    /// No task fails any more.
    pub fn fail_none(&self) {
        self.change(|state| state.failing.clear());
    }

    /// The next so many commits and rollbacks of a range fail as a whole.
    pub fn err(&self, calls: usize) {
        self.change(|state| state.errors = calls);
    }

    /// What it was asked so far, in order.
    pub fn seen(&self) -> Vec<Seen> {
        self.lock().seen.clone()
    }

    /// What it was asked of this kind, in order.
    pub fn seen_of(&self, phase: &str) -> Vec<Seen> {
        self.lock().seen.iter().filter(|seen| seen.phase == phase).cloned().collect()
    }

    /// The leases that wait in front of the gate.
    pub fn waiting(&self) -> Vec<StageLease> {
        self.lock().waiting.clone()
    }

    /// How many leases were cancelled while they waited.
    pub fn cancelled(&self) -> usize {
        self.lock().cancelled
    }

    /// Waits until so many leases wait in front of the gate (or more), and returns them.
    pub async fn wait_staging(&self, leases: usize) -> Vec<StageLease> {
        self.until(&format!("{leases} leases wait at the gate `{}`", self.name), |gate| {
            Some(gate.waiting()).filter(|waiting| waiting.len() >= leases)
        })
        .await
    }

    /// Waits for something about this gate.
    pub async fn until<T>(&self, what: &str, mut ask: impl FnMut(&Self) -> Option<T>) -> T {
        let mut changed = self.changed.subscribe();
        let wait = async {
            loop {
                changed.borrow_and_update();
                if let Some(answer) = ask(self) {
                    return answer;
                }
                changed.changed().await.expect("the sender is our own");
            }
        };
        match tokio::time::timeout(crate::wait::PATIENCE, wait).await {
            Ok(answer) => answer,
            Err(late) => panic!("{late}: {what}; seen: {:#?}", self.seen()),
        }
    }

    fn saw(&self, batch: &BatchInfo, phase: &'static str) {
        let batch = batch.name.clone();
        let seen = Seen { batch, phase, range: None, token: None, attempt: 0 };
        self.change(|state| state.seen.push(seen));
    }

    fn saw_lease(&self, batch: &BatchInfo, phase: &'static str, range: Range, token: Token, attempt: u32) {
        let batch = batch.name.clone();
        let seen = Seen { batch, phase, range: Some(range), token: Some(token), attempt };
        self.change(|state| state.seen.push(seen));
    }

    fn fails_now(&self) -> Result<(), HandlerError> {
        self.change(|state| {
            if state.errors == 0 {
                return Ok(());
            }
            state.errors -= 1;
            Err(HandlerError::Retryable("the test wants it so".into()))
        })
    }

    async fn passed(&self, token: Token) {
        let mut changed = self.changed.subscribe();
        loop {
            changed.borrow_and_update();
            {
                let mut state = self.lock();
                if state.open || state.passes > 0 {
                    if !state.open {
                        state.passes -= 1;
                    }
                    state.waiting.retain(|lease| lease.token != token);
                    return;
                }
            }
            changed.changed().await.expect("the sender is our own");
        }
    }
}

#[async_trait]
impl Handler for Gate {
    fn name(&self) -> &str {
        &self.name
    }

    async fn stage(
        &self,
        lease: &StageLease,
        cancel: &CancellationToken,
        progress: &Progress,
    ) -> Result<Staged, HandlerError> {
        self.saw_lease(&lease.batch, "stage", lease.range, lease.token, lease.attempt);
        let mut staged = match &self.inner {
            Some(inner) => inner.stage(lease, cancel, progress).await?,
            None => Staged::default(),
        };
        self.change(|state| state.waiting.push(lease.clone()));
        if cancel.run_until_cancelled(self.passed(lease.token)).await.is_none() {
            self.change(|state| {
                state.cancelled += 1;
                state.waiting.retain(|waiting| waiting.token != lease.token);
            });
            return Err(HandlerError::Cancelled);
        }
        let failing = self.lock().failing.clone();
        for task in &lease.tasks {
            if let Some(code) = failing.get(&task.sequence) {
                staged.failures.push(TaskFailure::new(task.sequence, *code, "the test wants it so"));
            }
        }
        Ok(staged)
    }

    async fn commit(&self, lease: &CommitLease) -> Result<u64, HandlerError> {
        self.saw_lease(&lease.batch, "commit", lease.range, lease.token, lease.attempt);
        self.fails_now()?;
        match &self.inner {
            Some(inner) => inner.commit(lease).await,
            None => Ok(lease.tasks()),
        }
    }

    async fn rollback(&self, lease: &RollbackLease) -> Result<u64, HandlerError> {
        self.saw_lease(&lease.batch, "rollback", lease.range, lease.token, lease.attempt);
        self.fails_now()?;
        match &self.inner {
            Some(inner) => inner.rollback(lease).await,
            None => Ok(lease.range.len()),
        }
    }

    async fn publish(&self, batch: &BatchInfo) -> Result<(), HandlerError> {
        self.saw(batch, "publish");
        match &self.inner {
            Some(inner) => inner.publish(batch).await,
            None => Ok(()),
        }
    }

    async fn sweep(&self, batch: &BatchInfo) -> Result<u64, HandlerError> {
        self.saw(batch, "sweep");
        match &self.inner {
            Some(inner) => inner.sweep(batch).await,
            None => Ok(0),
        }
    }

    fn leave(&self, batch: &str) {
        self.saw(&BatchInfo { name: batch.to_owned(), ..Default::default() }, "leave");
        if let Some(inner) = &self.inner {
            inner.leave(batch);
        }
    }
}
