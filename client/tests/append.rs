//! Appending never loses a task and never doubles one, wherever the stream breaks.

mod support;

use std::time::Duration;

use support::{Chance, World, assert_exactly_once, client, cutting_proxy, options, serve, tasks};
use tokio::sync::watch;
use tokio_stream::StreamExt as _;
use tonic::Code;
use tranche_client::{AppendProgress, Client, Error, Options, v1};

const BATCH: &str = "namespaces/default/batches/b";

/// One seeded run: breaks before, within and after a message, lost acknowledgements, cut connections.
async fn survives(seed: u64) {
    let mut chance = Chance::new(seed ^ 0xabcd);
    let count = 1 + chance.below(3_000).cast_signed();
    let mut world = World::new(seed);
    world.breaks = chance.below(25);
    world.dropped_acks = chance.below(40);
    let (world, mut address) = serve(world).await;
    if chance.hits(60) {
        address = cutting_proxy(address, chance.clone(), 60_000).await;
    }
    let client = client(address);
    let (progress, seen) = watch::channel(AppendProgress::default());
    let total = client.appender(BATCH).report_to(progress).run_iter(tasks(count)).await;
    assert_eq!(total.unwrap_or_else(|e| panic!("seed {seed}: {e} {e:?}")), count, "seed {seed}");
    assert_exactly_once(&world.lock().unwrap(), count, &format!("seed {seed}"));
    assert_eq!(*seen.borrow(), AppendProgress { taken: count, durable: count }, "seed {seed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_task_exactly_once_over_breaking_streams() {
    let mut runs = tokio::task::JoinSet::new();
    for seed in 0..60 {
        if runs.len() >= 12 {
            runs.join_next().await.unwrap().unwrap();
        }
        runs.spawn(survives(seed));
    }
    while let Some(run) = runs.join_next().await {
        run.unwrap();
    }
}

#[tokio::test]
async fn a_restarted_client_goes_on_where_the_first_stopped() {
    let (world, address) = serve(World::new(1)).await;
    assert_eq!(client(address).append(BATCH, tokio_stream::iter(tasks(333))).await.unwrap(), 333);
    let before = world.lock().unwrap().messages;
    assert_eq!(client(address).append(BATCH, tokio_stream::iter(tasks(400))).await.unwrap(), 400);
    let world = world.lock().unwrap();
    assert_exactly_once(&world, 400, "restarted");
    // The 333 are passed over, not sent again: 67 tasks need few messages.
    assert!(world.messages - before < 10, "{}", world.messages - before);
}

#[tokio::test]
async fn goes_on_from_a_later_sequence_number() {
    let (world, address) = serve(World::new(1)).await;
    client(address).append(BATCH, tokio_stream::iter(tasks(10))).await.unwrap();
    let rest = tasks(25).skip(10);
    assert_eq!(client(address).appender(BATCH).starting_at(11).run_iter(rest).await.unwrap(), 15);
    assert_exactly_once(&world.lock().unwrap(), 25, "later");
}

#[tokio::test]
async fn a_slow_source_is_not_held_back() {
    let (world, address) = serve(World::new(1)).await;
    let (send, receive) = tokio::sync::mpsc::channel(1);
    let (progress, mut seen) = watch::channel(AppendProgress::default());
    let client = client(address);
    let append = tokio::spawn(async move {
        let source = tokio_stream::wrappers::ReceiverStream::new(receive);
        client.appender(BATCH).report_to(progress).run(source).await
    });
    // Each task is durable before the next exists, far below the size of a chunk.
    for (n, task) in (1..).zip(tasks(5)) {
        send.send(task).await.unwrap();
        seen.wait_for(|p| p.durable == n).await.unwrap();
    }
    drop(send);
    assert_eq!(append.await.unwrap().unwrap(), 5);
    assert_exactly_once(&world.lock().unwrap(), 5, "slow");
}

#[tokio::test]
async fn large_tasks_and_many_tasks_stay_within_the_limits_of_a_message() {
    let (world, address) = serve(World::new(1)).await;
    let client = Client::connect(format!("http://{address}")).await.unwrap();
    let large = (1..=6).map(|n| v1::Task { key: n.to_string(), payload: vec![7; 1024 * 1024].into() });
    let small = (7..=20_000).map(|n: i64| v1::Task { key: n.to_string(), ..Default::default() });
    assert_eq!(client.append(BATCH, tokio_stream::iter(large.chain(small))).await.unwrap(), 20_000);
    let world = world.lock().unwrap();
    assert_exactly_once(&world, 20_000, "large");
    assert_eq!(world.most_tasks, Options::CHUNK_TASKS);
    assert_eq!(world.streams, 1);
}

#[tokio::test]
async fn an_empty_source_appends_nothing() {
    let (world, address) = serve(World::new(1)).await;
    assert_eq!(client(address).append(BATCH, tokio_stream::empty()).await.unwrap(), 0);
    assert_exactly_once(&world.lock().unwrap(), 0, "empty");
}

#[tokio::test]
async fn a_refusal_is_returned_at_once() {
    let mut world = World::new(1);
    world.refuse = Some(Code::FailedPrecondition);
    let (world, address) = serve(world).await;
    let error = client(address).append(BATCH, tokio_stream::iter(tasks(10))).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert_eq!(world.lock().unwrap().streams, 1);
}

#[tokio::test]
async fn gives_up_on_a_service_that_stays_away() {
    let mut world = World::new(1);
    world.refuse = Some(Code::Unavailable);
    let (world, address) = serve(world).await;
    let options = Options { retry_for: Duration::from_millis(200), ..options() };
    let client = Client::connect_lazy(format!("http://{address}"), options).unwrap();
    let error = client.append(BATCH, tokio_stream::iter(tasks(10))).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(world.lock().unwrap().streams > 1);
}

#[tokio::test]
async fn a_task_over_the_limits_is_named_and_not_sent() {
    let (_world, address) = serve(World::new(1)).await;
    let large = v1::Task { key: "k".into(), payload: vec![0; 1024 * 1024 + 1].into() };
    let error = client(address).append(BATCH, tokio_stream::iter(tasks(2).chain([large]))).await.unwrap_err();
    assert_eq!(error.to_string(), "task 3 (\"k\"): its payload has 1048577 bytes, the most is 1048576");
    let long = v1::Task { key: "k".repeat(1025), ..Default::default() };
    let error = client(address).append(BATCH, tokio_stream::iter([long])).await.unwrap_err();
    assert!(matches!(error, Error::TaskTooLarge { sequence: 1, field: "key", size: 1025, .. }));
}

#[tokio::test]
async fn the_error_of_the_source_comes_back() {
    let (_world, address) = serve(World::new(1)).await;
    let source = tokio_stream::iter(tasks(2)).map(Ok).chain(tokio_stream::once(Err("line 3 is bad")));
    let error = client(address).appender(BATCH).try_run(source).await.unwrap_err();
    assert!(matches!(&error, Error::Source(source) if source.to_string() == "line 3 is bad"));
    assert!(!error.retryable());
}
