//! `tranche coordinators`.

use futures::TryStreamExt as _;
use serde_json::{Value, json};

use super::connect;
use crate::args::{Global, Output};
use crate::error::Result;
use crate::exit;
use crate::output::{json, line, table};

pub(crate) async fn run(global: &Global) -> Result<i32> {
    let coordinators: Vec<_> = connect(global).await?.coordinators().try_collect().await?;
    match global.output {
        Output::Json => {
            let coordinators: Vec<Value> = coordinators.iter().map(json::coordinator).collect();
            line(&json!({ "coordinators": coordinators }).to_string())?;
        }
        Output::Table => table::coordinators(&coordinators).print()?,
    }
    Ok(exit::OK)
}
