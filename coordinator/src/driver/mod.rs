//! One task an owned batch: it alone drives the batch's engine, and writes the batch's records.
//!
//! One transaction is in flight, the rest gathers in the engine; commands that depend on a write are
//! carried out only when it is durable.

mod act;
mod handle;
pub mod ledger;
pub mod records;
mod report;

pub(crate) use act::{FRAME_BYTES, in_frames, phase_to_proto};
pub use handle::{Handle, INPUT_BOUND, Input, Op};

use crate::error::Error;
use crate::node::{Driven, Live, Shared, Term, View};
use crate::store::keys::{self, BatchKey};
use crate::store::{StoreError, Txn, TxnOutcome, commit};
use act::Deliveries;
use handle::Progress;
use ledger::{Ledger, Loaded};
use report::Early;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tranche_engine::{
    Answer, Batch, Epoch, Event, OpId, Refusal, Segment, Settings, State, StateRecord, Token, WorkerKey,
    Write,
};
use tranche_proto::stored::Stored;
use tranche_proto::v1;

/// Inputs worked in before the next step: with the engine's own bound a step's worth.
const INPUTS_A_STEP: usize = 512;
/// Events that gather in the engine while a write is in flight. Above it senders wait: a store that is away
/// for long must not make this process grow.
const EVENTS_BOUND: usize = 8 * INPUTS_A_STEP;
/// Pause before a write that the store couldn't take is tried again.
const STORE_PAUSE: Duration = Duration::from_millis(500);

/// What became of the write in flight.
enum Written {
    Applied(u64),
    /// Refused, or its answer was lost: the records must be read.
    Doubtful,
    Failed(StoreError),
}

struct InFlight {
    write: Write,
    decision: Option<v1::DecisionRecord>,
    txn: Arc<Txn>,
}

/// Drives one batch.
pub struct Driver {
    shared: Arc<Shared>,
    key: BatchKey,
    handler: String,
    spec: Arc<v1::SpecRecord>,
    batch: Batch,
    ledger: Ledger,
    inputs: mpsc::Receiver<Input>,
    view: watch::Sender<Arc<View>>,
    priority: u32,
    /// Held while a write is in flight.
    writing: Arc<Mutex<()>>,
    wake: Arc<Notify>,
    ops: BTreeMap<OpId, oneshot::Sender<Result<Answer, Refusal>>>,
    next_op: u64,
    deliveries: Deliveries,
    early_report: Option<Early>,
    ended: bool,
    /// The state that was counted last.
    counted: StateRecord,
    progress: Progress,
    /// What it counts for among its namespace's.
    driven: Driven,
}

impl Driver {
    /// Makes the driver of a batch whose lock is held in this term, and its handle.
    pub fn new(shared: Arc<Shared>, key: BatchKey, loaded: Loaded, term: Term) -> (Self, Handle) {
        let spec = records::spec(&loaded.spec);
        let settings = Settings {
            lease_ttl: shared.config.lease_ttl,
            retry_pause: shared.config.retry_pause,
            retry_pause_max: crate::config::MAX_RETRY_PAUSE,
            backup_after: shared.config.backup_after,
            late_sweep_after: shared.config.late_sweep_after,
        };
        let target = loaded.spec.batch.as_ref().and_then(|batch| batch.targets.first());
        let handler = target.map(|target| target.handler.clone()).unwrap_or_default();
        let priority = loaded.spec.batch.as_ref().map_or(1, |batch| batch.priority.max(1).cast_unsigned());
        let now = shared.now();
        let epoch = Epoch(loaded.lock_revision);
        let counted = loaded.records.state.clone();
        let progress = Progress::default();
        progress.made(now.at);
        let driven = shared.bytes.drive(&key.namespace, bytes(loaded.records.segments.values()));
        if let Some(slot) = loaded.spec.slot {
            shared.slots.taken(&key.namespace, slot);
        }
        let batch = Batch::new(spec, epoch, settings, loaded.records, now);
        let (sender, inputs) = mpsc::channel(INPUT_BOUND);
        let view = view_of(&key, &loaded.spec, &batch, &loaded.ledger);
        let (view, seen) = watch::channel(Arc::new(view));
        let writing = Arc::new(Mutex::new(()));
        let handle = Handle::new(sender, seen, writing.clone(), epoch, term, progress.clone());
        let driver = Self {
            shared,
            key,
            handler,
            spec: loaded.spec,
            batch,
            ledger: loaded.ledger,
            inputs,
            view,
            priority,
            writing,
            wake: Arc::new(Notify::new()),
            ops: BTreeMap::new(),
            next_op: 0,
            deliveries: Deliveries::default(),
            early_report: None,
            ended: false,
            counted,
            progress,
            driven,
        };
        (driver, handle)
    }

