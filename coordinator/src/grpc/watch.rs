//! WatchBatch: every change of state at once, counters at most ten times a second.
//!
//! A stream is pulled by its connection and holds only the newest view, so a client that doesn't read
//! costs nothing and misses only counters.

use super::meter::Meter;
use crate::error::Error;
use crate::node::View;
use futures::{Stream, stream};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep_until};
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

/// The messages about one batch. `permit` is given back when the stream is dropped.
pub(crate) fn responses(
    updates: watch::Receiver<Arc<View>>,
    shutdown: CancellationToken,
    permit: Option<OwnedSemaphorePermit>,
) -> impl Stream<Item = Result<v1::WatchBatchResponse, Status>> + Send + 'static {
    let watcher = Watcher {
        updates,
        shutdown,
        _permit: permit,
        told: None,
        next: None,
        stage: Meter::default(),
        end: Meter::default(),
        ended: false,
    };
    stream::unfold(watcher, |mut watcher| async {
        let message = watcher.next().await?;
        Some((message.map_err(Status::from), watcher))
    })
}

struct Watcher {
    updates: watch::Receiver<Arc<View>>,
    shutdown: CancellationToken,
    _permit: Option<OwnedSemaphorePermit>,
    told: Option<Told>,
    /// What follows the message that was just told.
    next: Option<Arc<View>>,
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
        let view = match (self.next.take(), &self.told) {
            (Some(view), _) => view,
            (None, None) => self.updates.borrow_and_update().clone(),
            (None, Some(told)) => {
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
        let told = self.told.as_ref().map(|told| told.view.clone());
        let view = match told.and_then(|told| passed_over(&told, &view)) {
            Some(between) => {
                self.next = Some(view);
                Arc::new(between)
            }
            None => view,
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
                () = self.shutdown.cancelled() => return Err(Error::ShuttingDown),
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
fn passed_over(told: &View, view: &View) -> Option<View> {
    let decision = view.decision.as_ref().filter(|_| told.decision.is_none() && view.is_final())?;
    let state = match decision.outcome() {
        Outcome::Commit => State::Committing,
        Outcome::Rollback => State::RollingBack,
        Outcome::Unspecified => return None,
    };
    let mut between = view.clone();
    between.state = v1::StateRecord {
        state: state.into(),
        committed: 0,
        rolled_back: 0,
        residue_removed: 0,
        published: false,
        swept: false,
        update_time_ms: decision.decide_time_ms,
        end_time_ms: 0,
        report_uri: String::new(),
        ..between.state
    };
    Some(between)
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
