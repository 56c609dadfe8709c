//! Tasks whose only copy was deleted or damaged.

use super::fake::FakeWorker;
use super::*;

#[tokio::test]
async fn tasks_that_cannot_be_read_fail_and_the_batch_ends() {
    let dir = folder();
    let world = World::start(dir.path()).await;
    let batch = world.node.create("default", spec(), "").await.expect("created").key;
    world.append(&batch, 1, 3).await;
    world.end().await;
    // Somebody deleted the only copy of the tasks; what was in memory is gone with the process.
    let tasks = dir.path().join("objects/batches").join(&batch.namespace).join(&batch.id);
    std::fs::remove_dir_all(tasks).expect("it was there");

    let world = World::start(dir.path()).await;
    // One lease at a time: a lease that never got there must not use it up.
    let worker = FakeWorker::attach(&world.node, "fake", 1);
    world.node.seal(&batch, Some(3)).await.expect("sealed");
    let ended = world.until(&batch, View::is_final).await;
    assert_eq!((ended.state.state(), ended.state.failed), (State::Committed, 3));
    assert!(!ended.state.report_uri.is_empty(), "the report is there without the keys");
    let (failures, _) = world.node.failures(&batch, 0, 10).await.expect("listed");
    assert_eq!(failures.iter().map(|f| f.code.as_str()).collect::<Vec<_>>(), ["STAGE_ERROR"; 3]);
    drop(worker);
    world.end().await;
}