    /// Drives the batch until it needs no owner any more, until `stop`, or until another owner is there.
    ///
    /// Its handle must be where workers that attach find it: those from before are met here.
    pub async fn run(mut self, stop: CancellationToken) {
        self.meet_workers();
        let result = self.drive(&stop).await;
        self.deliveries.abort().await;
        self.inputs.close();
        if self.ended {
            // What came with the last write in flight: the engine knows what to say of a batch that ended.
            while let Some(input) = self.inputs.recv().await {
                self.take_in(input);
            }
            let step = self.batch.step(self.shared.now());
            self.act(step.commands);
        }
        if let Err(error) = result {
            tracing::warn!(batch.id = %self.key, %error, "driver can't go on");
        }
    }

    /// From here on requests come, and the workers hear whose batch it is. The engine is told who they are,
    /// and that they hold what its records say: what they hold in truth is what they answer.
    fn meet_workers(&mut self) {
        let now = self.shared.now();
        if self.batch.records().cutoff.cutoff == 0 {
            // Nobody can hold anything of it. The engine gets to know who asks for work.
            let (epoch, wake) = (self.batch.epoch(), self.wake.clone());
            let dispatch = &self.shared.dispatch;
            return dispatch.register_unleased(&self.key, epoch, &self.handler, self.priority, wake);
        }
        let mut held: BTreeMap<WorkerKey, Vec<Token>> = BTreeMap::new();
        for lease in self.batch.leases() {
            held.entry(lease.worker).or_default().push(lease.token);
        }
        let (epoch, wake) = (self.batch.epoch(), self.wake.clone());
        let dispatch = &self.shared.dispatch;
        for worker in dispatch.register(&self.key, epoch, &self.handler, self.priority, wake) {
            let held = held.remove(&worker).unwrap_or_default();
            self.batch.push(Event::Attached { worker, held }, now);
        }
    }

    async fn drive(&mut self, stop: &CancellationToken) -> Result<(), Error> {
        type Flight = Pin<Box<dyn Future<Output = Written> + Send>>;
        let mut in_flight: Option<(InFlight, Flight)> = None;
        loop {
            if in_flight.is_none() {
                if stop.is_cancelled() {
                    return Ok(());
                }
                if let Some(write) = self.step() {
                    let prepared = self.prepare(write, stop).await?;
                    let flight = self.send(&prepared);
                    in_flight = Some((prepared, flight));
                    // Whatever comes now gathers.
                    continue;
                }
                if self.ended {
                    return Ok(());
                }
            }
            let now = self.shared.now();
            let wake_at = self.batch.wake_at(now).map(|at| self.shared.origin + at);
            tokio::select! {
                // The write first, then what ends the driver. Whatever else waits is worked in at the next step,
                // which also takes requests and looks at the time: inputs that keep coming hold nothing up.
                biased;
                written = async { in_flight.as_mut().expect("guarded").1.as_mut().await }, if in_flight.is_some() => {
                    let (flight, _) = in_flight.take().expect("it was awaited");
                    if let Some(again) = self.settle(flight, written, stop).await? {
                        let flight = self.send(&again);
                        in_flight = Some((again, flight));
                    }
                }
                // A write in flight is waited for: its outcome belongs to this owner.
                () = stop.cancelled(), if in_flight.is_none() => return Ok(()),
                failed = self.deliveries.failed() => self.batch.push(Event::Report(failed), self.shared.now()),
                input = self.inputs.recv(), if self.batch.waiting_events() < EVENTS_BOUND => {
                    let Some(input) = input else { return Ok(()) };
                    self.take_in(input);
                    for _ in 0..INPUTS_A_STEP {
                        let Ok(input) = self.inputs.try_recv() else { break };
                        self.take_in(input);
                    }
                }
                () = self.wake.notified(), if in_flight.is_none() => {}
                () = tokio::time::sleep_until(wake_at.unwrap_or_else(|| self.shared.origin)),
                    if in_flight.is_none() && wake_at.is_some() => {}
            }
        }
    }

    fn look_who_was_seen(&mut self) {
        let seen = self.shared.dispatch.last_seen(&self.key, self.batch.holders(), self.shared.origin);
        for (worker, at) in seen {
            self.batch.seen(&worker, at);
        }
    }

