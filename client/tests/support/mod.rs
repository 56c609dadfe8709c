//! A small BatchService over real loopback that fails on purpose, and a proxy that cuts connections.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Code, Request, Response, Status, Streaming};
use tranche_client::{Client, Options, v1};
use v1::batch_service_server::{BatchService, BatchServiceServer};

/// Reproducible chance (SplitMix64).
#[derive(Clone, Debug)]
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// True in `percent` of a hundred cases.
    pub(crate) fn hits(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// What the service holds, and how it fails.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) chance: Chance,
    /// In percent of the messages: the stream breaks somewhere around that message.
    pub(crate) breaks: u64,
    /// In percent of the messages: no acknowledgement.
    pub(crate) dropped_acks: u64,
    /// The keys appended, in order.
    pub(crate) appended: Vec<String>,
    pub(crate) messages: usize,
    pub(crate) most_tasks: usize,
    pub(crate) streams: usize,
    /// Messages that left a gap: must stay empty.
    pub(crate) gaps: Vec<String>,
    /// Request ids of CreateBatch, each attempt.
    pub(crate) creates: Vec<String>,
    pub(crate) seals: Vec<Option<i64>>,
    /// Answers of this many calls (not streams) are lost after they took effect.
    pub(crate) lost_answers: usize,
    /// AppendTasks answers this.
    pub(crate) refuse: Option<Code>,
    pub(crate) deletes: usize,
    pub(crate) retries: usize,
    /// What each stream of WatchBatch tells; the end of one is a break.
    pub(crate) watches: Vec<Vec<v1::batch::State>>,
    pub(crate) failures: i64,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            chance: Chance::new(seed),
            breaks: 0,
            dropped_acks: 0,
            appended: Vec::new(),
            messages: 0,
            most_tasks: 0,
            streams: 0,
            gaps: Vec::new(),
            creates: Vec::new(),
            seals: Vec::new(),
            lost_answers: 0,
            refuse: None,
            deletes: 0,
            retries: 0,
            watches: Vec::new(),
            failures: 0,
        }
    }

    fn durable(&self) -> i64 {
        self.appended.len().cast_signed() as i64
    }

    fn lose_answer(&mut self) -> Result<(), Status> {
        if self.lost_answers > 0 {
            self.lost_answers -= 1;
            return Err(Status::unavailable("the answer was lost"));
        }
        Ok(())
    }

    /// Takes a message as the service does; `through` is how many of its tasks get stored at most.
    fn store(&mut self, request: &v1::AppendTasksRequest, through: usize) -> Result<(), Status> {
        let durable = self.durable();
        if request.first_sequence > durable + 1 || request.first_sequence < 1 {
            self.gaps.push(format!("{} after {durable}", request.first_sequence));
            return Err(Status::invalid_argument("gap"));
        }
        let known = (durable + 1 - request.first_sequence) as usize;
        for task in request.tasks.iter().take(through).skip(known) {
            self.appended.push(task.expect("a task").key.to_owned());
        }
        Ok(())
    }
}

#[derive(Clone)]
pub(crate) struct Service(pub(crate) Arc<Mutex<World>>);

impl Service {
    /// One message. `Err` ends the stream with the status, `None` ends it without.
    fn step(&self, request: &v1::AppendTasksRequest) -> Result<Option<v1::AppendTasksResponse>, Status> {
        let mut world = self.0.lock().unwrap();
        world.messages += 1;
        world.most_tasks = world.most_tasks.max(request.tasks.len());
        let breaks = world.breaks;
        if world.chance.hits(breaks) {
            let stored = world.chance.below(request.tasks.len() as u64 + 1) as usize;
            world.store(request, stored)?;
            return match world.chance.below(3) {
                0 => Ok(None),
                1 => Err(Status::unavailable("breaks")),
                _ => Err(Status::aborted("breaks")),
            };
        }
        world.store(request, usize::MAX)?;
        Ok(Some(v1::AppendTasksResponse { durable_through: world.durable() }))
    }

