//! The store: small records with revisions, transactions that compare them, watches, sessions.
//!
//! Two implementations, one contract (`tests/tests/store_conformance.rs` runs it on both): [`etcd`] for
//! real deployments, [`embedded`] for one process without a server. Revisions are those of etcd: one
//! counter for the whole store, each transaction that changes anything gets the next one.

mod check;
pub mod commit;
pub mod embedded;
#[cfg(feature = "etcd")]
pub mod etcd;
pub mod keys;
mod measured;

pub use measured::Measured;

use async_trait::async_trait;
use bytes::Bytes;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// A store revision; 0 is before everything.
pub type Revision = u64;

/// A key with its value and revisions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key, without the store's prefix.
    pub key: String,
    /// The value.
    pub value: Bytes,
    /// The revision that created the key (since it last didn't exist).
    pub create_revision: Revision,
    /// The revision that last changed it.
    pub mod_revision: Revision,
}

/// One condition of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// The key's create revision is this; 0: the key doesn't exist.
    Created(String, Revision),
    /// The key's mod revision is this; 0: the key doesn't exist.
    Modified(String, Revision),
}

/// One change of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Puts a value; with a session the key goes when the session does.
    Put {
        /// The key.
        key: String,
        /// The value.
        value: Bytes,
        /// The session that the key hangs on.
        session: Option<SessionId>,
    },
    /// Deletes a key; a key that isn't there is no error.
    Delete {
        /// The key.
        key: String,
    },
}

impl Op {
    /// The key that is changed.
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// All changes or none, and only if all compares hold. At most [`MAX_TXN_OPS`] compares and as many ops.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// What must hold.
    pub compares: Vec<Compare>,
    /// What changes then.
    pub ops: Vec<Op>,
}

/// The most compares, and the most ops, of one transaction (etcd's default `--max-txn-ops`).
pub const MAX_TXN_OPS: usize = 128;
/// The most bytes of one transaction that a caller should build; etcd's default request limit is 1.5 MiB.
pub const MAX_TXN_BYTES: usize = 1024 * 1024;

impl Txn {
    /// An empty transaction.
    pub fn new() -> Self {
        Self::default()
    }
    /// The key must not exist.
    pub fn absent(self, key: impl Into<String>) -> Self {
        self.created(key, 0)
    }
    /// The key's create revision must be this.
    pub fn created(mut self, key: impl Into<String>, revision: Revision) -> Self {
        self.compares.push(Compare::Created(key.into(), revision));
        self
    }
    /// The key's mod revision must be this.
    pub fn modified(mut self, key: impl Into<String>, revision: Revision) -> Self {
        self.compares.push(Compare::Modified(key.into(), revision));
        self
    }
    /// Puts a value.
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.ops.push(Op::Put { key: key.into(), value: value.into(), session: None });
        self
    }
    /// Puts a value that goes with the session.
    pub fn put_held(mut self, key: impl Into<String>, value: impl Into<Bytes>, session: SessionId) -> Self {
        self.ops.push(Op::Put { key: key.into(), value: value.into(), session: Some(session) });
        self
    }
    /// Deletes a key.
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.ops.push(Op::Delete { key: key.into() });
        self
    }
}

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TxnOutcome {
    /// It was carried out, at this revision.
    Applied(Revision),
    /// A compare didn't hold; nothing changed.
    Refused,
}

/// Which part of the keys to read.
#[derive(Clone, Debug, Default)]
pub struct RangeOptions {
    /// The most entries; 0: all.
    pub limit: usize,
    /// Only keys beyond this one, in the direction of reading.
    pub after: Option<String>,
    /// From the last key to the first.
    pub descending: bool,
}

/// A part of the keys with a prefix.
#[derive(Clone, Debug)]
pub struct Page {
    /// The entries, by key.
    pub entries: Vec<Entry>,
    /// There is more beyond the last entry.
    pub more: bool,
    /// The store's revision when it was read.
    pub revision: Revision,
}

/// What a watch saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// A key was put.
    Put(Entry),
    /// A key was deleted, at this revision.
    Deleted(String, Revision),
    /// Events may have been missed (the store compacted them away, or the watch fell behind): list
    /// again. The watch goes on after this revision.
    Missed(Revision),
}

/// A watch: events in order of revision. Dropping it ends it. The channel closes only when the store
/// is closed.
pub type Watch = mpsc::Receiver<WatchEvent>;

/// Events a watch holds for a slow reader before it says [`WatchEvent::Missed`]: one key a batch and
/// decision, so that 1,024 outlast any pause of the reader.
pub const WATCH_BOUND: usize = 1024;

/// A session: keys put with it go when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionId(pub i64);

/// A session that is kept alive in the background until it is closed or dropped.
#[derive(Clone, Debug)]
pub struct Session {
    /// Its id, to put keys with.
    pub id: SessionId,
    /// Becomes true once the session is lost or closed: its keys are, or will soon be, gone.
    ///
    /// It becomes true *before* the store may end the session (measured from when the last answered
    /// keep-alive was sent), so that whoever acts on it stops in time; correctness never depends on
    /// this, only on compares.
    pub lost: watch::Receiver<bool>,
}

/// What the store answers when it doesn't do it.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum StoreError {
    /// It can't be reached, and the call changed nothing.
    #[error("store unavailable: {0}")]
    Unavailable(String),
    /// The answer was lost: the transaction may or may not have been carried out.
    #[error("store answer lost: {0}")]
    Unknown(String),
    /// There is no space left, and the call changed nothing. It works again when somebody made room.
    #[error("store is full: {0}")]
    Full(String),
    /// The call can't ever work: too large, a session that is gone, no permission.
    #[error("store refused the call: {0}")]
    Rejected(String),
    /// Stored bytes are not what they should be.
    #[error("store record {key}: {message}")]
    Corrupt {
        /// The key.
        key: String,
        /// What is wrong.
        message: String,
    },
}

impl StoreError {
    /// Whether the same call may work later.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Unavailable(_) | Self::Unknown(_) | Self::Full(_) => true,
            Self::Rejected(_) | Self::Corrupt { .. } => false,
        }
    }
}

/// Where the coordinators keep what must survive. Every call has a time limit of its own and ends.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Reads one key, linearizably.
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// Reads the keys with a prefix, linearizably, in one revision.
    async fn range(&self, prefix: &str, options: RangeOptions) -> Result<Page, StoreError>;

    /// Carries out a transaction, durably. With a session that is gone it is [`StoreError::Rejected`], and
    /// [`Session::lost`] is true then. One that is [`StoreError::Unknown`] is settled by
    /// [`commit::commit`], which everybody but it should call.
    async fn txn(&self, txn: &Txn) -> Result<TxnOutcome, StoreError>;

    /// Watches the keys with a prefix, from the revision after `after`. Reconnects by itself.
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError>;

    /// Starts a session with this time to live.
    async fn session(&self, ttl: Duration) -> Result<Session, StoreError>;

    /// Ends a session now: its keys are deleted.
    async fn close_session(&self, id: SessionId) -> Result<(), StoreError>;

    /// Whether the session is known to live at this moment, by the clock, whatever tasks of ours ran: a process
    /// that was paused must know it before [`Session::lost`] says so. The clock is the monotonic one, which
    /// goes on while a process is paused, but not while its machine is suspended. True by default: of
    /// sessions that end only by being closed.
    fn session_lives(&self, id: SessionId) -> bool {
        let _ = id;
        true
    }

    /// How many transactions were carried out or refused through this handle.
    fn transactions(&self) -> u64;

    /// A transaction is tried again now; for whoever counts that.
    fn tried_again(&self) {}
}
