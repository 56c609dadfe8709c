//! Reads along what etcd is told, so that compaction takes the history from nobody.

use crate::history::{Changes, History};
use etcd_client::{Client, EventType, PutOptions, WatchOptions, WatchStream};
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{broadcast, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tranche_coordinator::store::keys;
use tranche_proto::v1;

/// A node that says nothing for so long may be stopped or cut off: another is asked.
const SILENCE: Duration = Duration::from_secs(2);
/// Pause before another try.
const PAUSE: Duration = Duration::from_millis(100);
/// Decisions that a fault may be late for; it only waits for the next.
const DECISIONS: usize = 64;
/// Where the mark is put that tells how far the reading is; no coordinator looks there.
const MARK: &str = "~end";

/// A decision that was made.
#[derive(Clone, Debug)]
pub struct Decided {
    /// COMMIT or ROLLBACK.
    pub outcome: v1::decision::Outcome,
    /// The owner's endpoint.
    pub owner: Option<String>,
}

#[derive(Debug, Default)]
struct Recorded {
    changes: BTreeMap<u64, Changes>,
    /// What was before this revision is forgotten, and wasn't all read.
    gap: u64,
    /// The owners' endpoints, by the lock's key.
    owners: BTreeMap<String, String>,
    /// The states of batches that haven't ended, by key.
    states: BTreeMap<String, v1::batch::State>,
}

/// The reader.
#[derive(Debug)]
pub struct Recorder {
    endpoints: Vec<String>,
    prefix: String,
    recorded: Mutex<Recorded>,
    seen: watch::Sender<u64>,
    decided: broadcast::Sender<Decided>,
}

impl Recorder {
    /// A recorder of the keys under this prefix. [`Recorder::run`] reads.
    pub fn new(endpoints: &[String], prefix: &str) -> Arc<Self> {
        Arc::new(Self {
            endpoints: endpoints.to_vec(),
            prefix: prefix.to_owned(),
            recorded: Mutex::default(),
            seen: watch::Sender::new(0),
            decided: broadcast::Sender::new(DECISIONS),
        })
    }

    /// Reads until told to stop.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut node = 0;
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.read(node) => node = (node + 1) % self.endpoints.len(),
            }
            sleep(PAUSE).await;
        }
    }

    /// Decisions from now on.
    pub fn decisions(&self) -> broadcast::Receiver<Decided> {
        self.decided.subscribe()
    }

    /// Endpoints of coordinators that own a batch.
    pub fn owners(&self) -> Vec<String> {
        self.recorded().owners.values().cloned().collect()
    }

    /// The states that batches are in just now.
    pub fn states(&self) -> BTreeSet<v1::batch::State> {
        self.recorded().states.values().copied().collect()
    }

    /// Everything that was read, once all that was written until now is; and the revision before which
    /// something is missing (0: nothing is). `None`: etcd doesn't answer within this time.
    pub async fn history(&self, within: Duration) -> Option<(History, u64)> {
        let deadline = Instant::now() + within;
        let mut node = 0;
        let last = loop {
            match timeout(SILENCE, self.mark(node)).await {
                Ok(Ok(revision)) => break revision,
                _ if Instant::now() > deadline => return None,
                _ => node = (node + 1) % self.endpoints.len(),
            }
            sleep(PAUSE).await;
        };
        let mut seen = self.seen.subscribe();
        tokio::time::timeout_at(deadline, seen.wait_for(|seen| *seen >= last)).await.ok()?.ok()?;
        let recorded = self.recorded();
        Some((History { changes: recorded.changes.clone() }, recorded.gap))
    }

    /// Forgets all changes until now: of batches that are over.
    pub fn forget(&self) {
        let mut recorded = self.recorded();
        recorded.changes.clear();
        recorded.gap = 0;
    }

    fn recorded(&self) -> MutexGuard<'_, Recorded> {
        self.recorded.lock().expect("not poisoned")
    }

    async fn mark(&self, node: usize) -> Result<u64, etcd_client::Error> {
        let client = Client::connect([&self.endpoints[node]], None).await?;
        let put = client.kv_client().put(format!("{}{MARK}", self.prefix), "", None::<PutOptions>).await?;
        Ok(put.header().map_or(0, etcd_client::ResponseHeader::revision).cast_unsigned())
    }

    /// Reads from one node, as long as it says something.
    async fn read(&self, node: usize) {
        let from = *self.seen.borrow() + 1;
        let options = WatchOptions::new().with_prefix().with_start_revision(from.cast_signed());
        let open = async {
            let client = Client::connect([&self.endpoints[node]], None).await.ok()?;
            client.watch_client().watch(self.prefix.as_str(), Some(options)).await.ok()
        };
        if let Ok(Some(stream)) = timeout(SILENCE, open).await {
            self.follow(stream).await;
        }
    }

    async fn follow(&self, mut stream: WatchStream) {
        while let Ok(Ok(Some(response))) = timeout(SILENCE, stream.message()).await {
            if response.compact_revision() > 0 {
                let first = response.compact_revision().cast_unsigned();
                self.recorded().gap = first;
                self.seen.send_replace(first - 1);
            }
            if response.canceled() {
                return;
            }
            let mut decided = Vec::new();
            let mut last = 0;
            let mut recorded = self.recorded();
            for event in response.events() {
                let Some(kv) = event.kv() else { continue };
                let name = kv.key_str().unwrap_or_default().strip_prefix(&self.prefix).unwrap_or_default();
                last = kv.mod_revision().cast_unsigned();
                if name == MARK {
                    continue;
                }
                let value = (event.event_type() == EventType::Put).then(|| kv.value().to_vec());
                if let Some(batch) = name.strip_prefix(keys::LOCKS) {
                    match value.as_deref().and_then(|bytes| v1::LockRecord::decode(bytes).ok()) {
                        Some(lock) => recorded.owners.insert(batch.to_owned(), lock.endpoint),
                        None => recorded.owners.remove(batch),
                    };
                }
                if let Some(batch) = name.strip_prefix(keys::STATES) {
                    use v1::batch::State::{Committed, RolledBack};
                    let record = value.as_deref().and_then(|bytes| v1::StateRecord::decode(bytes).ok());
                    match record.map(|record| record.state()) {
                        None | Some(Committed | RolledBack) => recorded.states.remove(batch),
                        Some(state) => recorded.states.insert(batch.to_owned(), state),
                    };
                }
                if let Some(batch) = name.strip_prefix(keys::DECISIONS)
                    && let Some(record) = value.as_deref().and_then(|b| v1::DecisionRecord::decode(b).ok())
                {
                    let owner = recorded.owners.get(batch).cloned();
                    decided.push(Decided { outcome: record.outcome(), owner });
                }
                recorded.changes.entry(last).or_default().push((name.to_owned(), value));
            }
            drop(recorded);
            for decided in decided {
                // Nobody may be waiting for one.
                let _ = self.decided.send(decided);
            }
            if last > 0 {
                self.seen.send_replace(last);
            }
        }
    }
}
