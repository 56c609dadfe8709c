//! `tranche bench noop`: the whole way of tasks that cost nothing.

use std::time::Instant;

use clap::Args;
use serde_json::{Value, json};
use tranche_client::v1::{self, batch::State};
use tranche_client::{Client, names};

use super::cluster::{Cluster, ClusterArgs};
use super::figure::{Figure, median};
use super::report::Measured;
use super::runs::{Context, Row};
use super::tasks::{making_one, tasks};
use super::usage::{self, Usage};
use crate::error::{CliError, Result};
use crate::output::{count, state};

/// The batch that most targets are about.
const MILLION: i64 = 1_000_000;

/// Runs of the smaller batch of `--against`, whose median counts: it is short, so it varies.
const AGAINST_RUNS: usize = 3;

#[derive(Clone, Debug, Args)]
pub(crate) struct NoopArgs {
    /// How many tasks.
    #[arg(long, default_value_t = MILLION, value_parser = clap::value_parser!(i64).range(1..))]
    tasks: i64,
    /// Bytes of payload of each task: its sequence number, then pseudo-random bytes.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=1_048_576))]
    payload: u32,
    /// Run a batch of so many tasks before, three times, each with its own processes, and compare:
    /// memory and throughput should stay the same.
    #[arg(long, value_name = "TASKS", value_parser = clap::value_parser!(i64).range(1..))]
    against: Option<i64>,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// What one run took, in seconds from the first append on.
#[derive(Clone, Copy, Debug, Default)]
struct Times {
    append: f64,
    stage: f64,
    commit: f64,
    whole: f64,
}

/// One run, measured.
#[derive(Debug, Default)]
struct Import {
    tasks: i64,
    batch: v1::Batch,
    times: Times,
    coordinator: v1::Coordinator,
    spent: Vec<Usage>,
}

impl Row for NoopArgs {
    async fn run(&self, context: &Context) -> Result<Measured> {
        let mut smaller = Vec::new();
        for n in 0..self.against.map_or(0, |_| AGAINST_RUNS) {
            let part = context.part(&format!("against-{n}"))?;
            smaller.push(self.import(&part, self.against.unwrap_or_default()).await?);
            std::fs::remove_dir_all(part.folder())?;
        }
        let import = self.import(context, self.tasks).await?;
        let mut figures = self.figures(&import);
        if !smaller.is_empty() {
            figures.extend(compare(&import, &smaller));
        }
        Ok(Measured::from(figures).detail(self.details(&import)).detail(self.cluster.json()))
    }
}

impl NoopArgs {
    async fn import(&self, context: &Context, tasks: i64) -> Result<Import> {
        let mut cluster = Cluster::start(context, &self.cluster).await?;
        let client = cluster.client().await?;
        let before = cluster.usage();
        let (batch, times) = cluster.while_alive(self.submit(context, &client, tasks)).await?;
        let spent = usage::between(&before, &cluster.usage());
        let coordinator = cluster.coordinator_report(&client).await?;
        cluster.stop().await;
        let wrong = wrong_counts(tasks, &batch);
        if wrong.is_empty() {
            return Ok(Import { tasks, batch, times, coordinator, spent });
        }
        let mut error = CliError::new("the counters are off");
        error.details = wrong;
        Err(error)
    }

    /// Submits and waits for the end, with the clock running.
    async fn submit(&self, context: &Context, client: &Client, total: i64) -> Result<(v1::Batch, Times)> {
        let name = create(client, "bench noop").await?;
        context.tell(&format!(
            "batch {}: {} tasks of {} bytes",
            names::batch_id(&name),
            count(total),
            self.payload
        ));
        let start = Instant::now();
        let append = async {
            let appended = client.appender(&name).run_iter(tasks(total, self.payload)).await?;
            client.seal(&name, Some(appended)).await?;
            Ok(start.elapsed().as_secs_f64())
        };
        let ended = async {
            let decided = client.wait_until(&name, |batch| {
                context.progress(|| phase(batch, start));
                batch.decision.is_some()
            });
            let decided = decided.await?;
            let staged = start.elapsed().as_secs_f64();
            context.tell(&format!("{} after {staged:.2} s", state(decided.state())));
            let done = client.wait_until(&name, |batch| {
                context.progress(|| phase(batch, start));
                tranche_client::is_final(batch)
            });
            Ok((done.await?, staged, start.elapsed().as_secs_f64()))
        };
        let (append, (batch, stage, whole)) = tokio::try_join!(append, ended)
            .map_err(|e: tranche_client::Error| CliError::of_batch(&name, e))?;
        context.tell(&format!("{} after {whole:.2} s", state(batch.state())));
        let decided = batch.decision.as_ref().and_then(|d| d.decide_time.as_ref());
        let commit = between(decided, batch.end_time.as_ref()).unwrap_or((whole - stage).max(0.0));
        Ok((batch, Times { append, stage, commit, whole }))
    }

