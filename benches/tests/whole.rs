//! The ceiling on the whole: client, coordinator and worker in one process, over a real connection and a real disk.

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tranche_benches::path;
use tranche_client::{Client, v1};
use tranche_coordinator::{Server, config::Config};
use tranche_worker::Worker;
use tranche_worker::handlers::Noop;

#[global_allocator]
static MEMORY: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const FEW: usize = 20_000;
const MANY: usize = 120_000;
/// Times that memory is asked for because of a task more, from the client's append to COMMITTED, in all three: a share
/// of what a message, a segment and a lease take.
const CEILING: f64 = 0.6;

/// How often a batch of so many tasks asks for memory. The caller's own making of its tasks isn't counted.
async fn batch(client: &Client, count: usize) -> usize {
    let batch = v1::Batch {
        targets: vec![v1::Target { handler: "noop".into(), ..v1::Target::default() }],
        ..v1::Batch::default()
    };
    let request = v1::CreateBatchRequest { batch: Some(batch), ..v1::CreateBatchRequest::default() };
    let tasks = path::tasks(count);
    let region = Region::new(MEMORY);
    let name = client.create(request).await.expect("created").name;
    let appended = client.appender(&name).run_iter(tasks).await.expect("appended");
    client.seal(&name, Some(appended)).await.expect("sealed");
    let done = client.wait(&name).await.expect("done");
    assert_eq!(done.counters.expect("counters").committed, count.cast_signed() as i64);
    let change = region.change();
    change.allocations + change.reallocations
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_more_is_hardly_an_allocation_more() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = Server::start(Config::embedded(dir.path().join("state"))).await.expect("started");
    let url = format!("http://{}", server.local_addr());
    let stop = CancellationToken::new();
    let serving = tokio::spawn(server.run(stop.clone()));
    let worker = Worker::new(tranche_worker::Config::new([url.clone()]), vec![Arc::new(Noop::default())]);
    let drain = CancellationToken::new();
    let working = tokio::spawn(worker.run(drain.clone()));
    let client = Client::connect(url).await.expect("connected");

    // The first makes connections, and teaches the coordinator how fast the worker is.
    batch(&client, FEW).await;
    let (few, many) = (batch(&client, FEW).await, batch(&client, MANY).await);
    let each = (many as f64 - few as f64) / (MANY - FEW) as f64;
    println!("{few} for {FEW} tasks, {many} for {MANY}: {each:.3} for a task more, at most {CEILING}");
    assert!(each <= CEILING, "{few} for {FEW} tasks, {many} for {MANY}: {each:.3}, at most {CEILING}");

    drain.cancel();
    working.await.expect("joined").expect("in order");
    stop.cancel();
    serving.await.expect("joined");
}
