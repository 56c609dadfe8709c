//! `object`: copies files into a library folder, all or nothing.
//!
//! | parameter | default | meaning |
//! | --- | --- | --- |
//! | `source` | required | absolute folder; the tasks' sources are relative to it |
//! | `library` | required | absolute folder that readers see; made at commit if it is missing |
//! | `staging` | `{library's parent}/.{library's name}.tranche/staging` | absolute folder on the library's file system |
//! | `check` | `none` | `image`: the file must decode as a picture |
//! | `if_exists` | `overwrite` | `fail`: the task fails if the library has its key when it is staged |
//!
//! A task's `key` is the file's path in the library. Its payload is empty (the source has the same
//! path) or JSON: `{"source": "...", "size": N, "checksum": "sha256:HEX" | "blake3:HEX"}`.
//!
//! ```text
//! {staging}/{batch id}/{epoch}-{counter}/tree/{key}     what a lease staged
//!                                       /index.jsonl    sequence, key, size, blake3; durable before the report
//!                                       /winner-{N}     commit: the numbers that this attempt won in one range
//!                                       /committed-{N}  commit: all of them are in the library, durably
//! {library}/_tranche/{batch id}.json                    publish: what the batch brought; the last to appear
//! ```
//!
//! A batch whose manifest is there was committed. To commit it again changes nothing, also when its coordinator's records
//! come from a backup and don't know, and nothing is staged any more.
//!
//! Beside the attempts, `claims/{key}` says which task has a key: of two tasks with the same key, or with
//! one key inside the other (`a`, `a/b`), the second fails, whichever leases they are in. Paths are followed through folders that are held open and never out of them (`cap-std`).

mod attempt;
mod claims;
mod commit;
mod copy;
mod fail;
mod index;
mod key;
mod manifest;
mod places;
mod publish;
mod remove;
mod stage;
mod sync;
mod target;
#[cfg(test)]
mod tests;

use super::noop::all_failed;
use crate::handler::{Handler, HandlerError, Progress, Staged};
use crate::lease::{BatchInfo, CommitLease, RollbackLease, StageLease};
use async_trait::async_trait;
use fail::OpenError;
use places::Places;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use target::{Roots, Target};
use tokio_util::sync::CancellationToken;

/// Batches whose open folders are remembered if no leave comes for them.
const REMEMBERED: usize = 256;

/// The handler. See the [module's](self) documentation for its parameters.
#[derive(Clone, Debug)]
pub struct Object {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    roots: Roots,
    /// Open folders by batch.
    places: Mutex<HashMap<String, Arc<Places>>>,
}

impl Object {
    /// `allow_roots`: source, library and staging must lie under one of these folders, links
    /// followed. None: everything is refused.
    pub fn new(allow_roots: impl IntoIterator<Item = PathBuf>) -> Self {
        let roots = Roots::new(allow_roots.into_iter().collect());
        Self { inner: Arc::new(Inner { roots, places: Mutex::default() }) }
    }

    /// Runs file work where it may block. It can't be dropped half-way: when this returns it has ended.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, HandlerError> + Send + 'static,
    ) -> Result<T, HandlerError> {
        let inner = Arc::clone(&self.inner);
        match tokio::task::spawn_blocking(move || work(&inner)).await {
            Ok(result) => result,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(HandlerError::Cancelled),
        }
    }
}

impl Inner {
    fn stage(
        &self,
        lease: &StageLease,
        cancel: &CancellationToken,
        progress: &Progress,
    ) -> Result<Staged, HandlerError> {
        let opened = Target::parse(&lease.batch.params).map_err(OpenError::Param);
        let opened = opened.and_then(|target| Ok((self.places(&lease.batch, &target)?, target)));
        match opened {
            Ok((places, target)) => {
                let staged = stage::stage(&places, &target, lease, cancel, progress);
                if staged.is_err() {
                    // It may be that the folders aren't what they were: open them anew next time.
                    self.forget(&lease.batch.name);
                }
                if staged == Err(HandlerError::Cancelled) {
                    remove::abandon_after(&lease.batch, &target);
                }
                staged
            }
            Err(OpenError::Param(error)) => Ok(all_failed(lease, &error)),
            Err(OpenError::Handler(error)) => Err(error),
        }
    }

    fn places(&self, batch: &BatchInfo, target: &Target) -> Result<Arc<Places>, OpenError> {
        let known = self.places.lock().unwrap_or_else(PoisonError::into_inner).get(&batch.name).cloned();
        // The rollback of a batch's last attempt takes its folder along, here or at another worker.
        if let Some(places) = known.filter(|places| places.is_there()) {
            return Ok(places);
        }
        let places = Arc::new(Places::open(batch, target, &self.roots)?);
        // A library that isn't there yet may be made by another batch: look again at the next lease.
        if places.library.is_some() {
            let mut all = self.places.lock().unwrap_or_else(PoisonError::into_inner);
            if all.len() >= REMEMBERED {
                all.clear();
            }
            all.insert(batch.name.clone(), Arc::clone(&places));
        }
        Ok(places)
    }

    fn forget(&self, batch: &str) {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).remove(batch);
    }
}

#[async_trait]
impl Handler for Object {
    fn name(&self) -> &'static str {
        "object"
    }

    async fn stage(
        &self,
        lease: &StageLease,
        cancel: &CancellationToken,
        progress: &Progress,
    ) -> Result<Staged, HandlerError> {
        let (lease, cancel, progress) = (lease.clone(), cancel.clone(), progress.clone());
        self.blocking(move |inner| inner.stage(&lease, &cancel, &progress)).await
    }

    async fn commit(&self, lease: &CommitLease) -> Result<u64, HandlerError> {
        let lease = lease.clone();
        self.blocking(move |inner| commit::commit(&lease, &inner.roots)).await
    }

    async fn rollback(&self, lease: &RollbackLease) -> Result<u64, HandlerError> {
        let lease = lease.clone();
        self.blocking(move |inner| remove::rollback(&lease, &inner.roots)).await
    }

    async fn publish(&self, batch: &BatchInfo) -> Result<(), HandlerError> {
        let batch = batch.clone();
        self.blocking(move |inner| publish::publish(&batch, &inner.roots)).await
    }

    async fn sweep(&self, batch: &BatchInfo) -> Result<u64, HandlerError> {
        let batch = batch.clone();
        self.blocking(move |inner| {
            inner.forget(&batch.name);
            remove::sweep(&batch, &inner.roots)
        })
        .await
    }

    fn leave(&self, batch: &str) {
        self.inner.forget(batch);
    }
}
