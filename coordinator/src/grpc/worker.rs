//! `WorkerService.Attach`: turns a worker's frames into events, and its reports into durable ones.
//!
//! The loop that reads a stream never waits for a batch's driver: a store that is slow must not make a
//! living worker look dead.

use crate::dispatch::{Hello, OUTBOUND_BOUND, Place, SessionId};
use crate::driver::records::token_from;
use crate::error::Error;
use crate::grpc::validate;
use crate::identity::{Identity, Scope};
use crate::node::{Node, Shared};
use crate::store::keys::BatchKey;
use futures::{Stream, TryStreamExt as _};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};
use tranche_engine::{Epoch, Event, Now, Phase, Report, ReportError, Runs, Token, WorkerKey};
use tranche_proto::v1::attach_request::Frame;
use tranche_proto::v1::worker_service_server::WorkerService;
use tranche_proto::{MAX_FAILURE_MESSAGE_BYTES, MAX_KEY_BYTES, MAX_RECEIPT_BYTES, PROTOCOL_VERSION, v1};

/// How long the first frame may take.
const HELLO_WAIT: Duration = Duration::from_secs(10);
/// The longest worker id, and incarnation.
const MAX_WORKER_ID: usize = 128;

/// Frames of one worker on their way to batches' drivers. Its leases are bounded by its credit, and each makes
/// few; one that brings more than this, while the store is away for long, is cut off, attaches again later and
/// brings again what wasn't acknowledged.
const WORK_BOUND: usize = 2 * 4096;

/// Why a lease of no batch is taken from its worker.
const UNKNOWN: &str = "the batch isn't known";

/// The service.
pub struct Workers {
    node: Arc<Node>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

impl Workers {
    /// The service on this node; its streams end once `shutdown` is cancelled, their tasks are in `tasks`.
    pub fn new(node: Arc<Node>, shutdown: CancellationToken, tasks: TaskTracker) -> Self {
        Self { node, shutdown, tasks }
    }
}

/// Whose stream it is.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// Where it comes from.
    pub peer: String,
    /// Who, if callers are asked.
    pub identity: Option<Arc<Identity>>,
}

impl From<String> for Origin {
    fn from(peer: String) -> Self {
        Self { peer, identity: None }
    }
}

impl Origin {
    /// Whose stream it is among the others.
    fn principal(&self) -> String {
        format!("identities/{}", self.identity.as_ref().map_or("anybody", |identity| &identity.name))
    }

    /// The id of this caller's worker in all that is kept. Two identities have no worker in common: neither gets, nor
    /// reports, nor ends what was leased to the other's. (No name of an identity has a `/`.)
    fn worker_id(&self, worker: String) -> String {
        match &self.identity {
            Some(identity) => format!("{}/{worker}", identity.name),
            None => worker,
        }
    }

    /// Whose batches it works for: all, if nobody is asked.
    fn scope(&self) -> Scope {
        self.identity.as_ref().map_or(Scope::All, |identity| identity.scope.clone())
    }
}

#[tonic::async_trait]
impl WorkerService for Workers {
    type AttachStream = ReceiverStream<Result<v1::AttachResponse, Status>>;

