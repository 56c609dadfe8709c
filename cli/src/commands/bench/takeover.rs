//! `tranche bench takeover`: how long a large batch is without its owner once its lock is free.
//!
//! ```text
//! owner killed ──► its session ends: the lock is free ──► lock taken ──► call answered, first lease granted
//!                                                   └────────────── measured ──────────────┘
//! ```
//! Times come from the lock's and the cut-off's records in etcd, not from what a coordinator says.

mod records;

use std::time::{Duration, Instant};

use clap::Args;
use prost::Message as _;
use serde_json::{Value, json};
use tranche_client::v1;
use tranche_coordinator::store::keys::{self, BatchKey};

use self::records::{Counters, Records};
use super::cluster::{Cluster, ClusterArgs, Replica, Store, StoreArgs, beside};
use super::figure::Figure;
use super::process::Process;
use super::report::Measured;
use super::runs::{Context, Row};
use super::tasks;
use super::usage::Usage;
use crate::error::{CliError, Result};
use crate::output::count;

/// Tasks of the batch that the target is about.
const ISSUE_TASKS: i64 = 100_000_000;
/// Tasks that wait to be staged at every loss of an owner, so that the next one has something to grant.
const TAIL: i64 = 100_000;

#[derive(Clone, Debug, Args)]
pub(crate) struct TakeoverArgs {
    /// How many tasks the batch has, all of them staged but for the last 100,000.
    #[arg(long, default_value_t = ISSUE_TASKS, value_parser = clap::value_parser!(i64).range(200_000..))]
    tasks: i64,
    /// Bytes of payload of each task.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(0..=1_048_576))]
    payload: u32,
    /// The most tasks of a range [default: the coordinator's]. A smaller batch of smaller ranges has as many records
    /// as a large one, sooner.
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..))]
    range: Option<i32>,
    /// How many worker processes.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100))]
    workers: u32,
    /// How often the owner is killed in a run: the coordinators take the batch from each other in turn.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    times: u32,
}

/// The most that a take-over may last once the lock is free, in seconds.
const TARGET: f64 = 2.0;

/// One take-over; times since the lock was free.
#[derive(Clone, Copy, Debug)]
struct Taken {
    locked: Duration,
    answered: Duration,
    granted: Duration,
    /// What etcd did meanwhile.
    etcd: Counters,
    /// The new owner's, in bytes.
    memory: i64,
}

impl Row for TakeoverArgs {
    async fn run(&self, context: &Context) -> Result<Measured> {
        let mut bench = Bench::start(self, context).await?;
        let mut all = Vec::new();
        for time in 1..=self.times {
            let taken = bench.take_over().await?;
            context.tell(&format!(
                "take-over {time}: lock taken after {:?}, call answered after {:?}, lease granted after {:?}",
                taken.locked, taken.answered, taken.granted
            ));
            all.push(taken);
            if time < self.times {
                bench.settle().await?;
            }
        }
        let mut records = bench.records().await?;
        let ranges = records.count(&keys::ranges(&bench.batch)).await?;
        let segments = records.count(&keys::segments(&bench.batch)).await?;
        bench.stop().await;
        let slowest =
            |time: fn(&Taken) -> Duration| all.iter().map(time).max().unwrap_or_default().as_secs_f64();
        let most = |number: fn(&Taken) -> i64| all.iter().map(number).max().unwrap_or_default();
        let issue = self.tasks >= ISSUE_TASKS;
        let figures = vec![
            Figure::seconds("lock free → lease granted, slowest", slowest(|t| t.granted))
                .under(TARGET)
                .judged_if(issue),
            Figure::seconds("lock free → call answered, slowest", slowest(|t| t.answered))
                .under(TARGET)
                .judged_if(issue),
            Figure::seconds("lock free → lock taken, slowest", slowest(|t| t.locked)),
            Figure::count("etcd reads, most", most(|t| t.etcd.reads)),
            Figure::bytes("etcd bytes sent, most", most(|t| t.etcd.sent_bytes)),
            Figure::count("range records", ranges),
            Figure::count("segment records", segments),
            Figure::bytes("new owner's peak memory, most", most(|t| t.memory)),
        ];
        Ok(Measured::from(figures).detail(json!({
            "tasks": self.tasks,
            "payload_bytes": self.payload,
            "workers": self.workers,
            "takeovers": all.iter().map(Taken::json).collect::<Vec<_>>(),
        })))
    }
}

impl Taken {
    fn json(&self) -> Value {
        json!({
            "taken_s": self.locked.as_secs_f64(),
            "answered_s": self.answered.as_secs_f64(),
            "granted_s": self.granted.as_secs_f64(),
            "etcd_reads": self.etcd.reads,
            "etcd_sent_bytes": self.etcd.sent_bytes,
            "peak_memory_bytes": self.memory,
        })
    }
}

struct Bench<'a> {
    args: &'a TakeoverArgs,
    context: &'a Context,
    /// Its coordinator is the one that stays.
    cluster: Cluster,
    /// The other one, which is killed next when it owns the batch.
    other: Option<Replica>,
    /// Coordinators and workers that were started later, for their names.
    started: u32,
    etcd: String,
    prefix: String,
    batch: BatchKey,
}

