//! Sessions: a lease of etcd each, kept alive by a task that looks at every answer.

use super::clients::Clients;
use super::error::Failure;
use crate::store::{Session, SessionId};
use etcd_client::{LeaseKeepAliveStream, LeaseKeeper};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

/// Keep-alives in one time to live: two may be lost.
const BEATS: u32 = 3;
/// This part of the time to live is not used: the holder needs time to stop.
const MARGIN: u32 = 10;
/// The shortest pause after a failed keep-alive.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// The sessions that are open.
#[derive(Clone, Debug, Default)]
pub(super) struct Sessions(Arc<Mutex<HashMap<SessionId, Open>>>);

#[derive(Debug)]
struct Open {
    lost: watch::Sender<bool>,
    /// It lives so long, unless it is renewed.
    until: Instant,
    /// Ends the keep-alives.
    closed: CancellationToken,
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, Open>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the session lives until then.
    fn renewed(&self, id: SessionId, until: Instant) {
        if let Some(session) = self.lock().get_mut(&id) {
            session.until = until;
        }
    }

    /// Whether the session is known to live, by the clock.
    pub(super) fn lives(&self, id: SessionId) -> bool {
        self.lock().get(&id).is_some_and(|session| Instant::now() < session.until)
    }

    /// The session is lost from here on, and kept alive no more.
    pub(super) fn close(&self, id: SessionId) {
        let session = self.lock().remove(&id);
        if let Some(session) = session {
            session.lost.send_replace(true);
            session.closed.cancel();
        }
    }
}

/// How long a session may be used whose lease was last asked for then.
fn usable(sent: Instant, ttl: Duration) -> Instant {
    sent + ttl - ttl / MARGIN
}

/// Keeps one lease alive. When it goes, for whatever reason, the session is lost.
pub(super) struct Keeper {
    clients: Clients,
    id: SessionId,
    ttl: Duration,
    lost: watch::Sender<bool>,
    closed: CancellationToken,
    sessions: Sessions,
    stream: Option<(LeaseKeeper, LeaseKeepAliveStream)>,
}

impl Keeper {
    pub(super) fn new(
        clients: Clients,
        id: SessionId,
        ttl: Duration,
        sent: Instant,
        sessions: Sessions,
    ) -> (Self, Session) {
        let (sender, lost) = watch::channel(false);
        let closed = CancellationToken::new();
        let until = usable(sent, ttl);
        sessions.lock().insert(id, Open { lost: sender.clone(), until, closed: closed.clone() });
        (Self { clients, id, ttl, lost: sender, closed, sessions, stream: None }, Session { id, lost })
    }

    /// Runs until the session is closed, lost, or nobody holds it any more; then its lease runs out,
    /// as if the process had died. `sent`: when the lease was asked for.
    pub(super) async fn run(mut self, sent: Instant) {
        let (lost, closed) = (self.lost.clone(), self.closed.clone());
        tokio::select! {
            () = closed.cancelled() => {}
            () = lost.closed() => {}
            () = self.keep(sent) => {}
        }
    }

    /// Returns when the lease may end before it can be renewed.
    async fn keep(&mut self, mut sent: Instant) {
        let every = self.ttl / BEATS;
        let mut next = sent + every;
        loop {
            let until = usable(sent, self.ttl);
            self.sessions.renewed(self.id, until);
            sleep_until(next.min(until)).await;
            let now = Instant::now();
            if now >= until {
                tracing::warn!(session = self.id.0, "session lost: no keep-alive was answered in time");
                return;
            }
            // A stream that is stuck is given up early enough to try another.
            match timeout_at(until.min(now + every), self.beat()).await {
                Ok(Ok(ttl)) => {
                    self.ttl = ttl;
                    sent = now;
                    next = now + every;
                    continue;
                }
                Ok(Err(Failure::NoLease(_))) => {
                    tracing::warn!(session = self.id.0, "session lost: its lease is gone");
                    return;
                }
                Ok(Err(failure)) => tracing::debug!(session = self.id.0, ?failure, "keep-alive failed"),
                Err(_) => tracing::debug!(session = self.id.0, "keep-alive not answered"),
            }
            // A late answer must not be taken for the next one's.
            self.stream = None;
            next = Instant::now() + RETRY_PAUSE;
        }
    }

    /// One keep-alive and its answer: the time to live from when it was sent.
    async fn beat(&mut self) -> Result<Duration, Failure> {
        let Some((keeper, answers)) = &mut self.stream else {
            // Making the stream sends the first one, and sees to its answer.
            self.stream = Some(self.clients.lease().keep_alive(self.id.0).await?);
            return Ok(self.ttl);
        };
        keeper.keep_alive().await?;
        match answers.message().await? {
            Some(answer) if answer.ttl() > 0 => Ok(Duration::from_secs(answer.ttl().unsigned_abs())),
            Some(_) => Err(Failure::NoLease(format!("lease {} not found", self.id.0))),
            None => Err(Failure::Lost("the keep-alive stream was closed".into())),
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.sessions.close(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    #[tokio::test(start_paused = true)]
    async fn a_session_is_known_to_be_over_before_any_task_ran() {
        let (sessions, ttl, id) = (Sessions::default(), Duration::from_secs(10), SessionId(7));
        assert!(!sessions.lives(id), "there is none");
        let (lost, seen) = watch::channel(false);
        let until = usable(Instant::now(), ttl);
        sessions.lock().insert(id, Open { lost, until, closed: CancellationToken::new() });
        advance(Duration::from_secs(8)).await;
        assert!(sessions.lives(id));
        sessions.renewed(id, usable(Instant::now(), ttl));
        advance(Duration::from_secs(8)).await;
        assert!(sessions.lives(id));
        // The process was paused: nobody noticed anything yet.
        advance(Duration::from_secs(1)).await;
        assert!(!sessions.lives(id), "a tenth of its time is not used");
        assert!(!*seen.borrow());
        sessions.close(id);
        assert!(*seen.borrow() && !sessions.lives(id));
    }
}
