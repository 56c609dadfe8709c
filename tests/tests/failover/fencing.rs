//! Stale writers: an owner, or a worker, is stopped beyond its time and goes on when all has changed. In
//! every phase.

use crate::{assert_ended, control, spec, two_coordinators};
use tranche_client::v1::batch::State;
use tranche_tests::{At, BatchHistory, Cluster, Control, Library, eventually};

const FILES: usize = 24;
const RANGE: i32 = 4;
const WORKERS: [&str; 2] = ["w1", "w2"];

struct Scene {
    cluster: Cluster,
    control: Control,
    library: Library,
    batch: String,
}

impl Scene {
    /// A batch whose workers are held at this place.
    async fn held(at: At) -> Self {
        let mut cluster = two_coordinators().await;
        let library = Library::with_files(&cluster.data(), "lib", FILES);
        let control = control(&cluster);
        let first = if at == At::Rollback { At::Staged } else { at };
        for worker in WORKERS {
            control.hold(worker, first);
            control.hold(worker, at);
            cluster.held_worker(worker, 2, &control).await;
        }
        let batch = cluster.submit(spec(&library, RANGE), library.tasks()).await;
        for worker in WORKERS {
            control.wait_at(worker, first, 1).await;
        }
        if at == At::Rollback {
            cluster.client().cancel(&batch, "anna", "").await.expect("cancelled");
            eventually("a rollback is held", async || {
                Some(control.arrived(At::Rollback)).filter(|arrived| !arrived.is_empty())
            })
            .await;
        }
        Self { cluster, control, library, batch }
    }

    fn release(&self, at: At) {
        for worker in WORKERS {
            self.control.release(worker, at);
            self.control.release(worker, At::Staged);
        }
    }

    /// The owner is stopped, another takes over, `meanwhile` happens, and the first goes on: stale.
    async fn stop_owner(&mut self, meanwhile: impl AsyncFnOnce(&Self, usize)) -> (usize, u64) {
        let before = self.cluster.owner(&self.batch).await.expect("an owner");
        self.cluster.coordinator(before.0).stop();
        let after = self.cluster.wait_owner_after(&self.batch, before).await;
        meanwhile(self, after.0).await;
        self.cluster.coordinator(before.0).cont();
        before
    }

    async fn ends(&mut self, state: State) -> BatchHistory {
        assert_ended(&self.cluster, &self.library, &self.batch, state).await
    }
}

/// The stale owner noticed: it drives the batch no more.
async fn assert_gave_up(scene: &mut Scene, before: (usize, u64)) {
    let epoch = before.1;
    let process = scene.cluster.coordinator(before.0);
    eventually("the stale owner gives the batch up", async || {
        process.log().contains("driver stopped").then_some(())
    })
    .await;
    let owner = scene.cluster.owner(&scene.batch).await;
    assert!(owner.is_none_or(|(_, now)| now > epoch), "{owner:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn i6_an_owner_that_slept_while_leases_were_staged_writes_nothing() {
    let mut scene = Scene::held(At::Stage).await;
    // The new owner counts some while the other sleeps; the sleeper has reports to take in when it wakes.
    let before = scene.stop_owner(async |scene, _| scene.release(At::Stage)).await;
    assert_gave_up(&mut scene, before).await;
    scene.ends(State::Committed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn i6_an_owner_that_slept_when_the_last_report_came_decides_nothing() {
    let mut scene = Scene::held(At::Staged).await;
    let owner = scene.cluster.owner(&scene.batch).await.expect("an owner");
    scene.cluster.coordinator(owner.0).stop();
    // All that is staged is reported to the sleeper first.
    scene.release(At::Staged);
    let after = scene.cluster.wait_owner_after(&scene.batch, owner).await;
    // The new owner is cancelled: were the sleeper to decide COMMIT by the reports it has, it would be wrong.
    let client = scene.cluster.client_of(after.0);
    let outcome = client.cancel(&scene.batch, "anna", "").await;
    scene.cluster.coordinator(owner.0).cont();
    assert_gave_up(&mut scene, owner).await;
    let state = if outcome.is_ok() { State::RolledBack } else { State::Committed };
    let history = scene.ends(state).await;
    assert!(history.decided().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn i6_an_owner_that_slept_during_the_commit_changes_nothing() {
    let mut scene = Scene::held(At::Commit).await;
    let before = scene.stop_owner(async |scene, _| scene.release(At::Commit)).await;
    assert_gave_up(&mut scene, before).await;
    scene.ends(State::Committed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn i6_an_owner_that_slept_during_the_rollback_changes_nothing() {
    let mut scene = Scene::held(At::Rollback).await;
    let before = scene.stop_owner(async |scene, _| scene.release(At::Rollback)).await;
    assert_gave_up(&mut scene, before).await;
    scene.ends(State::RolledBack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn i6_an_owner_that_slept_while_a_client_cancelled_at_the_other_goes_on_with_nothing() {
    let mut scene = Scene::held(At::Staged).await;
    let before = scene
        .stop_owner(async |scene, after| {
            let client = scene.cluster.client_of(after);
            client.cancel(&scene.batch, "anna", "while it slept").await.expect("cancelled");
        })
        .await;
    scene.release(At::Staged);
    assert_gave_up(&mut scene, before).await;
    scene.ends(State::RolledBack).await;
}

/// A worker is stopped at a place for longer than its leases live; another does its work.
async fn stopped_worker(at: At, state: State) {
    let mut scene = Scene::held(at).await;
    let held = scene.control.arrived(at);
    let sleeper = held.first().expect("a lease that is held").worker.clone();
    let other = if sleeper == "w1" { "w2" } else { "w1" };
    scene.cluster.worker_process(&sleeper).stop();
    scene.control.release(other, At::Staged);
    scene.control.release(other, at);
    let batch = scene.batch.clone();
    scene.cluster.wait_state(&batch, state).await;
    // It wakes when all is over, and does what it was about to do.
    scene.control.release(&sleeper, At::Staged);
    scene.control.release(&sleeper, at);
    scene.cluster.worker_process(&sleeper).cont();
    scene.ends(state).await;
    let library = &scene.library;
    eventually("the sleeper's leftovers go", async || library.staging_left().is_empty().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn i6_a_worker_that_slept_before_staging_is_too_late() {
    stopped_worker(At::Stage, State::Committed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn i6_a_worker_that_slept_with_all_staged_is_too_late() {
    stopped_worker(At::Staged, State::Committed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn i6_a_worker_that_slept_before_a_commit_is_too_late() {
    stopped_worker(At::Commit, State::Committed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn i6_a_worker_that_slept_before_a_rollback_is_too_late() {
    stopped_worker(At::Rollback, State::RolledBack).await;
}
