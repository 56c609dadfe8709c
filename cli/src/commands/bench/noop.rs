//! `tranche bench noop`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use futures::TryStreamExt as _;
use futures::future::select_all;
use serde_json::{Value, json};
use tonic::codegen::Bytes;
use tranche_client::v1::{self, batch::State};
use tranche_client::{AppendProgress, Client, names};

use super::process::Process;
use super::{NoopArgs, Store, etcd};
use crate::error::{CliError, Result};
use crate::exit;
use crate::output::{count, line, state};
use crate::signals::Signals;

/// The processes of one run. Dropping it kills them.
#[derive(Debug)]
struct Cluster {
    etcd: Option<Process>,
    coordinator: Process,
    workers: Vec<Process>,
    url: String,
}

/// What one run took, in seconds.
#[derive(Clone, Copy, Debug, Default)]
struct Times {
    append: f64,
    stage: f64,
    commit: f64,
    whole: f64,
}

pub(super) async fn run(args: &NoopArgs) -> Result<i32> {
    let mut signals = Signals::new()?;
    tokio::select! {
        result = measure(args) => result,
        // Dropping the run kills its processes and removes its folder.
        () = signals.next() => Err(CliError { exit: exit::INTERRUPTED, ..CliError::new("interrupted") }),
    }
}

async fn measure(args: &NoopArgs) -> Result<i32> {
    let folder = tempfile::Builder::new().prefix("tranche-bench-").tempdir()?;
    let mut cluster = Cluster::start(args, folder.path()).await?;
    let client = Client::connect(&cluster.url).await?;
    let (batch, times) = tokio::select! {
        done = import(&client, args) => done?,
        failure = cluster.failure() => return Err(failure),
    };
    let coordinators: Vec<v1::Coordinator> = client.coordinators().try_collect().await?;
    let coordinator = coordinators.into_iter().find(|c| c.answering).unwrap_or_default();
    let memory = cluster.coordinator.peak_memory();
    let workers = cluster.workers.iter().filter_map(Process::peak_memory).max();
    cluster.stop().await;
    let wrong = wrong_counts(args.tasks, &batch);
    let machine = json!({
        "cores": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "etcd_version": if args.etcd.is_none() && args.store == Store::Etcd { etcd::version().await } else { None },
        "store": if args.store == Store::Etcd { "etcd" } else { "embedded" },
        "slots": args.slots,
        "payload_bytes": args.payload,
        "release_build": !cfg!(debug_assertions),
    });
    let mut report = report(args, &batch, times, &coordinator);
    report["coordinator_peak_memory_bytes"] = memory.unwrap_or(coordinator.peak_memory_bytes).into();
    report["coordinator_reported_memory_bytes"] = coordinator.peak_memory_bytes.into();
    report["worker_peak_memory_bytes_max"] = workers.into();
    report["machine"] = machine;
    line(&report.to_string())?;
    if wrong.is_empty() {
        return Ok(exit::OK);
    }
    let mut error = CliError::new("the counters are off");
    error.details = wrong;
    Err(error)
}

