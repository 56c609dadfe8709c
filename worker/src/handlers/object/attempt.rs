//! What commit leaves in an attempt's folder, so that it can be repeated and published.

use super::fail::disk;
use crate::handler::HandlerError;
use crate::lease::{Range, StageLease};
use cap_std::fs::Dir;
use serde::{Deserialize, Serialize};

/// The staged files.
pub(super) const TREE: &str = "tree";
/// An attempt may win in several ranges, when its own was split: each has its own files, by the first
/// number that it won there.
const WINNER: &str = "winner-";
const COMMITTED: &str = "committed-";

/// What the coordinator gets back at commit.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Receipt {
    /// BLAKE3 of the index, in hexadecimal.
    pub(super) index: String,
}

/// The numbers that an attempt won.
#[derive(Debug, Serialize, Deserialize)]
struct Winner {
    runs: Vec<(u64, u64)>,
}

/// The folder's name of a lease's attempt.
pub(super) fn name(lease: &StageLease) -> String {
    lease.token.to_string()
}

/// The token that an attempt's folder is named by; of what is none, one before all.
pub(super) fn token(name: &str) -> (u64, u64) {
    let parsed =
        name.split_once('-').and_then(|(epoch, counter)| Some((epoch.parse().ok()?, counter.parse().ok()?)));
    parsed.unwrap_or_default()
}

/// Writes down what the attempt won in one range; complete or not there.
pub(super) fn write_winner(attempt: &Dir, runs: &[Range]) -> Result<(), HandlerError> {
    let name = of_range(WINNER, runs);
    let winner = Winner { runs: runs.iter().map(|run| (run.first, run.last)).collect() };
    let text = serde_json::to_vec(&winner).map_err(|error| disk("writing", &name)(error.into()))?;
    // Leases are unique, but two workers may work on a commit lease that moved on.
    let temporary = format!("tmp-{}", uuid::Uuid::new_v4().simple());
    attempt.write(&temporary, text).map_err(disk("writing", &name))?;
    attempt.rename(&temporary, attempt, &name).map_err(disk("writing", &name))
}

/// What the attempt won in all its ranges, in order; nothing if it was never committed.
pub(super) fn read_winners(attempt: &Dir, name: &str) -> Result<Vec<Range>, HandlerError> {
    let reading = || disk("reading the folder of the attempt", name.to_owned());
    let mut runs = Vec::new();
    for entry in attempt.entries().map_err(reading())? {
        let file = entry.map_err(reading())?.file_name();
        let Some(file) = file.to_str().filter(|file| file.starts_with(WINNER)) else { continue };
        let text = attempt.read(file).map_err(disk("reading", format!("{name}/{file}")))?;
        let winner: Winner = serde_json::from_slice(&text)
            .map_err(|error| HandlerError::Refused(format!("`{name}/{file}` is damaged: {error}")))?;
        runs.extend(winner.runs.into_iter().map(|(first, last)| Range { first, last }));
    }
    runs.sort_unstable_by_key(|run| run.first);
    Ok(runs)
}

pub(super) fn is_committed(attempt: &Dir, runs: &[Range]) -> bool {
    attempt.exists(of_range(COMMITTED, runs))
}

/// Only a shortcut for the next commit: it may get lost.
pub(super) fn mark_committed(attempt: &Dir, runs: &[Range]) -> Result<(), HandlerError> {
    let name = of_range(COMMITTED, runs);
    attempt.write(&name, b"").map_err(disk("writing", &name))
}

fn of_range(prefix: &str, runs: &[Range]) -> String {
    format!("{prefix}{}", runs.first().map_or(0, |run| run.first))
}
