//! What a small batch costs: transactions, reads and objects, each of which somebody waits for.

use super::fake::FakeWorker;
use super::*;

/// From CreateBatch to the end of a batch of one task: made, appended, sealed with the lease of its task, staged
/// with the decision, committed with the end; and swept with the release of its lock, which nobody waits for.
const TRANSACTIONS: usize = 6;
/// Objects that are synced: the segment and the completion report.
const OBJECTS: usize = 2;

/// Appends one task and seals, as a client does.
async fn submit(world: &World, batch: &BatchKey) {
    world.append(batch, 1, 1).await;
    timeout(LONG, world.node.seal(batch, Some(1))).await.expect("in time").expect("sealed");
}

#[tokio::test]
async fn a_batch_of_one_task_takes_six_transactions_and_two_objects() {
    let dir = folder();
    let world = World::start(dir.path()).await;
    let _worker = FakeWorker::attach(&world.node, "w", 2);
    world.store.transactions_sent();
    let batch = world.node.create("default", spec(), "r").await.expect("made").key;
    submit(&world, &batch).await;
    let ended = world.until(&batch, |view| view.state.swept).await;
    assert_eq!(ended.state.state(), State::Committed);
    let sent = world.store.transactions_sent();
    let of_batch: Vec<_> = sent.iter().map(|name| name.split('/').next().unwrap_or_default()).collect();
    assert_eq!(of_batch.len(), TRANSACTIONS, "{sent:#?}");
    assert_eq!(of_batch[0], "txn specs");
    assert!(of_batch[1..].iter().all(|name| *name == "txn states"), "{sent:#?}");
    let files = walk(&config(dir.path()).objects_dir());
    assert_eq!(files.len(), OBJECTS, "{files:?}");
    world.end().await;
}

#[tokio::test]
async fn a_batch_that_was_just_made_is_not_read_again_before_its_answer() {
    let dir = folder();
    let world = World::start(dir.path()).await;
    // Nobody waits for this read.
    let stopped = world.store.stop("get decisions/");
    world.store.reads();
    let batch =
        timeout(LONG, world.node.create("default", spec(), "r")).await.expect("in time").expect("made").key;
    let go = stopped.reached().await;
    let kinds: Vec<_> = world.store.reads();
    assert!(world.drives(&batch));
    let known = ["get requests/", "get deletions/", "get decisions/"];
    assert!(kinds.iter().all(|read| known.iter().any(|known| read.starts_with(known))), "{kinds:?}");
    assert_eq!(kinds.len(), known.len(), "{kinds:?}");
    drop(go);
    submit(&world, &batch).await;
    world.end().await;
}

#[tokio::test]
async fn a_decision_before_there_was_a_driver_is_heard() {
    let dir = folder();
    let world = World::start(dir.path()).await;
    let elsewhere = folder();
    let other = world.beside(elsewhere.path()).await;
    let stopped = world.store.stop("get decisions/");
    let batch = world.node.create("default", spec(), "").await.expect("made").key;
    let go = stopped.reached().await;
    other.node.cancel(&batch, "ann", "").await.expect("decided");
    drop(go);
    let ended = world.until(&batch, |view| view.state.swept).await;
    assert_eq!(ended.state.state(), State::RolledBack);
    other.end().await;
    world.end().await;
}

#[tokio::test]
async fn the_end_of_a_batch_without_failures_reads_no_ranges() {
    let dir = folder();
    let world = World::start(dir.path()).await;
    let batch = world.node.create("default", spec(), "").await.expect("made").key;
    submit(&world, &batch).await;
    let _worker = FakeWorker::attach(&world.node, "w", 2);
    let handle = world.node.shared.handle(&batch).expect("driven");
    let mut views = handle.view();
    let swept = timeout(LONG, views.wait_for(|view| view.state.swept)).await;
    assert!(swept.expect("in time").is_ok());
    let reads = world.store.reads();
    assert!(!reads.iter().any(|read| read.starts_with("range ranges/")), "{reads:?}");
    world.end().await;
}

/// The files below a folder.
fn walk(folder: &Path) -> Vec<std::path::PathBuf> {
    let (mut folders, mut files) = (vec![folder.to_owned()], Vec::new());
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files
}
