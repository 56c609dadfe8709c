//! `tranche list`.

use clap::{Args, ValueEnum};
use futures::StreamExt as _;
use serde_json::{Value, json};
use tranche_client::v1::{self, batch};

use super::connect;
use crate::args::{Global, Output, pair};
use crate::error::Result;
use crate::exit;
use crate::output::{json, line, table};

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only batches in this state; may be repeated.
    #[arg(long = "state", value_enum, ignore_case = true, value_name = "STATE")]
    states: Vec<StateArg>,
    /// Only batches with this label; may be repeated.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,
    /// The most batches to list; 0 lists all.
    #[arg(long, default_value_t = 50, value_name = "N")]
    limit: usize,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "SCREAMING_SNAKE_CASE")]
enum StateArg {
    Importing,
    Held,
    Committing,
    RollingBack,
    Committed,
    RolledBack,
}

impl From<StateArg> for batch::State {
    fn from(state: StateArg) -> Self {
        match state {
            StateArg::Importing => Self::Importing,
            StateArg::Held => Self::Held,
            StateArg::Committing => Self::Committing,
            StateArg::RollingBack => Self::RollingBack,
            StateArg::Committed => Self::Committed,
            StateArg::RolledBack => Self::RolledBack,
        }
    }
}

pub(crate) async fn run(global: &Global, args: ListArgs) -> Result<i32> {
    let limit = if args.limit == 0 { usize::MAX } else { args.limit };
    let request = v1::ListBatchesRequest {
        parent: global.parent(),
        page_size: i32::try_from(limit.min(1_000)).unwrap_or(1_000),
        states: args.states.iter().map(|s| batch::State::from(*s).into()).collect(),
        labels: args.labels.into_iter().collect(),
        ..Default::default()
    };
    let client = connect(global).await?;
    let mut batches = Vec::new();
    let mut all = client.list(request).take(limit);
    while let Some(batch) = all.next().await {
        batches.push(batch?);
    }
    match global.output {
        Output::Json => {
            let batches: Vec<Value> = batches.iter().map(json::batch).collect();
            line(&json!({ "batches": batches }).to_string())?;
        }
        Output::Table => table::batches(&batches).print()?,
    }
    Ok(exit::OK)
}
