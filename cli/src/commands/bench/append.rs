//! `tranche bench append`: durable appends alone.

use std::time::Instant;

use clap::Args;
use serde_json::json;
use tranche_client::{AppendProgress, Client};

use super::cluster::{Cluster, ClusterArgs, StoreArgs};
use super::figure::Figure;
use super::noop::create;
use super::report::Measured;
use super::runs::{Context, Row};
use super::tasks::{making_one, tasks};
use super::usage::{self, Usage};
use crate::error::{CliError, Result};
use crate::output::count;

#[derive(Clone, Debug, Args)]
pub(crate) struct AppendArgs {
    /// How many tasks.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(i64).range(1..))]
    tasks: i64,
    /// Bytes of payload of each task: its sequence number, then pseudo-random bytes.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=1_048_576))]
    payload: u32,
    #[command(flatten)]
    store: StoreArgs,
}

impl Row for AppendArgs {
    async fn run(&self, context: &Context) -> Result<Measured> {
        // No worker takes anything from the disk or the processors.
        let args = ClusterArgs { workers: 0, slots: 1, store: self.store.clone() };
        let mut cluster = Cluster::start(context, &args).await?;
        let client = cluster.client().await?;
        let name = create(&client, "bench append").await?;
        let before = cluster.usage();
        let (durable, sealed) = cluster.while_alive(self.append(context, &client, &name)).await?;
        let spent = usage::between(&before, &cluster.usage());
        let transactions = cluster.coordinator_report(&client).await?.store_transactions;
        client.cancel(&name, "bench", "measured").await.map_err(|e| CliError::of_batch(&name, e))?;
        cluster.stop().await;
        let cpu: f64 = spent.iter().map(Usage::cpu).sum();
        let usual = self.tasks >= 1_000_000 && self.payload == 100;
        let mut figures = vec![
            Figure::rate("durable and sealed", self.tasks, sealed).at_least(2.5e6).judged_if(usual),
            Figure::seconds("until durable", durable),
            Figure::seconds("until sealed", sealed),
            Figure::count("etcd transactions", transactions),
            Figure::seconds("CPU for one task", cpu / self.tasks as f64),
            Figure::seconds("of it the client's making of a task", making_one(self.payload)),
        ];
        figures.extend(usage::figures(&spent));
        let details = json!({
            "tasks": self.tasks,
            "payload_bytes": self.payload,
            "append_tasks_per_s": (self.tasks as f64 / sealed).round(),
            "etcd_transactions": transactions,
            "processes": usage::json(&spent),
        });
        Ok(Measured::from(figures).detail(details).detail(args.json()))
    }
}

impl AppendArgs {
    /// Seconds from the first append to the last acknowledgement, and to the seal.
    async fn append(&self, context: &Context, client: &Client, name: &str) -> Result<(f64, f64)> {
        let failed = |e| CliError::of_batch(name, e);
        context.tell(&format!("{} tasks of {} bytes, no worker", count(self.tasks), self.payload));
        let (progress, mut seen) = tokio::sync::watch::channel(AppendProgress::default());
        let start = Instant::now();
        let append = client.appender(name).report_to(progress).run_iter(tasks(self.tasks, self.payload));
        let show = async {
            // Ends with the append, which drops the other side.
            while seen.changed().await.is_ok() {
                let durable = seen.borrow_and_update().durable;
                context.progress(|| {
                    format!("{} durable, {:.1} s", count(durable), start.elapsed().as_secs_f64())
                });
            }
            Ok(())
        };
        let (appended, ()) = tokio::try_join!(append, show).map_err(failed)?;
        let durable = start.elapsed().as_secs_f64();
        client.seal(name, Some(appended)).await.map_err(failed)?;
        Ok((durable, start.elapsed().as_secs_f64()))
    }
}
