//! A store on which one call at a time can be made to fail, or to wait.

use crate::store::embedded::Embedded;
use crate::store::keys;
use crate::store::{
    Entry, Op, Page, RangeOptions, Revision, Session, SessionId, Store, StoreError, Txn, TxnOutcome,
    WATCH_BOUND, Watch, WatchEvent,
};
use async_trait::async_trait;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// What befalls the call that a trap is for.
enum Then {
    Fail(StoreError),
    Panic,
    /// It is carried out, its answer is lost.
    Lose,
    /// It is carried on only when the second is sent (or dropped).
    Wait(oneshot::Sender<()>, oneshot::Receiver<()>),
}

type Traps = Arc<Mutex<Vec<Trap>>>;

struct Trap {
    call: String,
    then: Then,
}

/// A call that was stopped on its way to the store.
pub(super) struct Stopped {
    reached: oneshot::Receiver<()>,
    go: oneshot::Sender<()>,
}

impl Stopped {
    /// Waits until the call is there; sending lets it go on.
    pub(super) async fn reached(self) -> oneshot::Sender<()> {
        self.reached.await.expect("the call comes");
        self.go
    }
}

/// The embedded store with traps. A call is `get KEY`, `txn KEY` with the first key that it puts or deletes,
/// `range PREFIX`, `watch PREFIX`, `event PREFIX` (the next one of a watch), `session`, or `close_session`.
pub(super) struct Troubled {
    inner: Arc<Embedded>,
    traps: Traps,
    decisions: AtomicUsize,
    overslept: AtomicBool,
    sent: Mutex<Vec<Txn>>,
    reads: Mutex<Vec<String>>,
    watches: Mutex<Vec<(String, mpsc::Sender<WatchEvent>)>>,
}

impl Troubled {
    pub(super) fn new(inner: Arc<Embedded>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            traps: Traps::default(),
            decisions: AtomicUsize::default(),
            overslept: AtomicBool::default(),
            sent: Mutex::default(),
            reads: Mutex::default(),
            watches: Mutex::default(),
        })
    }

    fn set(&self, call: &str, then: Then) {
        self.traps.lock().unwrap().push(Trap { call: call.to_owned(), then });
    }

    /// The next call that begins like this fails, once.
    pub(super) fn fail(&self, call: &str) {
        self.fail_with(call, StoreError::Unavailable("by order of the test".to_owned()));
    }

    /// It fails in this way.
    pub(super) fn fail_with(&self, call: &str, error: StoreError) {
        self.set(call, Then::Fail(error));
    }

    /// Whoever makes the next call that begins like this panics.
    pub(super) fn panic(&self, call: &str) {
        self.set(call, Then::Panic);
    }

    /// The next transaction that begins like this is carried out, and whoever sent it isn't told.
    pub(super) fn lose(&self, call: &str) {
        self.set(call, Then::Lose);
    }

    /// The newest transaction that was sent and begins like this, whatever became of it.
    pub(super) fn sent(&self, call: &str) -> Txn {
        let sent = self.sent.lock().unwrap();
        sent.iter().rfind(|txn| name_of(txn).starts_with(call)).expect("it was sent").clone()
    }

    /// Every transaction that was sent since this was called last, by the first key that it puts or deletes.
    pub(super) fn transactions_sent(&self) -> Vec<String> {
        let sent = std::mem::take(&mut *self.sent.lock().unwrap());
        sent.iter().map(name_of).collect()
    }

    /// Every read since this was called last.
    pub(super) fn reads(&self) -> Vec<String> {
        std::mem::take(&mut *self.reads.lock().unwrap())
    }

    /// A copy of a transaction comes to the store only now.
    pub(super) async fn late(&self, txn: &Txn) -> TxnOutcome {
        self.inner.txn(txn).await.expect("answered")
    }

    /// The next call that begins like this waits.
    pub(super) fn stop(&self, call: &str) -> Stopped {
        let ((there, reached), (go, gone)) = (oneshot::channel(), oneshot::channel());
        self.set(call, Then::Wait(there, gone));
        Stopped { reached, go }
    }

    /// Every session's time is over by the clock, and nobody noticed yet: as after a pause of the process.
    pub(super) fn oversleep(&self) {
        self.overslept.store(true, Ordering::Relaxed);
    }

    /// All watches of this prefix missed something.
    pub(super) async fn miss(&self, prefix: &str) {
        let watches = self.watches.lock().unwrap().clone();
        for (_, watch) in watches.iter().filter(|(watched, _)| watched == prefix) {
            // Nobody looks any more at those of a session that is over.
            let _ = watch.send(WatchEvent::Missed(0)).await;
        }
    }

    /// How often somebody tried to decide.
    pub(super) fn decisions(&self) -> usize {
        self.decisions.load(Ordering::Relaxed)
    }

    /// How many keys have this prefix.
    pub(super) async fn listed(&self, prefix: &str) -> usize {
        self.inner.range(prefix, RangeOptions::default()).await.expect("listed").entries.len()
    }

    async fn read(&self, call: String) -> Result<bool, StoreError> {
        self.reads.lock().unwrap().push(call.clone());
        self.pass(&call).await
    }

    /// False: its answer is to be lost.
    async fn pass(&self, call: &str) -> Result<bool, StoreError> {
        pass(&self.traps, call).await
    }
}

