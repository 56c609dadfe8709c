//! `tranche commit`.

use clap::Args;

use super::{connect, print_batch};
use crate::args::Global;
use crate::error::{CliError, Result};
use crate::exit;
use crate::follow::actor;

/// Approves a batch that is HELD: it commits. `tranche failures` shows what would be left out.
#[derive(Debug, Args)]
pub(crate) struct CommitArgs {
    /// The batch: its id or its full name.
    batch: String,
}

pub(crate) async fn run(global: &Global, args: CommitArgs) -> Result<i32> {
    let name = global.batch(&args.batch);
    let client = connect(global).await?;
    let batch = client.commit(&name, &actor()).await.map_err(|e| CliError::of_batch(&name, e))?;
    print_batch(global, &batch)?;
    Ok(exit::OK)
}