/// Submits and waits for the end, with the clock running.
async fn import(client: &Client, args: &NoopArgs) -> Result<(v1::Batch, Times)> {
    let payload = Bytes::from(vec![b'x'; args.payload as usize]);
    let tasks = (1..=args.tasks).map(move |n| v1::Task { key: n.to_string(), payload: payload.clone() });
    let request = v1::CreateBatchRequest {
        batch: Some(v1::Batch {
            targets: vec![v1::Target { handler: "noop".into(), ..Default::default() }],
            display_name: "bench noop".into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let start = Instant::now();
    let name = client.create(request).await?.name;
    tell(args, &format!("batch {}: {} tasks", names::batch_id(&name), count(args.tasks)));
    let (progress, _) = tokio::sync::watch::channel(AppendProgress::default());
    let append = async {
        let total = client.appender(&name).report_to(progress).run_iter(tasks).await?;
        client.seal(&name, Some(total)).await?;
        Ok(start.elapsed())
    };
    let ended = async {
        let decided = client.wait_until(&name, |batch| batch.decision.is_some()).await?;
        let staged = start.elapsed();
        tell(args, &format!("{} after {:.1} s", state(decided.state()), staged.as_secs_f64()));
        Ok((client.wait(&name).await?, staged, start.elapsed()))
    };
    let (append, (batch, staged, whole)) =
        tokio::try_join!(append, ended).map_err(|e: tranche_client::Error| CliError::of_batch(&name, e))?;
    tell(args, &format!("{} after {:.1} s", state(batch.state()), whole.as_secs_f64()));
    let commit =
        between(batch.decision.as_ref().and_then(|d| d.decide_time.as_ref()), batch.end_time.as_ref());
    let times = Times {
        append: append.as_secs_f64(),
        stage: staged.as_secs_f64(),
        commit: commit.unwrap_or_else(|| whole.saturating_sub(staged).as_secs_f64()),
        whole: whole.as_secs_f64(),
    };
    Ok((batch, times))
}

impl Cluster {
    async fn start(args: &NoopArgs, folder: &Path) -> Result<Self> {
        let coordinator_program = beside("tranche-coordinator")?;
        let worker_program = beside("tranche-worker")?;
        let (etcd, store) = match (&args.etcd, args.store) {
            (Some(url), _) => (None, format!("etcd:{url}")),
            (None, Store::Etcd) => {
                let (etcd, url) = etcd::start(folder)?;
                (Some(etcd), format!("etcd:{url}"))
            }
            (None, Store::Embedded) => (None, format!("embedded:{}", folder.join("store").display())),
        };
        tell(args, &format!("store {store}"));
        let mut flags = vec!["--listen".to_owned(), "127.0.0.1:0".to_owned(), "--store".to_owned(), store];
        if args.store == Store::Etcd {
            // An etcd that was there before keeps its other keys.
            flags.extend(["--prefix".to_owned(), format!("/tranche-bench/{}/", uuid::Uuid::now_v7())]);
        }
        flags.extend(["--objects".to_owned(), folder.join("objects").display().to_string()]);
        flags.extend(["--log".to_owned(), "warn".to_owned()]);
        let mut coordinator = Process::start("coordinator", &coordinator_program, &flags, folder)?;
        let url = format!("http://{}", coordinator.ready("listening on ").await?);
        tell(args, &format!("coordinator {url}"));
        let mut workers = Vec::new();
        for n in 1..=args.workers {
            let id = format!("bench-{n}");
            let flags = [
                ("--coordinator", url.as_str()),
                ("--id", &id),
                ("--slots", &args.slots.to_string()),
                ("--handlers", "noop"),
                ("--log", "warn"),
            ];
            let flags: Vec<String> =
                flags.iter().flat_map(|(f, v)| [(*f).to_owned(), (*v).to_owned()]).collect();
            workers.push(Process::start(&format!("worker-{n}"), &worker_program, &flags, folder)?);
        }
        for worker in &mut workers {
            worker.ready("attached to ").await?;
        }
        tell(args, &format!("{} workers with {} slots", args.workers, args.slots));
        Ok(Self { etcd, coordinator, workers, url })
    }

    /// Waits until one ends before its time.
    async fn failure(&mut self) -> CliError {
        let all = self.workers.iter_mut().chain([&mut self.coordinator]).chain(self.etcd.as_mut());
        select_all(all.map(|process| Box::pin(process.ended()))).await.0
    }

    async fn stop(self) {
        for process in self.workers.into_iter().chain([self.coordinator]).chain(self.etcd) {
            process.stop().await;
        }
    }
}

fn tell(args: &NoopArgs, text: &str) {
    if !args.json {
        eprintln!("{text}");
    }
}

/// A binary of the same build as this one.
fn beside(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let path = own.with_file_name(name);
    if path.is_file() {
        return Ok(path);
    }
    let release = if cfg!(debug_assertions) { "" } else { " --release" };
    Err(CliError::new(format!("{} is missing", path.display()))
        .hint(format!("cargo build --workspace{release}")))
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

fn report(args: &NoopArgs, batch: &v1::Batch, times: Times, coordinator: &v1::Coordinator) -> Value {
    let rate = |seconds: f64| (args.tasks as f64 / seconds.max(1e-6)).round();
    let counters = batch.counters.unwrap_or_default();
    json!({
        "tasks": args.tasks,
        "workers": args.workers,
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
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(committed: i64) -> v1::Batch {
        let counters = v1::Counters { total: 10, staged: 10, committed, cutoff: 10, ..Default::default() };
        v1::Batch { state: State::Committed.into(), counters: Some(counters), ..Default::default() }
    }

    #[test]
    fn a_counter_that_is_off_is_named() {
        assert_eq!(wrong_counts(10, &batch(10)), Vec::<String>::new());
        assert_eq!(wrong_counts(10, &batch(9)), ["committed: 9, not 10"]);
        let wrong = wrong_counts(1, &v1::Batch::default());
        assert_eq!(wrong[0], "state: UNSPECIFIED, not COMMITTED");
    }

    #[test]
    fn the_report_has_its_rates() {
        let args = NoopArgs {
            tasks: 10,
            workers: 2,
            payload: 0,
            slots: 1,
            store: Store::Etcd,
            etcd: None,
            json: true,
        };
        let times = Times { append: 0.5, stage: 1.0, commit: 2.0, whole: 4.0 };
        let report = report(&args, &batch(10), times, &v1::Coordinator::default());
        assert_eq!(report["append_tasks_per_s"], 20.0);
        assert_eq!(report["commit_tasks_per_s"], 5.0);
        assert_eq!(report["whole_tasks_per_s"], 2.5_f64.round());
        assert_eq!(report["state"], "COMMITTED");
    }
}
