//! Workers that answer by hand.

use super::LONG;
use crate::dispatch::{Hello, OUTBOUND_BOUND};
use crate::driver::records::token_from;
use crate::grpc::worker::Workers;
use crate::identity::Scope;
use crate::node::Node;
use crate::store::keys::BatchKey;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tonic::Streaming;
use tranche_engine::{Epoch, Event, Phase, Report, Runs, WorkerKey};
use tranche_proto::v1;
use tranche_proto::v1::attach_request::Frame as To;
use tranche_proto::v1::attach_response::Frame;
use tranche_proto::v1::worker_service_client::WorkerServiceClient;
use tranche_proto::v1::worker_service_server::WorkerServiceServer;

/// Attached to the hub itself: reports every lease that comes as done, until it is dropped.
pub(super) struct FakeWorker(#[expect(dead_code, reason = "held")] AbortOnDropHandle<()>);

impl FakeWorker {
    pub(super) fn attach(node: &Arc<Node>, id: &str, leases: u32) -> Self {
        Self::attach_of(node, Scope::All, id, leases)
    }

    /// Of one namespace, or of all.
    pub(super) fn attach_of(node: &Arc<Node>, scope: Scope, id: &str, leases: u32) -> Self {
        let (out, mut frames) = mpsc::channel(OUTBOUND_BOUND);
        let worker = WorkerKey::new(id, "life-1");
        let dispatch = node.shared().dispatch.clone();
        let hello = Hello { scope, ..hello(worker.clone()) };
        let id = dispatch.attach(hello, v1::Welcome::default(), out).id;
        dispatch.credit(id, leases, 1 << 30);
        let node = node.clone();
        Self(AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                let heard = timeout(Duration::from_millis(100), frames.recv()).await;
                dispatch.seen(id);
                let Ok(frame) = heard else { continue };
                let grant = match frame.expect("attached").expect("no error").frame {
                    Some(Frame::Grant(grant)) => grant,
                    // It reports at once, so it holds nothing.
                    Some(Frame::Owner(owner)) => {
                        let batch = BatchKey::parse(&owner.batch).expect("a name");
                        if let Some(asked) = dispatch.holding(id, &batch, Epoch(owner.epoch), &[])
                            && let Some(handle) = node.shared().handle(&batch)
                        {
                            let worker = worker.clone();
                            handle.event_at(Event::Attached { worker, held: Vec::new() }, asked).await;
                        }
                        continue;
                    }
                    _ => continue,
                };
                let phase = match grant.phase() {
                    v1::Phase::Stage => Phase::Stage,
                    v1::Phase::Commit => Phase::Commit,
                    v1::Phase::Rollback => Phase::Rollback,
                    v1::Phase::Publish => Phase::Publish,
                    v1::Phase::Sweep | v1::Phase::Unspecified => Phase::Sweep,
                };
                let report = Report {
                    worker: worker.clone(),
                    token: token_from(&grant.token.expect("always there")),
                    phase,
                    done: tasks(&grant) as u64,
                    failed: Runs::default(),
                    failure_object: None,
                    receipt: Vec::new(),
                    error: None,
                    published: grant.publish,
                    residue: 0,
                    elapsed: Duration::from_millis(1),
                };
                let batch = BatchKey::parse(&grant.batch).expect("a name");
                // One whose owner just left is nobody's to take.
                if let Some(handle) = node.shared().handle(&batch) {
                    handle.event(Event::Report(report)).await;
                }
            }
        })))
    }
}

fn hello(worker: WorkerKey) -> Hello {
    Hello {
        scope: Scope::All,
        worker,
        handlers: vec!["noop".to_owned()],
        slots: 1,
        labels: HashMap::new(),
        held: Vec::new(),
        version: String::new(),
        peer: String::new(),
    }
}

/// The worker service, on loopback.
pub(super) struct Service {
    shutdown: CancellationToken,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Service {
    pub(super) async fn end(self) {
        self.shutdown.cancel();
        timeout(LONG, self.server).await.expect("it ends").expect("joined").expect("ended well");
    }
}

/// A worker's stream, by hand. It attaches again whenever the stream ends, as a worker does.
pub(super) struct RawWorker {
    url: String,
    out: mpsc::Sender<v1::AttachRequest>,
    frames: Streaming<v1::AttachResponse>,
    held: Vec<v1::HeldLease>,
    report: Option<v1::Report>,
}

impl RawWorker {
    pub(super) async fn start(node: &Arc<Node>) -> (Self, Service) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let shutdown = CancellationToken::new();
        let workers = Workers::new(node.clone(), shutdown.clone(), TaskTracker::new());
        let router = tonic::transport::Server::builder().add_service(WorkerServiceServer::new(workers));
        let ended = shutdown.clone().cancelled_owned();
        let server =
            tokio::spawn(router.serve_with_incoming_shutdown(TcpListenerStream::new(listener), ended));
        let (out, frames) = dial(&url, &[], None).await;
        (Self { url, out, frames, held: Vec::new(), report: None }, Service { shutdown, server })
    }

