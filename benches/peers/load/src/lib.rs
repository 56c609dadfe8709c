//! What the load programs share: the job, its payloads, the count of what is done, the report.
//!
//! The job is that of `tranche bench noop`: one client puts tasks of 100 bytes into the queue, 4 workers
//! with connections of their own take them, do nothing, and acknowledge each. All of it runs in one process
//! with two threads, which is the cheapest way there is on a small machine.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use tokio::sync::{Barrier, watch};
use tokio::task::JoinSet;

/// Bytes of a task's payload.
pub const PAYLOAD: usize = 100;

/// How many workers there are.
pub const WORKERS: usize = 4;

/// What to do, and where.
#[derive(Clone, Debug, Args)]
pub struct Job {
    /// The server.
    #[arg(long)]
    pub url: String,
    /// How many tasks.
    #[arg(long)]
    pub tasks: u64,
    /// When the workers start.
    #[arg(long, value_enum, default_value_t = Mode::Overlapped)]
    pub mode: Mode,
}

/// When the workers start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// They wait already when the first task is put in, as Tranche's do.
    Overlapped,
    /// When all tasks are in.
    Phased,
}

/// A queue that the job runs through.
pub trait Queue {
    /// Puts all tasks in; returns when the server has confirmed each.
    fn put(&self) -> impl Future<Output = Result<()>>;

    /// One worker: connects, waits for `start`, then takes and acknowledges until all is `done`.
    fn work(
        &self,
        worker: usize,
        start: Start,
        done: Done,
    ) -> impl Future<Output = Result<()>> + Send + 'static;

    /// Waits until the server has seen every acknowledgement, where those are sent without an answer.
    /// The clock runs on until it returns.
    fn settle(&self) -> impl Future<Output = Result<()>> {
        async { Ok(()) }
    }

    /// How many tasks the server still holds for the workers, asked when the clock has stopped.
    fn left(&self) -> impl Future<Output = Result<u64>>;
}

/// Where workers wait: first for each other, then for the word to start.
#[derive(Clone, Debug)]
pub struct Start {
    connected: Arc<Barrier>,
    open: watch::Receiver<bool>,
}

impl Start {
    /// Returns when it is time to take tasks.
    pub async fn wait(mut self) -> Result<()> {
        self.connected.wait().await;
        self.open.wait_for(|open| *open).await?;
        Ok(())
    }
}

/// How many tasks were acknowledged.
#[derive(Clone, Debug)]
pub struct Done {
    tasks: u64,
    count: Arc<AtomicU64>,
    all: Arc<watch::Sender<bool>>,
}

impl Done {
    fn new(tasks: u64) -> Self {
        Self { tasks, count: Arc::default(), all: Arc::new(watch::Sender::new(false)) }
    }

    /// Adds what one worker has acknowledged.
    pub fn add(&self, count: usize) {
        let count = count as u64;
        if self.count.fetch_add(count, Ordering::Relaxed) + count >= self.tasks {
            self.all.send_replace(true);
        }
    }

    /// Whether every task was acknowledged.
    pub fn all(&self) -> bool {
        *self.all.borrow()
    }

    /// Waits until every task was acknowledged.
    pub async fn wait(&self) {
        // It can't fail: the sender lives as long as this does.
        let _ = self.all.subscribe().wait_for(|all| *all).await;
    }
}

/// Runs the job, checks that each task was acknowledged once, and prints the times as one JSON object.
pub async fn run(job: &Job, queue: &impl Queue) -> Result<()> {
    let connected = Arc::new(Barrier::new(WORKERS + 1));
    let (open, opened) = watch::channel(false);
    let done = Done::new(job.tasks);
    let mut workers = JoinSet::new();
    for worker in 0..WORKERS {
        let start = Start { connected: connected.clone(), open: opened.clone() };
        workers.spawn(queue.work(worker, start, done.clone()));
    }
    let whole = async {
        connected.wait().await;
        if job.mode == Mode::Overlapped {
            open.send_replace(true);
        }
        let start = Instant::now();
        queue.put().await?;
        let put = start.elapsed();
        open.send_replace(true);
        done.wait().await;
        queue.settle().await?;
        anyhow::Ok((put, start.elapsed()))
    };
    let (put, whole) = tokio::select! {
        times = whole => times?,
        failure = failure(&mut workers) => return Err(failure),
    };
    while let Some(ended) = workers.join_next().await {
        ended??;
    }
    let (acknowledged, left) = (done.count.load(Ordering::Relaxed), queue.left().await?);
    ensure!(acknowledged == job.tasks, "{acknowledged} of {} tasks acknowledged", job.tasks);
    ensure!(left == 0, "the server still holds {left} tasks");
    report(job, put, whole);
    Ok(())
}

/// Waits for a worker that ends with an error; for ever, if none does.
async fn failure(workers: &mut JoinSet<Result<()>>) -> anyhow::Error {
    while let Some(ended) = workers.join_next().await {
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error,
            Err(error) => return error.into(),
        }
    }
    std::future::pending().await
}

fn report(job: &Job, put: Duration, whole: Duration) {
    let seconds = |time: Duration| (time.as_secs_f64() * 1e4).round() / 1e4;
    println!(
        "{}",
        serde_json::json!({ "tasks": job.tasks, "put_s": seconds(put), "whole_s": seconds(whole) })
    );
}

/// A task's payload, made as those of `tranche bench`: its number (8 bytes, little endian), then
/// pseudo-random bytes. No two are alike, and nothing gains by compressing them.
pub fn payload(number: u64) -> [u8; PAYLOAD] {
    let mut payload = [0; PAYLOAD];
    let mut state = number;
    let mut word = number;
    for part in payload.chunks_mut(8) {
        part.copy_from_slice(&word.to_le_bytes()[..part.len()]);
        word = random(&mut state);
    }
    payload
}

/// `SplitMix64`: a few instructions for eight bytes.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_start_with_their_number_and_are_not_filler() {
        let payload = payload(0x1f2);
        assert_eq!(&payload[..8], [0xf2, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(payload.len(), 100);
        let mut bytes = payload[8..].to_vec();
        bytes.sort_unstable();
        bytes.dedup();
        assert!(bytes.len() > 40, "{bytes:?}");
    }

    #[tokio::test]
    async fn the_last_acknowledgement_ends_the_wait() {
        let done = Done::new(3);
        done.add(2);
        assert!(!done.all());
        done.add(1);
        done.wait().await;
        assert!(done.all());
    }
}
