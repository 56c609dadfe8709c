//! One coordinator's way to the store, with everything that can happen on it.

use super::session::keep_alive;
use crate::check::Writer;
use crate::host::{HostId, Life};
use crate::stats::Count;
use crate::world::{At, Inner, World};
use async_trait::async_trait;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tranche_coordinator::store::{
    Entry, Op, Page, RangeOptions, Revision, Session, SessionId, Store, StoreError, Txn, TxnOutcome, Watch,
};

/// How long a call may take, by its host's clock.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_millis(800);

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It is done and answered.
    Done,
    /// It is refused at once, and changes nothing.
    Unavailable,
    /// It is done, its answer is lost.
    Lost,
    /// It is lost.
    Never,
    /// Its caller gives up; it is done later.
    Late(Duration),
}

/// What a call is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// It reads.
    Read,
    /// It changes something.
    Change,
}

/// A coordinator's handle on the store.
pub(crate) struct SimStore {
    world: World,
    host: HostId,
    life: Life,
    transactions: AtomicU64,
    sessions: Mutex<Vec<(SessionId, watch::Sender<bool>)>>,
    /// Transactions whose answers were lost and that weren't read back.
    doubts: Mutex<Vec<Txn>>,
    keepers: TaskTracker,
}

/// Why there is no answer.
enum Failure {
    /// It wasn't done.
    Unavailable,
    /// It isn't known whether it was done.
    Lost,
}

impl SimStore {
    /// A handle for one life of a host.
    pub(crate) fn new(world: World, host: HostId, life: Life) -> Self {
        Self {
            world,
            host,
            life,
            transactions: AtomicU64::new(0),
            sessions: Mutex::default(),
            doubts: Mutex::default(),
            keepers: TaskTracker::new(),
        }
    }

    /// Sends a call; it is worked off at the store at a later time, and answered at one still later.
    async fn call<T: Send + 'static>(
        &self,
        changes: bool,
        work: impl FnOnce(&mut Inner) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let what = if changes { What::Change } else { What::Read };
        call(&self.world, self.host, self.life, what, work).await
    }

    fn doubts(&self) -> MutexGuard<'_, Vec<Txn>> {
        self.doubts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Inner) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        self.call(false, work).await.map_err(|_| StoreError::Unavailable("simulated".into()))
    }
}

/// See [`SimStore::call`].
async fn call<T: Send + 'static>(
    world: &World,
    host: HostId,
    life: Life,
    what: What,
    work: impl FnOnce(&mut Inner) -> T + Send + 'static,
) -> Result<T, Failure> {
    let (reply, answer) = oneshot::channel();
    let fate = {
        let mut inner = world.lock();
        let fate = inner.fate(host, what);
        let (there, back) = (inner.ms(0, 12), inner.ms(0, 12));
        let stuck = inner.cut_off.get(&host).copied().filter(|until| *until > inner.now);
        match (fate, stuck) {
            (Fate::Unavailable, _) => {}
            (Fate::Never, _) => inner.never.push(Box::new(reply)),
            // The bytes wait in a socket, and arrive when the network is back: or never.
            (_, Some(until)) => {
                if inner.rng.bool() {
                    let pause = inner.ms(0, 100);
                    inner.late(until + pause, work);
                }
                inner.never.push(Box::new(reply));
            }
            (Fate::Late(pause), None) => {
                let at = inner.now + pause;
                inner.late(at, work);
                inner.never.push(Box::new(reply));
            }
            (Fate::Lost, None) => {
                inner.after(there, move |inner| drop(work(inner)));
                inner.never.push(Box::new(reply));
            }
            (Fate::Done, None) => inner.after(there, move |inner| {
                let result = work(inner);
                let hanging = inner.is_cut_off(host);
                if hanging {
                    inner.never.push(Box::new(reply));
                    return;
                }
                inner.after(back, move |inner| {
                    if inner.hosts.lives(host, life) {
                        inner.hosts.touch(host);
                        // Whoever asked may have given up.
                        let _ = reply.send(result);
                    }
                });
            }),
        }
        fate
    };
    if fate == Fate::Unavailable {
        tokio::time::sleep(Duration::from_millis(5)).await;
        return Err(Failure::Unavailable);
    }
    // Some lost answers are noticed soon, as when a connection is reset; others by the time limit.
    let limit = match fate {
        Fate::Done => CALL_TIMEOUT,
        Fate::Unavailable | Fate::Lost | Fate::Never | Fate::Late(_) => {
            let soon = world.lock().rng.bool();
            if soon { Duration::from_millis(40) } else { CALL_TIMEOUT }
        }
    };
    match timeout(limit, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) | Err(_) => Err(Failure::Lost),
    }
}

impl Inner {
    /// A call is carried out at a time when nobody waits for it any more.
    fn late<T>(&mut self, at: At, work: impl FnOnce(&mut Inner) -> T + Send + 'static) {
        self.store.late_until = self.store.late_until.max(at);
        self.at(at, move |inner| drop(work(inner)));
    }

