//! SIGTERM: an owner hands over at once, a worker gives back what it hasn't begun.

use crate::{assert_ended, control, spec, two_coordinators};
use futures::TryStreamExt as _;
use std::time::{Duration, Instant};
use tranche_client::v1::batch::State;
use tranche_tests::cluster::{batch_for, in_ranges_of, tasks};
use tranche_tests::{At, Cluster, Gate, Library, eventually};

/// From SIGTERM to the next owner.
const WITHIN: Duration = Duration::from_millis(300);
/// Other tests use the processors too: the best of so many attempts counts.
const ATTEMPTS: usize = 5;

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_is_asked_to_leave_hands_over_at_once_however_many_ranges_there_are() {
    // The session's time is long: nobody waits for it.
    let mut cluster =
        Cluster::builder().coordinators(2).flag("session-ttl", "60s").flag("lease-ttl", "60s").start().await;
    let gate = Gate::new("gate");
    let worker = cluster.attach("w", 4, vec![gate.clone()]).await;
    let batch = cluster.create(in_ranges_of(8, batch_for("gate"))).await;
    // 4,000 ranges on record.
    cluster.append(&batch, 1, tasks(32_000)).await;
    gate.pass(3_996);
    eventually("most are staged", async || {
        let counters = cluster.get(&batch).await.counters.expect("counters");
        Some(()).filter(|()| counters.staged == 3_996 * 8)
    })
    .await;
    gate.wait_staging(4).await;
    let mut took = Vec::new();
    for _ in 0..ATTEMPTS {
        let before = cluster.owner(&batch).await.expect("an owner");
        let begun = Instant::now();
        cluster.coordinator(before.0).sigterm();
        let after = cluster.wait_owner_after(&batch, before).await;
        took.push(begun.elapsed());
        assert_ne!(before.0, after.0);
        assert!(cluster.coordinator(before.0).ended().await.success());
        cluster.restart(before.0).await;
        // The worker is attached to it again before it is the only one.
        eventually("the worker attaches again", async || {
            let workers: Vec<_> = cluster.client_of(before.0).workers().try_collect().await.ok()?;
            Some(()).filter(|()| workers.iter().any(|seen| seen.worker == "w"))
        })
        .await;
    }
    took.sort();
    eprintln!("hand-over on SIGTERM, 4,000 ranges: {took:?}");
    assert!(took[0] < WITHIN, "{took:?}");
    gate.open();
    cluster.seal(&batch).await;
    cluster.wait_state(&batch, State::Committed).await;
    let staged = gate.seen_of("stage");
    assert_eq!(staged.len(), 4_000, "no range was staged twice");
    assert!(staged.iter().all(|seen| seen.attempt == 0), "no lease was lost");
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_worker_finishes_what_it_began_while_the_owner_changes() {
    let mut cluster = two_coordinators().await;
    let library = Library::with_files(&cluster.data(), "lib", 24);
    let control = control(&cluster);
    control.hold("w1", At::Staged);
    cluster.held_worker("w1", 2, &control).await;
    let batch = cluster.submit(spec(&library, 4), library.tasks()).await;
    let began = control.wait_at("w1", At::Staged, 2).await;
    cluster.worker_process("w1").sigterm();
    let before = cluster.owner(&batch).await.expect("an owner");
    cluster.coordinator(before.0).kill9();
    let after = cluster.wait_owner_after(&batch, before).await;
    control.release("w1", At::Staged);
    assert!(cluster.worker_process("w1").ended().await.success());
    // What it began counts; what waited in it was given back, not lost.
    let staged = cluster.client_of(after.0).get(&batch).await.expect("a batch").counters.expect("counters");
    assert_eq!((staged.staged, began.len()), (8, 2));
    cluster.restart(before.0).await;
    cluster.held_worker("w2", 2, &control).await;
    let history = assert_ended(&cluster, &library, &batch, State::Committed).await;
    let lost = history.snapshots.iter().flat_map(|s| s.ranges.values()).filter(|r| r.losses > 0).count();
    assert_eq!(lost, 0, "no range lost its worker");
}
