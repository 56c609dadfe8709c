//! Rollback and sweep.

use super::attempt::TREE;
use super::claims::{ASIDE, CLAIMS, is_claims};
use super::fail::disk;
use super::places::batch_dir_name;
use super::sync::Sync;
use super::target::{Located, Roots, Target};
use crate::handler::HandlerError;
use crate::lease::{BatchInfo, RollbackLease};
use cap_std::ambient_authority;
use cap_std::fs::Dir;
use std::io;

/// Removes what these attempts staged, and the batch's folder if nothing else is in it. Makes nothing: a batch
/// of which nothing is there was swept, or never staged.
pub(super) fn rollback(lease: &RollbackLease, roots: &Roots) -> Result<u64, HandlerError> {
    let names: Vec<String> = lease.attempts.iter().map(|attempt| attempt.token.to_string()).collect();
    let Some((located, batch)) = staged(&lease.batch, roots, &names)? else { return Ok(lease.range.len()) };
    if names.iter().any(|name| batch.symlink_metadata(name).is_ok()) {
        let sync = Sync::open(&batch, "staging")?;
        for name in &names {
            remove(&batch, name)?;
        }
        sync.file_system()?;
    }
    // Claims are the tasks', not the attempts'. The last attempt takes them along: it may have come after the
    // sweep, when nobody else looks any more.
    abandon(&located, &batch, batch_dir_name(&lease.batch)?);
    Ok(lease.range.len())
}

/// Removes what is left of the batch, and staging itself if no other batch uses it.
pub(super) fn sweep(batch: &BatchInfo, roots: &Roots) -> Result<u64, HandlerError> {
    let id = batch_dir_name(batch)?;
    let Some((located, dir)) = staged(batch, roots, &[])? else { return Ok(0) };
    let mut found = 0;
    for entry in dir.entries().map_err(disk("reading", id))? {
        let entry = entry.map_err(disk("reading", id))?;
        let claims = is_claims(&entry.file_name());
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

/// After a lease of the batch was cancelled: as after the rollback of its attempt.
pub(super) fn abandon_after(batch: &BatchInfo, target: &Target) {
    let (Ok(located), Ok(id)) = (target.locate(), batch_dir_name(batch)) else { return };
    if let Ok(dir) = Dir::open_ambient_dir(located.staging.join(id), ambient_authority()) {
        abandon(&located, &dir, id);
    }
}

/// Removes the batch's folder if no attempt is left in it: claims without an attempt are nobody's.
///
/// A lease may begin meanwhile. Its attempt is there before it claims anything. So the claims are first put
/// aside: whoever begins later makes new ones, and whoever had opened these is seen now, and they are put
/// back.
fn abandon(located: &Located, batch: &Dir, id: &str) {
    if attempts(batch) {
        return;
    }
    let aside = format!("{ASIDE}{}", uuid::Uuid::new_v4().simple());
    let renamed = batch.rename(CLAIMS, batch, &aside);
    if renamed.is_ok() && attempts(batch) {
        // Not if others are there by now. A key that is twice in the batch might not be found then, by two
        // leases that began in the same moment; its claims stay until the sweep.
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        rustix::fs::renameat_with(batch, &aside, batch, CLAIMS, flags).ok();
        return;
    }
    // Whatever others put aside, and didn't get to remove.
    for name in names(batch).into_iter().filter(|name| name.starts_with(ASIDE)) {
        batch.remove_dir_all(name).ok();
    }
    if std::fs::remove_dir(located.staging.join(id)).is_ok() {
        remove_empty(located);
    }
}

/// Whether anything but claims is in the batch's folder.
fn attempts(batch: &Dir) -> bool {
    names(batch).iter().any(|name| !is_claims(name.as_ref()))
}

/// The names in a folder; of one that can't be read, one that is nobody's.
fn names(dir: &Dir) -> Vec<String> {
    let name = |entry: io::Result<cap_std::fs::DirEntry>| {
        entry.map_or_else(|_| "?".to_owned(), |entry| entry.file_name().to_string_lossy().into_owned())
    };
    dir.entries().map_or_else(|_| vec!["?".to_owned()], |entries| entries.map(name).collect())
}

/// Removes staging, unless another batch is in it.
fn remove_empty(located: &Located) {
    if std::fs::remove_dir(&located.staging).is_ok()
        && let Some(around) = &located.around
    {
        std::fs::remove_dir(around).ok();
    }
}

/// The batch's folder; none if nothing of it is staged.
///
/// A target that no worker could have used holds nothing. One that this worker may not use could hold
/// what another staged, so it looks; it doesn't touch. It is refused if something of `names` is there, or
/// anything at all if there are none.
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
    if !there(&path) {
        return Ok(None);
    }
    if let Err(error) = located.check(roots) {
        let any = names.is_empty() || names.iter().any(|name| there(&path.join(name)));
        return if any { Err(refused(error)) } else { Ok(None) };
    }
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
