//! `tranche bench`: the whole system, with real processes.

mod etcd;
mod noop;
mod process;

use clap::{Args, Subcommand, ValueEnum};

use crate::error::Result;

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Import tasks that cost nothing, and print the figures as one JSON object.
    ///
    /// Starts a coordinator and workers (the binaries beside this one) and, for `--store etcd` without
    /// `--etcd`, an etcd: from TRANCHE_ETCD, `.tools/bin/etcd` here or in a folder above, or PATH. All
    /// of it on loopback and in a temporary folder. Exits with 1 if a counter is off by one.
    Noop(NoopArgs),
}

#[derive(Clone, Debug, Args)]
pub(crate) struct NoopArgs {
    /// How many tasks.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(i64).range(1..))]
    pub(crate) tasks: i64,
    /// How many worker processes.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) workers: u32,
    /// Bytes of payload of each task.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=1_048_576))]
    pub(crate) payload: u32,
    /// Slots of each worker.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    pub(crate) slots: u32,
    /// The coordinator's store.
    #[arg(long, value_enum, default_value_t = Store::Etcd)]
    pub(crate) store: Store,
    /// An etcd that runs already, such as <http://127.0.0.1:2379>; the bench uses a prefix of its own.
    #[arg(long, value_name = "URL", conflicts_with = "store")]
    pub(crate) etcd: Option<String>,
    /// Nothing but the JSON object: no progress on standard error.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Store {
    /// etcd.
    Etcd,
    /// The coordinator's own, on disk.
    Embedded,
}

pub(crate) async fn run(bench: BenchCommand) -> Result<i32> {
    match bench {
        BenchCommand::Noop(args) => noop::run(&args).await,
    }
}
