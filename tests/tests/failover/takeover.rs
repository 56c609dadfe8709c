//! An owner is lost: another takes over, and what workers hold is kept.

use crate::{SESSION_TTL, assert_ended, control, most_attempts, spec, two_coordinators};
use std::time::{Duration, Instant};
use tranche_client::v1::batch::State;
use tranche_tests::cluster::{batch_for, in_ranges_of, tasks};
use tranche_tests::{At, Cluster, Gate, Library, eventually};

/// What a take-over may take beyond the session's time to live.
const BEYOND: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_owner_is_followed_within_its_ttl_and_a_second_and_staged_work_is_kept() {
    let mut cluster = two_coordinators().await;
    let library = Library::with_files(&cluster.data(), "lib", 40);
    let control = control(&cluster);
    for worker in ["w1", "w2"] {
        control.hold(worker, At::Staged);
        cluster.held_worker(worker, 2, &control).await;
    }
    let batch = cluster.submit(spec(&library, 5), library.tasks()).await;
    control.wait_at("w1", At::Staged, 2).await;
    control.wait_at("w2", At::Staged, 2).await;
    let before = cluster.owner(&batch).await.expect("an owner");
    let begun = Instant::now();
    cluster.coordinator(before.0).kill9();
    let after = cluster.wait_owner_after(&batch, before).await;
    let took = begun.elapsed();
    assert!(took < SESSION_TTL + BEYOND, "taken over after {took:?}");
    assert_ne!(after.0, before.0);
    eprintln!("take-over after SIGKILL: {took:?} (session TTL {SESSION_TTL:?})");
    // The new owner leases the rest, and what was staged before counts under its old token.
    let worker_1 = control.arrived(At::Staged);
    for worker in ["w1", "w2"] {
        control.release(worker, At::Staged);
    }
    let client = cluster.client_of(after.0);
    let ended = client.wait(&batch).await.expect("an end");
    assert_eq!(ended.state(), State::Committed);
    eventually("swept", async || Some(client.get(&batch).await.ok()?.swept).filter(|swept| *swept)).await;
    cluster.restart(before.0).await;
    let history = assert_ended(&cluster, &library, &batch, State::Committed).await;
    assert_eq!(most_attempts(&history), 1, "no range was leased twice");
    let arrived = control.arrived(At::Staged);
    assert!(worker_1.iter().all(|arrival| arrived.contains(arrival)));
    assert_eq!(arrived.len(), 8, "8 ranges, each staged once: {arrived:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_loses_no_lease_to_a_coordinators_restart() {
    for term in [false, true] {
        let mut cluster = Cluster::builder().flag("session-ttl", "2s").flag("lease-ttl", "10s").start().await;
        let gate = Gate::new("gate");
        let worker = cluster.attach("w", 3, vec![gate.clone()]).await;
        let batch = cluster.submit(in_ranges_of(10, batch_for("gate")), tasks(30)).await;
        gate.wait_staging(3).await;
        if term {
            cluster.coordinator(0).sigterm();
            assert!(cluster.coordinator(0).ended().await.success());
        }
        cluster.restart(0).await;
        gate.open();
        cluster.wait_state(&batch, State::Committed).await;
        assert_eq!(gate.seen_of("stage").len(), 3, "each range was staged once");
        let history = cluster.assert_invariants(&batch).await;
        assert_eq!(most_attempts(&history), 1);
        worker.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_that_no_owner_took_reach_the_next_one() {
    let mut cluster = two_coordinators().await;
    let gate = Gate::new("gate");
    let worker = cluster.attach("w", 4, vec![gate.clone()]).await;
    let batch = cluster.submit(in_ranges_of(5, batch_for("gate")), tasks(20)).await;
    gate.wait_staging(4).await;
    let before = cluster.owner(&batch).await.expect("an owner");
    // Stopped, not gone: it takes the reports' bytes, and no more.
    cluster.coordinator(before.0).stop();
    gate.open();
    gate.until("all are staged", |gate| gate.waiting().is_empty().then_some(())).await;
    let after = cluster.wait_owner_after(&batch, before).await;
    let client = cluster.client_of(after.0);
    assert_eq!(client.wait(&batch).await.expect("an end").state(), State::Committed);
    cluster.coordinator(before.0).cont();
    let history = cluster.assert_invariants(&batch).await;
    assert_eq!(most_attempts(&history), 1);
    assert_eq!(gate.seen_of("stage").len(), 4);
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_batch_of_a_lost_owner_finds_one_and_they_are_spread() {
    let mut cluster =
        Cluster::builder().coordinators(3).flag("session-ttl", "2s").flag("lease-ttl", "3s").start().await;
    let gate = Gate::new("gate");
    let worker = cluster.attach("w", 64, vec![gate.clone()]).await;
    let mut batches = Vec::new();
    for _ in 0..30 {
        let batch = cluster.create(batch_for("gate")).await;
        cluster.append(&batch, 1, tasks(3)).await;
        batches.push(batch);
    }
    let mut owned = [0; 3];
    for batch in &batches {
        owned[cluster.owner(batch).await.expect("an owner").0] += 1;
    }
    assert!(owned.iter().all(|batches| (5..=15).contains(batches)), "new batches are spread: {owned:?}");
    cluster.coordinator(0).kill9();
    let mut after = [0; 3];
    for batch in &batches {
        let owner = eventually("an owner that lives", async || {
            cluster.owner(batch).await.filter(|(index, _)| *index != 0)
        });
        after[owner.await.0] += 1;
    }
    assert!(after[1] > owned[1] && after[2] > owned[2], "both took some: {owned:?}, then {after:?}");
    gate.open();
    let client = cluster.client_of(1);
    for batch in &batches {
        client.seal(batch, Some(3)).await.expect("sealed");
        assert_eq!(client.wait(batch).await.expect("an end").state(), State::Committed);
    }
    worker.drain().await;
}
