//! How much one may ask for: others get theirs.

use crate::world::{TEAMS, World, raw, token_of, told};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use tranche_client::{Client, Options, v1};
use tranche_coordinator::identity::Role;
use tranche_proto::v1::attach_request::Frame;
use tranche_proto::v1::batch_service_client::BatchServiceClient;
use tranche_proto::v1::worker_service_client::WorkerServiceClient;
use tranche_proto::{PROTOCOL_VERSION, Rpc};
use tranche_tests::cluster::batch_for;
use tranche_tests::eventually;

const A: &str = TEAMS[0].0;
const B: &str = TEAMS[1].0;
const HEALTH: &str = "/grpc.health.v1.Health/Check";

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_makes_as_many_calls_as_it_may_and_takes_nothing_from_others() {
    let world = World::start_with(|config| {
        config.max_calls_per_second = 1;
        config.max_call_burst = Some(20);
    })
    .await;
    let list = async |token| world.call(token, Rpc::ListBatches, Vec::new()).await;
    let began = tokio::time::Instant::now();
    let mut let_in = 0;
    let refused = loop {
        match list(A).await {
            (Code::Ok, _) => let_in += 1,
            refused => break refused,
        }
    };
    assert_eq!(refused, (Code::ResourceExhausted, "RATE_LIMITED".to_owned()));
    let at_most = 20 + usize::try_from(began.elapsed().as_secs()).expect("short");
    assert!((20..=at_most).contains(&let_in), "{let_in}, at most {at_most}");
    // What it may not call isn't counted; the other has all of its own, also over this connection.
    assert_eq!(list(B).await.0, Code::Ok);
    let channel = world.channel(A).await;
    assert_eq!(told(&raw(channel, HEALTH, Vec::new(), &[]).await).0, Code::Ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_told_to_wait_waits_and_gets_its_answer() {
    let world = World::start_with(|config| {
        config.max_calls_per_second = 10;
        config.max_call_burst = Some(1);
    })
    .await;
    let options = Options { credentials: world.credentials(Some(A), None), ..Options::default() };
    let client = Client::connect_lazy(&world.url, options).expect("a URL");
    let began = tokio::time::Instant::now();
    for _ in 0..11 {
        let missing = client.get("namespaces/team-a/batches/none").await.expect_err("there is none");
        assert_eq!(missing.code(), Code::NotFound, "{missing}");
    }
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
}

/// A batch of this team.
async fn batch(world: &World, token: &str) -> String {
    let request = v1::CreateBatchRequest { batch: Some(batch_for("noop")), ..Default::default() };
    world.client(token).create(request).await.expect("made").name
}

/// The stream, and what it says first.
async fn begun<T>(stream: Result<tonic::Response<Streaming<T>>, Status>) -> Result<Streaming<T>, Status> {
    let mut stream = stream?.into_inner();
    stream.message().await?.expect("it has something to say");
    Ok(stream)
}

async fn watch(world: &World, token: &str, name: &str) -> Result<Streaming<v1::WatchBatchResponse>, Status> {
    let request = v1::WatchBatchRequest { name: name.to_owned() };
    begun(BatchServiceClient::new(world.channel(token).await).watch_batch(request).await).await
}

/// A stream whose client says nothing more until the sender is dropped.
type Kept<Q, A> = (mpsc::Sender<Q>, Streaming<A>);

async fn append(
    world: &World,
    token: &str,
    name: &str,
) -> Result<Kept<tranche_proto::AppendTasksRequest, v1::AppendTasksResponse>, Status> {
    let (requests, stream) = mpsc::channel(1);
    let opening = tranche_proto::AppendTasksRequest { name: name.to_owned(), ..Default::default() };
    requests.send(opening).await.expect("room");
    let mut client = BatchServiceClient::new(world.channel(token).await);
    Ok((requests, begun(client.append_tasks(ReceiverStream::new(stream)).await).await?))
}

async fn attach(
    world: &World,
    token: &str,
    worker: &str,
) -> Result<Kept<v1::AttachRequest, v1::AttachResponse>, Status> {
    let (requests, stream) = mpsc::channel(1);
    let hello = v1::Hello {
        worker: worker.to_owned(),
        incarnation: "i".into(),
        handlers: vec!["noop".into()],
        protocol_versions: vec![PROTOCOL_VERSION],
        ..Default::default()
    };
    requests.send(v1::AttachRequest { frame: Some(Frame::Hello(hello)) }).await.expect("room");
    let mut client = WorkerServiceClient::new(world.channel(token).await);
    Ok((requests, begun(client.attach(ReceiverStream::new(stream)).await).await?))
}

fn over<T>(opened: Result<T, Status>) {
    let status = opened.err().expect("refused");
    assert_eq!(told(&status), (Code::ResourceExhausted, "QUOTA_EXCEEDED".to_owned()), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_has_as_many_streams_as_it_may_and_leaves_the_rest_to_others() {
    let world = World::start_with(|config| {
        config.max_watchers_per_namespace = Some(2);
        config.max_append_streams_per_namespace = Some(2);
    })
    .await;
    let (of_a, of_b) = (batch(&world, A).await, batch(&world, B).await);
    let admin = token_of(Role::Admin);
    let one = watch(&world, A, &of_a).await.expect("the first");
    // Who sees all namespaces takes from that of the batch.
    let _two = watch(&world, &admin, &of_a).await.expect("the second");
    over(watch(&world, A, &of_a).await);
    over(watch(&world, &admin, &of_a).await);
    let _other = watch(&world, B, &of_b).await.expect("another's");
    // What it doesn't see takes nothing, and says nothing.
    let foreign = watch(&world, A, &of_b).await.expect_err("not theirs");
    assert_eq!(foreign.code(), Code::NotFound);
    drop(one);
    eventually("room for one more", async || watch(&world, A, &of_a).await.ok()).await;

    let _one = append(&world, A, &of_a).await.expect("the first");
    let two = append(&world, &admin, &of_a).await.expect("the second");
    over(append(&world, A, &of_a).await);
    over(append(&world, &admin, &of_a).await);
    let _other = append(&world, B, &of_b).await.expect("another's");
    drop(two);
    eventually("room for one more", async || append(&world, A, &of_a).await.ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_attaches_as_many_workers_as_it_may() {
    let world = World::start_with(|config| config.max_workers_per_identity = Some(2)).await;
    let one = attach(&world, "worker-1", "a").await.expect("the first");
    let _two = attach(&world, "worker-1", "b").await.expect("the second");
    over(attach(&world, "worker-1", "c").await);
    let _other = attach(&world, "worker-2", "c").await.expect("another's");
    drop(one);
    eventually("room for one more", async || attach(&world, "worker-1", "c").await.ok()).await;
}
