//! From CancelBatch to the last worker that was told.
//!
//! Each round has a batch of its own with as many tasks as the fleet takes leases (two a worker, of one task
//! each). Once all leases have been read, the clock starts just before CancelBatch is called. A worker's time
//! is when it has decoded `PhaseChanged(ROLLBACK)`; a round's is the last worker's. The next round starts when
//! the batch is ROLLED_BACK.

use std::collections::HashSet;
use std::time::Instant;

use clap::Args;
use serde_json::json;
use tranche_client::v1::{Phase, batch::State};
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

/// Leases that a worker takes.
const LEASES: u32 = 2;

#[derive(Clone, Debug, Args)]
pub(super) struct CancelArgs {
    /// How many workers.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    workers: u32,
    /// How many batches are cancelled, one after the other.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    #[command(flatten)]
    crowd: CrowdArgs,
}

/// Seconds from the call.
#[derive(Debug, Default)]
struct Told {
    first: Vec<f64>,
    last: Vec<f64>,
    answered: Vec<f64>,
}

impl Row for CancelArgs {
    async fn run(&self, context: &Context) -> Result<Measured> {
        let connections = self.crowd.connections(self.workers)?;
        let mut cluster = Cluster::start(context, &self.crowd.cluster()).await?;
        let client = cluster.client().await?;
        let url = cluster.coordinator.url.clone();
        let before = cluster.usage();
        let told = cluster
            .while_alive(async {
                let mut crowd = Crowd::attach(&url, self.workers, connections, Conduct::Hold).await?;
                context.tell(&format!("{} workers are attached", self.workers));
                let mut told = Told::default();
                for round in 1..=self.rounds {
                    self.round(&client, &mut crowd, &mut told).await?;
                    context.progress(|| format!("cancel {round} of {}", self.rounds));
                }
                Ok(told)
            })
            .await?;
        let spent = usage::between(&before, &cluster.usage());
        cluster.stop().await;
        let mut figures = latencies("last worker told", &told.last);
        figures[0] = figures[0].clone().at_most(0.050).judged_if(self.workers >= 1_000);
        figures.extend(latencies("first worker told", &told.first).into_iter().take(2));
        figures.extend(latencies("call answered", &told.answered).into_iter().take(2));
        let cpu = |of: &str| spent.iter().find(|one| one.name == of).map_or(0.0, usage::Usage::cpu);
        let rounds = f64::from(self.rounds);
        figures.push(Figure::seconds("coordinator CPU for a round", cpu("coordinator") / rounds));
        figures.extend(usage::figures(&spent));
        let details = json!({"rounds": self.rounds, "last_told_s": told.last});
        Ok(Measured::from(figures).detail(details).detail(self.crowd.json(self.workers)))
    }
}

impl CancelArgs {
    async fn round(&self, client: &Client, crowd: &mut Crowd, told: &mut Told) -> Result<()> {
        let name = create(client, "bench fleet cancel").await?;
        let failed = |e: tranche_client::Error| CliError::of_batch(&name, e);
        let leases = self.workers * LEASES;
        let tasks = (1..=leases).map(|n| v1::Task { key: n.to_string(), ..Default::default() });
        client.appender(&name).run_iter(tasks).await.map_err(failed)?;
        let mut out = 0;
        while out < leases {
            let seen = crowd.next().await?;
            out += u32::from(seen.batch == name && matches!(seen.what, What::Lease { .. }));
        }
        let start = Instant::now();
        let call = async {
            client.cancel(&name, "bench", "measured").await.map_err(failed)?;
            Ok::<_, CliError>(start.elapsed().as_secs_f64())
        };
        let last = async {
            let mut who = HashSet::new();
            let mut times = Vec::new();
            while who.len() < self.workers as usize {
                let seen = crowd.next().await?;
                if seen.batch == name && seen.what == What::Phase(Phase::Rollback) && who.insert(seen.worker)
                {
                    times.push(seen.at.duration_since(start).as_secs_f64());
                }
            }
            times.sort_by(f64::total_cmp);
            Ok::<_, CliError>(times)
        };
        let (answered, times) = tokio::try_join!(call, last)?;
        told.answered.push(answered);
        told.first.extend(times.first());
        told.last.extend(times.last());
        let batch = client.wait(&name).await.map_err(failed)?;
        if batch.state() == State::RolledBack {
            Ok(())
        } else {
            Err(CliError::new("a cancelled batch wasn't rolled back"))
        }
    }
}
