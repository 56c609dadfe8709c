//! `tranche bench`: the whole system, with real processes. One file a row of the table of figures.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`runs`] | the run loop: an empty folder and a [`Context`](runs::Context) for each run |
//! | [`cluster`] | starts etcd, coordinator and workers; what they have used |
//! | [`process`], [`etcd`] | one child; how etcd is found |
//! | [`usage`] | processor seconds and memory of processes |
//! | [`tasks`] | the tasks that are appended |
//! | [`figure`] | a figure, its unit, its target; min, median, max |
//! | [`report`] | JSON and table |
//! | [`machine`] | what it was measured on |
//! | [`all`] | which command lines make the whole table |
//! | the others | a row each |
//!
//! # How a row is added
//!
//! 1. A file `NAME.rs` with `struct NameArgs` (derives `Clone, Debug, Args`; its defaults are the
//!    target's case) and `impl Row for NameArgs`: one run, from nothing to its figures. Start processes with
//!    [`Cluster::start`](cluster::Cluster::start), put the work into
//!    [`Cluster::while_alive`](cluster::Cluster::while_alive), say what happens with `context.tell`, keep
//!    files under `context.folder()`. The first figure is the headline; a target is set with
//!    `.at_least(…)`, `.at_most(…)` or `.under(…)`, and `.judged_if(…)` takes it off when the arguments
//!    make it another case. The name of a figure is the same in every run.
//! 2. Below: `mod name;`, a variant of [`BenchCommand`] with the help text, an arm in [`one`].
//! 3. In [`all`]: its command line. In `docs/performance.md`: its line.
//!
//! What was measured in another way in the same run, to compare with (a plain etcd put, `cp -r`), is a
//! figure too, and the target is on the [`ratio`](figure::Figure::ratio) of the two.

mod all;
mod append;
mod cluster;
mod etcd;
mod figure;
mod fleet;
mod flood;
mod latency;
mod machine;
mod noop;
mod object;
mod process;
mod report;
mod restart;
mod runs;
mod takeover;
mod tasks;
mod usage;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use self::report::RowReport;
use self::runs::Session;
use crate::args::{Global, Output};
use crate::error::{CliError, Result};
use crate::exit;
use crate::output::line;
use crate::signals::Signals;

/// Runs of a row that says nothing else.
const RUNS: u32 = 3;

/// Measure the system with real processes.
///
/// Starts coordinators and workers (the binaries beside this one) and an etcd: from TRANCHE_ETCD,
/// `.tools/bin/etcd` here or in a folder above, or PATH. All of it on loopback and in a temporary folder.
/// Prints one table with the least, the median and the most of each figure, and whether the median meets
/// its target. Build with `cargo build --release` first.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Clone, Debug, Args)]
struct Options {
    /// How often each bench runs, with new processes each time [default: 3].
    #[arg(long, global = true, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    runs: Option<u32>,
    /// Where the temporary folder is made: on the disk to be measured [default: that for temporary files].
    #[arg(long, global = true, value_name = "FOLDER")]
    dir: Option<PathBuf>,
    /// Prints nothing but one JSON object; with `--json=FILE`, writes it there beside the table.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "-"
    )]
    json: Option<PathBuf>,
    /// Exits with 1 if a target is missed.
    #[arg(long, global = true)]
    check: bool,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Every bench, and one table: takes some minutes.
    All(all::AllArgs),
    /// Import tasks that cost nothing, from the first append to COMMITTED.
    Noop(noop::NoopArgs),
    /// Append and seal, with no worker there.
    Append(append::AppendArgs),
    /// A batch of one task on an idle system, from its creation to COMMITTED.
    Latency(latency::LatencyArgs),
    /// One coordinator with very many workers.
    Fleet(fleet::FleetArgs),
    /// Calls of a client beside attackers: rapid reset, CONTINUATION, PING, SETTINGS, connections.
    Flood(flood::FloodArgs),
    /// An attacker, for `flood`.
    #[command(hide = true)]
    Attacker(flood::AttackerArgs),
    /// The owner of a large batch is killed: until another grants its tasks, once the lock is free.
    Takeover(takeover::TakeoverArgs),
    /// A coordinator with its own store and many finished batches is started again.
    Restart(restart::RestartArgs),
    /// Import files into a library folder, beside `cp -r` and `sync` of the same files.
    Object(object::ObjectArgs),
}

