//! Making things durable.

use super::fail::disk;
use crate::handler::HandlerError;
use cap_std::fs::Dir;
use rustix::fs::{Mode, OFlags};
use std::os::fd::OwnedFd;

/// A folder to sync. Open it before anything is written: a sync tells of every write to the file
/// system that failed since, also of those that the kernel did behind our back.
pub(super) struct Sync {
    folder: OwnedFd,
    what: String,
}

impl Sync {
    pub(super) fn open(dir: &Dir, what: &str) -> Result<Self, HandlerError> {
        // cap-std holds folders by path alone, which can't be synced.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::openat(dir, ".", flags, Mode::empty());
        let folder = folder.map_err(|error| disk("opening", what)(error.into()))?;
        Ok(Self { folder, what: what.to_owned() })
    }

    /// Everything on its file system.
    pub(super) fn file_system(&self) -> Result<(), HandlerError> {
        rustix::fs::syncfs(&self.folder).map_err(|error| disk("syncing", &self.what)(error.into()))?;
        #[cfg(test)]
        seen::add(&self.folder);
        Ok(())
    }

    /// The names in it.
    pub(super) fn names(&self) -> Result<(), HandlerError> {
        rustix::fs::fsync(&self.folder).map_err(|error| disk("syncing", &self.what)(error.into()))
    }
}

/// Which folders were given to sync their file system by: no test can take the power away.
#[cfg(test)]
pub(super) mod seen {
    use std::collections::HashMap;
    use std::os::fd::AsRawFd;
    use std::path::{Path, PathBuf};
    use std::sync::{Mutex, PoisonError};

    /// By path. An inode's number is given to the next folder once another test has removed its own.
    static SYNCS: Mutex<Option<HashMap<PathBuf, usize>>> = Mutex::new(None);

    pub(in super::super) fn add(folder: &impl AsRawFd) {
        let path =
            std::fs::read_link(format!("/proc/self/fd/{}", folder.as_raw_fd())).expect("an open folder");
        let mut syncs = SYNCS.lock().unwrap_or_else(PoisonError::into_inner);
        *syncs.get_or_insert_default().entry(path).or_default() += 1;
    }

    /// How often this folder was.
    pub(in super::super) fn of(folder: &Path) -> usize {
        let path = folder.canonicalize().expect("a folder");
        let syncs = SYNCS.lock().unwrap_or_else(PoisonError::into_inner);
        syncs.as_ref().and_then(|syncs| syncs.get(&path).copied()).unwrap_or(0)
    }
}
