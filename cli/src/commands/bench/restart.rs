//! `tranche bench restart`: how long a coordinator with its own store takes to serve again.

use std::time::{Duration, Instant};

use clap::Args;
use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::json;
use tokio::process::Command;
use tranche_client::{Client, v1};

use super::cluster::{Cluster, ClusterArgs, Store, StoreArgs};
use super::figure::Figure;
use super::process::Process;
use super::report::Measured;
use super::runs::{Context, Row};
use super::usage::Usage;
use crate::error::{CliError, Result};
use crate::output::count;

/// Batches that are run at once while they are made.
const AT_ONCE: usize = 64;
/// Pause before it is looked again whether all batches are swept.
const PAUSE: Duration = Duration::from_millis(50);
/// Batches of the page that is asked for first.
const PAGE: i32 = 100;
/// The most that a start may last, in seconds.
const TARGET: f64 = 1.0;

#[derive(Clone, Debug, Args)]
pub(crate) struct RestartArgs {
    /// How many finished batches there are.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    batches: u32,
    /// How often, in a run, the coordinator is started again after a signal, and after it was killed.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    times: u32,
}

/// One start; times since the process was started.
#[derive(Clone, Copy, Debug, Default)]
struct Started {
    listening: Duration,
    /// The first page of ListBatches was there.
    listed: Duration,
    /// Bytes, at the highest until then.
    memory: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Terminated,
    Killed,
}

impl Row for RestartArgs {
    async fn run(&self, context: &Context) -> Result<Measured> {
        let args = self;
        let one =
            ClusterArgs { workers: 1, slots: 64, store: StoreArgs { store: Store::Embedded, etcd: None } };
        let mut cluster = Cluster::start(context, &one).await?;
        let begin = Instant::now();
        make(args, &cluster).await?;
        let took = begin.elapsed().as_secs_f64();
        context.tell(&format!("{} batches made in {took:.1} s", count(args.batches.into())));
        for worker in std::mem::take(&mut cluster.workers) {
            worker.stop().await;
        }
        let mut number = 1;
        let mut starts = [Vec::new(), Vec::new()];
        for (end, starts) in [End::Terminated, End::Killed].into_iter().zip(&mut starts) {
            for _ in 0..args.times {
                number += 1;
                starts.push(start_again(args, context, &mut cluster, end, number).await?);
            }
        }
        cluster.stop().await;
        let [terminated, killed] = starts.map(|starts| {
            starts.into_iter().reduce(|one, other| Started {
                listening: one.listening.max(other.listening),
                listed: one.listed.max(other.listed),
                memory: one.memory.max(other.memory),
            })
        });
        let (terminated, killed) = (terminated.unwrap_or_default(), killed.unwrap_or_default());
        let seconds = |name: &str, time: Duration| Figure::seconds(name, time.as_secs_f64());
        let issue = args.batches >= 1_000;
        let figures = vec![
            seconds("after SIGTERM: start → listening, slowest", terminated.listening)
                .under(TARGET)
                .judged_if(issue),
            seconds("after SIGKILL: start → listening, slowest", killed.listening)
                .under(TARGET)
                .judged_if(issue),
            seconds("after SIGTERM: start → batches listed, slowest", terminated.listed),
            seconds("after SIGKILL: start → batches listed, slowest", killed.listed),
            Figure::bytes("peak memory until then, most", terminated.memory.max(killed.memory)),
            Figure::bytes("store's file", size(context)),
        ];
        Ok(Measured::from(figures).detail(json!({"batches": args.batches, "times": args.times})))
    }
}

/// Runs batches of one task to their ends, until none needs an owner any more.
async fn make(args: &RestartArgs, cluster: &Cluster) -> Result<()> {
    let client = &cluster.client().await?;
    let one = |number: u32| async move {
        let request = v1::CreateBatchRequest {
            batch: Some(v1::Batch {
                targets: vec![v1::Target { handler: "noop".into(), ..Default::default() }],
                display_name: format!("bench restart {number}"),
                ..Default::default()
            }),
            ..Default::default()
        };
        let task = v1::Task { key: number.to_string(), ..Default::default() };
        let batch = Box::pin(client.submit(request, futures::stream::iter([task]))).await?;
        client.wait(&batch.name).await?;
        Ok::<_, CliError>(())
    };
    futures::stream::iter(0..args.batches).map(one).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    loop {
        let all: Vec<v1::Batch> = client.list(v1::ListBatchesRequest::default()).try_collect().await?;
        if all.iter().filter(|batch| batch.swept).count() == args.batches as usize {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn start_again(
    args: &RestartArgs,
    context: &Context,
    cluster: &mut Cluster,
    end: End,
    number: u32,
) -> Result<Started> {
    stop(&mut cluster.coordinator.process, end).await?;
    let begin = Instant::now();
    cluster.coordinator = cluster.replica(context, &format!("coordinator-{number}"), &[]).await?;
    let listening = begin.elapsed();
    let request = v1::ListBatchesRequest { page_size: PAGE, ..Default::default() };
    let page = Client::connect(&cluster.coordinator.url).await?.list_page(request).await?;
    let listed = begin.elapsed();
    if page.batches.len() != args.batches.min(PAGE.cast_unsigned()) as usize {
        return Err(CliError::new(format!("only {} batches are listed", page.batches.len())));
    }
    let process = &cluster.coordinator.process;
    let memory = process.id().map_or(0, |id| Usage::of(process.name(), id).peak_memory);
    Ok(Started { listening, listed, memory })
}

/// Ends it, and waits for it.
async fn stop(coordinator: &mut Process, end: End) -> Result<()> {
    let signal = if end == End::Killed { "-KILL" } else { "-TERM" };
    let id = coordinator.id().ok_or_else(|| coordinator.failure("ended before its time"))?;
    let sent = Command::new("kill").args([signal, &id.to_string()]).status().await?;
    if !sent.success() {
        return Err(coordinator.failure("can't be told to stop"));
    }
    // However it ends, it is started again.
    let _ = coordinator.ended().await;
    Ok(())
}

/// Bytes of the store's files.
fn size(context: &Context) -> i64 {
    let files = walkdir::WalkDir::new(context.folder().join("store")).into_iter().filter_map(Result::ok);
    let sizes = files
        .filter_map(|file| file.metadata().ok().filter(std::fs::Metadata::is_file))
        .map(|file| file.len());
    sizes.sum::<u64>().cast_signed()
}
