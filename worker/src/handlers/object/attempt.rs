//! What commit leaves in an attempt's folder, so that it can be repeated and published.

use super::fail::disk;
use crate::handler::HandlerError;
use crate::lease::{Range, StageLease};
use cap_std::fs::Dir;
use serde::{Deserialize, Serialize};
use std::io;

/// The staged files.
pub(super) const TREE: &str = "tree";
const WINNER: &str = "winner.json";
const COMMITTED: &str = "committed";

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

/// Writes down what the attempt won; complete or not there.
pub(super) fn write_winner(attempt: &Dir, runs: &[Range]) -> Result<(), HandlerError> {
    let winner = Winner { runs: runs.iter().map(|run| (run.first, run.last)).collect() };
    let text = serde_json::to_vec(&winner).map_err(|error| disk("writing", WINNER)(error.into()))?;
    // Leases are unique, but two workers may work on a commit lease that moved on.
    let temporary = format!("{WINNER}.{}", uuid::Uuid::new_v4().simple());
    attempt.write(&temporary, text).map_err(disk("writing", WINNER))?;
    attempt.rename(&temporary, attempt, WINNER).map_err(disk("writing", WINNER))
}

/// What the attempt won; none if it was never committed.
pub(super) fn read_winner(attempt: &Dir, name: &str) -> Result<Option<Vec<Range>>, HandlerError> {
    let text = match attempt.read(WINNER) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(disk("reading", format!("{name}/{WINNER}"))(error)),
    };
    let winner: Winner = serde_json::from_slice(&text)
        .map_err(|error| HandlerError::Refused(format!("`{name}/{WINNER}` is damaged: {error}")))?;
    Ok(Some(winner.runs.into_iter().map(|(first, last)| Range { first, last }).collect()))
}

pub(super) fn is_committed(attempt: &Dir) -> bool {
    attempt.exists(COMMITTED)
}

/// Only a shortcut for the next commit: it may get lost.
pub(super) fn mark_committed(attempt: &Dir) -> Result<(), HandlerError> {
    attempt.write(COMMITTED, b"").map_err(disk("writing", COMMITTED))
}
