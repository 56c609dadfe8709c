//! `tranche workers`.

use futures::TryStreamExt as _;
use serde_json::{Value, json};

use super::connect;
use crate::args::{Global, Output};
use crate::error::Result;
use crate::exit;
use crate::output::{json, line, table};

pub(crate) async fn run(global: &Global) -> Result<i32> {
    let workers: Vec<_> = connect(global).await?.workers().try_collect().await?;
    match global.output {
        Output::Json => {
            let workers: Vec<Value> = workers.iter().map(json::worker).collect();
            line(&json!({ "workers": workers }).to_string())?;
        }
        Output::Table => table::workers(&workers).print()?,
    }
    Ok(exit::OK)
}
