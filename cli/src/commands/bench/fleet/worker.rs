//! One worker of the fleet: the protocol of a real one, without anything to do.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;
use tranche_client::v1::worker_service_client::WorkerServiceClient;
use tranche_client::v1::{self, attach_request::Frame as Out, attach_response::Frame as In};

use crate::error::{CliError, Result};

/// The largest frame of the protocol: leases of a few MiB come in frames of at most about one.
const MAX_FRAME_BYTES: usize = 8 * 1024 * 1024;
/// Frames on their way out. A worker sends few at once, and waits when it is full.
const OUTBOUND_BOUND: usize = 64;
/// What a real worker with one slot asks for: one lease that runs, and one that waits for it.
const WINDOW: v1::Credit = v1::Credit { leases: 2, bytes: 64 * 1024 * 1024 };

/// What the fleet does with staging leases. All others are done at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Conduct {
    /// They run until their batch is rolled back.
    Hold,
    /// They are done at once.
    Work,
}

/// Something that a worker saw on its stream.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Seen {
    /// When it was decoded.
    pub(super) at: Instant,
    pub(super) worker: u32,
    pub(super) batch: String,
    pub(super) what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// A staging lease with these tasks, all of it.
    Lease { first: i64, last: i64 },
    /// The batch was decided.
    Phase(v1::Phase),
}

/// What all workers of a fleet share.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) conduct: Conduct,
    pub(super) seen: mpsc::Sender<Seen>,
    pub(super) attached: AtomicU64,
    pub(super) heartbeats: AtomicU64,
    pub(super) acknowledged: AtomicU64,
}

#[derive(Debug)]
struct Held {
    batch: String,
    phase: i32,
    tasks: i64,
}

/// A worker that is attached.
#[derive(Debug)]
struct Member {
    number: u32,
    common: Arc<Common>,
    out: mpsc::Sender<v1::AttachRequest>,
    /// Leases that run.
    held: BTreeMap<(u64, u64), Held>,
    /// First frames of leases of which more is to come.
    parts: HashMap<(u64, u64), v1::Grant>,
    heartbeat: u64,
    /// When the next heartbeat is due, and the time to the one after it: with leases, and without.
    next: tokio::time::Instant,
    interval: Duration,
    idle_interval: Duration,
}

/// Attaches and stays until the stream ends, which is an error.
pub(super) async fn stay(number: u32, channel: Channel, common: Arc<Common>) -> CliError {
    match attached(number, channel, common).await {
        Ok(()) => CliError::new(format!("the stream of worker {number} was ended")),
        Err(error) => error,
    }
}

async fn attached(number: u32, channel: Channel, common: Arc<Common>) -> Result<()> {
    let failed = |e: tonic::Status| CliError::caused(format!("the stream of worker {number} broke"), &e);
    let (out, frames) = mpsc::channel(OUTBOUND_BOUND);
    let mut member = Member {
        number,
        common,
        out,
        held: BTreeMap::new(),
        parts: HashMap::new(),
        heartbeat: 0,
        next: tokio::time::Instant::now(),
        interval: Duration::ZERO,
        idle_interval: Duration::ZERO,
    };
    member.say(Out::Hello(hello(number))).await;
    let mut client = WorkerServiceClient::new(channel).max_decoding_message_size(MAX_FRAME_BYTES);
    let mut inbound = client.attach(ReceiverStream::new(frames)).await.map_err(failed)?.into_inner();
    member.greet(&mut inbound).await?;
    let tick = tokio::time::sleep_until(member.next);
    tokio::pin!(tick);
    loop {
        if tick.deadline() != member.next {
            tick.as_mut().reset(member.next);
        }
        tokio::select! {
            frame = inbound.message() => match frame.map_err(failed)? {
                Some(v1::AttachResponse { frame: Some(frame) }) => member.take(frame).await,
                Some(_) => return Err(CliError::new("a frame of an unknown kind came")),
                None => return Ok(()),
            },
            () = &mut tick => member.beat().await,
        }
    }
}

fn hello(number: u32) -> v1::Hello {
    v1::Hello {
        worker: format!("fleet-{number}"),
        incarnation: "1".to_owned(),
        handlers: vec!["noop".to_owned()],
        slots: 1,
        protocol_versions: vec![1],
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..Default::default()
    }
}