impl<'a> Bench<'a> {
    /// Two coordinators, and a batch whose tail waits.
    async fn start(args: &'a TakeoverArgs, context: &'a Context) -> Result<Self> {
        let few = ClusterArgs { workers: 0, slots: 2, store: StoreArgs { store: Store::Etcd, etcd: None } };
        let cluster = Cluster::start(context, &few).await?;
        let flag = |name: &str| {
            let value = cluster.store.iter().skip_while(|flag| *flag != name).nth(1).cloned();
            value.ok_or_else(|| CliError::new(format!("the cluster has no {name}")))
        };
        let etcd = flag("--store")?.trim_start_matches("etcd:").to_owned();
        let prefix = flag("--prefix")?;
        let client = cluster.client().await?;
        let request = v1::CreateBatchRequest {
            batch: Some(v1::Batch {
                targets: vec![v1::Target { handler: "noop".into(), ..Default::default() }],
                display_name: "bench takeover".into(),
                range_bounds: args.range.map(|max_tasks| v1::RangeBounds { max_tasks, ..Default::default() }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let name = client.create(request).await?.name;
        let batch = BatchKey::parse(&name).ok_or_else(|| CliError::new(format!("odd name {name}")))?;
        let mut bench = Self { args, context, cluster, other: None, started: 1, etcd, prefix, batch };
        bench.start_other().await?;
        bench.start_workers().await?;
        let begin = Instant::now();
        bench.append(args.tasks - TAIL).await?;
        bench.staged().await?;
        let took = begin.elapsed().as_secs_f64();
        context.tell(&format!("{} tasks appended and staged in {took:.1} s", count(args.tasks - TAIL)));
        bench.stop_workers().await;
        bench.append(TAIL).await?;
        Ok(bench)
    }

    async fn start_other(&mut self) -> Result<()> {
        self.started += 1;
        let name = format!("coordinator-{}", self.started);
        self.other = Some(self.cluster.replica(self.context, &name, &[]).await?);
        Ok(())
    }

    /// Workers of the coordinator that stays.
    async fn start_workers(&mut self) -> Result<()> {
        for _ in 0..self.args.workers {
            self.started += 1;
            let name = format!("worker-{}", self.started);
            let flags = [
                ("--coordinator", self.cluster.coordinator.url.as_str()),
                ("--id", &name),
                ("--slots", "2"),
                ("--handlers", "noop"),
                ("--log", "warn"),
            ];
            let flags: Vec<String> =
                flags.iter().flat_map(|(flag, value)| [(*flag).to_owned(), (*value).to_owned()]).collect();
            let worker = Process::start(&name, &beside("tranche-worker")?, &flags, self.context.folder())?;
            self.cluster.workers.push(worker);
        }
        for worker in &mut self.cluster.workers {
            worker.ready("attached to ").await?;
        }
        Ok(())
    }

    async fn stop_workers(&mut self) {
        for worker in std::mem::take(&mut self.cluster.workers) {
            worker.stop().await;
        }
    }

    async fn append(&self, count: i64) -> Result<()> {
        let (client, name) = (self.cluster.client().await?, self.batch.to_string());
        let total = client.get(&name).await?.counters.unwrap_or_default().total;
        let tasks = tasks::tasks(count, self.args.payload);
        // It is a large future.
        Box::pin(client.appender(&name).starting_at(total + 1).run_iter(tasks)).await?;
        Ok(())
    }

    /// Waits until all that was appended is staged.
    async fn staged(&self) -> Result<()> {
        let all = |batch: &v1::Batch| batch.counters.is_some_and(|c| c.staged + c.failed == c.total);
        self.cluster.client().await?.wait_until(&self.batch.to_string(), all).await?;
        Ok(())
    }

    async fn records(&self) -> Result<Records> {
        Records::connect(&self.etcd, &self.prefix).await
    }

    /// Kills the owner, and waits until the other coordinator owns the batch and has granted a lease.
    async fn take_over(&mut self) -> Result<Taken> {
        let mut records = self.records().await?;
        let (lock, cutoff) = (keys::lock(&self.batch), keys::cutoff(&self.batch));
        let held = records.get(&lock).await?.ok_or_else(|| CliError::new("nobody owns the batch"))?;
        let owner = v1::LockRecord::decode(held.value.as_slice())
            .map_err(|error| CliError::caused("the lock can't be read", &error))?
            .endpoint;
        let mut lost = self.other.take().ok_or_else(|| CliError::new("there is no other coordinator"))?;
        if self.cluster.coordinator.url == owner {
            std::mem::swap(&mut self.cluster.coordinator, &mut lost);
        }
        if lost.url != owner {
            return Err(CliError::new(format!("the batch is owned by {owner}, which isn't of this bench")));
        }
        lost.process.stop().await;
        // Their requests wait when the lock is free.
        self.start_workers().await?;
        let before = records.counters().await?;
        let old = held.create_revision;
        let gone =
            records.until(&lock, |lock| lock.is_none_or(|lock| lock.create_revision > old).then_some(()));
        gone.await?;
        let free = Instant::now();
        let answered = async {
            self.append(1).await?;
            Ok::<_, CliError>(free.elapsed())
        };
        let granted = async {
            let epoch = records
                .until(&lock, |lock| lock.map(|lock| lock.create_revision).filter(|epoch| *epoch > old))
                .await?;
            let locked = free.elapsed();
            // It is changed by a grant alone.
            let moved = |cutoff: &records::KeyValue| cutoff.mod_revision > epoch;
            records.until(&cutoff, |cutoff| cutoff.filter(moved)).await?;
            Ok((locked, free.elapsed(), records.counters().await?))
        };
        let (answered, (locked, granted, after)) = tokio::try_join!(answered, granted)?;
        let process = &self.cluster.coordinator.process;
        let memory = process.id().map_or(0, |id| Usage::of(process.name(), id).peak_memory);
        Ok(Taken { locked, answered, granted, etcd: after.since(before), memory })
    }

    /// As before the loss: two coordinators, nothing left to stage but a tail.
    async fn settle(&mut self) -> Result<()> {
        self.staged().await?;
        self.stop_workers().await;
        self.start_other().await?;
        self.append(TAIL).await
    }

    async fn stop(self) {
        if let Some(other) = self.other {
            other.process.stop().await;
        }
        self.cluster.stop().await;
    }
}
