//! The whole in one process, on the embedded store: what `tranche import` is made of.

use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tranche_client::{Client, v1};
use tranche_coordinator::{Server, config::Config};
use tranche_worker::Worker;
use tranche_worker::handlers::Noop;

#[tokio::test(flavor = "multi_thread")]
async fn noop_tasks_go_through_the_whole() {
    let _ = tracing_subscriber::fmt().with_env_filter("info,tranche=debug").with_test_writer().try_init();
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(Config::embedded(dir.path().join("state"))).await.unwrap();
    let url = format!("http://{}", server.local_addr());
    let stop = CancellationToken::new();
    let serving = tokio::spawn(server.run(stop.clone()));
    let worker = Worker::new(tranche_worker::Config::new([url.clone()]), vec![Arc::new(Noop::new())]);
    let drain = CancellationToken::new();
    let working = tokio::spawn(worker.run(drain.clone()));

    let client = Client::connect(url).await.unwrap();
    let batch = v1::Batch {
        targets: vec![v1::Target { handler: "noop".into(), params: Default::default() }],
        ..v1::Batch::default()
    };
    let request = v1::CreateBatchRequest { batch: Some(batch), ..v1::CreateBatchRequest::default() };
    let tasks = (0..100_000).map(|n| v1::Task { key: format!("k{n}"), payload: "x".into() });
    let batch = client.submit(request, tokio_stream::iter(tasks)).await.unwrap();
    let done = client.wait(&batch.name).await.unwrap();
    assert_eq!(done.state(), v1::batch::State::Committed);
    let counters = done.counters.unwrap();
    assert_eq!((counters.total, counters.staged, counters.committed), (100_000, 100_000, 100_000));
    // First the worker: it waits until its last report, the sweep's, is settled.
    drain.cancel();
    working.await.unwrap().unwrap();
    stop.cancel();
    serving.await.unwrap();
}
