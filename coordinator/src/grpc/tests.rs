//! The services over real connections, on a real node with the embedded store and no workers.

use super::*;
use crate::config::StoreConfig;
use crate::manifest::Objects;
use crate::node::Host;
use crate::store::Store;
use crate::store::embedded::Embedded;
use std::collections::{HashMap, HashSet};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus as Told;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::{v1 as reflection, v1alpha as reflection_alpha};
use tonic_types::StatusExt;
use tranche_proto::v1;
use tranche_proto::v1::admin_service_client::AdminServiceClient;
use tranche_proto::v1::batch::State;
use tranche_proto::v1::batch_service_client::BatchServiceClient;

struct Served {
    _dir: TempDir,
    node: Arc<Node>,
    health: Health,
    tasks: TaskTracker,
    channel: Channel,
    shutdown: CancellationToken,
    server: JoinHandle<()>,
}

impl Served {
    async fn start(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut config = Config::embedded(dir.path().to_owned());
        change(&mut config);
        let StoreConfig::Embedded { path } = &config.store else { panic!("not embedded") };
        let store: Arc<dyn Store> = Embedded::open(path.clone()).await.expect("opened");
        let objects = Objects::local(&config.objects_dir()).expect("opened");
        let listener = TcpListener::bind(config.listen).await.expect("bound");
        let endpoint = config.endpoint(listener.local_addr().expect("bound"));
        let shutdown = CancellationToken::new();
        let node =
            Node::start(config.clone(), endpoint.clone(), store, objects, Host::default(), shutdown.clone())
                .await
                .expect("started");
        let node = Arc::new(node);
        let Services { router, health, tasks, .. } = routes(node.clone(), &config, &shutdown);
        health.set(true).await;
        let incoming = incoming(listener, router.door());
        let server = tokio::spawn(router.serve(incoming, shutdown.clone()));
        let channel = Channel::from_shared(endpoint).expect("a URL").connect().await.expect("connected");
        Self { _dir: dir, node, health, tasks, channel, shutdown, server }
    }

    fn batches(&self) -> BatchServiceClient<Channel> {
        BatchServiceClient::new(self.channel.clone())
    }

    async fn create(&self, label: &str) -> v1::Batch {
        let batch = v1::Batch {
            targets: vec![v1::Target { handler: "noop".into(), params: HashMap::new() }],
            labels: [("of".to_owned(), label.to_owned())].into(),
            ..Default::default()
        };
        let request = v1::CreateBatchRequest { batch: Some(batch), ..Default::default() };
        self.batches().create_batch(request).await.expect("created").into_inner()
    }

    /// Ends as a process does; it must not hang on open streams.
    async fn end(self) {
        self.shutdown.cancel();
        drop(self.channel);
        self.server.await.expect("joined");
        self.tasks.close();
        self.tasks.wait().await;
        self.node.stopped().await;
    }
}

fn append(name: &str, first_sequence: i64, payloads: &[usize]) -> v1::AppendTasksRequest {
    let task = |&bytes: &usize| v1::Task { key: String::new(), payload: vec![0; bytes].into() };
    v1::AppendTasksRequest {
        name: name.to_owned(),
        first_sequence,
        tasks: payloads.iter().map(task).collect(),
    }
}

fn reason(status: &Status) -> String {
    status.get_error_details().error_info().expect("always there").reason.clone()
}

/// The last acknowledgement, or the status that ended the stream.
async fn appended(served: &Served, requests: Vec<v1::AppendTasksRequest>) -> Result<i64, Status> {
    let mut acks = served.batches().append_tasks(tokio_stream::iter(requests)).await?.into_inner();
    let mut last = None;
    while let Some(ack) = acks.message().await? {
        last = Some(ack.durable_through);
    }
    Ok(last.expect("one at least"))
}

#[tokio::test]
async fn a_batch_is_created_appended_to_sealed_and_read() {
    let served = Served::start(|_| {}).await;
    let mut client = served.batches();
    let batch = served.create("a").await;
    assert_eq!((batch.state(), batch.priority, batch.max_attempts), (State::Importing, 10, 3));
    let name = batch.name.as_str();

    assert_eq!(appended(&served, vec![append(name, 0, &[])]).await.expect("asked"), 0);
    let chunks = vec![append(name, 1, &[3, 3, 3]), append("", 4, &[0]), append(name, 5, &[1024 * 1024])];
    assert_eq!(appended(&served, chunks.clone()).await.expect("appended"), 5);
    assert_eq!(appended(&served, chunks).await.expect("again changes nothing"), 5);
    let gap = appended(&served, vec![append(name, 7, &[1])]).await.expect_err("a gap");
    assert_eq!((gap.code(), reason(&gap).as_str()), (Code::OutOfRange, "APPEND_GAP"));

    let seal = |total| v1::SealBatchRequest { name: name.to_owned(), total };
    let wrong = client.seal_batch(seal(Some(6))).await.expect_err("another total");
    assert_eq!((wrong.code(), reason(&wrong).as_str()), (Code::FailedPrecondition, "TOTAL_MISMATCH"));
    let sealed = client.seal_batch(seal(Some(5))).await.expect("sealed").into_inner();
    assert!(sealed.sealed);
    client.seal_batch(seal(None)).await.expect("idempotent");
    let late = appended(&served, vec![append(name, 6, &[1])]).await.expect_err("sealed");
    assert_eq!(reason(&late), "BATCH_SEALED");

    let got =
        client.get_batch(v1::GetBatchRequest { name: name.to_owned() }).await.expect("there").into_inner();
    assert_eq!(got.counters.expect("there").total, 5);
    let none = v1::GetBatchRequest { name: "namespaces/default/batches/none".into() };
    let none = client.get_batch(none).await.expect_err("no such batch");
    assert_eq!((none.code(), reason(&none).as_str()), (Code::NotFound, "BATCH_NOT_FOUND"));
    served.end().await;
}

