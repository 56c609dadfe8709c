//! `tranche delete`.

use std::io::IsTerminal as _;

use clap::Args;
use serde_json::json;
use tranche_client::names;

use super::connect;
use crate::args::{Global, Output};
use crate::error::{CliError, Result};
use crate::exit;
use crate::output::{line, state};

/// Deletes the records of a batch that has ended: its counts, failures and report. The library is not
/// touched.
#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// The batch: its id or its full name.
    batch: String,
    /// Don't ask.
    #[arg(long, short)]
    yes: bool,
}

pub(crate) async fn run(global: &Global, args: DeleteArgs) -> Result<i32> {
    let name = global.batch(&args.batch);
    let client = connect(global).await?;
    if !args.yes {
        let batch = client.get(&name).await.map_err(|e| CliError::of_batch(&name, e))?;
        if !std::io::stdin().is_terminal() {
            return Err(CliError::usage("there is no terminal to ask on").hint("give --yes"));
        }
        eprint!("delete the records of {} ({})? [y/N] ", names::batch_id(&name), state(batch.state()));
        let answer = tokio::task::spawn_blocking(|| std::io::stdin().lines().next()).await;
        let answer = answer.ok().flatten().transpose()?.unwrap_or_default();
        if !matches!(answer.trim().to_lowercase().as_str(), "y" | "yes") {
            return Err(CliError::new("not deleted"));
        }
    }
    client.delete(&name).await.map_err(|e| CliError::of_batch(&name, e))?;
    match global.output {
        Output::Json => line(&json!({"deleted": name}).to_string())?,
        Output::Table => line(&format!("deleted {}", names::batch_id(&name)))?,
    }
    Ok(exit::OK)
}
