//! One file a command.

pub(crate) mod bench;
pub(crate) mod cancel;
pub(crate) mod commit;
pub(crate) mod completions;
pub(crate) mod coordinators;
pub(crate) mod delete;
pub(crate) mod failures;
pub(crate) mod get;
pub(crate) mod import;
pub(crate) mod leases;
pub(crate) mod list;
pub(crate) mod retry;
pub(crate) mod submit;
pub(crate) mod watch;
pub(crate) mod workers;

use tranche_client::{Client, Credentials, Options, v1};

use crate::args::{Cli, Command, Global, Output};
use crate::error::{CliError, Result};
use crate::output::{json, line, table};

/// Runs the command; returns the exit code.
pub(crate) async fn run(cli: Cli) -> Result<i32> {
    let global = &cli.global;
    match cli.command {
        Command::Import(args) => import::run(global, *args).await,
        Command::Submit(args) => submit::run(global, *args).await,
        Command::List(args) => list::run(global, args).await,
        Command::Get(args) => get::run(global, args).await,
        Command::Watch(args) => watch::run(global, args).await,
        Command::Commit(args) => commit::run(global, args).await,
        Command::Cancel(args) => cancel::run(global, args).await,
        Command::Failures(args) => failures::run(global, args).await,
        Command::Retry(args) => retry::run(global, args).await,
        Command::Delete(args) => delete::run(global, args).await,
        Command::Workers => workers::run(global).await,
        Command::Coordinators => coordinators::run(global).await,
        Command::Leases(args) => leases::run(global, args).await,
        Command::Bench(bench) => bench::run(global, bench).await,
        Command::Completions(args) => completions::run(&args),
    }
}

/// Connects to the cluster.
async fn connect(global: &Global) -> Result<Client> {
    let credentials =
        Credentials::load(global.files()).map_err(|error| CliError::usage(error.to_string()))?;
    // As other programs take it from whoever started them, a pipeline's step for one.
    let traceparent = std::env::var("TRACEPARENT").ok();
    let options = Options { credentials, traceparent, ..Options::default() };
    Ok(Client::connect_with(&global.coordinator, options).await?)
}

/// Prints a batch that a call returned: all of it in JSON, one line for people.
fn print_batch(global: &Global, batch: &v1::Batch) -> Result<()> {
    match global.output {
        Output::Json => line(&json::batch(batch).to_string())?,
        Output::Table => table::batches(std::slice::from_ref(batch)).print()?,
    }
    Ok(())
}
