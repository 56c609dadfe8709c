//! Writes the batch's manifest into the library, the last thing to appear.

use super::attempt;
use super::claims::is_claims;
use super::fail::disk;
use super::index;
use super::key::RESERVED;
use super::manifest::{self, Manifest, Object, Published};
use super::places::{batch_dir_name, decided, make_batch_dir};
use super::sync::Sync;
use super::target::Roots;
use crate::handler::HandlerError;
use crate::lease::{BatchInfo, Range, contains};
use cap_std::ambient_authority;
use cap_std::fs::Dir;
use std::io::{BufWriter, Write as _};

/// Idempotent: a manifest that is there is complete, since it was renamed to its name. It must tell of this batch, and
/// of as many objects as the batch has: its records may be older than the manifest, when they come from a backup.
pub(super) fn publish(batch: &BatchInfo, roots: &Roots) -> Result<(), HandlerError> {
    let located = match decided(batch, roots) {
        Ok((located, _)) => located,
        // A wrong target: every task failed because of it, there is nothing to publish and nowhere.
        Err(HandlerError::Refused(_)) if batch.staged == 0 => return Ok(()),
        Err(error) => return Err(error),
    };
    let id = batch_dir_name(batch)?;
    std::fs::create_dir_all(&located.library).map_err(disk("making", located.library.display()))?;
    let library = Dir::open_ambient_dir(&located.library, ambient_authority())
        .map_err(disk("opening", located.library.display()))?;
    library.create_dir_all(RESERVED).map_err(disk("making", RESERVED))?;
    let manifests = library.open_dir(RESERVED).map_err(disk("opening", RESERVED))?;
    let name = manifest::name(id);
    if let Some(there) = Manifest::read(&library, batch)? {
        there.check_count(batch)?;
    } else {
        let staging = make_batch_dir(&located, id).map_err(disk("opening", located.staging.display()))?;
        let temporary = format!("manifest-{}.json", uuid::Uuid::new_v4().simple());
        let written = write(batch, &staging, &temporary)
            .and_then(|()| staging.rename(&temporary, &manifests, &name).map_err(disk("writing", &name)));
        if written.is_err() {
            staging.remove_file(&temporary).ok();
        }
        written?;
    }
    Sync::open(&manifests, RESERVED)?.names()?;
    Sync::open(&library, "the library")?.names()
}

/// Streams the manifest: however many objects there are, one is held. Each has a line.
fn write(batch: &BatchInfo, staging: &Dir, name: &str) -> Result<(), HandlerError> {
    let failed = || disk("writing", name.to_owned());
    let json = |error: serde_json::Error| failed()(error.into());
    let mut out = BufWriter::new(staging.create(name).map_err(failed())?);
    let time = manifest::create_time(batch);
    write!(out, "{{\n\"batch\":").map_err(failed())?;
    serde_json::to_writer(&mut out, &batch.name).map_err(json)?;
    write!(out, ",\n\"create_time\":\"{time}\",\n\"objects\":[").map_err(failed())?;
    let mut count = 0_u64;
    let mut attempts = Vec::new();
    for (_, name, runs) in winners(staging)? {
        let dir = staging.open_dir(&name).map_err(disk("opening", &name))?;
        let index = index::read(&dir, &name, |entry| {
            if contains(&runs, entry.seq) {
                out.write_all(if count == 0 { b"\n" } else { b",\n" }).map_err(failed())?;
                count += 1;
                let object = Object { key: entry.key.into(), size: entry.size, blake3: entry.blake3.into() };
                serde_json::to_writer(&mut out, &object).map_err(json)?;
            }
            Ok(())
        })?;
        attempts.push(Published::new(name, index, &runs));
    }
    if batch.staged != 0 && count != batch.staged {
        let staged = batch.staged;
        return Err(HandlerError::Refused(format!("{count} committed objects were found, not {staged}")));
    }
    write!(out, "\n],\n\"count\":{count},\n\"attempts\":").map_err(failed())?;
    serde_json::to_writer(&mut out, &attempts).map_err(json)?;
    write!(out, "\n}}\n").map_err(failed())?;
    let file = out.into_inner().map_err(|error| failed()(error.into_error()))?;
    file.sync_all().map_err(failed())
}

/// The attempts that won, by their first number.
///
/// A number that two attempts won was committed, then staged and committed once more by a coordinator whose records came
/// from a backup and didn't know: the newer one is in the library. Tokens grow, over a restore too.
fn winners(staging: &Dir) -> Result<Vec<(u64, String, Vec<Range>)>, HandlerError> {
    let reading = || disk("reading the folder of the batch", "staging");
    let mut winners = Vec::new();
    for entry in staging.entries().map_err(reading())? {
        let entry = entry.map_err(reading())?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if !is_claims(name.as_ref()) && entry.file_type().map_err(reading())?.is_dir() {
            let dir = entry.open_dir().map_err(disk("opening", &name))?;
            let runs = attempt::read_winners(&dir, &name)?;
            if let Some(first) = runs.first() {
                winners.push((first.first, name, runs));
            }
        }
    }
    winners.sort();
    if overlap(&winners) {
        winners.sort_by_key(|(_, name, _)| std::cmp::Reverse(attempt::token(name)));
        let mut newer: Vec<Range> = Vec::new();
        for (_, _, runs) in &mut winners {
            *runs = without(runs, &newer);
            newer.extend(runs.iter());
        }
        winners.retain(|(_, _, runs)| !runs.is_empty());
        winners.sort();
    }
    Ok(winners)
}

fn overlap(winners: &[(u64, String, Vec<Range>)]) -> bool {
    let mut all: Vec<Range> = winners.iter().flat_map(|(_, _, runs)| runs).copied().collect();
    all.sort_unstable();
    all.windows(2).any(|two| two[1].first <= two[0].last)
}

/// What is left of the runs, in order.
fn without(runs: &[Range], taken: &[Range]) -> Vec<Range> {
    let mut left = runs.to_vec();
    for taken in taken {
        let cut = |run: &Range| {
            let before = Range { first: run.first, last: run.last.min(taken.first.saturating_sub(1)) };
            let after = Range { first: run.first.max(taken.last + 1), last: run.last };
            [before, after].into_iter().filter(|part| part.first <= part.last)
        };
        left = left.iter().flat_map(cut).collect();
    }
    left
}