async fn pass(traps: &Traps, call: &str) -> Result<bool, StoreError> {
    let trap = {
        let mut traps = traps.lock().unwrap();
        traps.iter().position(|trap| call.starts_with(&trap.call)).map(|at| traps.remove(at))
    };
    match trap.map(|trap| trap.then) {
        None => Ok(true),
        Some(Then::Lose) => Ok(false),
        Some(Then::Fail(error)) => Err(error),
        Some(Then::Panic) => panic!("by order of the test"),
        Some(Then::Wait(there, go)) => {
            let _ = there.send(());
            let _ = go.await;
            Ok(true)
        }
    }
}

/// What a transaction is called here.
fn name_of(txn: &Txn) -> String {
    format!("txn {}", txn.ops.first().map_or("", Op::key))
}

#[async_trait]
impl Store for Troubled {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.read(format!("get {key}")).await?;
        self.inner.get(key).await
    }

    async fn range(&self, prefix: &str, options: RangeOptions) -> Result<Page, StoreError> {
        self.read(format!("range {prefix}")).await?;
        self.inner.range(prefix, options).await
    }

    async fn txn(&self, txn: &Txn) -> Result<TxnOutcome, StoreError> {
        self.sent.lock().unwrap().push(txn.clone());
        let name = name_of(txn);
        let decides =
            usize::from(name.strip_prefix("txn ").is_some_and(|key| key.starts_with(keys::DECISIONS)));
        self.decisions.fetch_add(decides, Ordering::Relaxed);
        let told = self.pass(&name).await?;
        let outcome = self.inner.txn(txn).await;
        if told { outcome } else { Err(StoreError::Unknown("by order of the test".to_owned())) }
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        self.pass(&format!("watch {prefix}")).await?;
        let mut events = self.inner.watch(prefix, after).await?;
        let (to, watch) = mpsc::channel(WATCH_BOUND);
        self.watches.lock().unwrap().push((prefix.to_owned(), to.clone()));
        let (traps, name) = (self.traps.clone(), format!("event {prefix}"));
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                if pass(&traps, &name).await.is_err() || to.send(event).await.is_err() {
                    return;
                }
            }
        });
        Ok(watch)
    }

    async fn session(&self, ttl: Duration) -> Result<Session, StoreError> {
        self.pass("session").await?;
        self.inner.session(ttl).await
    }

    async fn close_session(&self, id: SessionId) -> Result<(), StoreError> {
        self.pass("close_session").await?;
        self.inner.close_session(id).await
    }

    fn session_lives(&self, _: SessionId) -> bool {
        !self.overslept.load(Ordering::Relaxed)
    }

    fn transactions(&self) -> u64 {
        self.inner.transactions()
    }
}
