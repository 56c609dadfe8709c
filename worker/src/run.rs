//! Runs one lease through its handler.

use crate::handler::{Handler, HandlerError, Staged};
use crate::lease::{StageLease, Work, contains, count};
use crate::metrics::Metrics;
use crate::per_task::panic_text;
use crate::session::{Event, Job, Outcome, Removal};
use futures::FutureExt as _;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug, field, info_span, warn};
use tranche_ops::trace;

/// The handlers of a worker, by name.
pub(crate) type Handlers = BTreeMap<String, Arc<dyn Handler>>;

/// How often the handler is asked to remove a lost attempt. The batch's rollback waits for it here, so it
/// must end; what stays is found by the batch's later sweep.
const REMOVE_TRIES: u32 = 5;
/// The pause after the first try; each is three times as long as the one before. Together: 4 s.
const REMOVE_PAUSE: Duration = Duration::from_millis(100);

/// Calls the handler. A panic is an error of the lease, never its success.
pub(crate) async fn run(
    handlers: Arc<Handlers>,
    metrics: Arc<Metrics>,
    job: Job,
    cancel: CancellationToken,
) -> Event {
    let token = job.token;
    let (phase, batch) = (job.work.phase(), job.work.batch().name.as_str());
    let span = info_span!(
        "lease",
        batch.id = batch,
        phase,
        %token,
        handler = job.handler,
        otel.name = field::Empty,
        otel.kind = field::Empty,
    );
    let attributes = [
        ("messaging.system", "tranche"),
        ("messaging.operation.name", phase),
        ("messaging.operation.type", "process"),
        ("messaging.destination.name", job.handler.as_str()),
    ];
    trace::follow(&span, &format!("{phase} {}", job.handler), "consumer", &attributes, &job.traceparent);
    if let Work::Stage(lease) = &job.work {
        trace::count(&span, "messaging.batch.message_count", count(&lease.runs));
    }
    let call = async {
        let Some(handler) = handlers.get(&job.handler) else {
            return Err(HandlerError::Refused(format!("handler `{}` is not known", job.handler)));
        };
        call(&**handler, &job, &cancel).await
    };
    let begun = tokio::time::Instant::now();
    let outcome = AssertUnwindSafe(call.instrument(span.clone())).catch_unwind().await;
    if !matches!(outcome, Ok(Ok(_))) {
        trace::failed(&span, "lease_failed");
    }
    let _entered = span.entered();
    metrics.ran(&job, begun.elapsed(), outcome.as_ref().ok());
    let outcome = match outcome {
        Ok(Ok(outcome)) => {
            debug!(?outcome, "lease done");
            outcome
        }
        Ok(Err(error)) => {
            if error != HandlerError::Cancelled {
                warn!(%error, "lease failed");
            }
            Outcome::Error(error.to_string())
        }
        Err(panic) => {
            let text = format!("the handler {}", panic_text(&*panic));
            tracing::error!(error = text, "lease failed");
            Outcome::Error(text)
        }
    };
    Event::Finished(token, outcome)
}

/// Removes what a lost attempt staged, in a few tries; `cancel` ends the pauses between them.
pub(crate) async fn remove(handlers: Arc<Handlers>, removal: Removal, cancel: CancellationToken) -> Event {
    let Removal { handler, lease } = removal;
    let token = lease.token;
    let span = info_span!("lost attempt", batch.id = lease.batch.name, %token, handler);
    let work = async {
        let Some(handler) = handlers.get(&handler) else { return };
        let mut pause = REMOVE_PAUSE;
        for tries in 1..=REMOVE_TRIES {
            let error = match AssertUnwindSafe(handler.rollback(&lease)).catch_unwind().await {
                Ok(Ok(_)) => return debug!("a lost attempt is removed"),
                Ok(Err(error)) => error.to_string(),
                Err(panic) => panic_text(&*panic),
            };
            warn!(error, tries, most = REMOVE_TRIES, "a lost attempt could not be removed");
            if tries == REMOVE_TRIES || cancel.run_until_cancelled(tokio::time::sleep(pause)).await.is_none()
            {
                return;
            }
            pause *= 3;
        }
    };
    work.instrument(span).await;
    Event::Removed(token)
}

async fn call(handler: &dyn Handler, job: &Job, cancel: &CancellationToken) -> Result<Outcome, HandlerError> {
    match &job.work {
        Work::Stage(lease) => staged(lease, handler.stage(lease, cancel, &job.progress).await?),
        Work::Commit(lease) => {
            let done = handler.commit(lease).await?;
            if !job.publish {
                return Ok(Outcome::Done(done));
            }
            handler.publish(&lease.batch).await?;
            Ok(Outcome::Published(done))
        }
        Work::Rollback(lease) => Ok(Outcome::Done(handler.rollback(lease).await?)),
        Work::Publish(batch) => handler.publish(batch).await.map(|()| Outcome::Done(0)),
        Work::Sweep(batch) => Ok(Outcome::Swept(handler.sweep(batch).await?)),
    }
}

/// Checks that the failures are tasks of the lease, each once: what is staged is counted from them.
fn staged(lease: &StageLease, staged: Staged) -> Result<Outcome, HandlerError> {
    let mut seen = BTreeSet::new();
    for failure in &staged.failures {
        if !contains(&lease.runs, failure.sequence) || !seen.insert(failure.sequence) {
            let sequence = failure.sequence;
            return Err(HandlerError::Refused(format!(
                "the handler's failure of task {sequence} is not of this lease, or came twice"
            )));
        }
    }
    let done = count(&lease.runs) - staged.failures.len() as u64;
    let mut failures: Vec<_> = staged
        .failures
        .into_iter()
        .map(|failure| {
            let key = lease.tasks.get(failure.sequence).map_or_else(String::new, |task| task.key.to_owned());
            (failure, key)
        })
        .collect();
    failures.sort_by_key(|(failure, _)| failure.sequence);
    Ok(Outcome::Staged { done, failures, receipt: staged.receipt })
}