    pub(super) async fn next(&mut self) -> Frame {
        loop {
            let frame = match timeout(Duration::from_millis(500), self.frames.message()).await {
                Ok(Ok(Some(frame))) => frame.frame.expect("known"),
                Ok(_) => {
                    (self.out, self.frames) = dial(&self.url, &self.held, self.report.clone()).await;
                    continue;
                }
                Err(_) => {
                    self.send(To::Heartbeat(v1::Heartbeat { number: 1, leases: Vec::new() })).await;
                    continue;
                }
            };
            if let Frame::Owner(owner) = &frame {
                self.hold(owner).await;
            }
            return frame;
        }
    }

    /// Answers a new owner: what it holds, then what it did.
    async fn hold(&mut self, owner: &v1::Owner) {
        let held = self.held.iter().filter(|held| held.batch == owner.batch);
        let tokens = held.filter_map(|held| held.token).collect();
        let (batch, epoch) = (owner.batch.clone(), owner.epoch);
        self.send(To::Holding(v1::Holding { batch, epoch, tokens })).await;
        if let Some(report) = self.report.clone() {
            self.send(To::Report(report)).await;
        }
    }

    /// Says at its next word that it holds these leases.
    pub(super) fn holds(&mut self, held: &[&v1::Grant]) {
        let lease = |grant: &&v1::Grant| v1::HeldLease { batch: grant.batch.clone(), token: grant.token };
        self.held = held.iter().map(lease).collect();
    }

    /// The stream ends; another begins, which names what is held.
    pub(super) async fn attach_again(&mut self) {
        (self.out, self.frames) = dial(&self.url, &self.held, self.report.clone()).await;
    }

    /// The frames that come until a heartbeat that was sent now is answered.
    pub(super) async fn until_answered(&mut self) -> Vec<Frame> {
        self.send(To::Heartbeat(v1::Heartbeat { number: 99, leases: Vec::new() })).await;
        let mut frames = Vec::new();
        loop {
            match self.next().await {
                Frame::Ack(ack) if ack.heartbeat == 99 => return frames,
                frame => frames.push(frame),
            }
        }
    }

    pub(super) async fn send(&self, frame: To) {
        // A stream that ended is noticed where frames are read.
        let _ = self.out.send(v1::AttachRequest { frame: Some(frame) }).await;
    }

    pub(super) async fn granted(&mut self) -> v1::Grant {
        loop {
            if let Frame::Grant(grant) = self.next().await {
                self.held = vec![v1::HeldLease { batch: grant.batch.clone(), token: grant.token }];
                return grant;
            }
        }
    }

    /// Sends the report, and knows that it was read.
    pub(super) async fn report(&mut self, grant: &v1::Grant) {
        let report = report(grant);
        self.report = Some(report.clone());
        self.send(To::Report(report)).await;
        self.send(To::Heartbeat(v1::Heartbeat { number: 77, leases: Vec::new() })).await;
        while !matches!(self.next().await, Frame::Ack(ack) if ack.heartbeat == 77) {}
    }

    /// Waits for the report's acknowledgement.
    pub(super) async fn settled(&mut self, grant: &v1::Grant) {
        loop {
            if let Frame::Ack(ack) = self.next().await
                && ack.reports.iter().any(|report| report.token == grant.token)
            {
                assert_eq!(ack.reports[0].result(), v1::report_ack::Result::Durable);
                return;
            }
        }
    }
}

/// How many tasks came with it.
fn tasks(grant: &v1::Grant) -> usize {
    tranche_proto::TaskList::decode(grant.tasks.clone()).expect("tasks").len()
}

pub(super) fn report(grant: &v1::Grant) -> v1::Report {
    v1::Report {
        batch: grant.batch.clone(),
        token: grant.token,
        phase: grant.phase,
        done: i64::try_from(tasks(grant)).expect("few"),
        ..v1::Report::default()
    }
}

async fn dial(
    url: &str,
    held: &[v1::HeldLease],
    report: Option<v1::Report>,
) -> (mpsc::Sender<v1::AttachRequest>, Streaming<v1::AttachResponse>) {
    let (out, frames) = mpsc::channel(16);
    let hello = v1::Hello {
        worker: "raw".to_owned(),
        incarnation: "life-1".to_owned(),
        handlers: vec!["noop".to_owned()],
        slots: 1,
        protocol_versions: vec![tranche_proto::PROTOCOL_VERSION],
        held: held.to_vec(),
        ..v1::Hello::default()
    };
    let credit = v1::Credit { leases: 1, bytes: 1 << 30 };
    let frames_first = [Some(To::Hello(hello)), report.map(To::Report), Some(To::Credit(credit))];
    for frame in frames_first.into_iter().flatten() {
        out.try_send(v1::AttachRequest { frame: Some(frame) }).expect("room");
    }
    let mut client = WorkerServiceClient::connect(url.to_owned()).await.expect("connected");
    let stream = client.attach(ReceiverStream::new(frames)).await.expect("attached").into_inner();
    (out, stream)
}
