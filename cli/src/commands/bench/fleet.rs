//! `tranche bench fleet`: one coordinator with very many workers.
//!
//! The workers are streams of this process that follow the protocol of a real one (hello, credit, heartbeats
//! at the welcome's intervals, answers to each change of phase and of owner, reports), each on a connection of
//! its own unless `--connections` says otherwise. The coordinator and etcd are real processes. All of them
//! share the machine: the time that this process needs for reading its streams is in every figure.
//!
//! | bench | what is measured |
//! | --- | --- |
//! | [`cancel`] | CancelBatch of a batch of which every worker holds leases, until the last worker has read `PhaseChanged(ROLLBACK)` |
//! | [`grant`] | tasks being durable until their leases have been read by workers, with all workers waiting |
//! | [`idle`] | memory and processor time of a coordinator whose workers have nothing to do |

mod cancel;
mod crowd;
mod grant;
mod idle;
mod worker;

use clap::{Args, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use tranche_client::{Client, v1};

use super::cluster::{ClusterArgs, StoreArgs};
use super::figure::{Figure, percentile};
use super::report::Measured;
use super::runs::{Context, Row};
use crate::error::{CliError, Result};

/// Files that a process needs beside its connections to workers.
const OTHER_FILES: u64 = 256;

#[derive(Clone, Debug, Args)]
pub(crate) struct FleetArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Clone, Debug, Subcommand)]
enum What {
    /// Cancel a running batch, until the last worker is told.
    Cancel(cancel::CancelArgs),
    /// Append tasks while all workers wait, until leases reach them.
    Grant(grant::GrantArgs),
    /// What workers cost that only say that they are there.
    Idle(idle::IdleArgs),
}

impl Row for FleetArgs {
    async fn run(&self, context: &Context) -> Result<Measured> {
        match &self.what {
            What::Cancel(args) => args.run(context).await,
            What::Grant(args) => args.run(context).await,
            What::Idle(args) => args.run(context).await,
        }
    }
}

/// The fleet that a row wants.
#[derive(Clone, Debug, Args)]
struct CrowdArgs {
    /// Over how many connections the workers come, each with at most 1,000 of them [default: one for each].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    connections: Option<u32>,
    #[command(flatten)]
    store: StoreArgs,
}

impl CrowdArgs {
    /// How many connections for so many workers; the limit of open files is raised to that.
    fn connections(&self, workers: u32) -> Result<u32> {
        let connections = self.connections.unwrap_or(workers).min(workers);
        if workers > 1_000 * connections {
            return Err(CliError::usage(
                "a connection carries at most 1,000 workers: --connections is too low",
            ));
        }
        allow_files(u64::from(connections) + OTHER_FILES)?;
        Ok(connections)
    }

    /// No real worker.
    fn cluster(&self) -> ClusterArgs {
        ClusterArgs { workers: 0, slots: 1, store: self.store.clone() }
    }

    fn json(&self, workers: u32) -> Value {
        json!({"fleet": workers, "connections": self.connections.unwrap_or(workers).min(workers)})
    }
}

/// Raises the soft limit of open files, for this process and for those that it starts.
fn allow_files(wanted: u64) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    if limit.maximum.is_some_and(|maximum| maximum < wanted) {
        let text =
            format!("a process here may open {} files, {wanted} are needed", limit.maximum.unwrap_or(0));
        return Err(CliError::new(text).hint("`--connections 32` lets workers share connections"));
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum })
        .map_err(|e| CliError::caused("cannot raise the limit of open files", &e))
}

/// A batch whose leases have one task each.
async fn create(client: &Client, display_name: &str) -> Result<String> {
    let batch = v1::Batch {
        targets: vec![v1::Target { handler: "noop".into(), ..Default::default() }],
        display_name: display_name.into(),
        range_bounds: Some(v1::RangeBounds { min_tasks: 1, max_tasks: 1 }),
        ..Default::default()
    };
    Ok(client.create(v1::CreateBatchRequest { batch: Some(batch), ..Default::default() }).await?.name)
}

/// p50, p99 and the worst of latencies in seconds; the p99 first.
fn latencies(what: &str, samples: &[f64]) -> Vec<Figure> {
    let at = |share| percentile(samples, share);
    vec![
        Figure::seconds(format!("{what}, p99"), at(0.99)),
        Figure::seconds(format!("{what}, p50"), at(0.5)),
        Figure::seconds(format!("{what}, worst"), at(1.0)),
    ]
}
