//! `tranche get`.

use clap::Args;

use super::connect;
use crate::args::{Global, Output};
use crate::error::{CliError, Result};
use crate::exit;
use crate::output::{json, line, table};

#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// The batch: its id or its full name.
    batch: String,
}

pub(crate) async fn run(global: &Global, args: GetArgs) -> Result<i32> {
    let name = global.batch(&args.batch);
    let batch = connect(global).await?.get(&name).await.map_err(|e| CliError::of_batch(&name, e))?;
    match global.output {
        Output::Json => line(&json::batch(&batch).to_string())?,
        Output::Table => table::batch(&batch).iter().try_for_each(|text| line(text))?,
    }
    Ok(exit::OK)
}
