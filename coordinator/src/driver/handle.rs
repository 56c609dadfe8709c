//! How everybody else speaks to a batch's driver.

use crate::error::Error;
use crate::node::{Term, View};
use crate::store::keys::BatchKey;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc, oneshot, watch};
use tranche_engine::{Answer, Epoch, Event, LeaseView, Now, Refusal, Segment};
use tranche_proto::v1::batch::State;

/// Inputs that wait for the driver. A sender waits when it is full: workers' reports and clients' calls are
/// slowed to what the store takes.
pub const INPUT_BOUND: usize = 1024;

/// What a driver is told.
pub enum Input {
    /// Something happened.
    Event {
        /// What.
        event: Event,
        /// When, if another time than that of its arrival matters.
        at: Option<Now>,
    },
    /// A client's call.
    Op {
        /// What.
        op: Op,
        /// Whom to answer.
        reply: oneshot::Sender<Result<Answer, Refusal>>,
    },
    /// Which leases are out?
    Leases(oneshot::Sender<Vec<LeaseView>>),
}

/// A client's call.
pub enum Op {
    /// A segment is durable.
    Append(Segment),
    /// No more tasks come.
    Seal(Option<u64>),
    /// Lease the failed tasks again.
    RetryFailed,
}

/// A handle on an owned batch.
#[derive(Clone)]
pub struct Handle {
    inputs: mpsc::Sender<Input>,
    view: watch::Receiver<Arc<View>>,
    writing: Arc<Mutex<()>>,
    epoch: Epoch,
    term: Term,
    progress: Progress,
}

/// When a batch last came further, in milliseconds of the coordinator's clock.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress(Arc<AtomicU64>);

impl Progress {
    pub(super) fn made(&self, at: Duration) {
        self.0.store(u64::try_from(at.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl Handle {
    pub(super) fn new(
        inputs: mpsc::Sender<Input>,
        view: watch::Receiver<Arc<View>>,
        writing: Arc<Mutex<()>>,
        epoch: Epoch,
        term: Term,
        progress: Progress,
    ) -> Self {
        Self { inputs, view, writing, epoch, term, progress }
    }

    /// Of which ownership.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The batch as it is now, and its changes.
    pub fn view(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }

    /// Keeps the driver from writing, once the write in flight is done, until this is dropped: for a client's
    /// decision, which every grant of a busy owner would get ahead of otherwise.
    pub async fn pause(&self) -> OwnedMutexGuard<()> {
        self.writing.clone().lock_owned().await
    }

    /// Whether its driver takes nothing any more, or its session is over: somebody else may own the batch then,
    /// whatever the driver still does and knows.
    pub fn ended(&self) -> bool {
        self.inputs.is_closed() || !self.term.lives()
    }

    /// How long the batch has made no progress: not further than the time of this ownership.
    pub fn stalled(&self, now: Duration) -> Duration {
        now.saturating_sub(Duration::from_millis(self.progress.0.load(Ordering::Relaxed)))
    }

    /// The session that the batch is owned in.
    pub fn term(&self) -> &Term {
        &self.term
    }

    /// Whether both lead to the same driver.
    pub fn same(&self, other: &Self) -> bool {
        self.inputs.same_channel(&other.inputs)
    }

    /// Tells the driver of an event. `false`: it isn't there any more.
    pub async fn event(&self, event: Event) -> bool {
        self.send(event, None).await
    }

    /// Tells the driver of an event that happened at this time, however long the driver takes to hear of it.
    pub async fn event_at(&self, event: Event, at: Now) -> bool {
        self.send(event, Some(at)).await
    }

    /// The same if the driver has room now; gives the event back if it hasn't. One that isn't there any more takes
    /// it, and nothing comes of it.
    pub(crate) fn try_send(&self, event: Event, at: Option<Now>) -> Option<Event> {
        match self.inputs.try_send(Input::Event { event, at }) {
            Err(TrySendError::Full(Input::Event { event, .. })) => Some(event),
            Ok(()) | Err(TrySendError::Full(_) | TrySendError::Closed(_)) => None,
        }
    }

    pub(crate) async fn send(&self, event: Event, at: Option<Now>) -> bool {
        self.inputs.send(Input::Event { event, at }).await.is_ok()
    }

    /// Sends a call, in order with everything sent before, and gives what will be its answer.
    pub async fn begin(&self, key: &BatchKey, op: Op) -> Result<Pending, Error> {
        let (reply, answer) = oneshot::channel();
        let gone = || Error::NotOwned { batch: key.clone() };
        self.inputs.send(Input::Op { op, reply }).await.map_err(|_| gone())?;
        Ok(Pending { answer, key: key.clone(), view: self.view.clone() })
    }

    /// Makes a call.
    pub async fn call(&self, key: &BatchKey, op: Op) -> Result<Answer, Error> {
        self.begin(key, op).await?.answer().await
    }

    /// The leases that are out.
    pub async fn leases(&self) -> Vec<LeaseView> {
        let (reply, answer) = oneshot::channel();
        if self.inputs.send(Input::Leases(reply)).await.is_err() {
            return Vec::new();
        }
        answer.await.unwrap_or_default()
    }
}

/// A call that was sent.
pub struct Pending {
    answer: oneshot::Receiver<Result<Answer, Refusal>>,
    key: BatchKey,
    view: watch::Receiver<Arc<View>>,
}

impl Pending {
    /// Waits for the answer: what the call did is durable then.
    pub async fn answer(self) -> Result<Answer, Error> {
        let batch = self.key;
        let Ok(answer) = self.answer.await else { return Err(Error::NotOwned { batch }) };
        answer.map_err(|refusal| match refusal {
            // A stream's own segments follow each other: another stream's came in between.
            Refusal::Gap(expected) => Error::Overtaken { batch, durable: expected - 1 },
            Refusal::Sealed(total) => Error::Sealed { batch, total },
            Refusal::TotalMismatch(durable) => Error::TotalMismatch { batch, said: 0, durable },
            Refusal::Decided => {
                let state = self.view.borrow().state.state();
                let state = if state == State::Importing { State::RollingBack } else { state };
                Error::WrongState { batch, state, wanted: "the call needs a batch that isn't decided yet" }
            }
        })
    }
}
