//! `tranche cancel`.

use clap::Args;

use super::{connect, print_batch, watch};
use crate::args::{Global, Output};
use crate::error::{CliError, Result};
use crate::exit;
use crate::follow::{Follow, OnHeld, OnInterrupt, actor};
use crate::output::progress::Ui;
use crate::signals::Signals;

/// Revokes a batch: what was staged is removed, the library stays as it was.
#[derive(Debug, Args)]
pub(crate) struct CancelArgs {
    /// The batch: its id or its full name.
    batch: String,
    /// Why, for the record.
    #[arg(long, short, value_name = "TEXT", default_value = "")]
    message: String,
    /// Wait until it is ROLLED_BACK.
    #[arg(long)]
    wait: bool,
}

pub(crate) async fn run(global: &Global, args: CancelArgs) -> Result<i32> {
    let name = global.batch(&args.batch);
    let client = connect(global).await?;
    let cancelled = client.cancel(&name, &actor(), &args.message).await;
    let mut batch = cancelled.map_err(|e| CliError::of_batch(&name, e))?;
    if args.wait {
        let mut ui = Ui::new(global.output);
        let mut signals = Signals::new()?;
        let follow = Follow {
            client: &client,
            name: &name,
            on_interrupt: OnInterrupt::Detach { resumable: false },
            on_held: OnHeld::Wait,
            until_sealed: false,
        };
        batch = watch::stream(global, &follow, &mut ui, &mut signals, None, false).await?;
        if global.output == Output::Table {
            watch::summary(&client, &batch).await?;
            return Ok(exit::OK);
        }
    }
    print_batch(global, &batch)?;
    Ok(exit::OK)
}