    /// Lets the engine work, as long as it brings commands without a write.
    fn step(&mut self) -> Option<Write> {
        loop {
            let now = self.shared.now();
            if self.batch.asks_who_was_seen(now) {
                self.look_who_was_seen();
            }
            // So that what came is leased in the write that it makes, not in one after it.
            self.batch.gather(now);
            let appetite = self.batch.appetite(now);
            for worker in self.shared.dispatch.take(&self.key, &self.handler, appetite) {
                self.batch.push(Event::Request { worker }, now);
            }
            let step = self.batch.step(now);
            let idle = step.commands.is_empty();
            self.act(step.commands);
            if step.write.is_some() {
                return step.write;
            }
            // The step itself may have made work that the queue doesn't know of yet: the sweep after the end.
            let hungrier = self.batch.appetite(self.shared.now()) > appetite;
            if self.ended || (idle && !self.batch.has_events() && !hungrier) {
                self.publish();
                return None;
            }
        }
    }

    /// What must be durable before the write: the report of a batch that becomes final.
    async fn prepare(&mut self, write: Write, stop: &CancellationToken) -> Result<InFlight, Error> {
        let decision = write.decision.as_ref().map(|d| records::decision_record(d, &self.shared.id));
        if write.report {
            let known = decision.clone().or_else(|| self.ledger.decision.clone());
            let mut pause = Duration::from_millis(100);
            // The batch can't end without its report; a storage that is full or away for a while only
            // delays it.
            self.ledger.report_uri = loop {
                let written = tokio::select! {
                    biased;
                    // The next owner writes it.
                    () = stop.cancelled() => return Err(Error::ShuttingDown),
                    written = self.write_report(&write, known.as_ref()) => written,
                };
                match written {
                    Ok(uri) => break uri,
                    Err(error) => {
                        tracing::warn!(batch.id = %self.key, %error, "completion report not written yet");
                        tokio::select! {
                            biased;
                            () = stop.cancelled() => return Err(Error::ShuttingDown),
                            () = tokio::time::sleep(pause) => pause = (pause * 2).min(Duration::from_secs(10)),
                        }
                    }
                }
            };
        }
        let txn = Arc::new(self.slotted(self.ledger.transaction(&write, decision.as_ref()), &write));
        Ok(InFlight { write, decision, txn })
    }

    /// The same with what it changes of the batch's slot, which nobody else writes.
    fn slotted(&self, txn: Txn, write: &Write) -> Txn {
        let Some(slot) = self.spec.slot else { return txn };
        let key = keys::slot(&self.key.namespace, slot);
        if write.release {
            txn.delete(key)
        } else if self.shared.bytes.told() && !write.segments.is_empty() {
            let bytes = self.driven.bytes() + bytes(&write.segments);
            let record = v1::SlotRecord { batch: self.key.to_string(), bytes: bytes.cast_signed() };
            txn.put(key, Stored::new(record).encode())
        } else {
            txn
        }
    }

    async fn write_report(
        &mut self,
        write: &Write,
        decision: Option<&v1::DecisionRecord>,
    ) -> Result<String, Error> {
        let report = report::build(&self.key, &self.spec, &write.state, decision, &self.shared.id);
        if let Some(early) = self.early_report.take()
            && let Some(uri) = early.written(&report).await
        {
            return Ok(uri);
        }
        report::write(&self.shared, &self.key, report).await
    }

    /// The batch's last lease but the sweep is given, of a batch that commits: from here on its report can't say
    /// anything else.
    fn begin_report(&mut self) {
        if self.early_report.is_some() {
            return;
        }
        let mut state = self.batch.state().clone();
        state.state = State::Committed;
        state.committed = state.staged;
        state.cutoff = self.batch.records().cutoff.cutoff;
        let decision = self.ledger.decision.as_ref();
        let report = report::build(&self.key, &self.spec, &state, decision, &self.shared.id);
        self.early_report = Some(Early::begin(self.shared.clone(), self.key.clone(), report));
    }

    fn send(&self, flight: &InFlight) -> Pin<Box<dyn Future<Output = Written> + Send>> {
        let (store, txn, writing) = (self.shared.store.clone(), flight.txn.clone(), self.writing.clone());
        Box::pin(async move {
            let _writing = writing.lock().await;
            match commit::commit(&*store, &txn).await {
                Ok(TxnOutcome::Applied(revision)) => Written::Applied(revision),
                Ok(TxnOutcome::Refused) | Err(StoreError::Unknown(_)) => Written::Doubtful,
                Err(error) => Written::Failed(error),
            }
        })
    }

