//! The embedded store: one file, one process, no server.
//!
//! ```text
//! txn ──► queue ──► writer: group of transactions, one fsync ──► answers
//!                                    └──► history ──► watches
//! get, range ──► a snapshot of the file
//! ```
//! The file is locked: a second process is refused. So sessions need no time to live as long as the
//! process lives, and all keys of earlier sessions are deleted when the file is opened.

mod file;
mod history;
mod tables;
mod writer;

use super::check::check;
use super::{
    Entry, Page, RangeOptions, Revision, Session, SessionId, Store, StoreError, Txn, TxnOutcome, WATCH_BOUND,
    Watch,
};
use async_trait::async_trait;
use file::StoreFile;
use history::History;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tables::Sessions;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use writer::{QUEUE_BOUND, Request, Work, Writer};

/// The time limit of every call: a disk that takes longer for one fsync is broken.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The pause before a dropped session is ended again after a failure.
const END_PAUSE: Duration = Duration::from_secs(1);

/// A store in a directory of this machine. Dropping it ends its watches and sessions and releases
/// the directory.
#[derive(Debug)]
pub struct Embedded {
    file: Arc<StoreFile>,
    history: Arc<History>,
    sessions: Arc<Mutex<Sessions>>,
    last_session: AtomicI64,
    transactions: AtomicU64,
    requests: mpsc::Sender<Request>,
    /// The writer, the watches and the sessions; aborted when the store is dropped.
    tasks: Mutex<JoinSet<()>>,
}

impl Embedded {
    /// Opens the store in this directory, made if missing. Must be called in a tokio runtime, which
    /// the store then lives in.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when another process has it or the disk fails (the text names the
    /// directory), [`StoreError::Rejected`] when it was written by another layout, [`StoreError::Full`] when
    /// the disk is full.
    pub async fn open(dir: impl Into<PathBuf>) -> Result<Arc<Self>, StoreError> {
        let dir = dir.into();
        let (file, revision) = tokio::task::spawn_blocking(move || StoreFile::open(&dir))
            .await
            .map_err(|error| StoreError::Unavailable(format!("opening the store failed: {error}")))??;
        let file = Arc::new(file);
        let history = Arc::new(History::new(revision));
        let sessions = Arc::new(Mutex::new(Sessions::new()));
        let (requests, queue) = mpsc::channel(QUEUE_BOUND);
        let writer = Writer {
            file: Arc::clone(&file),
            history: Arc::clone(&history),
            sessions: Arc::clone(&sessions),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(writer.run(queue));
        Ok(Arc::new(Self {
            file,
            history,
            sessions,
            last_session: AtomicI64::new(0),
            transactions: AtomicU64::new(0),
            requests,
            tasks: Mutex::new(tasks),
        }))
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&StoreFile) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let file = Arc::clone(&self.file);
        match timeout(CALL_TIMEOUT, tokio::task::spawn_blocking(move || read(&file))).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => Err(StoreError::Unavailable(format!("reading failed: {error}"))),
            Err(_) => Err(StoreError::Unavailable(format!("no answer from the disk in {CALL_TIMEOUT:?}"))),
        }
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }
}

async fn ask(requests: &mpsc::Sender<Request>, work: Work) -> Result<TxnOutcome, StoreError> {
    let deadline = Instant::now() + CALL_TIMEOUT;
    let (reply, answer) = oneshot::channel();
    let place = match timeout_at(deadline, requests.reserve()).await {
        Ok(Ok(place)) => place,
        Ok(Err(_)) => return Err(StoreError::Unavailable("the store is closed".into())),
        Err(_) => return Err(StoreError::Unavailable(format!("the disk is busy for {CALL_TIMEOUT:?}"))),
    };
    place.send(Request { work, reply });
    match timeout_at(deadline, answer).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => Err(StoreError::Unknown("the store was closed".into())),
        Err(_) => Err(StoreError::Unknown(format!("no answer from the disk in {CALL_TIMEOUT:?}"))),
    }
}

/// Ends a session when nobody holds it any more, after its time to live: as if a process had died.
async fn end_when_dropped(
    id: SessionId,
    lost: watch::Sender<bool>,
    ttl: Duration,
    requests: mpsc::WeakSender<Request>,
) {
    lost.closed().await;
    if *lost.borrow() {
        return;
    }
    sleep(ttl).await;
    while let Some(requests) = requests.upgrade() {
        match ask(&requests, Work::EndSession(id)).await {
            Ok(_) => return,
            Err(error) => tracing::warn!(session = id.0, %error, "can't end a session yet"),
        }
        drop(requests);
        sleep(END_PAUSE).await;
    }
}

#[async_trait]
impl Store for Embedded {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let key = key.to_owned();
        self.read(move |file| file.get(&key)).await
    }

    async fn range(&self, prefix: &str, options: RangeOptions) -> Result<Page, StoreError> {
        let prefix = prefix.to_owned();
        self.read(move |file| file.range(&prefix, &options)).await
    }

    async fn txn(&self, txn: &Txn) -> Result<TxnOutcome, StoreError> {
        check(txn)?;
        let outcome = ask(&self.requests, Work::Txn(txn.clone())).await?;
        self.transactions.fetch_add(1, Ordering::Relaxed);
        Ok(outcome)
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        let (to, watch) = mpsc::channel(WATCH_BOUND);
        self.spawn(Arc::clone(&self.history).feed(prefix.to_owned(), after, to));
        Ok(watch)
    }

    async fn session(&self, ttl: Duration) -> Result<Session, StoreError> {
        let id = SessionId(self.last_session.fetch_add(1, Ordering::Relaxed) + 1);
        let (sender, lost) = watch::channel(false);
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).insert(id, sender.clone());
        self.spawn(end_when_dropped(id, sender, ttl, self.requests.downgrade()));
        Ok(Session { id, lost })
    }

    async fn close_session(&self, id: SessionId) -> Result<(), StoreError> {
        ask(&self.requests, Work::EndSession(id)).await.map(drop)
    }

    fn transactions(&self) -> u64 {
        self.transactions.load(Ordering::Relaxed)
    }
}

impl Drop for Embedded {
    /// Waits for the group that is being written, if any: then the directory can be opened again.
    fn drop(&mut self) {
        for (_, lost) in self.sessions.lock().unwrap_or_else(PoisonError::into_inner).drain() {
            lost.send_replace(true);
        }
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
        self.file.close("the store is closed");
    }
}
