//! The other calls over lost answers and broken streams.

mod support;

use std::time::Duration;

use support::{World, client, options, serve, tasks};
use tokio_stream::StreamExt as _;
use tonic::Code;
use tranche_client::v1::batch::State;
use tranche_client::{Client, Error, Options, v1};

const BATCH: &str = "namespaces/default/batches/b";

#[tokio::test]
async fn submit_makes_one_batch_over_lost_answers() {
    let mut world = World::new(7);
    world.lost_answers = 2;
    let (world, address) = serve(world).await;
    let request = v1::CreateBatchRequest::default();
    let batch = client(address).submit(request, tokio_stream::iter(tasks(120))).await.unwrap();
    assert!(batch.sealed);
    let world = world.lock().unwrap();
    assert_eq!(world.creates.len(), 3);
    assert!(!world.creates[0].is_empty());
    assert!(world.creates.iter().all(|id| *id == world.creates[0]), "{:?}", world.creates);
    assert_eq!(world.seals, [Some(120)]);
    support::assert_exactly_once(&world, 120, "submit");
}

#[tokio::test]
async fn a_request_id_of_the_caller_is_kept() {
    let (world, address) = serve(World::new(7)).await;
    let request = v1::CreateBatchRequest { request_id: "mine".into(), ..Default::default() };
    client(address).create(request).await.unwrap();
    assert_eq!(world.lock().unwrap().creates, ["mine"]);
}

#[tokio::test]
async fn a_delete_whose_answer_was_lost_succeeds() {
    let mut world = World::new(7);
    world.lost_answers = 1;
    let (world, address) = serve(world).await;
    client(address).delete(BATCH).await.unwrap();
    assert_eq!(world.lock().unwrap().deletes, 2);
    // Without a lost answer NOT_FOUND is what it says.
    assert_eq!(client(address).delete(BATCH).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn retry_failed_is_never_repeated() {
    let mut world = World::new(7);
    world.lost_answers = 1;
    let (world, address) = serve(world).await;
    assert_eq!(client(address).retry_failed(BATCH).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(world.lock().unwrap().retries, 1);
}

#[tokio::test]
async fn failures_come_over_all_pages() {
    let mut world = World::new(7);
    world.failures = 10;
    world.lost_answers = 1;
    let (_world, address) = serve(world).await;
    let failures: Vec<i64> = client(address).failures(BATCH).map(|f| f.unwrap().sequence).collect().await;
    assert_eq!(failures, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
}

#[tokio::test]
async fn watch_goes_on_over_broken_streams_until_the_end() {
    let mut world = World::new(7);
    world.watches = vec![
        vec![State::Importing],
        vec![],
        vec![State::Importing, State::Committing],
        vec![State::Committing, State::Committed],
    ];
    let (_world, address) = serve(world).await;
    let states: Vec<State> =
        client(address).watch(BATCH).map(|u| u.unwrap().batch.unwrap().state()).collect().await;
    assert_eq!(
        states,
        [State::Importing, State::Importing, State::Committing, State::Committing, State::Committed]
    );
}

#[tokio::test]
async fn wait_until_stops_at_the_state_or_at_the_end() {
    let mut world = World::new(7);
    world.watches = vec![vec![State::Importing, State::Held], vec![State::RollingBack, State::RolledBack]];
    let (_world, address) = serve(world).await;
    let held = client(address).wait_until(BATCH, |b| b.state() == State::Held).await.unwrap();
    assert_eq!(held.state(), State::Held);
    let ended = client(address).wait_until(BATCH, |b| b.state() == State::Held).await.unwrap();
    assert_eq!(ended.state(), State::RolledBack);
}

#[tokio::test]
async fn a_watch_that_cannot_go_on_ends_with_the_error() {
    let (_world, address) = serve(World::new(7)).await;
    let options = Options { retry_for: Duration::from_millis(100), ..options() };
    let client = Client::connect_lazy(format!("http://{address}"), options).unwrap();
    let updates: Vec<_> = client.watch(BATCH).collect().await;
    assert_eq!(updates.len(), 1);
    assert_eq!(updates[0].as_ref().unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn connecting_tells_at_once_what_is_wrong() {
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error = Client::connect(format!("http://{gone}")).await.unwrap_err();
    assert!(matches!(&error, Error::Connect { .. }), "{error:?}");
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.retryable());
    let error = Client::connect("not a url").await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
}
