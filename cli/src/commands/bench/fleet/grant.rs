//! From tasks being durable to their leases being at workers, with all workers waiting.
//!
//! Leases have one task each. A lease's clock starts when this process has read the acknowledgement that its
//! task is durable, and stops when a worker has decoded all of the lease; one that is there before the
//! acknowledgement counts as 0. From the appending of the task on is told beside it: that has the write, the
//! fsync and the transaction in it, and hides nothing.
//!
//! Two ways: *single* appends one task at a time to one open batch, and waits for its lease. *burst* makes a
//! new batch in each round, and appends one task for every worker at once: the last lease waits for all
//! others.

use std::collections::HashMap;
use std::time::Instant;

use clap::Args;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tranche_client::{Client, v1};

use super::crowd::Crowd;
use super::worker::{Conduct, What};
use super::{CrowdArgs, create, latencies};
use crate::commands::bench::cluster::Cluster;
use crate::commands::bench::figure::Figure;
use crate::commands::bench::report::Measured;
use crate::commands::bench::runs::{Context, Row};
use crate::commands::bench::usage;
use crate::error::{CliError, Result};

/// Appends that wait to be sent: there is one at a time.
const APPENDS: usize = 4;

#[derive(Clone, Debug, Args)]
pub(super) struct GrantArgs {
    /// How many workers.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    workers: u32,
    /// How many tasks are appended one by one.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    singles: u32,
    /// How many batches have a task for each worker.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(0..))]
    bursts: u32,
    #[command(flatten)]
    crowd: CrowdArgs,
}

/// Seconds: from durable, and from the append.
#[derive(Debug, Default)]
struct Waited {
    durable: Vec<f64>,
    append: Vec<f64>,
}

impl Waited {
    fn lease(&mut self, appended: Instant, durable: Instant, at: Instant) {
        self.durable.push(at.saturating_duration_since(durable).as_secs_f64());
        self.append.push(at.duration_since(appended).as_secs_f64());
    }
}

impl Row for GrantArgs {
    async fn run(&self, context: &Context) -> Result<Measured> {
        let connections = self.crowd.connections(self.workers)?;
        let mut cluster = Cluster::start(context, &self.crowd.cluster()).await?;
        let client = cluster.client().await?;
        let url = cluster.coordinator.url.clone();
        let before = cluster.usage();
        let (singles, bursts) = cluster
            .while_alive(async {
                let mut crowd = Crowd::attach(&url, self.workers, connections, Conduct::Work).await?;
                context.tell(&format!("{} workers are attached", self.workers));
                let singles = self.singles(&client, &mut crowd, context).await?;
                let mut bursts = Waited::default();
                for round in 1..=self.bursts {
                    self.burst(&client, &mut crowd, &mut bursts).await?;
                    context.progress(|| format!("burst {round} of {}", self.bursts));
                }
                Ok((singles, bursts))
            })
            .await?;
        let spent = usage::between(&before, &cluster.usage());
        cluster.stop().await;
        let judged = |figure: &Figure| figure.clone().at_most(0.020).judged_if(self.workers >= 1_000);
        let mut figures = latencies("single: durable to lease", &singles.durable);
        figures[0] = judged(&figures[0]);
        figures.extend(latencies("single: append to lease", &singles.append));
        if self.bursts > 0 {
            let mut burst = latencies("burst: durable to lease", &bursts.durable);
            burst[0] = judged(&burst[0]);
            figures.extend(burst);
            figures.extend(latencies("burst: append to lease", &bursts.append));
        }
        figures.extend(usage::figures(&spent));
        let details = json!({"singles": self.singles, "bursts": self.bursts});
        Ok(Measured::from(figures).detail(details).detail(self.crowd.json(self.workers)))
    }
}

impl GrantArgs {
    async fn singles(&self, client: &Client, crowd: &mut Crowd, context: &Context) -> Result<Waited> {
        let name = create(client, "bench fleet grant").await?;
        let failed = |e: tonic::Status| CliError::caused(format!("appending to {name}"), &e);
        let (appends, requests) = mpsc::channel(APPENDS);
        let send = async |first: i64, tasks: i64| {
            let tasks = (first..first + tasks).map(|n| v1::Task { key: n.to_string(), ..Default::default() });
            let request =
                v1::AppendTasksRequest { name: name.clone(), first_sequence: first, tasks: tasks.collect() };
            // The stream's end is noticed where its answers are read.
            let _ = appends.send(request).await;
        };
        send(1, 0).await;
        let answers = client.batches().append_tasks(ReceiverStream::new(requests)).await.map_err(failed)?;
        let mut answers = answers.into_inner();
        let mut waited = Waited::default();
        for n in 1..=i64::from(self.singles) {
            let appended = Instant::now();
            send(n, 1).await;
            let durable = async {
                loop {
                    match answers.message().await.map_err(failed)? {
                        Some(answer) if answer.durable_through >= n => {
                            return Ok::<_, CliError>(Instant::now());
                        }
                        Some(_) => {}
                        None => return Err(CliError::new("the append stream was ended")),
                    }
                }
            };
            let (durable, leases) = tokio::try_join!(durable, leases(crowd, &name, 1))?;
            let at = *leases.get(&n).ok_or_else(|| CliError::new("another task was leased"))?;
            waited.lease(appended, durable, at);
            context.progress(|| format!("task {n} of {}", self.singles));
        }
        drop(appends);
        client.seal(&name, Some(i64::from(self.singles))).await?;
        client.wait(&name).await?;
        Ok(waited)
    }

    async fn burst(&self, client: &Client, crowd: &mut Crowd, waited: &mut Waited) -> Result<()> {
        let name = create(client, "bench fleet grant").await?;
        let failed = |e: tranche_client::Error| CliError::of_batch(&name, e);
        let count = i64::from(self.workers);
        let tasks = (1..=count).map(|n| v1::Task { key: n.to_string(), ..Default::default() });
        let appended = Instant::now();
        let append = async {
            client.appender(&name).run_iter(tasks).await.map_err(failed)?;
            Ok::<_, CliError>(Instant::now())
        };
        let (durable, leases) = tokio::try_join!(append, leases(crowd, &name, count))?;
        for at in leases.into_values() {
            waited.lease(appended, durable, at);
        }
        client.seal(&name, Some(count)).await.map_err(failed)?;
        client.wait(&name).await.map_err(failed)?;
        Ok(())
    }
}

/// When each task's lease came, of so many of a batch.
async fn leases(crowd: &mut Crowd, batch: &str, count: i64) -> Result<HashMap<i64, Instant>> {
    let mut leases = HashMap::new();
    while (leases.len().cast_signed() as i64) < count {
        let seen = crowd.next().await?;
        if let What::Lease { first, .. } = seen.what
            && seen.batch == batch
        {
            leases.entry(first).or_insert(seen.at);
        }
    }
    Ok(leases)
}
