//! `tranche leases`.

use clap::Args;
use futures::TryStreamExt as _;
use serde_json::{Value, json};

use super::connect;
use crate::args::{Global, Output};
use crate::error::Result;
use crate::exit;
use crate::output::{json, line, table};

#[derive(Debug, Args)]
pub(crate) struct LeasesArgs {
    /// The batch: its id or its full name. All that the coordinator drives if none is named.
    batch: Option<String>,
}

pub(crate) async fn run(global: &Global, args: LeasesArgs) -> Result<i32> {
    let batch = args.batch.map(|batch| global.batch(&batch));
    let leases: Vec<_> = connect(global).await?.leases(batch.as_deref()).try_collect().await?;
    match global.output {
        Output::Json => {
            let leases: Vec<Value> = leases.iter().map(json::lease).collect();
            line(&json!({ "leases": leases }).to_string())?;
        }
        Output::Table => table::leases(&leases).print()?,
    }
    Ok(exit::OK)
}
