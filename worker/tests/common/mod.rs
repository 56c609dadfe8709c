//! A coordinator that says what a test tells it to, over real loopback TCP.
#![allow(dead_code, missing_docs, unreachable_pub)]

pub mod running;

use bytes::Bytes;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};
use tranche_proto::v1::attach_request::Frame as Said;
use tranche_proto::v1::attach_response::Frame as Say;
use tranche_proto::v1::worker_service_server::{WorkerService, WorkerServiceServer};
use tranche_proto::v1::{self, AttachRequest, AttachResponse};

/// Nothing here takes long; a test that hangs must end.
pub const LIMIT: Duration = Duration::from_secs(30);

struct Service {
    id: String,
    streams: mpsc::Sender<Stream>,
}

/// One attached worker.
pub struct Stream {
    id: String,
    said: Streaming<AttachRequest>,
    say: mpsc::Sender<Result<AttachResponse, Status>>,
}

#[tonic::async_trait]
impl WorkerService for Service {
    type AttachStream = ReceiverStream<Result<AttachResponse, Status>>;

    async fn attach(
        &self,
        request: Request<Streaming<AttachRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let (say, answers) = mpsc::channel(64);
        self.streams.send(Stream { id: self.id.clone(), said: request.into_inner(), say }).await.ok();
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}

pub struct Coordinator {
    /// As in its Welcome.
    pub id: String,
    pub address: SocketAddr,
    streams: mpsc::Receiver<Stream>,
    _server: tokio_util::task::AbortOnDropHandle<()>,
}

impl Coordinator {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let id = format!("coordinator-{}", listener.local_addr().unwrap().port());
        Self::start_on(listener, id)
    }

    /// A way to a coordinator: two with the same id are two addresses of one.
    pub fn start_on(listener: tokio::net::TcpListener, id: String) -> Self {
        let address = listener.local_addr().unwrap();
        let (sender, streams) = mpsc::channel(8);
        let server = tonic::transport::Server::builder()
            .add_service(WorkerServiceServer::new(Service { id: id.clone(), streams: sender }))
            .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)));
        let server = tokio::spawn(async move { server.await.unwrap() });
        Self { id, address, streams, _server: tokio_util::task::AbortOnDropHandle::new(server) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next stream and its Hello.
    pub async fn stream(&mut self) -> (Stream, v1::Hello) {
        let stream = tokio::time::timeout(LIMIT, self.streams.recv()).await.expect("a worker attaches");
        let mut stream = stream.unwrap();
        let Said::Hello(hello) = stream.next().await else { panic!("the first frame is Hello") };
        (stream, hello)
    }

    /// The next stream, welcomed.
    pub async fn attached(&mut self, ttl: Duration) -> (Stream, v1::Hello) {
        let (mut stream, hello) = self.stream().await;
        stream.welcome(ttl).await;
        (stream, hello)
    }
}

impl Stream {
    pub async fn welcome(&mut self, ttl: Duration) {
        let duration = |d: Duration| prost_types::Duration::try_from(d).ok();
        let welcome = v1::Welcome {
            coordinator: self.id.clone(),
            protocol_version: 1,
            lease_ttl: duration(ttl),
            heartbeat_interval: duration(ttl / 3),
            idle_heartbeat_interval: None,
        };
        self.say(Say::Welcome(welcome)).await;
    }

    pub async fn say(&mut self, frame: Say) {
        self.say.send(Ok(AttachResponse { frame: Some(frame) })).await.expect("the worker listens");
    }

    /// The next frame.
    pub async fn next(&mut self) -> Said {
        self.next_or_end().await.expect("the stream goes on")
    }

    /// The next frame; none when the worker ended the stream.
    pub async fn next_or_end(&mut self) -> Option<Said> {
        let frame = tokio::time::timeout(LIMIT, self.said.message()).await.expect("a frame comes");
        frame.ok().flatten().map(|frame| frame.frame.unwrap())
    }

    /// The next frame that `pick` takes; others are passed over.
    pub async fn find<T>(&mut self, mut pick: impl FnMut(Said) -> Option<T>) -> T {
        loop {
            if let Some(found) = pick(self.next().await) {
                return found;
            }
        }
    }

    pub async fn credit(&mut self) -> v1::Credit {
        self.find(|frame| if let Said::Credit(credit) = frame { Some(credit) } else { None }).await
    }

    pub async fn report(&mut self) -> v1::Report {
        self.find(|frame| if let Said::Report(report) = frame { Some(report) } else { None }).await
    }

    /// Says that this coordinator owns the batch; the counters of the leases that the worker holds of it.
    pub async fn own(&mut self, batch: &str, epoch: u64) -> Vec<u64> {
        self.say(Say::Owner(v1::Owner { batch: batch.into(), epoch })).await;
        let holding =
            self.find(|frame| if let Said::Holding(holding) = frame { Some(holding) } else { None }).await;
        assert_eq!((holding.batch.as_str(), holding.epoch), (batch, epoch));
        holding.tokens.iter().map(|token| token.counter).collect()
    }

    pub async fn replicas(&mut self, coordinators: &[&Coordinator]) {
        let replica = |c: &&Coordinator| v1::Replica { coordinator: c.id.clone(), endpoint: c.url() };
        let replicas = coordinators.iter().map(replica).collect();
        self.say(Say::Replicas(v1::Replicas { replicas })).await;
    }

    pub async fn heartbeat(&mut self) -> v1::Heartbeat {
        self.find(|frame| if let Said::Heartbeat(beat) = frame { Some(beat) } else { None }).await
    }

    pub async fn ack(&mut self, counter: u64) {
        self.answer(counter, v1::report_ack::Result::Durable).await;
    }

    /// Settles a report.
    pub async fn answer(&mut self, counter: u64, result: v1::report_ack::Result) {
        let result = result as i32;
        let report = v1::ReportAck { token: Some(token(counter)), result, message: String::new() };
        self.say(Say::Ack(v1::Ack { heartbeat: 0, reports: vec![report], backlog: 0 })).await;
    }

    pub async fn grant(&mut self, grant: v1::Grant) {
        self.say(Say::Grant(grant)).await;
    }
}

pub fn token(counter: u64) -> v1::Token {
    v1::Token { epoch: 1, counter }
}

/// Tasks with these keys, as a lease carries them.
pub fn tasks_of(keys: impl IntoIterator<Item = String>) -> Bytes {
    let task = |key| v1::Task { key, ..Default::default() };
    keys.into_iter().map(task).collect::<tranche_proto::TaskList>().bytes().clone()
}

/// A lease to stage `tasks` tasks.
pub fn stage(handler: &str, counter: u64, tasks: i64) -> v1::Grant {
    let range = v1::Range { first: 1, last: tasks };
    v1::Grant {
        batch: "namespaces/default/batches/b".into(),
        handler: handler.into(),
        token: Some(token(counter)),
        phase: v1::Phase::Stage as i32,
        range: Some(range),
        runs: vec![range],
        tasks: tasks_of((1..=tasks).map(|n| format!("k{n}"))),
        ..Default::default()
    }
}
