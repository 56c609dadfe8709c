//! The end of an import, for people and for programs.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use futures::StreamExt as _;
use serde_json::{Value, json};
use tranche_client::v1;
use tranche_client::{Client, names};

use super::Ended;
use crate::args::{Global, Output};
use crate::error::{CliError, Result};
use crate::follow::{self, FAILURES_SHOWN};
use crate::output::{count, json, line, seconds, state, table};
use crate::source::paths::ImportPaths;

/// Prints what became of the batch.
pub(super) async fn print(
    global: &Global,
    client: &Client,
    paths: &ImportPaths,
    ended: &Ended,
    settled: &[v1::Batch],
    address: SocketAddr,
) -> Result<()> {
    let batch = &ended.followed.batch;
    let counters = batch.counters.unwrap_or_default();
    // The coordinator that could list them ends with this process.
    let file = if counters.failed.cast_unsigned() > FAILURES_SHOWN as u64 {
        Some(write_failures(client, &batch.name, &paths.state).await?)
    } else {
        None
    };
    let report = local(&batch.report_uri);
    if global.output == Output::Json {
        let failures = follow::first_failures(client, &batch.name).await?;
        let all = json!({
            "batch": json::batch(batch),
            "coordinator": address.to_string(),
            "failures": failures.iter().map(json::failure).collect::<Vec<_>>(),
            "failuresFile": file,
            "report": report,
            "settled": settled.iter().map(json::batch).collect::<Vec<Value>>(),
            "skipped": {"symlinks": ended.skipped.symlinks(), "others": ended.skipped.others()},
        });
        line(&all.to_string())?;
        return Ok(());
    }
    let mut lines = follow::failure_lines(client, batch).await?;
    if let (Some(file), Some(last)) = (&file, lines.last_mut()) {
        // "… and N more: where they are".
        let _ = write!(last, ": {}", file.display());
    }
    lines.extend(ended.skipped.describe());
    if let Some(decision) = &batch.decision {
        lines.push(table::decided(decision));
    }
    let rate = count((counters.total as f64 / ended.seconds.max(1e-3)).round() as i64);
    lines.push(ended.states.clone());
    lines.push(format!("{} in {} ({rate}/s)", table::counts(batch), seconds(ended.seconds)));
    let report = report.map(|path| format!(", report {path}")).unwrap_or_default();
    lines.push(format!("batch {} {}{report}", names::batch_id(&batch.name), state(batch.state())));
    for text in lines {
        // A reader that went away doesn't change how the import ended.
        let _ = line(&text);
    }
    Ok(())
}

/// All failures as NDJSON beside the store; streamed, whatever their number.
async fn write_failures(client: &Client, name: &str, state: &Path) -> Result<PathBuf> {
    let path = state.join(format!("failures-{}.ndjson", names::batch_id(name)));
    let cannot = |e: std::io::Error| CliError::caused(format!("cannot write {}", path.display()), &e);
    let mut file = BufWriter::new(File::create(&path).map_err(cannot)?);
    let mut failures = client.failures(name);
    while let Some(failure) = failures.next().await {
        let failure = failure.map_err(|e| CliError::of_batch(name, e))?;
        writeln!(file, "{}", json::failure(&failure)).map_err(cannot)?;
    }
    file.flush().map_err(cannot)?;
    Ok(path)
}

/// The report's path on this machine.
fn local(uri: &str) -> Option<String> {
    (!uri.is_empty()).then(|| uri.strip_prefix("file://").unwrap_or(uri).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_on_this_machine_is_a_path() {
        assert_eq!(local("file:///a/b.json").as_deref(), Some("/a/b.json"));
        assert_eq!(local("/a/b.json").as_deref(), Some("/a/b.json"));
        assert_eq!(local(""), None);
    }
}
