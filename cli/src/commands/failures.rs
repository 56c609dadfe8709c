//! `tranche failures`.

use clap::Args;
use futures::StreamExt as _;
use tranche_client::v1;

use super::connect;
use crate::args::{Global, Output};
use crate::error::{CliError, Result};
use crate::exit;
use crate::output::{json, line, table};

/// Rows whose columns are aligned together; more are printed as they come, whatever their number.
const ROWS_AT_ONCE: usize = 1_000;

#[derive(Debug, Args)]
pub(crate) struct FailuresArgs {
    /// The batch: its id or its full name.
    batch: String,
    /// The most failures to list; 0 lists all.
    #[arg(long, default_value_t = 0, value_name = "N")]
    limit: usize,
}

pub(crate) async fn run(global: &Global, args: FailuresArgs) -> Result<i32> {
    let name = global.batch(&args.batch);
    let client = connect(global).await?;
    let limit = if args.limit == 0 { usize::MAX } else { args.limit };
    let mut failures = client.failures(&name).take(limit).chunks(ROWS_AT_ONCE);
    let mut printer = Printer { output: global.output, printed: 0 };
    while let Some(rows) = failures.next().await {
        let rows = rows.into_iter().collect::<Result<Vec<_>, _>>();
        printer.print(&rows.map_err(|e| CliError::of_batch(&name, e))?)?;
    }
    printer.end()?;
    Ok(exit::OK)
}

/// Prints failures in pieces: one JSON document, or one table.
struct Printer {
    output: Output,
    printed: usize,
}

impl Printer {
    fn print(&mut self, rows: &[v1::TaskFailure]) -> Result<()> {
        match self.output {
            Output::Json => {
                for row in rows {
                    let before = if self.printed == 0 { "{\"failures\":[\n" } else { "," };
                    line(&format!("{before}{}", json::failure(row)))?;
                    self.printed += 1;
                }
            }
            Output::Table => {
                let heading = usize::from(self.printed > 0);
                table::failures(rows).lines().iter().skip(heading).try_for_each(|text| line(text))?;
                self.printed += rows.len();
            }
        }
        Ok(())
    }

    fn end(&self) -> Result<()> {
        match self.output {
            Output::Json if self.printed == 0 => line("{\"failures\":[]}")?,
            Output::Json => line("]}")?,
            Output::Table if self.printed == 0 => line("no task failed")?,
            Output::Table => {}
        }
        Ok(())
    }
}
