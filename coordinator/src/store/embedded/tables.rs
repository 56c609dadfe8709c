//! The tables on disk and what a transaction does to them.

use crate::store::{Compare, Entry, Op, Revision, SessionId, StoreError, Txn, TxnOutcome, WatchEvent};
use bytes::Bytes;
use redb::{ReadableTable, Table, TableDefinition, WriteTransaction};
use std::collections::HashMap;
use tokio::sync::watch;

/// A stored entry: create revision, mod revision, session (0: none), value.
pub(super) type Stored<'v> = (u64, u64, i64, &'v [u8]);
/// All keys.
pub(super) const ENTRIES: TableDefinition<'_, &[u8], Stored<'static>> = TableDefinition::new("entries");
/// Which keys hang on a session.
pub(super) const HELD: TableDefinition<'_, (i64, &[u8]), ()> = TableDefinition::new("held");
/// Numbers about the store itself.
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// The store's revision, in [`META`].
pub(super) const REVISION: &str = "revision";
/// The version of this layout, in [`META`].
pub(super) const FORMAT: &str = "format";
/// The only layout so far.
pub(super) const FORMAT_VERSION: u64 = 1;

/// The sessions that are open, and how each is told that it isn't any more.
pub(super) type Sessions = HashMap<SessionId, watch::Sender<bool>>;

/// The tables within one write transaction of the file, which may carry several of the store's.
pub(super) struct Tables<'t> {
    entries: Table<'t, &'static [u8], Stored<'static>>,
    held: Table<'t, (i64, &'static [u8]), ()>,
    meta: Table<'t, &'static str, u64>,
    /// The revision before.
    before: Revision,
    /// The revision after all that was done so far.
    pub(super) revision: Revision,
    /// What happened, in order of revision.
    pub(super) events: Vec<(Revision, WatchEvent)>,
}

impl<'t> Tables<'t> {
    pub(super) fn open(txn: &'t WriteTransaction) -> Result<Self, redb::Error> {
        let meta = txn.open_table(META)?;
        let revision = meta.get(REVISION)?.map_or(0, |revision| revision.value());
        Ok(Self {
            entries: txn.open_table(ENTRIES)?,
            held: txn.open_table(HELD)?,
            meta,
            before: revision,
            revision,
            events: Vec::new(),
        })
    }

    /// Whether anything changed; then the new revision is written too.
    pub(super) fn finish(mut self) -> Result<Option<Vec<(Revision, WatchEvent)>>, redb::Error> {
        if self.revision == self.before {
            return Ok(None);
        }
        self.meta.insert(REVISION, self.revision)?;
        Ok(Some(self.events))
    }

    /// Carries out a transaction that was checked. Its own refusal is inside.
    pub(super) fn apply(
        &mut self,
        txn: &Txn,
        sessions: &Sessions,
    ) -> Result<Result<TxnOutcome, StoreError>, redb::Error> {
        for compare in &txn.compares {
            if !self.holds(compare)? {
                return Ok(Ok(TxnOutcome::Refused));
            }
        }
        for op in &txn.ops {
            if let Op::Put { session: Some(session), .. } = op
                && !sessions.contains_key(session)
            {
                return Ok(Err(StoreError::Rejected(format!("session {} is not open", session.0))));
            }
        }
        let next = self.revision + 1;
        let mut changed = false;
        for op in &txn.ops {
            changed |= match op {
                Op::Put { key, value, session } => self.put(key, value, *session, next)?,
                Op::Delete { key } => self.delete(key.as_bytes(), next)?,
            };
        }
        if changed {
            self.revision = next;
        }
        Ok(Ok(TxnOutcome::Applied(self.revision)))
    }

    /// Deletes the keys of a session, in one revision.
    pub(super) fn end_session(&mut self, id: SessionId) -> Result<(), redb::Error> {
        let from: (i64, &[u8]) = (id.0, &[]);
        let to: (i64, &[u8]) = (id.0 + 1, &[]);
        let keys = held_keys(self.held.range(from..to)?)?;
        self.delete_all(keys)
    }

    /// Deletes the keys of all sessions, in one revision.
    pub(super) fn end_all_sessions(&mut self) -> Result<(), redb::Error> {
        let keys = held_keys(self.held.iter()?)?;
        self.delete_all(keys)
    }

    /// Notes the layout in a new file; says which layout an older one has.
    pub(super) fn format(&mut self) -> Result<u64, redb::Error> {
        let found = self.meta.get(FORMAT)?.map(|format| format.value());
        if let Some(format) = found {
            return Ok(format);
        }
        self.meta.insert(FORMAT, FORMAT_VERSION)?;
        Ok(FORMAT_VERSION)
    }

    fn delete_all(&mut self, keys: Vec<Vec<u8>>) -> Result<(), redb::Error> {
        let next = self.revision + 1;
        for key in keys {
            if self.delete(&key, next)? {
                self.revision = next;
            }
        }
        Ok(())
    }

    fn holds(&self, compare: &Compare) -> Result<bool, redb::Error> {
        let (Compare::Created(key, wanted) | Compare::Modified(key, wanted)) = compare;
        let found = self.entries.get(key.as_bytes())?.map(|stored| {
            let (created, modified, _, _) = stored.value();
            if matches!(compare, Compare::Created(..)) { created } else { modified }
        });
        Ok(found.unwrap_or(0) == *wanted)
    }

    fn put(
        &mut self,
        key: &str,
        value: &Bytes,
        session: Option<SessionId>,
        revision: Revision,
    ) -> Result<bool, redb::Error> {
        let old = self.entries.get(key.as_bytes())?.map(|stored| {
            let (created, _, session, _) = stored.value();
            (created, session)
        });
        let (created, old_session) = old.unwrap_or((revision, 0));
        let session = session.map_or(0, |session| session.0);
        if old_session != session {
            if old_session != 0 {
                self.held.remove((old_session, key.as_bytes()))?;
            }
            if session != 0 {
                self.held.insert((session, key.as_bytes()), ())?;
            }
        }
        self.entries.insert(key.as_bytes(), (created, revision, session, value.as_ref()))?;
        let entry =
            Entry { key: key.into(), value: value.clone(), create_revision: created, mod_revision: revision };
        self.events.push((revision, WatchEvent::Put(entry)));
        Ok(true)
    }

    fn delete(&mut self, key: &[u8], revision: Revision) -> Result<bool, redb::Error> {
        let Some(session) = self.entries.remove(key)?.map(|stored| stored.value().2) else {
            return Ok(false);
        };
        if session != 0 {
            self.held.remove((session, key))?;
        }
        let key = String::from_utf8_lossy(key).into_owned();
        self.events.push((revision, WatchEvent::Deleted(key, revision)));
        Ok(true)
    }
}

fn held_keys(range: redb::Range<'_, (i64, &'static [u8]), ()>) -> Result<Vec<Vec<u8>>, redb::Error> {
    range.map(|row| Ok(row?.0.value().1.to_vec())).collect()
}

/// An entry as the store's callers see it.
pub(super) fn entry(key: &[u8], stored: Stored<'_>) -> Result<Entry, StoreError> {
    let (create_revision, mod_revision, _, value) = stored;
    let key = std::str::from_utf8(key).map_err(|error| StoreError::Corrupt {
        key: String::from_utf8_lossy(key).into_owned(),
        message: format!("key is not text: {error}"),
    })?;
    Ok(Entry { key: key.into(), value: Bytes::copy_from_slice(value), create_revision, mod_revision })
}
