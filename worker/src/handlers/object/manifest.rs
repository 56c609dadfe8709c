//! What a published batch says of itself in the library: `_tranche/{batch id}.json`.
//!
//! It is the last thing to appear, complete, once all of the batch is in the library, durably; staging is removed only
//! afterwards. So whoever finds it knows that the batch was committed, whatever the coordinator's records say. They are
//! older than the library when etcd was restored from a backup.

use super::attempt::Receipt;
use super::fail::disk;
use super::key::RESERVED;
use super::places::batch_dir_name;
use crate::handler::HandlerError;
use crate::lease::{Attempt, BatchInfo, Range};
use cap_std::fs::{Dir, File};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{self, BufRead as _, BufReader};

/// An object that the batch brought.
#[derive(Serialize, Deserialize)]
pub(super) struct Object<'a> {
    pub(super) key: Cow<'a, str>,
    pub(super) size: u64,
    pub(super) blake3: Cow<'a, str>,
}

/// An attempt whose objects they are.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Published {
    token: String,
    /// BLAKE3 of its index, in hexadecimal.
    index: String,
    /// The numbers that it won, neighbours joined.
    runs: Vec<(u64, u64)>,
}

impl Published {
    /// `runs` are in order.
    pub(super) fn new(token: String, index: blake3::Hash, runs: &[Range]) -> Self {
        let mut joined: Vec<(u64, u64)> = Vec::new();
        for run in runs {
            match joined.last_mut() {
                // It won each part of a range that was split.
                Some((_, last)) if *last + 1 == run.first => *last = run.last,
                Some(_) | None => joined.push((run.first, run.last)),
            }
        }
        Self { token, index: index.to_hex().to_string(), runs: joined }
    }

    fn has(&self, run: Range) -> bool {
        self.runs.iter().any(|(first, last)| *first <= run.first && run.last <= *last)
    }
}

/// A manifest, without its objects: they may be any number.
#[derive(Debug, Deserialize)]
pub(super) struct Manifest {
    batch: String,
    create_time: String,
    count: u64,
    #[serde(default)]
    attempts: Vec<Published>,
}

impl Manifest {
    /// The batch's manifest, if it was published.
    ///
    /// # Errors
    /// What is there isn't this batch's, or is damaged: nothing may be taken from it, nor put in its place.
    pub(super) fn read(library: &Dir, batch: &BatchInfo) -> Result<Option<Self>, HandlerError> {
        let Some((path, file)) = open(library, batch)? else { return Ok(None) };
        let manifest: Self = serde_json::from_reader(BufReader::new(file))
            .map_err(|error| HandlerError::Refused(format!("`{path}` is damaged: {error}")))?;
        let made = create_time(batch).to_string();
        if manifest.batch != batch.name || manifest.create_time != made {
            return Err(HandlerError::Refused(format!(
                "`{path}` in the library is of the batch `{}` created at {}, not of `{}` created at {made}",
                manifest.batch, manifest.create_time, batch.name
            )));
        }
        Ok(Some(manifest))
    }

    /// Whether all that the attempt won is among the batch's objects: exactly what it staged, by its index.
    pub(super) fn has(&self, won: &Attempt, receipt: Option<&Receipt>) -> bool {
        let token = won.token.to_string();
        self.attempts.iter().filter(|published| published.token == token).any(|published| {
            receipt.is_none_or(|receipt| receipt.index == published.index)
                && won.runs.iter().all(|run| published.has(*run))
        })
    }

    /// Refuses a manifest of more or fewer objects than the batch's records count.
    pub(super) fn check_count(&self, batch: &BatchInfo) -> Result<(), HandlerError> {
        if batch.staged == 0 || batch.staged == self.count {
            return Ok(());
        }
        let (count, staged) = (self.count, batch.staged);
        let message =
            format!("the library's manifest has {count} objects of this batch, its records {staged}");
        Err(HandlerError::Refused(message))
    }
}

/// Refuses staged objects (size and BLAKE3 by key) that the batch's manifest hasn't, or has otherwise. Holds one line of
/// it at a time.
pub(super) fn check_objects(
    library: &Dir,
    batch: &BatchInfo,
    mut staged: HashMap<String, (u64, String)>,
) -> Result<(), HandlerError> {
    let Some((path, file)) = open(library, batch)? else {
        return Err(HandlerError::Retryable("the batch's manifest went away".into()));
    };
    for line in BufReader::new(file).lines() {
        let line = line.map_err(disk("reading", &path))?;
        let Ok(object) = serde_json::from_str::<Object<'_>>(line.trim_end_matches(',')) else { continue };
        let same = |(size, blake3): &(u64, String)| *size == object.size && *blake3 == object.blake3;
        if staged.get(object.key.as_ref()).is_some_and(same) {
            staged.remove(object.key.as_ref());
        }
    }
    match staged.keys().min() {
        None => Ok(()),
        Some(key) => Err(HandlerError::Refused(format!(
            "`{path}` says that the batch was committed before, and `{key}` as it is staged now wasn't in it"
        ))),
    }
}

/// The manifest's name of a batch's id.
pub(super) fn name(id: &str) -> String {
    format!("{id}.json")
}

/// When the batch was created.
pub(super) fn create_time(batch: &BatchInfo) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: batch.create_time_ms.div_euclid(1000),
        nanos: i32::try_from(batch.create_time_ms.rem_euclid(1000) * 1_000_000).unwrap_or(0),
    }
}

fn open(library: &Dir, batch: &BatchInfo) -> Result<Option<(String, File)>, HandlerError> {
    let path = format!("{RESERVED}/{}", name(batch_dir_name(batch)?));
    match library.open(&path) {
        Ok(file) => Ok(Some((path, file))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(disk("reading", path)(error)),
    }
}