    fn fate(&mut self, host: HostId, what: What) -> Fate {
        if self.is_cut_off(host) {
            // A third of the calls notices at once.
            return if self.rng.u8(0..3) == 0 { Fate::Unavailable } else { Fate::Done };
        }
        if self.chance(self.knobs.unavailable) {
            self.count(Count::StoreUnavailable);
            return Fate::Unavailable;
        }
        if !self.chance(self.knobs.answer_lost) {
            return Fate::Done;
        }
        if what == What::Read {
            self.count(Count::ReadLost);
            return Fate::Never;
        }
        match self.rng.u8(0..3) {
            0 => {
                self.count(Count::AnswerLost);
                Fate::Lost
            }
            1 => {
                self.count(Count::AnswerNever);
                Fate::Never
            }
            _ => {
                self.count(Count::AnswerLate);
                // Some are on their way for longer than a batch lives.
                let most = if self.rng.u8(0..4) == 0 { 20_000 } else { 4000 };
                Fate::Late(self.ms(20, most))
            }
        }
    }
}

#[async_trait]
impl Store for SimStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let name = key.to_owned();
        let entry = self.read(move |inner| inner.store.get(&name)).await?;
        self.doubts().retain(|txn| txn.ops.iter().all(|op| op.key() != key));
        Ok(entry)
    }

    async fn range(&self, prefix: &str, options: RangeOptions) -> Result<Page, StoreError> {
        let prefix = prefix.to_owned();
        self.read(move |inner| inner.store.range(&prefix, &options)).await
    }

    async fn txn(&self, txn: &Txn) -> Result<TxnOutcome, StoreError> {
        self.transactions.fetch_add(1, Ordering::Relaxed);
        if self.doubts().contains(txn) {
            let text = format!(
                "host {} sends a transaction again that it didn't read back: {:?}",
                self.host, txn.compares
            );
            self.world.lock().violated(text);
        }
        let sent = txn;
        let (by, txn) = (Writer::Coordinator(self.host, self.life), txn.clone());
        let done = self.call(true, move |inner| inner.commit(&by, &txn)).await;
        match done {
            Ok(outcome) => outcome,
            Err(Failure::Unavailable) => Err(StoreError::Unavailable("simulated".into())),
            Err(Failure::Lost) => {
                // One that only deletes has nothing that it could be known by.
                if sent.ops.iter().any(|op| matches!(op, Op::Put { .. })) {
                    self.doubts().push(sent.clone());
                }
                Err(StoreError::Unknown("simulated".into()))
            }
        }
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        let (prefix, host, life) = (prefix.to_owned(), self.host, self.life);
        self.read(move |inner| inner.watch(host, life, prefix, after)).await
    }

    async fn session(&self, ttl: Duration) -> Result<Session, StoreError> {
        let sent = tokio::time::Instant::now();
        let id = self.read(move |inner| inner.open_session(ttl)).await?;
        let (sender, lost) = watch::channel(false);
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).push((SessionId(id), sender.clone()));
        let (world, host, life) = (self.world.clone(), self.host, self.life);
        let beat = move |limit: Duration| {
            let world = world.clone();
            async move {
                let kept = call(&world, host, life, What::Read, move |inner| inner.keep_session(id));
                match timeout(limit, kept).await {
                    Ok(Ok(kept)) => Some(kept),
                    Ok(Err(_)) | Err(_) => None,
                }
            }
        };
        self.keepers.spawn(keep_alive(sender, ttl, sent, beat));
        Ok(Session { id: SessionId(id), lost })
    }

    async fn close_session(&self, id: SessionId) -> Result<(), StoreError> {
        {
            let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(at) = sessions.iter().position(|(open, _)| *open == id) {
                sessions.remove(at).1.send_replace(true);
            }
        }
        match self.call(true, move |inner| inner.end_session(id.0)).await {
            Ok(()) => Ok(()),
            Err(Failure::Unavailable) => Err(StoreError::Unavailable("simulated".into())),
            Err(Failure::Lost) => Err(StoreError::Unknown("simulated".into())),
        }
    }

    fn transactions(&self) -> u64 {
        self.transactions.load(Ordering::Relaxed)
    }
}

impl Inner {
    fn open_session(&mut self, ttl: At) -> i64 {
        self.store.next_session += 1;
        let id = self.store.next_session;
        let until = self.now + ttl;
        self.store.sessions.insert(id, super::Alive { ttl, until });
        self.at(until, move |inner| inner.session_over(id));
        id
    }

    /// Whether the session was there to be kept.
    fn keep_session(&mut self, id: i64) -> bool {
        let now = self.now;
        let Some(alive) = self.store.sessions.get_mut(&id) else { return false };
        alive.until = now + alive.ttl;
        true
    }

    fn session_over(&mut self, id: i64) {
        let Some(alive) = self.store.sessions.get(&id).copied() else { return };
        if alive.until > self.now {
            return self.at(alive.until, move |inner| inner.session_over(id));
        }
        self.say(|| format!("session {id} expires"));
        self.count(Count::SessionExpired);
        self.end_session(id);
    }
}
