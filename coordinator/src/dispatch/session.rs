//! One worker's stream, as the hub sees it.

use super::Outbound;
use crate::identity::Scope;
use crate::store::keys::BatchKey;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tranche_engine::{LEASE_BYTES, Now, Token, WorkerKey};
use tranche_ops::prometheus_client::metrics::counter::Counter;
use tranche_proto::v1::{self, attach_response::Frame};

/// Which session; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// What a worker said when it attached, checked.
#[derive(Clone, Debug)]
pub struct Hello {
    /// Who.
    pub worker: WorkerKey,
    /// Whose batches it works for.
    pub scope: Scope,
    /// Its handlers.
    pub handlers: Vec<String>,
    /// Leases it works on at once.
    pub slots: i32,
    /// Labels for people.
    pub labels: HashMap<String, String>,
    /// Leases it holds.
    pub held: Vec<(BatchKey, Token)>,
    /// Its software's version.
    pub version: String,
    /// Where it connects from.
    pub peer: String,
}

/// A lease that counts against a worker's credit.
#[derive(Clone, Debug)]
pub(super) struct Outstanding {
    pub(super) batch: BatchKey,
    pub(super) bytes: u64,
    /// Since when its report is on its way to its batch.
    pub(super) reported: Option<Instant>,
}

/// One worker's stream.
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// Who.
    pub worker: WorkerKey,
    /// Whose batches it works for.
    pub scope: Scope,
    /// Its handlers.
    pub handlers: Vec<String>,
    /// Leases it works on at once.
    pub slots: i32,
    /// Labels for people.
    pub labels: HashMap<String, String>,
    /// Its software's version.
    pub version: String,
    /// Where it connects from.
    pub peer: String,
    /// When it attached.
    pub since: Now,
    attached: Instant,
    /// When its last frame came.
    pub seen: Instant,
    pub(super) window_leases: u32,
    pub(super) window_bytes: u64,
    pub(super) outstanding: BTreeMap<Token, Outstanding>,
    /// Requests of this worker that owners took and haven't answered: for which batch, and since when they
    /// waited.
    pub(super) taken: VecDeque<(BatchKey, Instant)>,
    pub(super) end: CancellationToken,
    /// Counts those that are dropped because they don't read.
    dropped: Counter,
    out: Outbound,
}

impl Session {
    pub(super) fn new(id: SessionId, hello: Hello, since: Now, dropped: Counter, out: Outbound) -> Self {
        Self {
            id,
            worker: hello.worker,
            scope: hello.scope,
            handlers: hello.handlers,
            slots: hello.slots,
            labels: hello.labels,
            version: hello.version,
            peer: hello.peer,
            since,
            attached: Instant::now(),
            seen: Instant::now(),
            window_leases: 0,
            window_bytes: 0,
            outstanding: BTreeMap::new(),
            taken: VecDeque::new(),
            end: CancellationToken::new(),
            dropped,
            out,
        }
    }

    /// Leases it holds.
    pub fn leases(&self) -> usize {
        self.outstanding.len()
    }

    /// Leases of this namespace's batches that it holds.
    pub fn leases_of(&self, namespace: &str) -> usize {
        self.outstanding.values().filter(|lease| lease.batch.namespace == namespace).count()
    }

    /// Leases it would take now.
    pub fn free_credit(&self) -> usize {
        (self.window_leases as usize).saturating_sub(self.outstanding.len() + self.taken.len())
    }

    /// When it attached, and when it was last seen.
    pub fn times(&self) -> (SystemTime, SystemTime) {
        let attached = UNIX_EPOCH + Duration::from_millis(self.since.wall_ms.max(0).cast_unsigned());
        (attached, attached + self.seen.duration_since(self.attached))
    }

    /// It holds this lease, from before. Its bytes aren't known any more; the window of leases bounds them.
    pub(super) fn hold(&mut self, batch: BatchKey, token: Token) {
        self.outstanding.entry(token).or_insert(Outstanding { batch, bytes: 0, reported: None });
    }

    /// Forgets a batch's leases and the requests that were taken for it. Says whether there were any.
    pub(super) fn forget(&mut self, batch: &BatchKey) -> bool {
        let before = self.outstanding.len() + self.taken.len();
        self.outstanding.retain(|_, lease| lease.batch != *batch);
        self.taken.retain(|(by, _)| by != batch);
        before > self.outstanding.len() + self.taken.len()
    }

    /// Whether it takes one more lease for this handler. A worker that holds nothing always takes one,
    /// however large.
    pub(super) fn free(&self, handler: &str) -> bool {
        let bytes: u64 = self.outstanding.values().map(|lease| lease.bytes).sum();
        let coming = self.taken.len() as u64 * LEASE_BYTES;
        let fits = self.leases() + self.taken.len() == 0 || bytes + coming + LEASE_BYTES <= self.window_bytes;
        self.free_credit() > 0 && fits && self.handlers.iter().any(|have| have == handler)
    }

    /// The oldest request that this batch took is answered; gives the time since which it waited.
    pub(super) fn answered(&mut self, batch: &BatchKey) -> Option<Instant> {
        let index = self.taken.iter().position(|(by, _)| by == batch)?;
        self.taken.remove(index).map(|(_, since)| since)
    }

    /// Puts a frame on the stream. A worker that doesn't read is dropped: its stream ends, it may attach
    /// again.
    pub(super) fn send(&self, frame: Frame) {
        match self.out.try_send(Ok(v1::AttachResponse { frame: Some(frame) })) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                tracing::warn!(worker.id = %self.worker.id, "worker doesn't read its frames: dropped");
                if !self.end.is_cancelled() {
                    self.dropped.inc();
                }
                self.end.cancel();
            }
            Err(TrySendError::Closed(_)) => self.end.cancel(),
        }
    }
}