#[tokio::test]
async fn what_is_too_large_or_wrong_is_named() {
    let served = Served::start(|_| {}).await;
    let name = served.create("a").await.name;
    let most = 1024 * 1024;
    let long = [append(&name, 1, &[0, 0, 0, most + 1]), append(&name, 1, &[most, most, most, most])];
    let beyond = append(&name, 1, &[most; 6]);
    for (request, field) in long.into_iter().chain([beyond]).zip(["tasks[3].payload", "tasks", "tasks"]) {
        let status = appended(&served, vec![request]).await.expect_err("too large");
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        let details = status.get_error_details();
        assert_eq!(details.bad_request().expect("there").field_violations[0].field, field);
    }
    let request = v1::CreateBatchRequest {
        batch: Some(v1::Batch {
            targets: vec![v1::Target { handler: "nope".into(), params: HashMap::new() }],
            ..Default::default()
        }),
        ..Default::default()
    };
    let status = served.batches().create_batch(request).await.expect_err("unknown handler");
    let details = status.get_error_details();
    let violation = &details.bad_request().expect("there").field_violations[0];
    assert_eq!(violation.field, "batch.targets[0].handler");
    assert!(violation.description.contains("\"nope\"") && violation.description.contains("noop"));
    served.end().await;
}

#[tokio::test]
async fn pages_hold_every_batch_once_and_tokens_their_filter() {
    let served = Served::start(|_| {}).await;
    let mut names = Vec::new();
    for index in 0..7 {
        names.push(served.create(if index % 2 == 0 { "even" } else { "odd" }).await.name);
    }
    let mut client = served.batches();
    let mut request = v1::ListBatchesRequest { page_size: 3, ..Default::default() };
    let mut seen = Vec::new();
    loop {
        let page = client.list_batches(request.clone()).await.expect("a page").into_inner();
        assert!(page.batches.len() <= 3);
        seen.extend(page.batches.into_iter().map(|batch| batch.name));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    names.reverse();
    assert_eq!(seen, names, "the newest first");

    request.labels = [("of".to_owned(), "odd".to_owned())].into();
    let status = client.list_batches(request.clone()).await.expect_err("another filter");
    assert_eq!(
        status.get_error_details().bad_request().expect("there").field_violations[0].field,
        "page_token"
    );
    request.page_token = String::new();
    let odd = client.list_batches(request.clone()).await.expect("a page").into_inner().batches;
    assert_eq!(odd.len(), 3);
    request.page_size = -1;
    let status = client.list_batches(request).await.expect_err("negative");
    assert_eq!(
        status.get_error_details().bad_request().expect("there").field_violations[0].field,
        "page_size"
    );
    served.end().await;
}

#[tokio::test]
async fn a_watcher_sees_a_cancelled_batch_to_its_end() {
    let served = Served::start(|_| {}).await;
    let name = served.create("a").await.name;
    let mut client = served.batches();
    let request = v1::WatchBatchRequest { name: name.clone() };
    let mut stream = client.watch_batch(request).await.expect("watching").into_inner();
    let first = stream.message().await.expect("right").expect("at once");
    assert_eq!(first.batch.expect("there").state(), State::Importing);
    let cancel = v1::CancelBatchRequest { name: name.clone(), actor: "me".into(), message: "why".into() };
    client.cancel_batch(cancel.clone()).await.expect("cancelled");
    client.cancel_batch(cancel).await.expect("idempotent");
    let status = client
        .commit_batch(v1::CommitBatchRequest { name: name.clone(), actor: String::new() })
        .await
        .expect_err("decided");
    assert_eq!(reason(&status), "ALREADY_DECIDED");
    let mut states = Vec::new();
    while let Some(message) = stream.message().await.expect("right") {
        let batch = message.batch.expect("there");
        states.push(batch.state());
        let decision = batch.decision.expect("told with the state that follows from it");
        assert_eq!((decision.actor.as_str(), decision.message.as_str()), ("me", "why"));
    }
    states.dedup();
    assert_eq!(states, [State::RollingBack, State::RolledBack]);
    served.end().await;
}

#[tokio::test]
async fn open_streams_end_with_the_process() {
    let served = Served::start(|_| {}).await;
    let name = served.create("a").await.name;
    let mut watching = served
        .batches()
        .watch_batch(v1::WatchBatchRequest { name: name.clone() })
        .await
        .expect("watching")
        .into_inner();
    watching.message().await.expect("right").expect("at once");
    let requests = tokio_stream::once(append(&name, 1, &[1])).chain(tokio_stream::pending());
    let mut appending = served.batches().append_tasks(requests).await.expect("appending").into_inner();
    while appending.message().await.expect("right").expect("open").durable_through < 1 {}
    served.shutdown.cancel();
    let status = loop {
        match watching.message().await {
            Ok(message) => assert!(message.is_some(), "ended without a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "SHUTTING_DOWN"));
    let status = appending.message().await.expect_err("ended");
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    served.end().await;
}

#[tokio::test]
async fn one_stream_too_many_is_refused() {
    let served = Served::start(|config| {
        config.max_watchers = 1;
        config.max_append_streams = 1;
    })
    .await;
    let name = served.create("a").await.name;
    let watch = || served.batches();
    let request = || v1::WatchBatchRequest { name: name.clone() };
    let stream = watch().watch_batch(request()).await.expect("the first");
    let status = watch().watch_batch(request()).await.expect_err("the second");
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "OVERLOADED"));
    let open = served.batches().append_tasks(tokio_stream::pending()).await.expect("the first");
    let status = served.batches().append_tasks(tokio_stream::pending()).await.expect_err("the second");
    assert_eq!(reason(&status), "OVERLOADED");
    drop((stream, open));
    served.end().await;
}

#[tokio::test]
async fn administration_lists_what_is_there() {
    let served = Served::start(|_| {}).await;
    let mut client = AdminServiceClient::new(served.channel.clone());
    let all =
        client.list_coordinators(v1::ListCoordinatorsRequest::default()).await.expect("listed").into_inner();
    assert_eq!(all.coordinators.len(), 1);
    assert!(all.coordinators[0].answering);
    let workers = client.list_workers(v1::ListWorkersRequest::default()).await.expect("listed").into_inner();
    assert_eq!(workers.workers, []);
    let leases = client.list_leases(v1::ListLeasesRequest::default()).await.expect("listed").into_inner();
    assert_eq!((leases.leases, leases.next_page_token.as_str()), (vec![], ""));
    let wrong = v1::ListLeasesRequest { parent: "x".into(), ..Default::default() };
    assert_eq!(client.list_leases(wrong).await.expect_err("no name").code(), Code::InvalidArgument);
    served.end().await;
}

#[tokio::test]
async fn health_tells_each_service_and_the_whole() {
    let served = Served::start(|_| {}).await;
    let mut client = HealthClient::new(served.channel.clone());
    for (serving, told) in [(true, Told::Serving), (false, Told::NotServing)] {
        served.health.set(serving).await;
        for service in SERVICES.into_iter().chain([""]) {
            let request = HealthCheckRequest { service: service.to_owned() };
            let response = client.check(request).await.expect("answered");
            assert!(response.metadata().contains_key(layers::REQUEST_ID));
            assert_eq!(response.into_inner().status(), told, "{service}");
        }
    }
    let unknown = client.check(HealthCheckRequest { service: "x".into() }).await.expect_err("unknown");
    assert_eq!(unknown.code(), Code::NotFound);
    drop(client);
    served.end().await;
}

#[tokio::test]
async fn both_versions_of_reflection_know_services_and_error_details() {
    use reflection::server_reflection_request::MessageRequest;
    use reflection::server_reflection_response::MessageResponse;
    let served = Served::start(|_| {}).await;
    let mut client =
        reflection::server_reflection_client::ServerReflectionClient::new(served.channel.clone());
    let ask =
        |message| reflection::ServerReflectionRequest { host: String::new(), message_request: Some(message) };
    let asked = tokio_stream::iter([
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol("google.rpc.ErrorInfo".into())),
        ask(MessageRequest::FileContainingSymbol("tranche.v1.WorkerService".into())),
    ]);
    let mut answers = client.server_reflection_info(asked).await.expect("answered").into_inner();
    let first = answers.message().await.expect("right").expect("there").message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = first else { panic!("{first:?}") };
    let names: HashSet<_> = list.service.into_iter().map(|service| service.name).collect();
    for service in SERVICES.into_iter().chain(["grpc.health.v1.Health"]) {
        assert!(names.contains(service), "{service} in {names:?}");
    }
    for _ in 0..2 {
        let answer = answers.message().await.expect("right").expect("there").message_response;
        assert!(matches!(answer, Some(MessageResponse::FileDescriptorResponse(_))), "{answer:?}");
    }

    let mut old =
        reflection_alpha::server_reflection_client::ServerReflectionClient::new(served.channel.clone());
    let request = reflection_alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(reflection_alpha::server_reflection_request::MessageRequest::ListServices(
            String::new(),
        )),
    };
    let mut answers =
        old.server_reflection_info(tokio_stream::iter([request])).await.expect("answered").into_inner();
    assert!(answers.message().await.expect("right").is_some());
    drop((client, old, answers));
    served.end().await;
}

mod replicas;