    /// Goes on from what became of the write; gives it back when it must be tried again.
    async fn settle(
        &mut self,
        flight: InFlight,
        written: Written,
        stop: &CancellationToken,
    ) -> Result<Option<InFlight>, Error> {
        match written {
            Written::Applied(revision) => {
                self.ledger.applied(&flight.write, flight.decision, revision);
                for segment in &flight.write.segments {
                    self.shared.metrics.batches.appended(segment.run.len(), segment.bytes);
                }
                self.driven.set(self.driven.bytes() + bytes(&flight.write.segments));
                if let Some(slot) = self.spec.slot.filter(|_| flight.write.release) {
                    self.shared.slots.freed(&self.key.namespace, slot);
                }
                self.count(flight.write.state);
                let commands = self.batch.written(self.shared.now());
                self.publish();
                self.act(commands);
                Ok(None)
            }
            Written::Doubtful => {
                self.reload(stop).await?;
                Ok(None)
            }
            Written::Failed(error) => {
                tracing::warn!(batch.id = %self.key, %error, "write failed, it is tried again");
                tokio::select! {
                    biased;
                    () = stop.cancelled() => Err(Error::ShuttingDown),
                    () = tokio::time::sleep(STORE_PAUSE) => Ok(Some(flight)),
                }
            }
        }
    }

    /// Reads the records again: somebody decided, or another owner is there.
    async fn reload(&mut self, stop: &CancellationToken) -> Result<(), Error> {
        loop {
            match ledger::load(&*self.shared.store, &self.key).await {
                Ok(Some(loaded)) if loaded.lock_revision == self.batch.epoch().0 => {
                    self.ledger = loaded.ledger;
                    // Nobody else writes it: what it is further was a write of ours whose answer was lost.
                    self.count(loaded.records.state.clone());
                    self.driven.set(bytes(loaded.records.segments.values()));
                    self.batch.reload(loaded.records, self.shared.now());
                    self.publish();
                    return Ok(());
                }
                Ok(_) => return Err(Error::NotOwned { batch: self.key.clone() }),
                // Also one that isn't retryable, like a permission that was taken away: the lock is held,
                // so nobody else would go on with the batch.
                Err(Error::Store(error)) => {
                    tracing::warn!(batch.id = %self.key, %error, "records can't be read, tried again");
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => return Err(Error::ShuttingDown),
                        () = tokio::time::sleep(STORE_PAUSE) => {}
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The batch's state is this in the store.
    fn count(&mut self, state: StateRecord) {
        let metrics = &self.shared.metrics.batches;
        if metrics.written(&self.counted, &state, self.ledger.decision.as_ref()) {
            self.progress.made(self.shared.origin.elapsed());
        }
        self.counted = state;
    }

    fn take_in(&mut self, input: Input) {
        let now = self.shared.now();
        match input {
            Input::Event { event, at } => {
                let now = at.unwrap_or(now);
                if let Event::Decided(decision) = &event
                    && self.ledger.decision.is_none()
                {
                    self.ledger.decision = Some(records::decision_record(decision, &self.shared.id));
                }
                self.batch.push(event, now);
            }
            Input::Op { op, reply } => {
                self.next_op += 1;
                let id = OpId(self.next_op);
                self.ops.insert(id, reply);
                let event = match op {
                    Op::Append(segment) => Event::Appended { op: id, segment },
                    Op::Seal(total) => Event::Seal { op: id, total },
                    Op::RetryFailed => Event::RetryFailed { op: id },
                };
                self.batch.push(event, now);
            }
            Input::Leases(reply) => {
                self.look_who_was_seen();
                // Whoever asked may be gone; nothing is lost with the answer.
                let _ = reply.send(self.batch.leases().collect());
            }
        }
    }

    fn publish(&self) {
        let view = view_of(&self.key, &self.spec, &self.batch, &self.ledger);
        self.view.send_if_modified(|current| {
            let changed = current.state != view.state
                || current.decision != view.decision
                || current.live != view.live
                || current.cutoff != view.cutoff;
            if changed {
                *current = Arc::new(view);
            }
            changed
        });
    }
}

impl Drop for Driver {
    /// However it ends: also cut off with a write in flight. Reports that are lost with it are sent again to the
    /// batch's next owner, when it says that it is.
    fn drop(&mut self) {
        tracing::debug!(batch.id = %self.key, ended = self.ended, "driver stopped");
        self.shared.dispatch.unregister(&self.key, &self.handler, &self.wake);
    }
}

fn bytes<'a>(segments: impl IntoIterator<Item = &'a Segment>) -> u64 {
    segments.into_iter().map(|segment| segment.bytes).sum()
}

fn view_of(key: &BatchKey, spec: &Arc<v1::SpecRecord>, batch: &Batch, ledger: &Ledger) -> View {
    let (leases, workers) = batch.out();
    View {
        key: key.clone(),
        spec: spec.clone(),
        state: records::state_record(batch.state(), &ledger.report_uri),
        decision: ledger.decision.clone(),
        cutoff: batch.records().cutoff.cutoff.max(batch.state().cutoff),
        live: Live {
            leases: u32::try_from(leases).unwrap_or(u32::MAX),
            workers: u32::try_from(workers).unwrap_or(u32::MAX),
            message: batch.message().to_owned(),
        },
    }
}
