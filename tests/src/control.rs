//! A worker process that the test holds, lets go, slows down and makes crash, by files in a folder.
//!
//! `held_worker` (its program) imports files for real, with the handler `object`; before and after each call
//! it looks into the folder. So what a test does to it with signals meets it at a known place.

use crate::wait::eventually;
use async_trait::async_trait;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tranche_worker::{
    BatchInfo, CommitLease, Handler, HandlerError, Progress, RollbackLease, StageLease, Staged, Token,
};

/// How often a held call looks whether it may go on.
const LOOK: Duration = Duration::from_millis(5);

/// Where a worker can be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// Before anything of a lease is staged.
    Stage,
    /// All of it is staged, and nothing reported.
    Staged,
    /// Before a commit.
    Commit,
    /// Before a rollback.
    Rollback,
}

impl At {
    fn name(self) -> &'static str {
        match self {
            Self::Stage => "stage",
            Self::Staged => "staged",
            Self::Commit => "commit",
            Self::Rollback => "rollback",
        }
    }
}

/// A lease that reached a place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arrival {
    /// The worker.
    pub worker: String,
    /// The lease's token as `{epoch}-{counter}`.
    pub token: String,
}

/// The folder through which a test and its workers speak.
#[derive(Clone, Debug)]
pub struct Control {
    dir: PathBuf,
}

impl Control {
    /// Uses this folder, and makes it.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        let dir = dir.into();
        std::fs::create_dir_all(dir.join("at")).expect("a folder");
        Self { dir }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn put(&self, name: &str, text: &str) {
        let (new, path) = (self.dir.join(format!(".{name}")), self.dir.join(name));
        std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, path)).expect("a file");
    }

    fn take(&self, name: &str) {
        let _ = std::fs::remove_file(self.dir.join(name));
    }

    fn has(&self, name: &str) -> bool {
        self.dir.join(name).exists()
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.join(name)).unwrap_or_default()
    }

    // ---- the test's side ----

    /// Holds this worker's leases there, those that come from now on.
    pub fn hold(&self, worker: &str, at: At) {
        self.put(&format!("hold-{}-{worker}", at.name()), "");
    }

    /// Lets them go on.
    pub fn release(&self, worker: &str, at: At) {
        self.take(&format!("hold-{}-{worker}", at.name()));
    }

    /// Its stage calls don't hear that they are cancelled, as code that hangs in the kernel doesn't.
    pub fn deafen(&self, worker: &str) {
        self.put(&format!("deaf-{worker}"), "");
    }

    /// Staging a task with this key kills any worker's process.
    pub fn poison(&self, key: &str) {
        self.put("poison", key);
    }

    /// This worker takes so long for each task that it stages.
    pub fn slow(&self, worker: &str, each: Duration) {
        self.put(&format!("slow-{worker}"), &each.as_millis().to_string());
    }

    /// What reached this place until now, on any worker.
    pub fn arrived(&self, at: At) -> Vec<Arrival> {
        let entries = std::fs::read_dir(self.dir.join("at")).expect("the folder");
        let mut arrived: Vec<Arrival> = entries
            .filter_map(|entry| {
                let name = entry.ok()?.file_name().into_string().ok()?;
                let mut parts = name.splitn(3, '.');
                let (place, worker, token) = (parts.next()?, parts.next()?, parts.next()?);
                let arrival = Arrival { worker: worker.to_owned(), token: token.to_owned() };
                (place == at.name()).then_some(arrival)
            })
            .collect();
        arrived.sort();
        arrived
    }

    /// Waits until so many leases (or more) reached the place on this worker.
    pub async fn wait_at(&self, worker: &str, at: At, leases: usize) -> Vec<Arrival> {
        let what = format!("{leases} leases of {worker} at {}", at.name());
        eventually(&what, async || {
            let arrived: Vec<_> = self.arrived(at).into_iter().filter(|a| a.worker == worker).collect();
            Some(arrived).filter(|arrived| arrived.len() >= leases)
        })
        .await
    }

    // ---- the worker's side ----

    async fn reached(&self, worker: &str, at: At, token: Token) {
        let name = format!("{}.{worker}.{token}", at.name());
        std::fs::write(self.dir.join("at").join(name), "").expect("a file");
        while self.has(&format!("hold-{}-{worker}", at.name())) {
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// The handler of `held_worker`: the one inside, with a stop before and after.
pub struct Controlled {
    control: Control,
    worker: String,
    inner: Arc<dyn Handler>,
}

impl Controlled {
    /// Wraps a handler.
    pub fn new(control: Control, worker: String, inner: Arc<dyn Handler>) -> Self {
        Self { control, worker, inner }
    }

    async fn misbehave(&self, lease: &StageLease, cancel: &CancellationToken) {
        let poison = self.control.text("poison");
        if lease.tasks.iter().any(|task| !poison.is_empty() && task.key == poison) {
            std::process::abort();
        }
        let slow = self.control.text(&format!("slow-{}", self.worker)).parse().unwrap_or(0);
        let all = Duration::from_millis(slow) * u32::try_from(lease.tasks.len()).expect("few tasks");
        cancel.run_until_cancelled(tokio::time::sleep(all)).await;
    }
}

#[async_trait]
impl Handler for Controlled {
    fn name(&self) -> &str {
        self.inner.name()
    }

    async fn stage(
        &self,
        lease: &StageLease,
        cancel: &CancellationToken,
        progress: &Progress,
    ) -> Result<Staged, HandlerError> {
        let own = CancellationToken::new();
        let cancel = if self.control.has(&format!("deaf-{}", self.worker)) { &own } else { cancel };
        let held = |at| cancel.run_until_cancelled(self.control.reached(&self.worker, at, lease.token));
        held(At::Stage).await.ok_or(HandlerError::Cancelled)?;
        self.misbehave(lease, cancel).await;
        let staged = self.inner.stage(lease, cancel, progress).await?;
        held(At::Staged).await.ok_or(HandlerError::Cancelled)?;
        Ok(staged)
    }

    async fn commit(&self, lease: &CommitLease) -> Result<u64, HandlerError> {
        self.control.reached(&self.worker, At::Commit, lease.token).await;
        self.inner.commit(lease).await
    }

    async fn rollback(&self, lease: &RollbackLease) -> Result<u64, HandlerError> {
        self.control.reached(&self.worker, At::Rollback, lease.token).await;
        self.inner.rollback(lease).await
    }

    async fn publish(&self, batch: &BatchInfo) -> Result<(), HandlerError> {
        self.inner.publish(batch).await
    }

    async fn sweep(&self, batch: &BatchInfo) -> Result<u64, HandlerError> {
        self.inner.sweep(batch).await
    }

    fn leave(&self, batch: &str) {
        self.inner.leave(batch);
    }
}
