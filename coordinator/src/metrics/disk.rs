//! How much room the disks have.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A folder's file system. A look may hang, on a mount whose server is away: it is never waited for, and there is
/// one at a time.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    pub(super) place: &'static str,
    path: PathBuf,
    last: Arc<Last>,
}

#[derive(Debug, Default)]
struct Last {
    free: AtomicU64,
    size: AtomicU64,
    looking: AtomicBool,
}

impl Disk {
    pub(super) fn new(place: &'static str, path: &Path) -> Self {
        Self { place, path: path.to_owned(), last: Arc::default() }
    }

    /// Begins a look, unless one is under way. Must be called in a runtime.
    pub(super) fn look(&self) {
        if self.last.looking.swap(true, Ordering::AcqRel) {
            return;
        }
        let (path, last) = (self.path.clone(), self.last.clone());
        tokio::task::spawn_blocking(move || {
            if let Ok(found) = rustix::fs::statvfs(&path) {
                last.free.store(found.f_bavail * found.f_frsize, Ordering::Relaxed);
                last.size.store(found.f_blocks * found.f_frsize, Ordering::Relaxed);
            }
            last.looking.store(false, Ordering::Release);
        });
    }

    /// Bytes that are free for us, and all there are, as of the last look that ended. `None`: none ended yet.
    pub(super) fn last(&self) -> Option<(u64, u64)> {
        let (free, size) = (self.last.free.load(Ordering::Relaxed), self.last.size.load(Ordering::Relaxed));
        (size > 0).then_some((free, size))
    }
}