    async fn attach(
        &self,
        request: Request<Streaming<v1::AttachRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let origin = Origin {
            peer: request.remote_addr().map(|peer| peer.to_string()).unwrap_or_default(),
            identity: request.extensions().get().cloned(),
        };
        let place = self.node.shared().workers.enter()?;
        place.belongs(origin.principal())?;
        let frames = request.into_inner();
        let (out, stream) = mpsc::channel(OUTBOUND_BOUND);
        let (node, shutdown) = (self.node.clone(), self.shutdown.clone());
        self.tasks.spawn(async move {
            let _place = place;
            if let Err(status) = serve(node, frames, origin, &out, shutdown).await {
                // The worker may be gone, or not be reading: then there is nobody to tell.
                let _ = out.try_send(Err(status));
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Serves one worker's stream, however its frames travel, until it ends or `shutdown`.
///
/// # Errors
/// What the worker is to be told as the end of its stream.
pub async fn serve(
    node: Arc<Node>,
    mut frames: impl Stream<Item = Result<v1::AttachRequest, Status>> + Send + Unpin,
    origin: impl Into<Origin>,
    out: &crate::dispatch::Outbound,
    shutdown: CancellationToken,
) -> Result<(), Status> {
    if node.shared().stop.is_cancelled() {
        return Err(Error::ShuttingDown.into());
    }
    let first = tokio::time::timeout(HELLO_WAIT, frames.try_next())
        .await
        .map_err(|_| Status::deadline_exceeded("no hello came"))??;
    let Some(Frame::Hello(hello)) = first.and_then(|request| request.frame) else {
        return Err(invalid("frame", "the first frame must be hello"));
    };
    let hello = checked(hello, origin)?;
    let worker = hello.worker.clone();
    let config = &node.shared().config;
    let welcome = v1::Welcome {
        coordinator: node.shared().id.clone(),
        protocol_version: PROTOCOL_VERSION,
        lease_ttl: config.lease_ttl.try_into().ok(),
        heartbeat_interval: config.heartbeat().try_into().ok(),
        idle_heartbeat_interval: config.idle_heartbeat().try_into().ok(),
    };
    let (held, slots, scope) = (hello.held.clone(), hello.slots, hello.scope.clone());
    let Place { id, since, end } = node.shared().dispatch.attach(hello, welcome, out.clone());
    tracing::info!(worker.id = %worker.id, slots, held = held.len(), namespace = %scope, "worker attached");
    let mut session = Attached::new(node.clone(), worker.clone(), scope, id);
    session.announce(held, since);
    let silence = config.silence();
    let mut heard = Instant::now();
    // Made once, not for each frame: each of them is an entry in a list that all streams share.
    let ended = end.cancelled();
    let left = shutdown.cancelled();
    let silent = tokio::time::sleep_until(heard + silence);
    let unread = out.closed();
    tokio::pin!(ended, left, silent, unread);
    let result = loop {
        tokio::select! {
            // In this order: frames that keep coming hold nothing up, and a frame comes before the silence,
            // since after a pause of our own both are there.
            biased;
            () = &mut ended => break Err(Status::aborted("this stream was replaced, or not read")),
            () = &mut left => break Err(Status::from(Error::ShuttingDown)),
            // Its answers have no reader any more, however lively it is: what it would be given is lost.
            () = &mut unread => break Ok(()),
            Some(_) = session.work.join_next(), if !session.work.is_empty() => {}
            frame = frames.try_next() => match frame {
                Ok(Some(request)) => {
                    heard = Instant::now();
                    if let Err(status) = session.frame(request.frame) { break Err(status); }
                }
                Ok(None) => break Ok(()),
                Err(status) => { tracing::debug!(worker.id = %worker.id, %status, "stream broke"); break Ok(()) }
            },
            () = &mut silent => {
                // It isn't moved on with each frame, but once when it passes.
                if heard + silence > Instant::now() {
                    silent.as_mut().reset(heard + silence);
                    continue;
                }
                tracing::info!(worker.id = %worker.id, ?silence, "worker is silent, its stream is ended");
                break Err(Status::aborted(format!("nothing was heard for {silence:?}")));
            }
        }
    };
    node.shared().dispatch.detach(id);
    tracing::info!(worker.id = %worker.id, "worker detached");
    // What it reported before is carried through; the worker sends again what isn't acknowledged.
    while session.work.join_next().await.is_some() {}
    result
}

fn checked(hello: v1::Hello, origin: impl Into<Origin>) -> Result<Hello, Status> {
    let origin = origin.into();
    let bad = |field: &str, text: &str| Err(invalid(&format!("hello.{field}"), text));
    if hello.worker.is_empty() || hello.worker.len() > MAX_WORKER_ID {
        return bad("worker", "must have 1 to 128 characters");
    }
    if hello.incarnation.is_empty() || hello.incarnation.len() > MAX_WORKER_ID {
        return bad("incarnation", "must have 1 to 128 characters");
    }
    if hello.handlers.is_empty() {
        return bad("handlers", "must name at least one");
    }
    if let Some(wrong) = hello.handlers.iter().find(|handler| !validate::is_handler_name(handler)) {
        return bad("handlers", &format!("{wrong:?} must be 1 to 63 of a-z, 0-9, - and _"));
    }
    if !hello.protocol_versions.contains(&PROTOCOL_VERSION) {
        let text = format!("must contain {PROTOCOL_VERSION}, has {:?}", hello.protocol_versions);
        return bad("protocol_versions", &text);
    }
    let mut held = Vec::with_capacity(hello.held.len());
    for lease in &hello.held {
        let (Some(batch), Some(token)) = (BatchKey::parse(&lease.batch), lease.token.as_ref()) else {
            return bad("held", "each must name a batch and a token");
        };
        held.push((batch, token_from(token)));
    }
    Ok(Hello {
        worker: WorkerKey::new(origin.worker_id(hello.worker), hello.incarnation),
        scope: origin.scope(),
        handlers: hello.handlers,
        slots: hello.slots,
        labels: hello.labels,
        held,
        version: hello.version,
        peer: origin.peer,
    })
}

/// An attached worker's stream.
struct Attached {
    node: Arc<Node>,
    worker: WorkerKey,
    /// Whose batches it works for. Another namespace's aren't there.
    scope: Scope,
    id: SessionId,
    /// Frames on their way to batches' drivers.
    work: JoinSet<()>,
    /// Batches whose drivers took in so much that they weren't told of the worker at once. Cancelled when they
    /// are: what the worker says of a batch comes after its being there.
    unannounced: BTreeMap<BatchKey, CancellationToken>,
}

impl Attached {
    fn new(node: Arc<Node>, worker: WorkerKey, scope: Scope, id: SessionId) -> Self {
        Self { node, worker, scope, id, work: JoinSet::new(), unannounced: BTreeMap::new() }
    }

    /// Tells every batch of its namespace owned here which leases of it the worker holds. Those of another coordinator's
    /// batches are its own; only what is of no batch any more is taken from it. A driver that is busy is waited
    /// for by what the worker says of its batch, and by nothing else.
    fn announce(&mut self, held: Vec<(BatchKey, Token)>, since: Now) {
        let mut by_batch: BTreeMap<BatchKey, Vec<Token>> = BTreeMap::new();
        for (batch, token) in held {
            if self.scope.sees(&batch.namespace) {
                by_batch.entry(batch).or_default().push(token);
            } else {
                // From when its credential was another namespace's; or it made that up.
                self.node.shared().dispatch.revoke(&self.worker, &batch, token, UNKNOWN);
            }
        }
        let mut handles = self.node.shared().handles();
        handles.retain(|(key, _)| self.scope.sees(&key.namespace));
        for (key, handle) in handles {
            let held = by_batch.remove(&key).unwrap_or_default();
            let event = Event::Attached { worker: self.worker.clone(), held };
            if let Some(event) = handle.try_send(event, Some(since)) {
                let told = CancellationToken::new();
                // Also when the stream ends before, and this is cut off with the process.
                let guard = told.clone().drop_guard();
                self.unannounced.insert(key, told);
                self.work.spawn(async move {
                    let _guard = guard;
                    handle.send(event, Some(since)).await;
                });
            }
        }
        if by_batch.is_empty() {
            return;
        }
        let (node, worker) = (self.node.clone(), self.worker.clone());
        self.work.spawn(async move {
            let shared = node.shared();
            for (batch, tokens) in by_batch {
                if over(shared, &batch).await {
                    for token in tokens {
                        shared.dispatch.revoke(&worker, &batch, token, UNKNOWN);
                    }
                }
            }
        });
    }

    fn frame(&mut self, frame: Option<Frame>) -> Result<(), Status> {
        let dispatch = &self.node.shared().dispatch;
        // This one says by itself that the worker is alive: most frames are heartbeats.
        if let Some(Frame::Heartbeat(heartbeat)) = frame {
            dispatch.heartbeat(self.id, heartbeat.number);
            return Ok(());
        }
        match &frame {
            Some(Frame::Report(v1::Report { token: Some(token), .. })) => {
                dispatch.reported(self.id, token_from(token));
            }
            _ => dispatch.seen(self.id),
        }
        match frame {
            Some(Frame::Credit(credit)) => {
                let leases = u32::try_from(credit.leases).unwrap_or(0);
                dispatch.credit(self.id, leases, u64::try_from(credit.bytes).unwrap_or(0));
            }
            Some(Frame::Heartbeat(_)) => unreachable!("answered above"),
            Some(Frame::Report(report)) => {
                let (batch, token) = batch_and_token(&report.batch, report.token.as_ref())?;
                if !self.scope.sees(&batch.namespace) {
                    let unknown = answer(&report, v1::report_ack::Result::UnknownBatch, "");
                    dispatch.ack(&self.worker, unknown);
                    return Ok(());
                }
                let event = match decoded(&self.worker, token, &report) {
                    Ok(event) => event,
                    Err(message) => {
                        dispatch
                            .ack(&self.worker, answer(&report, v1::report_ack::Result::Invalid, &message));
                        // The stream ends: the lease is out for as long as its worker is heard, and on a new
                        // one it no longer says that it holds it.
                        return Err(invalid("report", &message));
                    }
                };
                self.report(batch, event, report)?;
            }
            Some(Frame::Release(release)) => {
                let (batch, token) = batch_and_token(&release.batch, release.token.as_ref())?;
                dispatch.freed(&self.worker, token);
                self.tell(batch, Event::Release { worker: self.worker.clone(), token }, None)?;
            }
            Some(Frame::PhaseAck(ack)) => {
                let batch = batch_of(&ack.batch)?;
                self.tell(batch, Event::PhaseAck { worker: self.worker.clone() }, None)?;
            }
            Some(Frame::Holding(holding)) => {
                let batch = batch_of(&holding.batch)?;
                let held: Vec<Token> = holding.tokens.iter().map(token_from).collect();
                let epoch = Epoch(holding.epoch);
                if let Some(asked) = dispatch.holding(self.id, &batch, epoch, &held) {
                    let event = Event::Attached { worker: self.worker.clone(), held };
                    self.tell(batch, event, Some(asked))?;
                }
            }
            Some(Frame::Hello(_)) => return Err(invalid("hello", "came twice")),
            // A newer peer's frame: to pass over it could mean anything.
            None => return Err(Status::unimplemented("unknown frame")),
        }
        Ok(())
    }

    /// What is waited for before anything of a batch goes to its driver.
    fn announced(&mut self, batch: &BatchKey) -> Option<CancellationToken> {
        if self.unannounced.is_empty() {
            return None;
        }
        self.unannounced.retain(|_, told| !told.is_cancelled());
        self.unannounced.get(batch).cloned()
    }

    /// Tells a batch's driver, now if it has room, and when it has.
    fn tell(&mut self, batch: BatchKey, mut event: Event, at: Option<Now>) -> Result<(), Status> {
        if !self.scope.sees(&batch.namespace) {
            return Ok(());
        }
        let Some(handle) = self.node.shared().handle(&batch) else { return Ok(()) };
        let announced = self.announced(&batch);
        if announced.is_none() {
            let Some(full) = handle.try_send(event, at) else { return Ok(()) };
            event = full;
        }
        self.begin(async move {
            if let Some(announced) = announced {
                announced.cancelled().await;
            }
            handle.send(event, at).await;
        })
    }

    /// Brings a report to its batch: most need nothing but the driver's having room.
    fn report(&mut self, batch: BatchKey, mut event: Report, report: v1::Report) -> Result<(), Status> {
        let announced = self.announced(&batch);
        if announced.is_none()
            && report.failures.is_empty()
            && let Some(handle) = self.node.shared().handle(&batch)
        {
            match handle.try_send(Event::Report(event), None) {
                Some(Event::Report(full)) => event = full,
                _ => return Ok(()),
            }
        }
        let (node, worker) = (self.node.clone(), self.worker.clone());
        self.begin(async move {
            if let Some(announced) = announced {
                announced.cancelled().await;
            }
            settle(&node, worker, batch, event, report).await;
        })
    }

    fn begin(&mut self, work: impl Future<Output = ()> + Send + 'static) -> Result<(), Status> {
        if self.work.len() >= WORK_BOUND {
            return Err(Error::Busy { what: "frames of one worker in work", limit: WORK_BOUND }.into());
        }
        self.work.spawn(work);
        Ok(())
    }
}

fn batch_of(name: &str) -> Result<BatchKey, Status> {
    Ok(validate::batch_name("batch", name)?)
}

fn batch_and_token(name: &str, token: Option<&v1::Token>) -> Result<(BatchKey, Token), Status> {
    let token = token.ok_or_else(|| invalid("token", "is required"))?;
    Ok((batch_of(name)?, token_from(token)))
}

/// Brings a report to its batch, if it is owned here. One of another coordinator's batch is passed over, and
/// so is one that its driver doesn't take any more: until it is acknowledged the worker keeps it, and brings it
/// to the batch's owner.
async fn settle(node: &Node, worker: WorkerKey, batch: BatchKey, mut event: Report, report: v1::Report) {
    let shared = node.shared();
    let Some(handle) = shared.handle(&batch) else {
        if over(shared, &batch).await {
            shared.dispatch.ack(&worker, answer(&report, v1::report_ack::Result::UnknownBatch, ""));
        } else {
            tracing::debug!(batch.id = %batch, worker.id = %worker.id, "report of a batch that isn't owned here");
        }
        return;
    };
    if !report.failures.is_empty() {
        let Some(object) = write_failures(node, &batch, event.token, &report).await else { return };
        event.failure_object = Some(object);
    }
    if !handle.event(Event::Report(event)).await {
        tracing::debug!(batch.id = %batch, worker.id = %worker.id, "report that came as the owner left");
    }
}

/// Whether a batch is known to need no owner any more. A store that is away knows nothing: the worker asks
/// again.
async fn over(shared: &Shared, batch: &BatchKey) -> bool {
    match shared.needs_owner(batch).await {
        Ok(needed) => !needed,
        Err(error) => {
            tracing::debug!(batch.id = %batch, %error, "whether the batch ended isn't known now");
            false
        }
    }
}

/// Makes the details of a report's failures durable, which they must be before the transaction that counts
/// them. `None`: the coordinator stops.
async fn write_failures(node: &Node, batch: &BatchKey, token: Token, report: &v1::Report) -> Option<String> {
    let first = report.failures.iter().map(|f| f.sequence.cast_unsigned()).min().unwrap_or(0);
    let failures: Vec<_> = report.failures.iter().map(bounded).collect();
    let token = (token.epoch.0, token.counter);
    let mut pause = Duration::from_millis(100);
    loop {
        match node.shared().objects.write_failures(batch, first, token, failures.clone()).await {
            Ok(object) => return Some(object),
            Err(error) => {
                tracing::warn!(batch.id = %batch, %error, "failures not written yet");
                tokio::select! {
                    biased;
                    () = node.shared().stop.cancelled() => return None,
                    () = tokio::time::sleep(pause) => pause = (pause * 2).min(Duration::from_secs(5)),
                }
            }
        }
    }
}

fn answer(report: &v1::Report, result: v1::report_ack::Result, message: &str) -> v1::ReportAck {
    v1::ReportAck { token: report.token, result: result.into(), message: message.to_owned() }
}

fn invalid(field: &str, text: &str) -> Status {
    validate::invalid(field, text).into()
}

fn bounded(failure: &v1::TaskFailure) -> v1::TaskFailure {
    v1::TaskFailure {
        sequence: failure.sequence,
        key: cut(&failure.key, MAX_KEY_BYTES),
        code: cut(&failure.code, 64),
        message: cut(&failure.message, MAX_FAILURE_MESSAGE_BYTES),
    }
}

fn cut(text: &str, most: usize) -> String {
    text[..text.floor_char_boundary(most)].to_owned()
}

fn decoded(worker: &WorkerKey, token: Token, report: &v1::Report) -> Result<Report, String> {
    let phase = match report.phase() {
        v1::Phase::Stage => Phase::Stage,
        v1::Phase::Commit => Phase::Commit,
        v1::Phase::Rollback => Phase::Rollback,
        v1::Phase::Publish => Phase::Publish,
        v1::Phase::Sweep => Phase::Sweep,
        v1::Phase::Unspecified => return Err(format!("phase: unknown value {}", report.phase)),
    };
    if report.receipt.len() > MAX_RECEIPT_BYTES {
        return Err(format!("receipt: {} bytes, at most {MAX_RECEIPT_BYTES}", report.receipt.len()));
    }
    let whole =
        |field: &str, value: i64| u64::try_from(value).map_err(|_| format!("{field}: {value} is negative"));
    let mut numbers = Vec::with_capacity(report.failures.len());
    for failure in &report.failures {
        numbers.push(whole("failures.sequence", failure.sequence)?);
    }
    let failed: Runs = numbers.iter().copied().collect();
    if failed.count() != numbers.len() as u64 {
        return Err("failures: a sequence number is there twice".to_owned());
    }
    Ok(Report {
        worker: worker.clone(),
        token,
        phase,
        done: whole("done", report.done)?,
        failed,
        failure_object: None,
        receipt: report.receipt.to_vec(),
        error: (!report.error.is_empty()).then(|| ReportError(cut(&report.error, MAX_FAILURE_MESSAGE_BYTES))),
        published: report.published,
        residue: whole("residue", report.residue)?,
        elapsed: report.elapsed.and_then(|elapsed| elapsed.try_into().ok()).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests;
