//! WatchBatch: every change of state at once, counters at most ten times a second.
//!
//! A stream is pulled by its connection and holds only the newest view, so a client that doesn't read
//! costs nothing and misses only counters. It follows the batch from owner to owner: see [`follow`].

use super::meter::Meter;
use super::peers::passing;
use crate::error::Error;
use crate::node::{Open, View, Watched};
use crate::store::keys::BatchKey;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tranche_proto::v1;
use tranche_proto::v1::batch::State;
use tranche_proto::v1::decision::Outcome;

/// The shortest time between two messages that tell counters alone.
const COUNTERS_EVERY: Duration = Duration::from_millis(100);
/// While a rate is falling it is told this often, although no counter moves.
const REFRESH_EVERY: Duration = Duration::from_secs(1);
/// An ETA beyond this says nothing.
const MAX_ETA_SECONDS: f64 = 10.0 * 365.0 * 86_400.0;

/// Pause before an owner is looked for again, doubled up to the second.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// What one owner tells. Never goes back; ends with the final state or with an error.
pub(crate) type Updates = BoxStream<'static, Result<v1::WatchBatchResponse, Status>>;

/// The messages about one batch, from owner to owner: `first` is what the present one tells, `next` (none: only
/// that one is asked for) finds the one after, whose first message must not be older than what any owner
/// before it told. The client doesn't notice: nothing is told twice, and a decision that fell into the gap is
/// told before the end. `place` is given back when the stream is dropped.
pub(crate) fn follow<F, Fut>(
    first: Updates,
    next: Option<F>,
    shutdown: CancellationToken,
    place: Option<Open>,
) -> Updates
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Updates, Status>> + Send + 'static,
{
    let following = Following { updates: Some(first), again: false, told: None, after: None, ended: false };
    stream::unfold((following, next, shutdown, place), |(mut following, next, shutdown, place)| async move {
        if following.ended {
            return None;
        }
        let message = tokio::select! {
            biased;
            () = shutdown.cancelled() => Err(Error::ShuttingDown.into()),
            message = following.message(next.as_ref()) => message,
        };
        following.ended = match &message {
            Ok(message) => message.batch.as_ref().is_some_and(is_final),
            Err(_) => true,
        };
        Some((message, (following, next, shutdown, place)))
    })
    .boxed()
}

struct Following {
    updates: Option<Updates>,
    /// They have just begun, and are not the first.
    again: bool,
    told: Option<v1::WatchBatchResponse>,
    /// What follows the message that was just told.
    after: Option<v1::WatchBatchResponse>,
    ended: bool,
}

impl Following {
    async fn message<F, Fut>(&mut self, next: Option<&F>) -> Result<v1::WatchBatchResponse, Status>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<Updates, Status>>,
    {
        if let Some(message) = self.after.take() {
            return Ok(message);
        }
        let mut pause = PAUSES.0;
        loop {
            let heard = match (&mut self.updates, next) {
                (Some(updates), _) => updates.next().await,
                (None, Some(next)) => match next().await {
                    Ok(updates) => {
                        self.again = true;
                        self.updates.insert(updates).next().await
                    }
                    Err(status) => Some(Err(status)),
                },
                (None, None) => return Err(Status::unavailable("the owner's updates ended")),
            };
            match heard {
                Some(Ok(message)) => {
                    let again = std::mem::take(&mut self.again);
                    if !(again && self.told.as_ref().is_some_and(|told| same(told, &message))) {
                        return Ok(self.tell(message));
                    }
                }
                Some(Err(status)) if next.is_none() || !passing(&status) => return Err(status),
                Some(Err(_)) | None => {
                    self.updates = None;
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSES.1);
                }
            }
        }
    }

    fn tell(&mut self, message: v1::WatchBatchResponse) -> v1::WatchBatchResponse {
        let told = self.told.replace(message.clone());
        match told.and_then(|told| passed_over(&told, &message)) {
            Some(between) => {
                self.after = Some(message);
                between
            }
            None => message,
        }
    }
}

fn is_final(batch: &v1::Batch) -> bool {
    matches!(batch.state(), State::Committed | State::RolledBack)
}

/// The same, but for rates: they begin anew with each owner.
fn same(told: &v1::WatchBatchResponse, message: &v1::WatchBatchResponse) -> bool {
    told.batch == message.batch && (told.workers, told.leases) == (message.workers, message.leases)
}

/// The messages of the owner that is here, as long as it surely is the owner: see [`responses`].
pub(crate) fn responses_of(batch: BatchKey, watched: Watched) -> Updates {
    let updates = responses(watched.updates);
    let Some(term) = watched.term else { return updates };
    stream::unfold(Some((updates, term, batch)), |state| async {
        let (mut updates, term, batch) = state?;
        let message = tokio::select! {
            biased;
            () = term.over() => None,
            message = updates.next() => Some(message?),
        };
        match message.filter(|_| term.lives()) {
            Some(message) => Some((message, Some((updates, term, batch)))),
            // Another owner may have shown more by now.
            None => Some((Err(Error::NotOwned { batch }.into()), None)),
        }
    })
    .boxed()
}

/// The messages of the owner that is here. Ends with the final state, or with `NotOwned` when the batch has
/// none here any more.
pub(crate) fn responses(updates: watch::Receiver<Arc<View>>) -> Updates {
    let watcher =
        Watcher { updates, told: None, stage: Meter::default(), end: Meter::default(), ended: false };
    stream::unfold(watcher, |mut watcher| async {
        let message = watcher.next().await?;
        Some((message.map_err(Status::from), watcher))
    })
    .boxed()
}

