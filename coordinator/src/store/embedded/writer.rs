//! The one writer: takes all transactions that wait, carries them out in order, and answers them after
//! one fsync.

use super::file::{StoreFile, disk_full, failure};
use super::history::History;
use super::tables::{Sessions, Tables};
use crate::store::{Revision, SessionId, StoreError, Txn, TxnOutcome, WatchEvent};
use redb::Durability;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{mpsc, oneshot};

/// Requests that wait for the writer. Callers beyond them wait for a place; with 256, a group is large
/// enough that the fsync costs little per transaction.
pub(super) const QUEUE_BOUND: usize = 256;

/// What the writer is asked.
pub(super) enum Work {
    /// A transaction that was checked.
    Txn(Txn),
    /// Ends a session: it can't be put with any more, and its keys go.
    EndSession(SessionId),
}

/// A question with a way back.
pub(super) struct Request {
    pub(super) work: Work,
    pub(super) reply: oneshot::Sender<Result<TxnOutcome, StoreError>>,
}

/// What the writer works with.
#[derive(Clone)]
pub(super) struct Writer {
    pub(super) file: Arc<StoreFile>,
    pub(super) history: Arc<History>,
    pub(super) sessions: Arc<Mutex<Sessions>>,
}

/// What became of a group.
struct Group {
    answers: Vec<Result<TxnOutcome, StoreError>>,
    events: Vec<(Revision, WatchEvent)>,
    revision: Revision,
}

/// A group that failed.
enum Failed {
    /// Before the commit was begun: nothing changed.
    Before(redb::Error),
    /// In the commit, which would have made this revision.
    Commit(redb::Error, Revision),
}

impl From<redb::Error> for Failed {
    fn from(error: redb::Error) -> Self {
        Self::Before(error)
    }
}

impl Writer {
    /// Works until all senders are gone.
    pub(super) async fn run(self, mut requests: mpsc::Receiver<Request>) {
        loop {
            let mut group = Vec::with_capacity(QUEUE_BOUND);
            if requests.recv_many(&mut group, QUEUE_BOUND).await == 0 {
                return;
            }
            let writer = self.clone();
            // The answers are given in there: they go out even if this task is aborted meanwhile. If
            // it panics the replies are dropped, which callers take for a lost answer.
            if let Err(error) = tokio::task::spawn_blocking(move || writer.carry_out(group)).await {
                tracing::error!(%error, "the store's writer failed");
            }
        }
    }

    fn carry_out(&self, mut group: Vec<Request>) {
        // Who gave up waiting doesn't count on it, and may have sent it again.
        group.retain(|request| !request.reply.is_closed());
        match self.write(&group) {
            Ok(done) => {
                // First the events, then the answers: who reads its own write in a watch finds it.
                if !done.events.is_empty() {
                    self.history.publish(done.events, done.revision);
                }
                for (request, answer) in group.into_iter().zip(done.answers) {
                    let _ = request.reply.send(answer);
                }
            }
            Err(error) => {
                for request in group {
                    let _ = request.reply.send(Err(error.clone()));
                }
            }
        }
    }

    fn write(&self, group: &[Request]) -> Result<Group, StoreError> {
        match self.file.with(|database| self.write_group(database, group))? {
            Ok(done) => Ok(done),
            Err(Failed::Before(error)) => Err(self.recover(&error, None)),
            Err(Failed::Commit(error, revision)) => Err(self.recover(&error, Some(revision))),
        }
    }

    fn write_group(&self, database: &redb::Database, group: &[Request]) -> Result<Group, Failed> {
        let mut write = database.begin_write().map_err(redb::Error::from)?;
        write.set_durability(Durability::Immediate).map_err(redb::Error::from)?;
        // After a crash the file opens at once, instead of being walked through.
        write.set_quick_repair(true);
        let mut answers = Vec::with_capacity(group.len());
        let mut tables = Tables::open(&write)?;
        for request in group {
            answers.push(match &request.work {
                Work::Txn(txn) => {
                    let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
                    tables.apply(txn, &sessions)?
                }
                Work::EndSession(id) => {
                    self.forget(*id);
                    tables.end_session(*id)?;
                    Ok(TxnOutcome::Applied(tables.revision))
                }
            });
        }
        let revision = tables.revision;
        let Some(events) = tables.finish()? else {
            write.abort().map_err(redb::Error::from)?;
            return Ok(Group { answers, events: Vec::new(), revision });
        };
        match write.commit() {
            Ok(()) => Ok(Group { answers, events, revision }),
            Err(error) => Err(Failed::Commit(error.into(), revision)),
        }
    }

    /// The session is lost, before its keys go.
    fn forget(&self, id: SessionId) {
        let session = self.sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        if let Some(lost) = session {
            lost.send_replace(true);
        }
    }

    /// After a full disk the file is opened anew, and shows that nothing was changed. After any other
    /// failure it can't be trusted to show what is on the disk: the store stays closed until the
    /// process starts again.
    fn recover(&self, error: &redb::Error, committing: Option<Revision>) -> StoreError {
        if disk_full(error) {
            match self.file.reopen() {
                Ok(found) if committing.is_none_or(|revision| found < revision) => return failure(error),
                Ok(_) => {}
                Err(reopen) => tracing::error!(error = %reopen, "can't open the store after a full disk"),
            }
        }
        tracing::error!(%error, "the store's disk failed: closed until the process is started again");
        self.file.close(&format!("closed after a failed write ({error}); start again"));
        match committing {
            Some(_) => StoreError::Unknown(error.to_string()),
            None => StoreError::Unavailable(error.to_string()),
        }
    }
}
