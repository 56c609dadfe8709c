//! The published method of staged import by batch state, point by point (`shared/origin.md`, 1).

use tranche_client::v1::batch::State;
use tranche_tests::cluster::batch_into;
use tranche_tests::{Cluster, Library};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn origin_1_7_tasks_made_from_files_are_queued_and_taken_by_a_pool_of_workers() {
    let mut cluster = Cluster::start().await;
    let library = Library::with_files(&cluster.data(), "library", 60);
    cluster.workers(3, 2).await;
    let batch = cluster.submit(batch_into(library.target()), library.tasks()).await;
    let done = cluster.wait_state(&batch, State::Committed).await;
    assert_eq!(done.counters.unwrap().committed, 60);
    library.assert_exactly(library.keys());
    cluster.wait_swept(&batch).await;
    library.assert_no_staging_left();
    cluster.assert_invariants(&batch).await;
}
