//! Something that is made from files, and made again when they change.

use crate::FileError;
use crate::files::fingerprint;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// How often the files are looked at.
const EVERY: Duration = Duration::from_secs(1);

/// What was made, and of which files.
pub struct Loaded<T> {
    /// It.
    pub value: T,
    /// The files; all are looked at.
    pub files: Vec<PathBuf>,
}

/// The newest of something that is made from files. Clones share it; their files are looked at until the last of
/// them is dropped.
#[derive(Debug)]
pub struct Reloading<T> {
    newest: watch::Receiver<Arc<T>>,
    looking: Arc<AbortOnDropHandle<()>>,
}

impl<T> Clone for Reloading<T> {
    fn clone(&self) -> Self {
        Self { newest: self.newest.clone(), looking: self.looking.clone() }
    }
}

impl<T: Send + Sync + 'static> Reloading<T> {
    /// Loads it, and again when the files change. `what` is what the log calls it. Must be called inside a tokio
    /// runtime.
    ///
    /// # Errors
    /// It can't be made now. Later that is a line in the log, and what was made last stays.
    pub fn start(
        what: &'static str,
        load: impl Fn() -> Result<Loaded<T>, FileError> + Send + Sync + 'static,
    ) -> Result<Self, FileError> {
        let Loaded { value, mut files } = load()?;
        let mut seen = fingerprint(&files);
        // What changed between the two lines above is found by the first look.
        let (told, newest) = watch::channel(Arc::new(value));
        let load = Arc::new(load);
        let looking = tokio::spawn(async move {
            let mut trouble: Option<FileError> = None;
            loop {
                tokio::time::sleep(EVERY).await;
                let now = fingerprint(&files);
                if now == seen && trouble.is_none() {
                    continue;
                }
                seen = now;
                let load = load.clone();
                // Files may be on a slow disk.
                match tokio::task::spawn_blocking(move || load()).await {
                    Ok(Ok(loaded)) => {
                        files = loaded.files;
                        seen = fingerprint(&files);
                        trouble = None;
                        told.send_replace(Arc::new(loaded.value));
                        tracing::info!(what, "files changed, read again");
                    }
                    Ok(Err(error)) => {
                        if trouble.as_ref() != Some(&error) {
                            tracing::warn!(what, %error, "files changed and can't be used, what was read before stays");
                        }
                        trouble = Some(error);
                    }
                    // The runtime ends.
                    Err(_) => return,
                }
            }
        });
        Ok(Self { newest, looking: Arc::new(AbortOnDropHandle::new(looking)) })
    }

    /// The newest.
    pub fn get(&self) -> Arc<T> {
        self.newest.borrow().clone()
    }

    /// Tells of changes from now on.
    pub fn watch(&self) -> watch::Receiver<Arc<T>> {
        let mut newest = self.newest.clone();
        newest.mark_unchanged();
        newest
    }
}
