//! What must hold once nothing is under way and no fault is left; and clearing up after it.

use super::calls::{CallError, Calls};
use super::files::staging;
use super::journal::Journal;
use super::lane::{LIBRARY, Lane};
use super::plan::{COORDINATORS, ETCDS, WORKERS, Who};
use super::recorder::Recorder;
use super::system::{PREFIX, System};
use crate::{cluster, invariants, library};
use etcd_client::GetOptions;
use futures::TryStreamExt as _;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tranche_client::{Client, Error, v1};
use tranche_coordinator::store::keys;

/// How long all may take to find each other again. Workers dial again every few seconds.
const AGAIN: Duration = Duration::from_mins(1);
/// Between two looks.
const POLL: Duration = Duration::from_millis(200);

/// A round that is over.
#[derive(Debug)]
pub struct Settled<'a> {
    /// The members.
    pub system: &'a System,
    /// What etcd was told.
    pub recorder: &'a Recorder,
    /// Where violations go.
    pub journal: &'a Journal,
    /// How coordinators are asked.
    pub calls: &'a Calls,
    /// Who imported.
    pub lanes: &'a [Lane],
    /// The batches that ended.
    pub ended: &'a [v1::Batch],
}

impl Settled<'_> {
    /// Checks libraries, staging, histories, and that everybody knows everybody and agrees.
    pub async fn check(&self) {
        for lane in self.lanes {
            if let Err(error) = lane.check() {
                self.journal.violation(format!("at the end of the round: {error}"));
            }
        }
        self.nothing_is_staged();
        self.histories().await;
        for client in self.calls.all() {
            let what = format!("{} at the end of the round", client.url());
            self.eventually(&format!("{what}: batches"), async || self.lists_all(client).await).await;
            self.eventually(&format!("{what}: members"), async || self.knows_all(client).await).await;
        }
        self.memory().await;
    }

    /// Removes the round's batches, so that disks and etcd don't fill up over hours; nothing may be left of
    /// them.
    pub async fn tidy(&self) {
        for batch in self.ended {
            let name = &batch.name;
            if let Err(error) = self.calls.ask("DeleteBatch", async |client| client.delete(name).await).await
            {
                self.journal.violation(format!("{name}: it can't be deleted: {error:?}"));
            }
            let read = self.calls.ask("GetBatch", async |client| client.get(name).await).await;
            match read {
                Err(CallError::Refused(error)) if error.code() == tonic::Code::NotFound => {}
                other => {
                    self.journal.violation(format!("{name}: it was deleted, and GetBatch says {other:?}"));
                }
            }
            for lane in self.lanes {
                lane.tidy(name);
            }
        }
        self.eventually("etcd after deletion", async || self.nothing_is_stored().await).await;
        self.recorder.forget();
        let mut results = vec![self.system.etcd.compact(0).await.map(drop)];
        for node in 0..ETCDS {
            results.push(self.system.etcd.defragment(node).await);
        }
        for error in results.into_iter().filter_map(Result::err) {
            self.journal.note(format!("tidying etcd: {error}"));
        }
    }

    fn nothing_is_staged(&self) {
        for root in [self.system.library_disk.path(), &self.system.plain] {
            let left = library::snapshot(&staging(&root.join(LIBRARY)));
            if !left.is_empty() {
                let some: Vec<_> = left.into_keys().take(5).collect();
                self.journal.violation(format!("I4: nothing is under way, and there is {some:?}, … staged"));
            }
        }
    }

    async fn histories(&self) {
        let Some((history, gap)) = self.recorder.history(AGAIN).await else {
            return self.journal.violation("etcd's history can't be read after the faults");
        };
        for batch in self.ended {
            let history = history.batch(&cluster::key(&batch.name));
            let first = history.snapshots.first().map_or(0, |snapshot| snapshot.revision);
            if first <= gap {
                // etcd has forgotten a part that wasn't read in time; the end was checked.
                self.journal.note(format!("{}: its history isn't whole", batch.name));
                continue;
            }
            match catch_unwind(AssertUnwindSafe(|| invariants::check(&history))) {
                Ok(()) => self.journal.counts().histories += 1,
                Err(panic) => {
                    let text = panic.downcast_ref::<String>().cloned();
                    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
                    let text = text.unwrap_or_default();
                    self.journal.violation(format!("{}: history: {text}", batch.name));
                }
            }
        }
    }

    /// Every coordinator lists every batch, as it ended.
    async fn lists_all(&self, client: &Client) -> Result<(), String> {
        let listed: Result<Vec<v1::Batch>, Error> =
            client.list(v1::ListBatchesRequest::default()).try_collect().await;
        let listed = listed.map_err(|error| error.to_string())?;
        let listed: BTreeMap<_, _> = listed.iter().map(|batch| (&batch.name, batch)).collect();
        for batch in self.ended {
            let found = listed.get(&batch.name).ok_or_else(|| format!("{} isn't listed", batch.name))?;
            if (found.state(), &found.decision, &found.counters)
                != (batch.state(), &batch.decision, &batch.counters)
            {
                return Err(format!("{} ended as {batch:?}, and is listed as {found:?}", batch.name));
            }
        }
        Ok(())
    }

    /// Every coordinator knows all others and all workers, and none of them has anything to do.
    async fn knows_all(&self, client: &Client) -> Result<(), String> {
        let text = |error: Error| error.to_string();
        let workers: Vec<v1::Worker> = client.workers().try_collect().await.map_err(text)?;
        let names: BTreeSet<_> = workers.iter().map(|worker| worker.worker.clone()).collect();
        if names.len() != WORKERS || workers.len() != WORKERS {
            return Err(format!("of {WORKERS} workers it knows {names:?}"));
        }
        let coordinators: Vec<v1::Coordinator> = client.coordinators().try_collect().await.map_err(text)?;
        let answering = coordinators.iter().filter(|coordinator| coordinator.answering).count();
        if (coordinators.len(), answering) != (COORDINATORS, COORDINATORS) {
            return Err(format!("of {COORDINATORS} coordinators it knows {coordinators:?}"));
        }
        let leases: Vec<v1::Lease> = client.leases(None).try_collect().await.map_err(text)?;
        if !leases.is_empty() {
            return Err(format!("there are leases out: {leases:?}"));
        }
        Ok(())
    }

    /// etcd holds nothing but the coordinators.
    async fn nothing_is_stored(&self) -> Result<(), String> {
        let client = self.system.etcd.client(0).await.map_err(|error| error.to_string())?;
        let options = GetOptions::new().with_prefix().with_keys_only();
        let answer =
            client.kv_client().get(PREFIX, Some(options)).await.map_err(|error| error.to_string())?;
        let names = answer.kvs().iter().filter_map(|kv| kv.key_str().ok()?.strip_prefix(PREFIX));
        let stays = |name: &str| name.starts_with(keys::COORDINATORS) || name.starts_with(keys::DELETIONS);
        let left: Vec<_> = names.filter(|name| !stays(name) && *name != "~end").collect();
        if left.is_empty() { Ok(()) } else { Err(format!("there are {left:?}")) }
    }

    async fn memory(&self) {
        for who in Who::all() {
            let peak = self.system.member(who).await.process().and_then(|process| process.peak_memory());
            let mut counts = self.journal.counts();
            let most = match who {
                Who::Etcd(_) => continue,
                Who::Coordinator(_) => &mut counts.coordinator_memory,
                Who::Worker(_) => &mut counts.worker_memory,
            };
            *most = (*most).max(peak.unwrap_or_default());
        }
    }

    /// Looks until it is well, or for too long.
    async fn eventually(&self, what: &str, mut look: impl AsyncFnMut() -> Result<(), String>) {
        let deadline = Instant::now() + AGAIN;
        while let Err(error) = look().await {
            if Instant::now() > deadline {
                return self.journal.violation(format!("{what}: after {AGAIN:?}: {error}"));
            }
            sleep(POLL).await;
        }
    }
}