    fn figures(&self, import: &Import) -> Vec<Figure> {
        let Import { tasks, times, coordinator, .. } = import;
        let seconds = |micros: i64| micros as f64 / 1e6;
        let usual = *tasks >= MILLION && self.payload == 100;
        let cpu: f64 = import.spent.iter().map(Usage::cpu).sum();
        let mut figures = vec![
            Figure::rate("whole", *tasks, times.whole).at_least(1e6).goal(2e6).judged_if(usual),
            Figure::seconds("whole, time", times.whole),
            Figure::rate("append, with workers at work", *tasks, times.append),
            Figure::rate("staged", *tasks, times.stage),
            Figure::rate("commit alone", *tasks, times.commit),
            Figure::count("etcd transactions", coordinator.store_transactions)
                .under(500.0)
                .judged_if(*tasks == MILLION),
            Figure::seconds(
                "grant latency p50, while tasks come in",
                seconds(coordinator.grant_latency_p50_us),
            ),
            Figure::seconds(
                "grant latency p99, while tasks come in",
                seconds(coordinator.grant_latency_p99_us),
            ),
            Figure::seconds("CPU for one task", cpu / *tasks as f64),
            Figure::seconds("of it the client's making of a task", making_one(self.payload)),
        ];
        figures.extend(usage::figures(&import.spent).into_iter().map(|figure| {
            if figure.name == "coordinator peak memory" { figure.under(300e6) } else { figure }
        }));
        figures
    }

    /// The fields of the JSON that don't come from figures.
    fn details(&self, import: &Import) -> Value {
        let Import { tasks, times, coordinator, batch, .. } = import;
        let rate = |seconds: f64| (*tasks as f64 / seconds.max(1e-6)).round();
        let counters = batch.counters.unwrap_or_default();
        json!({
            "tasks": tasks,
            "payload_bytes": self.payload,
            "append_tasks_per_s": rate(times.append),
            "stage_tasks_per_s": rate(times.stage),
            "commit_tasks_per_s": rate(times.commit),
            "whole_tasks_per_s": rate(times.whole),
            "whole_s": (times.whole * 1e3).round() / 1e3,
            "grant_latency_p50_us": coordinator.grant_latency_p50_us,
            "grant_latency_p99_us": coordinator.grant_latency_p99_us,
            "etcd_transactions": coordinator.store_transactions,
            "staged": counters.staged,
            "failed": counters.failed,
            "committed": counters.committed,
            "state": state(batch.state()),
            "coordinator_peak_memory_bytes": import.coordinator_memory(),
            "coordinator_reported_memory_bytes": coordinator.peak_memory_bytes,
            "worker_peak_memory_bytes_max":
                import.spent.iter().filter(|one| one.name.starts_with("worker")).map(|one| one.peak_memory).max(),
            "processes": usage::json(&import.spent),
        })
    }
}

impl Import {
    fn coordinator_memory(&self) -> i64 {
        let own = self.spent.iter().find(|one| one.name == "coordinator").map_or(0, |one| one.peak_memory);
        if own > 0 { own } else { self.coordinator.peak_memory_bytes }
    }