impl Member {
    /// Waits for the welcome, and asks for work. The clock of the heartbeats starts there.
    async fn greet(&mut self, inbound: &mut Streaming<v1::AttachResponse>) -> Result<()> {
        let first = inbound.message().await.map_err(|e| CliError::caused("no welcome came", &e))?;
        let Some(In::Welcome(welcome)) = first.and_then(|frame| frame.frame) else {
            return Err(CliError::new("the first frame wasn't a welcome"));
        };
        let duration = |d: Option<prost_types::Duration>| d.and_then(|d| Duration::try_from(d).ok());
        let interval = duration(welcome.heartbeat_interval).filter(|interval| !interval.is_zero());
        self.interval = interval.unwrap_or(Duration::from_secs(2));
        self.idle_interval = duration(welcome.idle_heartbeat_interval).unwrap_or_default().max(self.interval);
        self.next = tokio::time::Instant::now() + self.idle_interval;
        self.say(Out::Credit(WINDOW)).await;
        self.common.attached.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    async fn take(&mut self, frame: In) {
        match frame {
            In::Grant(grant) => self.grant(grant).await,
            In::Ack(ack) if ack.heartbeat > 0 => {
                self.common.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            In::PhaseChanged(change) => self.phase_changed(change).await,
            In::Revoke(revoke) => {
                self.held.remove(&key(revoke.token));
            }
            In::Owner(owner) => {
                let held = self.held.iter().filter(|(_, held)| held.batch == owner.batch);
                let tokens = held.map(|(&(epoch, counter), _)| v1::Token { epoch, counter }).collect();
                self.say(Out::Holding(v1::Holding { batch: owner.batch, epoch: owner.epoch, tokens })).await;
            }
            // A report isn't sent twice here: a stream that breaks ends the run.
            In::Ack(_) | In::Welcome(_) | In::Replicas(_) | In::Drain(_) | In::Leave(_) => {}
        }
    }

    async fn grant(&mut self, grant: v1::Grant) {
        let at = Instant::now();
        let token = key(grant.token);
        if grant.more {
            self.parts.entry(token).or_insert(grant);
            return;
        }
        let grant = self.parts.remove(&token).unwrap_or(grant);
        let range = grant.range.unwrap_or_default();
        let tasks = |runs: &[v1::Range]| runs.iter().map(|run| run.last - run.first + 1).sum::<i64>();
        let staging = grant.phase() == v1::Phase::Stage;
        let tasks = match grant.phase() {
            v1::Phase::Stage => tasks(&grant.runs),
            v1::Phase::Commit => grant.attempts.iter().map(|attempt| tasks(&attempt.runs)).sum(),
            v1::Phase::Rollback => range.last - range.first + 1,
            v1::Phase::Publish | v1::Phase::Sweep | v1::Phase::Unspecified => 0,
        };
        let lease = Held { batch: grant.batch, phase: grant.phase, tasks };
        if staging {
            self.saw(at, &lease.batch, What::Lease { first: range.first, last: range.last }).await;
        }
        if staging && self.common.conduct == Conduct::Hold {
            self.held.insert(token, lease);
            // It isn't idle any more.
            self.next = self.next.min(tokio::time::Instant::now() + self.interval);
        } else {
            self.say(Out::Report(done(token, lease))).await;
        }
    }

    async fn phase_changed(&mut self, change: v1::PhaseChanged) {
        self.saw(Instant::now(), &change.batch, What::Phase(change.phase())).await;
        if change.phase() == v1::Phase::Rollback {
            self.held.retain(|_, held| held.batch != change.batch);
        }
        self.say(Out::PhaseAck(v1::PhaseAck { phase: change.phase, batch: change.batch })).await;
    }

    async fn beat(&mut self) {
        self.heartbeat += 1;
        let interval = if self.held.is_empty() { self.idle_interval } else { self.interval };
        self.next = tokio::time::Instant::now() + interval;
        let progress =
            |(&(epoch, counter), _)| v1::LeaseProgress { token: Some(v1::Token { epoch, counter }), done: 0 };
        let leases = self.held.iter().map(progress).collect();
        self.common.heartbeats.fetch_add(1, Ordering::Relaxed);
        self.say(Out::Heartbeat(v1::Heartbeat { number: self.heartbeat, leases })).await;
    }

    async fn say(&self, frame: Out) {
        // A stream that ended is noticed where it is read.
        let _ = self.out.send(v1::AttachRequest { frame: Some(frame) }).await;
    }

    async fn saw(&self, at: Instant, batch: &str, what: What) {
        // Nobody may be looking any more.
        let _ = self.common.seen.send(Seen { at, worker: self.number, batch: batch.to_owned(), what }).await;
    }
}

fn key(token: Option<v1::Token>) -> (u64, u64) {
    token.map(|token| (token.epoch, token.counter)).unwrap_or_default()
}

fn done((epoch, counter): (u64, u64), lease: Held) -> v1::Report {
    v1::Report {
        batch: lease.batch,
        token: Some(v1::Token { epoch, counter }),
        phase: lease.phase,
        done: lease.tasks,
        elapsed: prost_types::Duration::try_from(Duration::from_micros(10)).ok(),
        ..Default::default()
    }
}
