//! Many workers in this process, and what they see.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};

use super::worker::{self, Common, Conduct, Seen};
use crate::error::{CliError, Result};

/// What was seen and not looked at yet; above it the workers wait. A round of a bench sees a few thousand.
const SEEN_BOUND: usize = 65_536;
/// Workers that are attached at once. Who asks for more connections than the coordinator's socket lets wait
/// is made to wait a second or more by the kernel.
const ATTACHING: usize = 64;
/// How often it is looked who is attached, and what was seen.
const LOOK: Duration = Duration::from_millis(2);
/// The same as a real worker has.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// The same.
const KEEP_ALIVE_WITHIN: Duration = Duration::from_secs(5);
/// How long all may take to attach.
const ATTACH_WITHIN: Duration = Duration::from_mins(2);

/// A fleet that is attached. Dropping it ends its streams.
#[derive(Debug)]
pub(super) struct Crowd {
    common: Arc<Common>,
    members: JoinSet<CliError>,
    pub(super) seen: mpsc::Receiver<Seen>,
}

impl Crowd {
    /// Attaches `workers`, over so many connections.
    pub(super) async fn attach(url: &str, workers: u32, connections: u32, conduct: Conduct) -> Result<Self> {
        let (sender, seen) = mpsc::channel(SEEN_BOUND);
        let common = Arc::new(Common {
            conduct,
            seen: sender,
            attached: AtomicU64::new(0),
            heartbeats: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
        });
        let mut crowd = Self { common, members: JoinSet::new(), seen };
        let until = Instant::now() + ATTACH_WITHIN;
        let mut channels: Vec<Channel> = Vec::new();
        for number in 0..workers {
            let place = (number % connections) as usize;
            if place == channels.len() {
                channels.push(connect(url).await?);
            }
            crowd.members.spawn(worker::stay(number, channels[place].clone(), crowd.common.clone()));
            crowd.wait(u64::from(number + 1).saturating_sub(ATTACHING as u64), until).await?;
        }
        crowd.wait(u64::from(workers), until).await?;
        Ok(crowd)
    }

    /// Until so many are attached.
    async fn wait(&mut self, attached: u64, until: Instant) -> Result<()> {
        while self.common.attached.load(Ordering::Relaxed) < attached {
            if let Some(ended) = self.members.try_join_next() {
                return Err(failure(ended));
            }
            if Instant::now() > until {
                return Err(CliError::new(format!("not all workers were attached within {ATTACH_WITHIN:?}")));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Heartbeats that were sent, and answers to them.
    pub(super) fn heartbeats(&self) -> (u64, u64) {
        (self.common.heartbeats.load(Ordering::Relaxed), self.common.acknowledged.load(Ordering::Relaxed))
    }

    /// What is seen next; an error if a stream ends. It looks from time to time: to be woken for each thing that is
    /// seen, a thousand times within a round, would take as much of the processors as reading them does. When
    /// something was seen is in [`Seen::at`].
    pub(super) async fn next(&mut self) -> Result<Seen> {
        loop {
            if let Ok(seen) = self.seen.try_recv() {
                return Ok(seen);
            }
            self.stay(LOOK).await?;
        }
    }

    /// Waits; an error if a stream ends.
    pub(super) async fn stay(&mut self, time: Duration) -> Result<()> {
        tokio::select! {
            () = tokio::time::sleep(time) => Ok(()),
            ended = self.members.join_next() => Err(ended.map_or_else(|| CliError::new("nobody is there"), failure)),
        }
    }
}

fn failure(ended: Result<CliError, tokio::task::JoinError>) -> CliError {
    ended.unwrap_or_else(|e| CliError::caused("a worker of the fleet panicked", &e))
}

async fn connect(url: &str) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|e| CliError::caused("no endpoint", &e))?;
    let endpoint = endpoint
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_WITHIN)
        .keep_alive_while_idle(true);
    endpoint.connect().await.map_err(|e| CliError::caused(format!("cannot connect to {url}"), &e))
}