struct Watcher {
    updates: watch::Receiver<Arc<View>>,
    told: Option<Told>,
    stage: Meter,
    /// Of the commit or the rollback: a batch has one of them.
    end: Meter,
    ended: bool,
}

/// What the client knows.
struct Told {
    view: Arc<View>,
    at: Instant,
    /// A rate was above zero.
    moving: bool,
}

impl Watcher {
    async fn next(&mut self) -> Option<Result<v1::WatchBatchResponse, Error>> {
        if self.ended {
            return None;
        }
        let view = match &self.told {
            None => self.updates.borrow_and_update().clone(),
            Some(told) => {
                let (told_view, at, moving) = (told.view.clone(), told.at, told.moving);
                match self.change(&told_view, at, moving).await {
                    Ok(view) => view,
                    Err(error) => {
                        self.ended = true;
                        return Some(Err(error));
                    }
                }
            }
        };
        Some(Ok(self.tell(view)))
    }

    /// Waits for the next view that is worth a message.
    async fn change(&mut self, told: &View, at: Instant, moving: bool) -> Result<Arc<View>, Error> {
        let due = at + COUNTERS_EVERY;
        let mut pending: Option<Arc<View>> = None;
        loop {
            let wait = match &pending {
                Some(_) => Some(due),
                None if moving => Some(at + REFRESH_EVERY),
                None => None,
            };
            tokio::select! {
                biased;
                changed = self.updates.changed() => {
                    if changed.is_err() {
                        // A stream ends with the final view, so the last one isn't: the owner is gone.
                        return pending.ok_or_else(|| Error::NotOwned { batch: told.key.clone() });
                    }
                    let view = self.updates.borrow_and_update().clone();
                    if stage_of(&view) != stage_of(told) || Instant::now() >= due {
                        return Ok(view);
                    }
                    pending = Some(view);
                }
                () = sleep_until(wait.unwrap_or(at)), if wait.is_some() => {
                    return Ok(pending.unwrap_or_else(|| self.updates.borrow().clone()));
                }
            }
        }
    }

    fn tell(&mut self, view: Arc<View>) -> v1::WatchBatchResponse {
        let now = Instant::now();
        let phases = self.phases(&view, now);
        let response = v1::WatchBatchResponse {
            batch: Some(view.to_proto()),
            workers: view.live.workers.cast_signed(),
            leases: view.live.leases.cast_signed(),
            phases,
        };
        self.ended = view.is_final();
        let moving = response.phases.iter().any(|phase| phase.rate > 0.0);
        self.told = Some(Told { view, at: now, moving });
        response
    }

    fn phases(&mut self, view: &View, now: Instant) -> Vec<v1::PhaseProgress> {
        let record = &view.state;
        let state = record.state();
        let staged = record.staged + record.failed;
        let rate = if view.decision.is_none() { self.stage.rate(now, staged) } else { 0.0 };
        let mut phases = vec![progress(v1::Phase::Stage, staged, record.total, rate, record.sealed)];
        let (phase, done, total) = match view.decision.as_ref().map(v1::DecisionRecord::outcome) {
            Some(Outcome::Commit) => (v1::Phase::Commit, record.committed, record.staged),
            // Every task that was ever leased is rolled back, range by range.
            Some(Outcome::Rollback) => (v1::Phase::Rollback, record.rolled_back, view.cutoff.cast_signed()),
            Some(Outcome::Unspecified) | None => return phases,
        };
        let active = matches!(state, State::Committing | State::RollingBack);
        let rate = if active { self.end.rate(now, done) } else { 0.0 };
        phases.push(progress(phase, done, total.max(done), rate, true));
        phases
    }
}

/// What makes a message due at once when it changes.
fn stage_of(view: &View) -> (i32, bool, bool) {
    (view.state.state, view.state.sealed, view.decision.is_some())
}

/// The moment of the decision, when it was followed by the end before this stream looked again. It needs
/// no memory: from the decision to the end nothing changes but what is reset here.
fn passed_over(
    told: &v1::WatchBatchResponse,
    message: &v1::WatchBatchResponse,
) -> Option<v1::WatchBatchResponse> {
    let undecided = told.batch.as_ref().is_some_and(|batch| batch.decision.is_none());
    let batch = message.batch.as_ref().filter(|batch| undecided && is_final(batch))?;
    let decision = batch.decision.as_ref()?;
    let state = match decision.outcome() {
        Outcome::Commit => State::Committing,
        Outcome::Rollback => State::RollingBack,
        Outcome::Unspecified => return None,
    };
    let counters = v1::Counters {
        committed: 0,
        rolled_back: 0,
        residue_removed: 0,
        ..batch.counters.unwrap_or_default()
    };
    let mut phases = message.phases.clone();
    for phase in &mut phases {
        if phase.phase() != v1::Phase::Stage {
            phase.done = 0;
        }
    }
    Some(v1::WatchBatchResponse {
        batch: Some(v1::Batch {
            state: state.into(),
            counters: Some(counters),
            swept: false,
            update_time: decision.decide_time,
            end_time: None,
            report_uri: String::new(),
            ..batch.clone()
        }),
        phases,
        ..message.clone()
    })
}

fn progress(phase: v1::Phase, done: i64, total: i64, rate: f64, known_end: bool) -> v1::PhaseProgress {
    let left = (total - done).max(0) as f64;
    let seconds = (known_end && rate > 0.0).then(|| left / rate).filter(|&seconds| seconds < MAX_ETA_SECONDS);
    v1::PhaseProgress {
        phase: phase.into(),
        done,
        total,
        rate,
        eta: seconds.map(|seconds| prost_types::Duration {
            seconds: seconds as i64,
            nanos: (seconds.fract() * 1e9) as i32,
        }),
    }
}

#[cfg(test)]
mod tests;