/// One row's runs. `line` is its command line after `tranche bench`.
async fn one(session: &Session, line: &str, runs: u32, command: &BenchCommand) -> Result<RowReport> {
    match command {
        BenchCommand::All(_) | BenchCommand::Attacker(_) => Err(CliError::usage("this is not one bench")),
        BenchCommand::Noop(row) => session.repeat(line, runs, row).await,
        BenchCommand::Append(row) => session.repeat(line, runs, row).await,
        BenchCommand::Latency(row) => session.repeat(line, runs, row).await,
        BenchCommand::Fleet(row) => session.repeat(line, runs, row).await,
        BenchCommand::Flood(row) => session.repeat(line, runs, row).await,
        BenchCommand::Takeover(row) => session.repeat(line, runs, row).await,
        BenchCommand::Restart(row) => session.repeat(line, runs, row).await,
        BenchCommand::Object(args) => session.repeat(line, runs, &object::Object::new(args.clone())).await,
    }
}

pub(crate) async fn run(global: &Global, args: BenchArgs) -> Result<i32> {
    let mut signals = Signals::new()?;
    tokio::select! {
        result = measure(global, args) => result,
        // Dropping the session kills its processes and removes its folder.
        () = signals.next() => Err(CliError { exit: exit::INTERRUPTED, ..CliError::new("interrupted") }),
    }
}

async fn measure(global: &Global, BenchArgs { options, command }: BenchArgs) -> Result<i32> {
    if let BenchCommand::Attacker(args) = &command {
        return flood::attack(args);
    }
    let file = options.json.as_ref().filter(|file| **file != Path::new("-"));
    let only_json = file.is_none() && (options.json.is_some() || global.output == Output::Json);
    // What is typed wrong is said at once.
    let chosen = if let BenchCommand::All(args) = &command { all::chosen(args)? } else { Vec::new() };
    let session = Session::open(options.dir.as_deref(), only_json).await?;
    let rows = match &command {
        BenchCommand::All(_) => all::run(&session, &chosen, options.runs).await?,
        command => vec![one(&session, &words(), options.runs.unwrap_or(RUNS), command).await?],
    };
    let json = report::json(&session.machine, &rows);
    if let Some(file) = file {
        std::fs::write(file, format!("{json:#}\n"))
            .map_err(|e| CliError::caused(format!("cannot write {}", file.display()), &e))?;
    }
    if only_json {
        line(&json.to_string())?;
    } else {
        session.tell("");
        for text in session.machine.lines().into_iter().chain([String::new()]).chain(report::table(&rows)) {
            line(&text)?;
        }
    }
    let failed: Vec<String> =
        rows.iter().filter_map(|row| Some(format!("{}: {}", row.command, row.error.as_ref()?))).collect();
    let missed = if options.check { report::missed(&rows) } else { Vec::new() };
    if failed.is_empty() && missed.is_empty() {
        return Ok(exit::OK);
    }
    let what = if failed.is_empty() { "targets are missed" } else { "not every bench came to its end" };
    let mut error = CliError::new(what);
    error.details = failed.into_iter().chain(missed).collect();
    Err(error)
}

/// The words of this command line after `bench`, without those that only say how to print.
fn words() -> String {
    let words = std::env::args().skip_while(|word| word != "bench").skip(1);
    let printing = |word: &String| word == "--check" || word.starts_with("--json");
    words.filter(|word| !printing(word)).collect::<Vec<_>>().join(" ")
}
