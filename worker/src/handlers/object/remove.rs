//! Rollback and sweep.

use super::attempt::TREE;
use super::claims::CLAIMS;
use super::fail::disk;
use super::places::batch_dir_name;
use super::sync::Sync;
use super::target::{Located, Roots, Target};
use crate::handler::HandlerError;
use crate::lease::{BatchInfo, RollbackLease};
use cap_std::ambient_authority;
use cap_std::fs::Dir;
use std::io;

/// Removes what any attempt of the range staged.
pub(super) fn rollback(lease: &RollbackLease, roots: &Roots) -> Result<u64, HandlerError> {
    let names: Vec<String> = lease.attempts.iter().map(|attempt| attempt.token.to_string()).collect();
    if let Some((_, batch)) = staged(&lease.batch, roots, &names)? {
        let sync = Sync::open(&batch, "staging")?;
        for name in &names {
            remove(&batch, name)?;
        }
        sync.file_system()?;
    }
    Ok(lease.range.len())
}

/// Removes what is left of the batch, and staging itself if no other batch uses it.
pub(super) fn sweep(batch: &BatchInfo, roots: &Roots) -> Result<u64, HandlerError> {
    let id = batch_dir_name(batch)?;
    let Some((located, dir)) = staged(batch, roots, &[])? else { return Ok(0) };
    let mut found = 0;
    for entry in dir.entries().map_err(disk("reading", id))? {
        let entry = entry.map_err(disk("reading", id))?;
        let claims = entry.file_name() == CLAIMS;
        if !claims && entry.file_type().map_err(disk("reading", id))?.is_dir() {
            let attempt = entry.open_dir().map_err(disk("reading", id))?;
            found += files(&attempt, TREE).map_err(disk("reading", id))?;
        }
    }
    let staging = Dir::open_ambient_dir(&located.staging, ambient_authority())
        .map_err(disk("opening", located.staging.display()))?;
    let sync = Sync::open(&staging, "staging")?;
    remove(&staging, id)?;
    sync.file_system()?;
    remove_empty(&located);
    Ok(found)
}

/// After a lease of the batch was cancelled: removes the batch's folder if no attempt is left in it. Claims
/// without an attempt are nobody's; a lease that begins just now makes its own again.
pub(super) fn abandon(batch: &BatchInfo, target: &Target) {
    let (Ok(located), Ok(id)) = (target.locate(), batch_dir_name(batch)) else { return };
    let path = located.staging.join(id);
    let Ok(mut entries) = std::fs::read_dir(&path) else { return };
    if entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == CLAIMS)) {
        std::fs::remove_dir_all(path.join(CLAIMS)).ok();
    }
    if std::fs::remove_dir(path).is_ok() {
        remove_empty(&located);
    }
}

/// Removes staging, unless another batch is in it.
fn remove_empty(located: &Located) {
    if std::fs::remove_dir(&located.staging).is_ok()
        && let Some(around) = &located.around
    {
        std::fs::remove_dir(around).ok();
    }
}

/// The batch's folder; none if nothing of it (of `names`, if there are any) is staged.
///
/// A target that no worker could have used holds nothing. One that this worker may not use could hold
/// what another staged, so it looks; it doesn't touch.
fn staged(
    batch: &BatchInfo,
    roots: &Roots,
    names: &[String],
) -> Result<Option<(Located, Dir)>, HandlerError> {
    let Ok(target) = Target::parse(&batch.params) else { return Ok(None) };
    let refused = |error: crate::handlers::params::ParamError| HandlerError::Refused(error.to_string());
    let located = target.locate().map_err(refused)?;
    let path = located.staging.join(batch_dir_name(batch)?);
    let there = |path: &std::path::Path| path.symlink_metadata().is_ok();
    let any = names.is_empty() || names.iter().any(|name| there(&path.join(name)));
    if !there(&path) || !any {
        return Ok(None);
    }
    located.check(roots).map_err(refused)?;
    match Dir::open_ambient_dir(&path, ambient_authority()) {
        Ok(dir) => Ok(Some((located, dir))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(disk("opening", path.display())(error)),
    }
}

/// Removes a folder with all in it. A worker that was paused may still write into it: try a few times.
fn remove(dir: &Dir, name: &str) -> Result<(), HandlerError> {
    let mut tries = 0;
    loop {
        match dir.remove_dir_all(name) {
            Ok(()) => return Ok(()),
            // Somebody else removes it too; or it is gone.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !dir.exists(name) => return Ok(()),
            Err(_) if tries < 10 => tries += 1,
            Err(error) => return Err(disk("removing", name)(error)),
        }
    }
}

/// Files below a folder, however deep; without recursion, and never following a link.
fn files(dir: &Dir, name: &str) -> io::Result<u64> {
    let mut found = 0;
    let mut folders = match dir.open_dir(name) {
        Ok(folder) => vec![folder],
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    while let Some(folder) = folders.pop() {
        for entry in folder.entries()? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.open_dir()?);
            } else {
                found += 1;
            }
        }
    }
    Ok(found)
}
