//! What a worker stages after its batch's end is found and removed.

use crate::{assert_ended, control, spec};
use tranche_client::v1::batch::State;
use tranche_tests::{At, Cluster, Library, eventually};

async fn cluster(late_sweep_after: &str) -> Cluster {
    Cluster::builder()
        .coordinators(2)
        .flag("session-ttl", "2s")
        .flag("lease-ttl", "1s")
        .flag("late-sweep-after", late_sweep_after)
        .start()
        .await
}

/// A worker is stopped before it staged anything, its batch is cancelled and rolled back; then it stages.
async fn stage_after_the_end(cluster: &mut Cluster, library: &Library) -> (String, tranche_tests::Control) {
    let control = control(cluster);
    control.hold("w1", At::Stage);
    control.deafen("w1");
    cluster.held_worker("w1", 1, &control).await;
    let batch = cluster.submit(spec(library, 10), library.tasks()).await;
    control.wait_at("w1", At::Stage, 1).await;
    cluster.worker_process("w1").stop();
    cluster.held_worker("w2", 1, &control).await;
    cluster.client().cancel(&batch, "anna", "").await.expect("cancelled");
    cluster.wait_state(&batch, State::RolledBack).await;
    library.assert_no_staging_left();
    (batch, control)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stages_after_the_end_removes_it_itself() {
    // The coordinator's own late sweep is far away.
    let mut cluster = cluster("1h").await;
    let library = Library::with_files(&cluster.data(), "lib", 20);
    let (batch, control) = stage_after_the_end(&mut cluster, &library).await;
    control.hold("w1", At::Staged);
    control.release("w1", At::Stage);
    cluster.worker_process("w1").cont();
    control.wait_at("w1", At::Staged, 1).await;
    assert!(!library.staging_left().is_empty(), "it did stage");
    control.release("w1", At::Staged);
    eventually("nothing is left", async || library.staging_left().is_empty().then_some(())).await;
    library.assert_untouched();
    assert!(!cluster.get(&batch).await.swept, "the late sweep is still to come");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_left_that_died_after_it_woke_is_swept_later_and_counted() {
    let mut cluster = cluster("4s").await;
    let library = Library::with_files(&cluster.data(), "lib", 20);
    let (batch, control) = stage_after_the_end(&mut cluster, &library).await;
    control.hold("w1", At::Staged);
    control.release("w1", At::Stage);
    cluster.worker_process("w1").cont();
    control.wait_at("w1", At::Staged, 1).await;
    cluster.worker_process("w1").kill9();
    assert!(!library.staging_left().is_empty(), "it did stage");
    assert_ended(&cluster, &library, &batch, State::RolledBack).await;
    let counters = cluster.get(&batch).await.counters.expect("counters");
    assert!(counters.residue_removed > 0, "{counters:?}");
}
