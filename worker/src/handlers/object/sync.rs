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
        rustix::fs::syncfs(&self.folder).map_err(|error| disk("syncing", &self.what)(error.into()))
    }

    /// The names in it.
    pub(super) fn names(&self) -> Result<(), HandlerError> {
        rustix::fs::fsync(&self.folder).map_err(|error| disk("syncing", &self.what)(error.into()))
    }
}
