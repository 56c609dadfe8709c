//! What etcd held, revision by revision.

use etcd_client::{Client, EventType, PutOptions, WatchOptions};
use prost::Message;
use std::collections::BTreeMap;
use tranche_coordinator::store::keys::{self, BatchKey};
use tranche_proto::v1;

/// The changes of one revision: key without the prefix, and what was put; `None`: deleted.
pub type Changes = Vec<(String, Option<Vec<u8>>)>;

/// Every change under a prefix, by revision. Changes of one revision were one transaction.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// By revision.
    pub changes: BTreeMap<u64, Changes>,
}

/// One batch's records as of one revision.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The revision.
    pub revision: u64,
    /// The keys that changed in this revision (of this batch).
    pub changed: Vec<String>,
    /// The state.
    pub state: Option<v1::StateRecord>,
    /// The decision.
    pub decision: Option<v1::DecisionRecord>,
    /// The cut-off; deleted with the fold.
    pub cutoff: Option<v1::CutoffRecord>,
    /// The sequence lock's owner, and its epoch.
    pub lock: Option<(v1::LockRecord, u64)>,
    /// The ranges; folded ones stay here as they last were.
    pub ranges: BTreeMap<u64, v1::RangeRecord>,
    /// Ranges that were folded (deleted).
    pub folded: Vec<u64>,
}

/// One batch's snapshots, in order.
#[derive(Clone, Debug)]
pub struct BatchHistory {
    /// Which batch.
    pub key: BatchKey,
    /// One for each revision that changed something of the batch.
    pub snapshots: Vec<Snapshot>,
}

impl History {
    /// Reads all that etcd has had under the prefix until now.
    pub async fn read(endpoint: &str, prefix: &str) -> Self {
        let client = Client::connect([endpoint], None).await.expect("etcd");
        let mut watches = client.watch_client();
        let options = WatchOptions::new().with_prefix().with_start_revision(1);
        let mut stream = watches.watch(prefix, Some(options)).await.expect("a watch");
        // Outside of what coordinators list; it marks where the reading ends.
        let end = format!("{prefix}~end");
        let put = client.kv_client().put(end.as_str(), "", None::<PutOptions>).await.expect("a mark");
        let last = put.header().expect("etcd sends one").revision().cast_unsigned();
        let mut changes: BTreeMap<u64, Changes> = BTreeMap::new();
        'reading: loop {
            let response = stream.message().await.expect("a watch").expect("a watch that goes on");
            assert!(!response.canceled(), "etcd has forgotten: {}", response.cancel_reason());
            for event in response.events() {
                let kv = event.kv().expect("an event has a key");
                let revision = kv.mod_revision().cast_unsigned();
                if revision >= last {
                    break 'reading;
                }
                let key = kv.key_str().expect("text").strip_prefix(prefix).expect("watched").to_owned();
                if key == "~end" {
                    continue;
                }
                let value = (event.event_type() == EventType::Put).then(|| kv.value().to_vec());
                changes.entry(revision).or_default().push((key, value));
            }
        }
        Self { changes }
    }

    /// One batch's part of it.
    pub fn batch(&self, key: &BatchKey) -> BatchHistory {
        let mut now = Snapshot::default();
        let mut snapshots = Vec::new();
        for (revision, changes) in &self.changes {
            now.revision = *revision;
            now.changed.clear();
            for (name, value) in changes {
                now.apply(key, name, value.as_deref());
            }
            if !now.changed.is_empty() {
                snapshots.push(now.clone());
            }
        }
        BatchHistory { key: key.clone(), snapshots }
    }
}

fn decoded<T: Message + Default>(value: Option<&[u8]>) -> Option<T> {
    value.map(|bytes| T::decode(bytes).expect("a record"))
}

impl Snapshot {
    fn apply(&mut self, key: &BatchKey, name: &str, value: Option<&[u8]>) {
        if name == keys::state(key) {
            self.state = decoded(value);
        } else if name == keys::decision(key) {
            self.decision = decoded(value);
        } else if name == keys::cutoff(key) {
            self.cutoff = decoded(value);
        } else if name == keys::lock(key) {
            self.lock = decoded(value).map(|lock| (lock, self.revision));
        } else if let Some(first) = name.strip_prefix(&keys::ranges(key)) {
            let first = first.parse().expect("a number");
            match decoded(value) {
                Some(range) => {
                    self.ranges.insert(first, range);
                }
                None => self.folded.push(first),
            }
        } else if !name.starts_with(&keys::segments(key)) && name != keys::spec(key) {
            return;
        }
        self.changed.push(name.to_owned());
    }

    /// Where the batch stands.
    pub fn state(&self) -> v1::batch::State {
        self.state.as_ref().map_or(v1::batch::State::Unspecified, v1::StateRecord::state)
    }

    /// The cut-off.
    pub fn cutoff(&self) -> u64 {
        self.cutoff.as_ref().map_or(0, |record| record.cutoff.cast_unsigned())
    }
}

impl BatchHistory {
    /// The states in order, each once.
    pub fn states(&self) -> Vec<v1::batch::State> {
        let mut states: Vec<_> =
            self.snapshots.iter().filter(|s| s.state.is_some()).map(Snapshot::state).collect();
        states.dedup();
        states
    }

    /// The snapshot of the revision that made the decision.
    pub fn decided(&self) -> Option<&Snapshot> {
        self.snapshots.iter().find(|snapshot| snapshot.decision.is_some())
    }

    /// The ranges as each was first recorded, in the order of recording: first, last, worker, and the
    /// revision.
    pub fn first_leases(&self) -> Vec<FirstLease> {
        let mut leases: Vec<FirstLease> = Vec::new();
        let mut before = 0;
        for snapshot in &self.snapshots {
            let cutoff = snapshot.cutoff().max(before);
            for range in snapshot.ranges.values() {
                if range.first.cast_unsigned() > before && range.first.cast_unsigned() <= cutoff {
                    let lease = range.lease.clone().unwrap_or_default();
                    leases.push(FirstLease {
                        first: range.first.cast_unsigned(),
                        last: range.last.cast_unsigned(),
                        worker: lease.worker,
                        revision: snapshot.revision,
                    });
                }
            }
            before = cutoff;
        }
        leases
    }
}

/// The first lease of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstLease {
    /// Its first sequence number.
    pub first: u64,
    /// Its last.
    pub last: u64,
    /// Who got it.
    pub worker: String,
    /// The revision that moved the cut-off.
    pub revision: u64,
}
