//! `tranche retry`.

use clap::Args;
use serde_json::json;

use super::connect;
use crate::args::{Global, Output};
use crate::error::{CliError, Result};
use crate::exit;
use crate::output::{count, json, line, state};

/// Leases the failed tasks of a batch once more, while it is IMPORTING or HELD.
#[derive(Debug, Args)]
pub(crate) struct RetryArgs {
    /// The batch: its id or its full name.
    batch: String,
}

pub(crate) async fn run(global: &Global, args: RetryArgs) -> Result<i32> {
    let name = global.batch(&args.batch);
    let client = connect(global).await?;
    let answer = client.retry_failed(&name).await.map_err(|e| CliError::of_batch(&name, e))?;
    let batch = answer.batch.unwrap_or_default();
    match global.output {
        Output::Json => line(&json!({"batch": json::batch(&batch), "retried": answer.retried}).to_string())?,
        Output::Table => {
            line(&format!(
                "{} failed tasks are leased again; {}",
                count(answer.retried),
                state(batch.state())
            ))?;
        }
    }
    Ok(exit::OK)
}
