//! `tranche bench all`: the whole table.

use clap::{Args, Parser};

use super::report::RowReport;
use super::runs::Session;
use super::{BenchCommand, Options, RUNS, one};
use crate::error::{CliError, Result};

/// The command lines of the table's rows, in its order.
const ROWS: &[&str] = &[
    "noop",
    "noop --tasks 10000000",
    "noop --tasks 100000000 --payload 8 --against 1000000 --runs 1",
    "append",
    "latency",
    "takeover --runs 1",
    "fleet cancel",
    "fleet grant",
    "fleet idle",
    "flood --runs 1",
    "object",
    "restart",
];

#[derive(Clone, Debug, Args)]
pub(crate) struct AllArgs {
    /// Only these benches, such as `noop`.
    #[arg(value_name = "BENCH")]
    only: Vec<String>,
}

/// One of [`ROWS`], as it would be typed.
#[derive(Debug, Parser)]
#[command(name = "bench", no_binary_name = true)]
struct Line {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: BenchCommand,
}

/// Runs them; one that fails is a line of the table and doesn't end the others.
pub(super) async fn run(session: &Session, rows: &[&str], runs: Option<u32>) -> Result<Vec<RowReport>> {
    let mut reports = Vec::new();
    for &row in rows {
        let Line { options, command } = parse(row)?;
        match one(session, row, options.runs.or(runs).unwrap_or(RUNS), &command).await {
            Ok(report) => reports.push(report),
            Err(error) => {
                error.print(crate::args::Output::Table);
                reports.push(RowReport::failed(row.to_owned(), error.message));
                session.clear()?;
            }
        }
    }
    Ok(reports)
}

/// The command lines of the benches that are asked for.
pub(super) fn chosen(args: &AllArgs) -> Result<Vec<&'static str>> {
    let name = |row: &str| row.split(' ').next().unwrap_or_default().to_owned();
    if let Some(unknown) = args.only.iter().find(|only| ROWS.iter().all(|row| name(row) != **only)) {
        return Err(CliError::usage(format!("there is no bench {unknown}")));
    }
    let wanted = |row: &&str| args.only.is_empty() || args.only.contains(&name(row));
    Ok(ROWS.iter().copied().filter(wanted).collect())
}

fn parse(row: &str) -> Result<Line> {
    Line::try_parse_from(row.split(' ')).map_err(|e| CliError::usage(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_one_that_can_be_typed() {
        for row in ROWS {
            assert!(!matches!(parse(row).unwrap().command, BenchCommand::All(_)), "{row}");
        }
    }

    #[test]
    fn benches_can_be_chosen() {
        let chosen =
            |only: &[&str]| chosen(&AllArgs { only: only.iter().map(|o| (*o).to_owned()).collect() });
        assert_eq!(chosen(&[]).unwrap(), ROWS);
        assert_eq!(chosen(&["append"]).unwrap(), ["append"]);
        assert!(chosen(&["noop"]).unwrap().iter().all(|row| row.starts_with("noop")));
        assert!(chosen(&["nope"]).is_err());
    }
}