    fn rate(&self) -> f64 {
        self.tasks as f64 / self.times.whole.max(1e-6)
    }
}

/// A large batch against the median of smaller ones.
fn compare(large: &Import, small: &[Import]) -> Vec<Figure> {
    let middle = |of: &dyn Fn(&Import) -> f64| median(&small.iter().map(of).collect::<Vec<_>>());
    let memory = |import: &Import| import.coordinator_memory() as f64;
    let tasks = count(small.first().map_or(0, |import| import.tasks));
    vec![
        Figure::ratio(
            format!("throughput, share of that with {tasks}"),
            large.rate() / middle(&Import::rate),
        )
        .at_least(0.8),
        Figure::ratio(
            format!("coordinator peak memory, times that with {tasks}"),
            memory(large) / middle(&memory),
        )
        .at_most(1.5),
    ]
}

/// A new batch for the handler `noop`.
pub(super) async fn create(client: &Client, display_name: &str) -> Result<String> {
    let batch = v1::Batch {
        targets: vec![v1::Target { handler: "noop".into(), ..Default::default() }],
        display_name: display_name.into(),
        ..Default::default()
    };
    Ok(client.create(v1::CreateBatchRequest { batch: Some(batch), ..Default::default() }).await?.name)
}

/// `IMPORTING: 1,000 appended, 900 staged, 0 committed, 1.2 s`.
fn phase(batch: &v1::Batch, start: Instant) -> String {
    let counters = batch.counters.unwrap_or_default();
    format!(
        "{}: {} appended, {} staged, {} committed, {:.1} s",
        state(batch.state()),
        count(counters.total),
        count(counters.staged),
        count(counters.committed),
        start.elapsed().as_secs_f64()
    )
}

/// Which counters aren't what they must be.
fn wrong_counts(tasks: i64, batch: &v1::Batch) -> Vec<String> {
    let counters = batch.counters.unwrap_or_default();
    let mut wrong = Vec::new();
    if batch.state() != State::Committed {
        wrong.push(format!("state: {}, not COMMITTED", state(batch.state())));
    }
    for (name, is, must) in [
        ("total", counters.total, tasks),
        ("staged", counters.staged, tasks),
        ("failed", counters.failed, 0),
        ("committed", counters.committed, tasks),
        ("rolled_back", counters.rolled_back, 0),
        ("cutoff", counters.cutoff, tasks),
    ] {
        if is != must {
            wrong.push(format!("{name}: {is}, not {must}"));
        }
    }
    wrong
}

fn between(from: Option<&prost_types::Timestamp>, to: Option<&prost_types::Timestamp>) -> Option<f64> {
    let seconds = |t: &prost_types::Timestamp| t.seconds as f64 + f64::from(t.nanos) / 1e9;
    let span = seconds(to?) - seconds(from?);
    (span > 0.0).then_some(span)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(committed: i64) -> v1::Batch {
        let counters = v1::Counters { total: 10, staged: 10, committed, cutoff: 10, ..Default::default() };
        v1::Batch { state: State::Committed.into(), counters: Some(counters), ..Default::default() }
    }

    fn import(tasks: i64, whole: f64, memory: i64) -> Import {
        let times = Times { append: 0.5, stage: 1.0, commit: 2.0, whole };
        let spent = vec![Usage { name: "coordinator".into(), peak_memory: memory, ..Default::default() }];
        Import { tasks, batch: batch(10), times, spent, ..Default::default() }
    }

    fn args(payload: u32) -> NoopArgs {
        use super::super::cluster::{Store, StoreArgs};
        let store = StoreArgs { store: Store::Etcd, etcd: None };
        let cluster = ClusterArgs { workers: 2, slots: 1, store };
        NoopArgs { tasks: 10, payload, against: None, cluster }
    }

    #[test]
    fn a_counter_that_is_off_is_named() {
        assert_eq!(wrong_counts(10, &batch(10)), Vec::<String>::new());
        assert_eq!(wrong_counts(10, &batch(9)), ["committed: 9, not 10"]);
        let wrong = wrong_counts(1, &v1::Batch::default());
        assert_eq!(wrong[0], "state: UNSPECIFIED, not COMMITTED");
    }

    #[test]
    fn the_json_has_its_rates() {
        let report = args(0).details(&import(10, 4.0, 5));
        assert_eq!(report["append_tasks_per_s"], 20.0);
        assert_eq!(report["commit_tasks_per_s"], 5.0);
        assert_eq!(report["whole_tasks_per_s"], 2.5_f64.round());
        assert_eq!(report["state"], "COMMITTED");
        assert_eq!(report["coordinator_peak_memory_bytes"], 5);
    }

    #[test]
    fn targets_are_for_the_batch_that_they_are_about() {
        let judged = |payload, tasks| {
            let figures = args(payload).figures(&import(tasks, 1.0, 5));
            let names = figures.into_iter().filter(|f| f.target.is_some()).map(|f| f.name);
            names.collect::<Vec<_>>()
        };
        assert_eq!(judged(100, MILLION), ["whole", "etcd transactions", "coordinator peak memory"]);
        assert_eq!(judged(100, 10 * MILLION), ["whole", "coordinator peak memory"]);
        assert_eq!(judged(8, 10 * MILLION), ["coordinator peak memory"]);
        assert_eq!(judged(100, 10), ["coordinator peak memory"]);
    }

    #[test]
    fn a_large_batch_is_compared_with_the_median() {
        let small = [import(10, 1.0, 100), import(10, 2.0, 120), import(10, 4.0, 110)];
        let met = |figures: Vec<Figure>| {
            let one = |f: &Figure| f.target.is_some_and(|target| target.met(f.value));
            figures.iter().map(one).collect::<Vec<_>>()
        };
        // 5 tasks/s and 110 bytes in the middle.
        assert_eq!(met(compare(&import(100, 25.0, 165), &small)), [true, true]);
        assert_eq!(met(compare(&import(100, 25.1, 166), &small)), [false, false]);
    }
}