    async fn append(
        self,
        mut requests: Streaming<v1::AppendTasksRequest>,
        acks: mpsc::Sender<Result<v1::AppendTasksResponse, Status>>,
    ) {
        let refuse = self.0.lock().unwrap().refuse;
        if let Some(code) = refuse {
            let _ = acks.send(Err(Status::new(code, "refused"))).await;
            return;
        }
        let mut first = true;
        while let Ok(Some(request)) = requests.message().await {
            if first && request.name != "namespaces/default/batches/b" {
                let _ = acks.send(Err(Status::invalid_argument("name"))).await;
                return;
            }
            let answer = self.step(&request);
            let dropped = !first && {
                let mut world = self.0.lock().unwrap();
                let dropped_acks = world.dropped_acks;
                world.chance.hits(dropped_acks)
            };
            first = false;
            match answer {
                Ok(Some(_)) if dropped => {}
                Ok(Some(ack)) => {
                    if acks.send(Ok(ack)).await.is_err() {
                        return;
                    }
                }
                Ok(None) => return,
                Err(status) => {
                    let _ = acks.send(Err(status)).await;
                    return;
                }
            }
        }
    }
}

fn batch(state: v1::batch::State) -> v1::Batch {
    let name = "namespaces/default/batches/b".to_owned();
    v1::Batch { name, state: state.into(), ..Default::default() }
}

#[tonic::async_trait]
impl BatchService for Service {
    type AppendTasksStream = ReceiverStream<Result<v1::AppendTasksResponse, Status>>;
    type WatchBatchStream = ReceiverStream<Result<v1::WatchBatchResponse, Status>>;

    async fn create_batch(
        &self,
        request: Request<v1::CreateBatchRequest>,
    ) -> Result<Response<v1::Batch>, Status> {
        let mut world = self.0.lock().unwrap();
        world.creates.push(request.into_inner().request_id);
        world.lose_answer()?;
        Ok(Response::new(batch(v1::batch::State::Importing)))
    }

