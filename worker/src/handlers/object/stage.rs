//! Stages a lease.

use super::attempt::{self, Receipt, TREE};
use super::claims::Claims;
use super::copy::Copier;
use super::fail::{StageError, TaskFail, disk, escapes};
use super::index::{self, Entry};
use super::key::{Wanted, check_key};
use super::places::{Places, open_inside, split};
use super::sync::Sync;
use super::target::Target;
use crate::handler::{HandlerError, Progress, Staged, TaskFailure};
use crate::lease::StageLease;
use crate::tasks::StageTask;
use bytes::Bytes;
use cap_std::fs::{Dir, File, OpenOptions};
use std::collections::HashSet;
use std::io;
use tokio_util::sync::CancellationToken;
use tranche_guards::Guard;

/// Copies the lease's files into its attempt's folder, writes the index, makes both durable.
pub(super) fn stage(
    places: &Places,
    target: &Target,
    lease: &StageLease,
    cancel: &CancellationToken,
    progress: &Progress,
) -> Result<Staged, HandlerError> {
    let name = attempt::name(lease);
    let staged = Stager::new(places, target, &name, cancel)?.run(lease, progress);
    if staged.is_err() {
        // Nothing was reported, nor will be: give the space back, above all when the disk is full. A lease that
        // was cancelled may have been begun after its batch's end, by a worker that was paused: nobody else
        // would ever find what it left.
        places.batch.remove_dir_all(&name).ok();
    }
    staged
}

struct Stager<'a> {
    places: &'a Places,
    target: &'a Target,
    cancel: &'a CancellationToken,
    sync: Sync,
    attempt: Dir,
    tree: Dir,
    claims: Claims,
    copier: Copier<'a>,
    /// The folder in the tree that the last file went to: tasks mostly come folder by folder.
    folder: Option<(String, Dir)>,
    /// The folder in the library that was checked last.
    checked: Option<(String, Result<(), TaskFail>)>,
}

