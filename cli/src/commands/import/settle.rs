//! What an import that was killed left behind is brought to its end before a new one begins.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use futures::TryStreamExt as _;
use tranche_client::v1::{self, batch::State};
use tranche_client::{Client, is_final, names};

use super::LEFT;
use crate::args::Global;
use crate::error::{CliError, Result};
use crate::exit;
use crate::follow::{Follow, OnHeld, OnInterrupt, actor};
use crate::output::progress::Ui;
use crate::output::{state, table};
use crate::signals::Signals;
use crate::source::paths::ImportPaths;

/// The batches in the store that have not ended, the oldest first.
pub(super) async fn unfinished(client: &Client) -> Result<Vec<v1::Batch>> {
    let states = [State::Importing, State::Held, State::Committing, State::RollingBack];
    let request = v1::ListBatchesRequest { states: states.map(i32::from).to_vec(), ..Default::default() };
    let mut batches: Vec<v1::Batch> = client.list(request).try_collect().await?;
    batches.reverse();
    Ok(batches)
}

/// The folders that the worker may touch: those of this import and of the unfinished ones.
pub(super) fn roots(paths: &ImportPaths, unfinished: &[v1::Batch]) -> Vec<PathBuf> {
    let mut roots = vec![paths.source.clone()];
    // The library may not be there yet, and the staging folder lies beside it.
    roots.extend(paths.library.parent().map(Path::to_owned));
    roots.extend(paths.staging.as_deref().map(nearest_existing));
    for target in unfinished.iter().flat_map(|batch| &batch.targets) {
        for (name, value) in &target.params {
            match name.as_str() {
                "source" | "staging" => roots.push(nearest_existing(Path::new(value))),
                "library" => roots.extend(Path::new(value).parent().map(Path::to_owned)),
                _ => {}
            }
        }
    }
    roots.sort();
    roots.dedup();
    // Never everything, whatever no longer exists.
    roots.retain(|root| root.parent().is_some());
    roots
}

fn nearest_existing(path: &Path) -> PathBuf {
    path.ancestors().find(|path| path.exists()).unwrap_or(path).to_owned()
}

/// Brings each to its end: one whose tasks were not all appended can never be complete and is rolled back,
/// one that is HELD is asked about (or rolled back, if nobody is there), the others go on.
pub(super) async fn settle(
    client: &Client,
    unfinished: &[v1::Batch],
    global: &Global,
    signals: &mut Signals,
) -> Result<Vec<v1::Batch>> {
    let mut settled = Vec::new();
    for batch in unfinished {
        let mut ui = Ui::new(global.output);
        let ended = one(client, batch, &mut ui, signals).await;
        ui.finish();
        settled.push(ended?);
    }
    Ok(settled)
}

async fn one(client: &Client, batch: &v1::Batch, ui: &mut Ui, signals: &mut Signals) -> Result<v1::Batch> {
    let name = batch.name.as_str();
    let id = names::batch_id(name);
    let abandoned = batch.state() == State::Importing && !batch.sealed;
    let plan = if abandoned { "rolling it back" } else { "going on with it" };
    let found = state(batch.state());
    ui.line(&format!("batch {id} of an interrupted import is {found}: {plan}"));
    if abandoned {
        let cancelled = client.cancel(name, &actor(), "its import was interrupted").await;
        cancelled.map_err(|e| CliError::of_batch(name, e))?;
    }
    let on_held = if std::io::stdin().is_terminal() { OnHeld::Ask } else { OnHeld::Stop };
    let on_interrupt = OnInterrupt::Cancel { left: LEFT };
    let follow = Follow { client, name, on_interrupt, on_held, until_sealed: false };
    let mut followed = follow.run(ui, signals, None, |_| Ok(())).await?;
    if !is_final(&followed.batch) {
        ui.note("nobody is there to approve it: rolling it back");
        let cancelled = client.cancel(name, &actor(), "nobody was there to approve it").await;
        cancelled.map_err(|e| CliError::of_batch(name, e))?;
        let follow = Follow { on_held: OnHeld::Wait, ..follow };
        followed = follow.run(ui, signals, None, |_| Ok(())).await?;
    }
    let counts = table::counts(&followed.batch);
    let report = &followed.batch.report_uri;
    ui.line(&format!("batch {id} {}: {counts}, report {report}", state(followed.batch.state())));
    if followed.signalled {
        let text = format!("interrupted; batch {id} has ended, and no new one was begun");
        return Err(CliError { exit: exit::INTERRUPTED, ..CliError::new(text) });
    }
    Ok(followed.batch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worker_may_touch_what_the_batches_need_and_no_more() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().canonicalize().unwrap();
        for folder in ["src", "old", "libs"] {
            std::fs::create_dir(path.join(folder)).unwrap();
        }
        let paths = ImportPaths {
            source: path.join("src"),
            library: path.join("libs/new"),
            state: path.join("libs/.new.tranche/state"),
            staging: None,
        };
        assert_eq!(roots(&paths, &[]), [path.join("libs"), path.join("src")]);
        let param = |name: &str, value: PathBuf| (name.to_owned(), value.display().to_string());
        let target = v1::Target {
            handler: "object".into(),
            params: [param("source", path.join("old")), param("library", path.join("libs/new"))].into(),
        };
        let old = v1::Batch { targets: vec![target], ..Default::default() };
        assert_eq!(roots(&paths, &[old]), [path.join("libs"), path.join("old"), path.join("src")]);
        let gone = v1::Target {
            params: [("source".to_owned(), "/no such folder/a".to_owned())].into(),
            ..Default::default()
        };
        let gone = v1::Batch { targets: vec![gone], ..Default::default() };
        assert_eq!(roots(&paths, &[gone]), [path.join("libs"), path.join("src")]);
    }
}