    async fn append_tasks(
        &self,
        request: Request<Streaming<v1::AppendTasksRequest>>,
    ) -> Result<Response<Self::AppendTasksStream>, Status> {
        self.0.lock().unwrap().streams += 1;
        let (acks, stream) = mpsc::channel(4);
        tokio::spawn(self.clone().append(request.into_inner(), acks));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn seal_batch(
        &self,
        request: Request<v1::SealBatchRequest>,
    ) -> Result<Response<v1::Batch>, Status> {
        let mut world = self.0.lock().unwrap();
        world.seals.push(request.into_inner().total);
        world.lose_answer()?;
        Ok(Response::new(v1::Batch { sealed: true, ..batch(v1::batch::State::Importing) }))
    }

    async fn get_batch(&self, _: Request<v1::GetBatchRequest>) -> Result<Response<v1::Batch>, Status> {
        Err(Status::not_found("none"))
    }

    async fn list_batches(
        &self,
        _: Request<v1::ListBatchesRequest>,
    ) -> Result<Response<v1::ListBatchesResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn watch_batch(
        &self,
        _: Request<v1::WatchBatchRequest>,
    ) -> Result<Response<Self::WatchBatchStream>, Status> {
        let mut world = self.0.lock().unwrap();
        if world.watches.is_empty() {
            return Err(Status::unavailable("away"));
        }
        let states = world.watches.remove(0);
        let (updates, stream) = mpsc::channel(states.len().max(1));
        for state in states {
            let update = v1::WatchBatchResponse { batch: Some(batch(state)), ..Default::default() };
            updates.try_send(Ok(update)).unwrap();
        }
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn commit_batch(&self, _: Request<v1::CommitBatchRequest>) -> Result<Response<v1::Batch>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn cancel_batch(&self, _: Request<v1::CancelBatchRequest>) -> Result<Response<v1::Batch>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn retry_failed(
        &self,
        _: Request<v1::RetryFailedRequest>,
    ) -> Result<Response<v1::RetryFailedResponse>, Status> {
        let mut world = self.0.lock().unwrap();
        world.retries += 1;
        world.lose_answer()?;
        Ok(Response::new(v1::RetryFailedResponse::default()))
    }

    async fn list_failures(
        &self,
        request: Request<v1::ListFailuresRequest>,
    ) -> Result<Response<v1::ListFailuresResponse>, Status> {
        let mut world = self.0.lock().unwrap();
        world.lose_answer()?;
        // Small pages, and an empty one in the middle: a page may be short and not the last.
        let token = request.into_inner().page_token;
        let after: i64 = token.parse().unwrap_or(0);
        let last = if token == "6" { 6 } else { (after + 3).min(world.failures) };
        let failures = (after + 1..=last).map(|sequence| v1::TaskFailure { sequence, ..Default::default() });
        let next_page_token = match last {
            6 if token == "6" => "06".to_owned(),
            last if last < world.failures => last.to_string(),
            _ => String::new(),
        };
        Ok(Response::new(v1::ListFailuresResponse { failures: failures.collect(), next_page_token }))
    }

    async fn delete_batch(&self, _: Request<v1::DeleteBatchRequest>) -> Result<Response<()>, Status> {
        let mut world = self.0.lock().unwrap();
        world.deletes += 1;
        if world.deletes > 1 {
            return Err(Status::not_found("none"));
        }
        world.lose_answer()?;
        Ok(Response::new(()))
    }
}

/// Serves on loopback; ends with the runtime of the test.
pub(crate) async fn serve(world: World) -> (Arc<Mutex<World>>, SocketAddr) {
    let world = Arc::new(Mutex::new(world));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = BatchServiceServer::new(Service(world.clone())).max_decoding_message_size(4 << 20);
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    (world, address)
}

/// A coordinator that can be killed: forwards to `to` until it is aborted, with all its connections.
pub(crate) async fn mortal(to: SocketAddr) -> (SocketAddr, tokio::task::AbortHandle) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let life = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((mut client, _)) = listener.accept().await {
            connections.spawn(async move {
                let Ok(mut server) = TcpStream::connect(to).await else { return };
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    (address, life.abort_handle())
}

/// Forwards to `to`, and cuts each connection after a random number of bytes.
pub(crate) async fn cutting_proxy(to: SocketAddr, mut chance: Chance, most_bytes: u64) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let budget = 200 + chance.below(most_bytes);
            tokio::spawn(async move {
                let Ok(server) = TcpStream::connect(to).await else { return };
                let (mut client_read, mut client_write) = client.into_split();
                let (mut server_read, mut server_write) = server.into_split();
                let mut limited = tokio::io::AsyncReadExt::take(&mut client_read, budget);
                // Whichever side ends first takes the whole connection with it.
                tokio::select! {
                    _ = tokio::io::copy(&mut limited, &mut server_write) => {}
                    _ = tokio::io::copy(&mut server_read, &mut client_write) => {}
                }
            });
        }
    });
    address
}

/// Small chunks and short patience, so that much happens in little time.
pub(crate) fn options() -> Options {
    Options {
        chunk_tasks: 50,
        chunk_bytes: 2_000,
        window_chunks: 4,
        window_bytes: 5_000,
        append_stall: Duration::from_millis(300),
        call_timeout: Duration::from_secs(5),
        ..Options::default()
    }
}

pub(crate) fn client(address: SocketAddr) -> Client {
    Client::connect_lazy(format!("http://{address}"), options()).unwrap()
}

pub(crate) fn tasks(count: i64) -> impl Iterator<Item = v1::Task> {
    (1..=count).map(|n| v1::Task { key: n.to_string(), payload: vec![0; (n % 97) as usize].into() })
}

/// The appended keys are exactly 1..=count, each once, in order, and no message ever left a gap.
pub(crate) fn assert_exactly_once(world: &World, count: i64, what: &str) {
    assert_eq!(world.gaps, Vec::<String>::new(), "{what}");
    let expected: Vec<String> = (1..=count).map(|n| n.to_string()).collect();
    assert!(world.appended == expected, "{what}: {} appended of {count}", world.appended.len());
}
