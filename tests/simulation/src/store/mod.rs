//! The simulated store: one shared core with the revisions of etcd, and a handle for each coordinator's host.

mod handle;
mod session;
mod watch;

pub(crate) use handle::{CALL_TIMEOUT, SimStore};
pub(crate) use watch::Watched;

use crate::check::Writer;
use crate::stats::Count;
use crate::world::{At, Inner};
use bytes::Bytes;
use std::collections::BTreeMap;
use tranche_coordinator::store::{
    Compare, Entry, MAX_TXN_OPS, Op, Page, RangeOptions, Revision, StoreError, Txn, TxnOutcome, WatchEvent,
};

/// A stored key.
#[derive(Clone, Debug)]
struct Stored {
    value: Bytes,
    created: Revision,
    modified: Revision,
    session: i64,
}

/// A session in the store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Alive {
    /// How long it lives after a keep-alive.
    pub ttl: At,
    /// When it ends.
    pub until: At,
}

/// What the store holds.
#[derive(Default)]
pub(crate) struct Core {
    entries: BTreeMap<String, Stored>,
    /// The newest revision.
    pub revision: Revision,
    history: Vec<(Revision, WatchEvent)>,
    /// The sessions that are open.
    pub sessions: BTreeMap<i64, Alive>,
    next_session: i64,
    /// When the last call arrives that is on its way.
    pub late_until: At,
    watches: BTreeMap<u64, Watched>,
    next_watch: u64,
}

impl Core {
    /// Reads a key.
    pub(crate) fn get(&self, key: &str) -> Option<Entry> {
        self.entries.get(key).map(|stored| entry(key, stored))
    }

    /// Reads the keys with a prefix.
    pub(crate) fn range(&self, prefix: &str, options: &RangeOptions) -> Page {
        let after = options.after.as_deref();
        let beyond = |key: &str| match after {
            None => true,
            Some(after) if options.descending => key < after,
            Some(after) => key > after,
        };
        let all = self.entries.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        let found = all.filter(|(key, _)| beyond(key)).map(|(key, stored)| entry(key, stored));
        let mut entries: Vec<Entry> = if options.descending { found.rev_all() } else { found.collect() };
        let more = options.limit > 0 && entries.len() > options.limit;
        if more {
            entries.truncate(options.limit);
        }
        Page { entries, more, revision: self.revision }
    }

    fn holds(&self, compare: &Compare) -> bool {
        match compare {
            Compare::Created(key, wanted) => self.entries.get(key).map_or(0, |s| s.created) == *wanted,
            Compare::Modified(key, wanted) => self.entries.get(key).map_or(0, |s| s.modified) == *wanted,
        }
    }

    fn put(&mut self, key: &str, value: &Bytes, session: i64, revision: Revision) -> WatchEvent {
        let created = self.entries.get(key).map_or(revision, |stored| stored.created);
        let stored = Stored { value: value.clone(), created, modified: revision, session };
        let put = WatchEvent::Put(entry(key, &stored));
        self.entries.insert(key.to_owned(), stored);
        put
    }

    /// What an order of keys deletes, in one revision.
    fn delete(&mut self, key: &str, revision: Revision) -> Option<WatchEvent> {
        self.entries.remove(key).map(|_| WatchEvent::Deleted(key.to_owned(), revision))
    }
}

trait RevAll: Iterator<Item = Entry> {
    /// From the last to the first.
    fn rev_all(self) -> Vec<Entry>;
}
impl<I: Iterator<Item = Entry>> RevAll for I {
    fn rev_all(self) -> Vec<Entry> {
        let mut all: Vec<Entry> = self.collect();
        all.reverse();
        all
    }
}

fn entry(key: &str, stored: &Stored) -> Entry {
    Entry {
        key: key.to_owned(),
        value: stored.value.clone(),
        create_revision: stored.created,
        mod_revision: stored.modified,
    }
}

impl Inner {
    /// Carries out a transaction now.
    pub(crate) fn commit(&mut self, by: &Writer, txn: &Txn) -> Result<TxnOutcome, StoreError> {
        if txn.compares.len() > MAX_TXN_OPS || txn.ops.len() > MAX_TXN_OPS {
            return Err(StoreError::Rejected("a transaction of too many operations".into()));
        }
        let mut keys: Vec<&str> = txn.ops.iter().map(Op::key).collect();
        keys.sort_unstable();
        if keys.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(StoreError::Rejected("a key is changed twice in one transaction".into()));
        }
        if let Some(compare) = txn.compares.iter().find(|compare| !self.store.holds(compare)) {
            self.say(|| format!("{by} refused at {compare:?}"));
            return Ok(TxnOutcome::Refused);
        }
        for op in &txn.ops {
            if let Op::Put { session: Some(session), .. } = op
                && !self.store.sessions.contains_key(&session.0)
            {
                return Err(StoreError::Rejected(format!("session {} is not open", session.0)));
            }
        }
        let revision = self.store.revision + 1;
        let mut events = Vec::new();
        for op in &txn.ops {
            match op {
                Op::Put { key, value, session } => {
                    events.push(self.store.put(key, value, session.map_or(0, |s| s.0), revision));
                }
                Op::Delete { key } => events.extend(self.store.delete(key, revision)),
            }
        }
        if events.is_empty() {
            return Ok(TxnOutcome::Applied(self.store.revision));
        }
        self.changed(by, revision, events);
        Ok(TxnOutcome::Applied(revision))
    }

    /// Ends a session: its keys go, in one revision.
    pub(crate) fn end_session(&mut self, id: i64) {
        if self.store.sessions.remove(&id).is_none() {
            return;
        }
        let held: Vec<String> =
            self.store.entries.iter().filter(|(_, s)| s.session == id).map(|(key, _)| key.clone()).collect();
        let revision = self.store.revision + 1;
        let events: Vec<WatchEvent> =
            held.iter().filter_map(|key| self.store.delete(key, revision)).collect();
        if !events.is_empty() {
            self.changed(&Writer::Store, revision, events);
        }
    }

    fn changed(&mut self, by: &Writer, revision: Revision, events: Vec<WatchEvent>) {
        self.store.revision = revision;
        self.count(Count::Revision);
        self.observe(by, revision, &events);
        for event in events {
            let key = match &event {
                WatchEvent::Put(entry) => entry.key.clone(),
                WatchEvent::Deleted(key, _) => key.clone(),
                WatchEvent::Missed(_) => continue,
            };
            self.store.history.push((revision, event));
            self.wake_watches(&key);
        }
    }
}
