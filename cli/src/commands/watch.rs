//! `tranche watch`.

use clap::Args;
use tranche_client::{Client, v1};

use super::connect;
use crate::args::{Global, Output};
use crate::error::Result;
use crate::follow::{self, Append, Follow, OnHeld, OnInterrupt};
use crate::output::progress::Ui;
use crate::output::{json, line, table};
use crate::signals::Signals;

/// Follows a batch until it has ended. The exit code is its outcome; Ctrl-C leaves it alone.
#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// The batch: its id or its full name.
    batch: String,
    /// Exit with 4 if the batch is committed but tasks failed.
    #[arg(long)]
    fail_on_failed: bool,
}

pub(crate) async fn run(global: &Global, args: WatchArgs) -> Result<i32> {
    let name = global.batch(&args.batch);
    let client = connect(global).await?;
    let mut signals = Signals::new()?;
    let follow = Follow {
        client: &client,
        name: &name,
        on_interrupt: OnInterrupt::Detach { resumable: false },
        on_held: OnHeld::Wait,
        until_sealed: false,
    };
    let mut ui = Ui::new(global.output);
    let batch = stream(global, &follow, &mut ui, &mut signals, None, true).await?;
    if global.output == Output::Table {
        summary(&client, &batch).await?;
    }
    Ok(follow::exit_code(&batch, args.fail_on_failed))
}

/// Follows with progress, or (`updates`, in JSON) with a line for each update. Returns the batch as it
/// was last.
pub(super) async fn stream<'a>(
    global: &Global,
    follow: &Follow<'a>,
    ui: &mut Ui,
    signals: &mut Signals,
    append: Option<Append<'a>>,
    updates: bool,
) -> Result<v1::Batch> {
    let followed = follow.run(ui, signals, append, |update| {
        if updates && global.output == Output::Json {
            line(&json::watch(update).to_string())?;
        }
        Ok(())
    });
    let followed = followed.await;
    ui.finish();
    let followed = followed?;
    followed.append_error.map_or(Ok(followed.batch), Err)
}

/// What people want to know at the end.
pub(super) async fn summary(client: &Client, batch: &v1::Batch) -> Result<()> {
    for text in follow::failure_lines(client, batch).await? {
        line(&text)?;
    }
    line(&table::counts(batch))?;
    if let Some(decision) = &batch.decision {
        line(&table::decided(decision))?;
    }
    let id = tranche_client::names::batch_id(&batch.name);
    let failed = batch.counters.unwrap_or_default().failed;
    if failed.cast_unsigned() > follow::FAILURES_SHOWN as u64 {
        line(&format!("all failures: tranche failures {id}"))?;
    }
    let report =
        if batch.report_uri.is_empty() { String::new() } else { format!(", report {}", batch.report_uri) };
    line(&format!("batch {id} {}{report}", crate::output::state(batch.state())))?;
    Ok(())
}
