//! A store on which one call at a time can be made to fail, or to wait.

use crate::store::embedded::Embedded;
use crate::store::keys;
use crate::store::{
    Entry, Page, RangeOptions, Revision, Session, SessionId, Store, StoreError, Txn, TxnOutcome, Watch,
};
use async_trait::async_trait;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::oneshot;

/// What befalls the call that a trap is for.
enum Then {
    Fail,
    Panic,
    /// It is carried on only when the second is sent (or dropped).
    Wait(oneshot::Sender<()>, oneshot::Receiver<()>),
}

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

/// The embedded store with traps. A call is `get KEY`, or `txn KEY` with the first key that it puts.
pub(super) struct Troubled {
    inner: Arc<Embedded>,
    traps: Mutex<Vec<Trap>>,
    decisions: AtomicUsize,
}

impl Troubled {
    pub(super) fn new(inner: Arc<Embedded>) -> Arc<Self> {
        Arc::new(Self { inner, traps: Mutex::new(Vec::new()), decisions: AtomicUsize::new(0) })
    }

    fn set(&self, call: &str, then: Then) {
        self.traps.lock().unwrap().push(Trap { call: call.to_owned(), then });
    }

    /// The next call that begins like this fails, once.
    pub(super) fn fail(&self, call: &str) {
        self.set(call, Then::Fail);
    }

    /// Whoever makes the next call that begins like this panics.
    pub(super) fn panic(&self, call: &str) {
        self.set(call, Then::Panic);
    }

    /// The next call that begins like this waits.
    pub(super) fn stop(&self, call: &str) -> Stopped {
        let ((there, reached), (go, gone)) = (oneshot::channel(), oneshot::channel());
        self.set(call, Then::Wait(there, gone));
        Stopped { reached, go }
    }

    /// How often somebody tried to decide.
    pub(super) fn decisions(&self) -> usize {
        self.decisions.load(Ordering::Relaxed)
    }

    /// How many keys have this prefix.
    pub(super) async fn listed(&self, prefix: &str) -> usize {
        self.inner.range(prefix, RangeOptions::default()).await.expect("listed").entries.len()
    }

    async fn pass(&self, call: &str) -> Result<(), StoreError> {
        let trap = {
            let mut traps = self.traps.lock().unwrap();
            traps.iter().position(|trap| call.starts_with(&trap.call)).map(|at| traps.remove(at))
        };
        match trap.map(|trap| trap.then) {
            None => Ok(()),
            Some(Then::Fail) => Err(StoreError::Unavailable("by order of the test".to_owned())),
            Some(Then::Panic) => panic!("by order of the test"),
            Some(Then::Wait(there, go)) => {
                let _ = there.send(());
                let _ = go.await;
                Ok(())
            }
        }
    }
}

#[async_trait]
impl Store for Troubled {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.pass(&format!("get {key}")).await?;
        self.inner.get(key).await
    }

    async fn range(&self, prefix: &str, options: RangeOptions) -> Result<Page, StoreError> {
        self.inner.range(prefix, options).await
    }

    async fn txn(&self, txn: &Txn) -> Result<TxnOutcome, StoreError> {
        if let Some(op) = txn.ops.first() {
            let decides = usize::from(op.key().starts_with(keys::DECISIONS));
            self.decisions.fetch_add(decides, Ordering::Relaxed);
            self.pass(&format!("txn {}", op.key())).await?;
        }
        self.inner.txn(txn).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        self.inner.watch(prefix, after).await
    }

    async fn session(&self, ttl: Duration) -> Result<Session, StoreError> {
        self.inner.session(ttl).await
    }

    async fn close_session(&self, id: SessionId) -> Result<(), StoreError> {
        self.inner.close_session(id).await
    }

    fn transactions(&self) -> u64 {
        self.inner.transactions()
    }
}
