//! What workers cost a coordinator that have nothing to do.
//!
//! Each worker has said how much it takes, and sends a heartbeat at the interval that its welcome named for
//! workers without leases; the coordinator answers each. Nothing else happens, so all processor time of the
//! coordinator counts as the heartbeats', also that of its own session with etcd.

use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;

use super::CrowdArgs;
use super::crowd::Crowd;
use super::worker::Conduct;
use crate::commands::bench::cluster::Cluster;
use crate::commands::bench::figure::Figure;
use crate::commands::bench::report::Measured;
use crate::commands::bench::runs::{Context, Row};
use crate::commands::bench::usage::{self, Usage};
use crate::error::Result;

/// Between the last worker's attaching and the measurement: two heartbeats of each at the usual interval.
const SETTLE: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, Args)]
pub(super) struct IdleArgs {
    /// How many workers.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    workers: u32,
    /// Seconds of measuring.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    seconds: u32,
    #[command(flatten)]
    crowd: CrowdArgs,
}

/// What was there at one time.
#[derive(Debug)]
struct Look {
    at: Instant,
    sent: u64,
    acknowledged: u64,
}

impl Look {
    fn now(crowd: &Crowd) -> Self {
        let (sent, acknowledged) = crowd.heartbeats();
        Self { at: Instant::now(), sent, acknowledged }
    }
}

impl Row for IdleArgs {
    async fn run(&self, context: &Context) -> Result<Measured> {
        let connections = self.crowd.connections(self.workers)?;
        let mut cluster = Cluster::start(context, &self.crowd.cluster()).await?;
        let url = cluster.coordinator.url.clone();
        let pid = cluster.coordinator.process.id().unwrap_or_default();
        let coordinator = || Usage::of("coordinator", pid);
        let empty = coordinator();
        let (begin, end, attach, before, after) = cluster
            .while_alive(async {
                let start = Instant::now();
                let mut crowd = Crowd::attach(&url, self.workers, connections, Conduct::Work).await?;
                let attach = start.elapsed().as_secs_f64();
                context.tell(&format!("{} workers are attached after {attach:.1} s", self.workers));
                crowd.stay(SETTLE).await?;
                let (begin, before) = (Look::now(&crowd), coordinator());
                crowd.stay(Duration::from_secs(self.seconds.into())).await?;
                Ok((begin, Look::now(&crowd), attach, before, coordinator()))
            })
            .await?;
        let etcd = usage::figures(&cluster.usage());
        cluster.stop().await;
        let seconds = end.at.duration_since(begin.at).as_secs_f64();
        let (sent, acknowledged) = (end.sent - begin.sent, end.acknowledged - begin.acknowledged);
        let cpu = after.cpu() - before.cpu();
        let full = self.workers >= 10_000;
        let grown = (after.peak_memory - empty.peak_memory) as f64 / f64::from(self.workers);
        let mut figures = vec![
            Figure::ratio("coordinator, share of one core", cpu / seconds).under(0.10).judged_if(full),
            Figure::bytes("coordinator peak memory with the workers", after.peak_memory)
                .under(1e9)
                .judged_if(full),
            Figure::new("memory for one worker", super::super::figure::Unit::Bytes, grown),
            Figure::seconds("CPU for one heartbeat", cpu / sent.max(1) as f64),
            Figure::seconds("of it in the kernel", (after.system - before.system) / sent.max(1) as f64),
            Figure::ratio("heartbeats a second", sent as f64 / seconds),
            Figure::ratio("answered, of those sent", acknowledged as f64 / sent.max(1) as f64),
            Figure::seconds("attaching all", attach),
            Figure::seconds(
                "coordinator CPU for attaching one",
                (before.cpu() - empty.cpu()) / f64::from(self.workers),
            ),
        ];
        figures.extend(
            etcd.into_iter()
                .filter(|figure| figure.name.ends_with("memory") && !figure.name.starts_with("coordinator")),
        );
        let details = json!({"seconds": seconds, "heartbeats": sent, "acknowledged": acknowledged});
        Ok(Measured::from(figures).detail(details).detail(self.crowd.json(self.workers)))
    }
}