impl<'a> Stager<'a> {
    fn new(
        places: &'a Places,
        target: &'a Target,
        name: &str,
        cancel: &'a CancellationToken,
    ) -> Result<Self, HandlerError> {
        match places.batch.remove_dir_all(name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(disk("removing", name)(error));
            }
            Ok(()) | Err(_) => {}
        }
        places.batch.create_dir(name).map_err(disk("making", name))?;
        let attempt = places.batch.open_dir(name).map_err(disk("opening", name))?;
        let sync = Sync::open(&attempt, name)?;
        attempt.create_dir(TREE).map_err(disk("making", TREE))?;
        let tree = attempt.open_dir(TREE).map_err(disk("opening", TREE))?;
        let claims = Claims::open(&places.batch)?;
        let copier = Copier::new(cancel);
        Ok(Self { places, target, cancel, sync, attempt, tree, claims, copier, folder: None, checked: None })
    }

    fn run(mut self, lease: &StageLease, progress: &Progress) -> Result<Staged, HandlerError> {
        let mut index = index::Writer::create(&self.attempt)?;
        let mut failures = Vec::new();
        let mut keys = HashSet::with_capacity(lease.tasks.len());
        for task in &lease.tasks {
            if self.cancel.is_cancelled() {
                return Err(HandlerError::Cancelled);
            }
            match self.task(task, &mut keys) {
                Ok(entry) => index.add(&entry)?,
                Err(StageError::Task(fail)) => {
                    failures.push(TaskFailure::new(task.sequence, fail.code, fail.message));
                }
                Err(StageError::Lease(error)) => return Err(error),
            }
            progress.add(1);
        }
        let index = index.finish()?;
        // Can't be interrupted, so asked before.
        if self.cancel.is_cancelled() {
            return Err(HandlerError::Cancelled);
        }
        // One sync for all: files, folders and the index.
        if Guard::SyncBeforeReport.on() {
            self.sync.file_system()?;
        }
        let receipt = Receipt { index: index.to_hex().to_string() };
        let receipt = serde_json::to_vec(&receipt).map_err(|e| disk("writing", "the receipt")(e.into()))?;
        Ok(Staged { failures, receipt: Bytes::from(receipt) })
    }

    fn task<'t>(&mut self, task: StageTask<'t>, keys: &mut HashSet<&'t str>) -> Result<Entry, StageError> {
        let key = task.key;
        check_key(key)?;
        if !keys.insert(key) {
            return Err(
                TaskFail::new("DUPLICATE_KEY", format!("key `{key}` was in this lease before")).into()
            );
        }
        self.check_library(key)?;
        let wanted = Wanted::parse(key, task.payload)?;
        let source = Copier::open(&self.places.source, &wanted.source)?;
        let mut staged = self.create(key)?;
        let copied = self.copier.copy(source, &mut staged, &wanted, self.target.check_image);
        // Only a task that could be staged claims its key: one that failed leaves it to another.
        let claimed = copied.and_then(|copied| self.claims.claim(key, task.sequence).map(|()| copied));
        match claimed {
            Ok(copied) => Ok(Entry {
                seq: task.sequence,
                key: task.key.to_owned(),
                size: copied.size,
                blake3: copied.blake3.to_hex().to_string(),
            }),
            Err(error) => {
                self.tree.remove_file(key).map_err(disk("removing", key))?;
                Err(error)
            }
        }
    }

    /// Refuses a key that couldn't be moved into the library at commit, when nothing can fail any more.
    fn check_library(&mut self, key: &str) -> Result<(), StageError> {
        let Some(library) = &self.places.library else { return Ok(()) };
        let (folder, _) = split(key);
        if self.checked.as_ref().is_none_or(|(checked, _)| checked != folder) {
            self.checked = Some((folder.to_owned(), check_folder(library, folder)));
        }
        if let Some((_, Err(fail))) = &self.checked {
            return Err(fail.clone().into());
        }
        match library.symlink_metadata(key) {
            Ok(meta) if meta.is_dir() => {
                Err(TaskFail::new("INVALID_KEY", format!("key `{key}` is a folder in the library")).into())
            }
            Ok(_) if self.target.fail_if_exists => {
                Err(TaskFail::new("ALREADY_EXISTS", format!("key `{key}` is in the library")).into())
            }
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(TaskFail::new("INVALID_KEY", format!("key `{key}`: {error}")).into()),
        }
    }

    /// Makes the file to copy into.
    fn create(&mut self, key: &str) -> Result<File, StageError> {
        let (folder, name) = split(key);
        let fail = |error: io::Error| match error.kind() {
            // Only a file or folder of another key can be there.
            io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory => {
                let message = format!("key `{key}`: another task of this lease has a part of it as its key");
                StageError::Task(TaskFail::new("INVALID_KEY", message))
            }
            io::ErrorKind::InvalidFilename | io::ErrorKind::InvalidInput => {
                StageError::Task(TaskFail::new("INVALID_KEY", format!("key `{key}`: {error}")))
            }
            _ => StageError::Lease(disk("staging", key)(error)),
        };
        if self.folder.as_ref().is_none_or(|(open, _)| open != folder) {
            if !folder.is_empty() {
                self.tree.create_dir_all(folder).map_err(fail)?;
            }
            let dir = open_inside(&self.tree, folder).map_err(fail)?;
            self.folder = Some((folder.to_owned(), dir));
        }
        let dir = self.folder.as_ref().map_or(&self.tree, |(_, dir)| dir);
        dir.open_with(name, OpenOptions::new().write(true).read(true).create_new(true)).map_err(fail)
    }
}

/// Refuses a folder that leads out of the library, or that can't be made: something else is in its way.
fn check_folder(library: &Dir, folder: &str) -> Result<(), TaskFail> {
    let mut folder = folder;
    while !folder.is_empty() {
        let wrong = |why: &str| Err(TaskFail::new("INVALID_KEY", format!("`{folder}` {why}")));
        match library.metadata(folder) {
            Ok(meta) if meta.is_dir() => return Ok(()),
            Ok(_) => return wrong("is no folder in the library"),
            Err(error) if escapes(&error) => return wrong("leads out of the library"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if library.symlink_metadata(folder).is_ok() {
                    return wrong("is a link to nothing in the library");
                }
                folder = split(folder).0;
            }
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => folder = split(folder).0,
            Err(error) => return wrong(&error.to_string()),
        }
    }
    Ok(())
}
