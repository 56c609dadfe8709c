//! One key, one task, in the whole batch: the file system decides.
//!
//! Every task that is staged claims its key in the batch's folder, by a link whose "target" is the task's
//! number. A second task with the key finds the link; a key that is a part of another key meets a folder,
//! or a link where it needs a folder. So what can't stand side by side in the library fails while it can
//! still fail, not at commit, whichever workers and leases staged it. The same task staged again finds its
//! own claim.

use super::fail::{StageError, TaskFail, disk, escapes};
use super::places::{open_inside, split};
use crate::handler::HandlerError;
use cap_std::fs::Dir;
use rustix::io::Errno;
use std::io;

/// The claims' folder, beside the attempts.
pub(super) const CLAIMS: &str = "claims";

/// Claims that are about to be removed, with a random end.
pub(super) const ASIDE: &str = "claims-aside-";

/// Whether an entry of the batch's folder holds claims, not an attempt.
pub(super) fn is_claims(name: &std::ffi::OsStr) -> bool {
    name.to_str().is_some_and(|name| name == CLAIMS || name.starts_with(ASIDE))
}

/// Before the task's number in a claim: an absolute target leads out of the folder, so that a claim is never
/// followed to another.
const TASK: &str = "/task/";

/// The claims of a batch.
pub(super) struct Claims {
    dir: Dir,
    /// The folder of the last claim.
    folder: Option<(String, Dir)>,
}

impl Claims {
    pub(super) fn open(batch: &Dir) -> Result<Self, HandlerError> {
        match batch.create_dir(CLAIMS) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(disk("making", CLAIMS)(error));
            }
            Ok(()) | Err(_) => {}
        }
        let dir = batch.open_dir(CLAIMS).map_err(disk("opening", CLAIMS))?;
        Ok(Self { dir, folder: None })
    }

    /// Claims a checked key for a task.
    pub(super) fn claim(&mut self, key: &str, sequence: u64) -> Result<(), StageError> {
        let (folder, name) = split(key);
        if self.folder.as_ref().is_none_or(|(open, _)| open != folder) {
            if !folder.is_empty() {
                self.dir.create_dir_all(folder).map_err(|error| in_the_way(key, error))?;
            }
            let dir = open_inside(&self.dir, folder).map_err(|error| in_the_way(key, error))?;
            self.folder = Some((folder.to_owned(), dir));
        }
        let dir = self.folder.as_ref().map_or(&self.dir, |(_, dir)| dir);
        let claim = format!("{TASK}{sequence}");
        match rustix::fs::symlinkat(&claim, dir, name) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => match rustix::fs::readlinkat(dir, name, Vec::new()) {
                Ok(owner) if owner.to_bytes() == claim.as_bytes() => Ok(()),
                Ok(owner) => {
                    let owner = owner.to_string_lossy().replace(TASK, "");
                    let message = format!("key `{key}` is the key of task {owner} of this batch too");
                    Err(TaskFail::new("DUPLICATE_KEY", message).into())
                }
                Err(Errno::INVAL) => {
                    let message = format!("key `{key}` is a folder of another task of this batch");
                    Err(TaskFail::new("INVALID_KEY", message).into())
                }
                Err(error) => Err(StageError::Lease(disk("reading the claim", key)(error.into()))),
            },
            Err(error) => Err(StageError::Lease(disk("claiming", key)(error.into()))),
        }
    }
}

fn in_the_way(key: &str, error: io::Error) -> StageError {
    // A claim is there where a folder is needed.
    let claimed = [io::ErrorKind::AlreadyExists, io::ErrorKind::NotADirectory];
    if escapes(&error) || claimed.contains(&error.kind()) {
        let message = format!("key `{key}`: a part of it is the key of another task of this batch");
        return TaskFail::new("INVALID_KEY", message).into();
    }
    StageError::Lease(disk("claiming", key)(error))
}
