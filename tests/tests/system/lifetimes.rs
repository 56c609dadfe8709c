//! From the first moment of a batch to its deletion, over restarts and other coordinators.

use std::time::SystemTime;
use tonic::Code;
use tranche_client::v1;
use tranche_client::v1::batch::{CommitMode, State};
use tranche_client::v1::decision::Reason;
use tranche_tests::cluster::{batch_for, batch_into, in_ranges_of, key, tasks};
use tranche_tests::{Cluster, Gate, Library, eventually};

fn manual(batch: v1::Batch) -> v1::Batch {
    v1::Batch { commit_mode: CommitMode::Manual.into(), ..batch }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_without_tasks_is_cancelled_and_takes_none_any_more() {
    let cluster = Cluster::start().await;
    let batch = cluster.create(batch_for("noop")).await;
    cluster.client().cancel(&batch, "me", "a mistake").await.unwrap();
    let ended = cluster.wait_state(&batch, State::RolledBack).await;
    assert_eq!(ended.decision.unwrap().message, "a mistake");
    let error = cluster.client().append(&batch, tokio_stream::iter(tasks(1))).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    cluster.wait_swept(&batch).await;
    cluster.assert_invariants(&batch).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_cancelled_while_it_waits_for_workers_that_never_come() {
    let cluster = Cluster::start().await;
    let batch = cluster.submit(batch_for("noop"), tasks(100)).await;
    cluster.client().cancel(&batch, "", "").await.unwrap();
    let ended = cluster.wait_state(&batch, State::RolledBack).await;
    assert_eq!(ended.counters.unwrap().cutoff, 0);
    cluster.assert_invariants(&batch).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_batch_outlives_a_restart_and_commits() {
    let mut cluster = Cluster::start().await;
    let library = Library::with_files(&cluster.data(), "library", 30);
    let mut submitted = library.tasks();
    submitted[4].payload = r#"{"source": "nowhere"}"#.into();
    cluster.workers(1, 2).await;
    let batch = cluster.submit(manual(in_ranges_of(10, batch_into(library.target()))), submitted).await;
    let held = cluster.wait_state(&batch, State::Held).await;
    let failures = cluster.failures(&batch).await;
    cluster.restart(0).await;
    let again = cluster.wait_state(&batch, State::Held).await;
    assert_eq!(again.counters, held.counters);
    assert_eq!(cluster.failures(&batch).await, failures);
    assert_eq!((failures.len(), failures[0].code.as_str()), (1, "NOT_FOUND"));
    library.assert_untouched();
    cluster.client().commit(&batch, "me").await.unwrap();
    cluster.wait_state(&batch, State::Committed).await;
    let mut good = library.keys();
    good.remove(4);
    library.assert_exactly(good);
    cluster.assert_invariants(&batch).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_that_passed_while_nobody_was_there_still_counts() {
    let mut cluster = Cluster::start().await;
    let gate = Gate::new("noop");
    let _worker = cluster.attach("w1", 1, vec![gate.clone()]).await;
    let deadline = prost_types::Duration { seconds: 1, nanos: 0 };
    let batch = v1::Batch { deadline: Some(deadline), ..in_ranges_of(2, batch_for("noop")) };
    let batch = cluster.submit(batch, tasks(10)).await;
    gate.wait_staging(1).await;
    cluster.coordinator(0).kill9();
    let after = SystemTime::now() + std::time::Duration::from_millis(1100);
    eventually("the deadline has passed", async || (SystemTime::now() > after).then_some(())).await;
    cluster.restart(0).await;
    let ended = cluster.wait_state(&batch, State::RolledBack).await;
    assert_eq!(ended.decision.unwrap().reason(), Reason::Deadline);
    assert_eq!(gate.cancelled(), 1);
    cluster.assert_invariants(&batch).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_batch_leaves_the_library_and_nothing_else() {
    let mut cluster = Cluster::start().await;
    let library = Library::with_files(&cluster.data(), "library", 20);
    let mut submitted = library.tasks();
    submitted[0].payload = r#"{"source": "nowhere"}"#.into();
    let request = v1::CreateBatchRequest {
        batch: Some(batch_into(library.target())),
        request_id: "once".into(),
        ..Default::default()
    };
    let client = cluster.client().clone();
    let batch = client.submit(request.clone(), tokio_stream::iter(submitted)).await.unwrap().name;
    let error = client.delete(&batch).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    cluster.worker("w1", 2).await;
    cluster.wait_state(&batch, State::Committed).await;
    cluster.wait_swept(&batch).await;
    let before = tranche_tests::snapshot(&library.library);

    client.delete(&batch).await.unwrap();
    assert_eq!(client.get(&batch).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(client.delete(&batch).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(tranche_tests::snapshot(&library.library), before);
    let id = tranche_client::names::batch_id(&batch);
    eventually("its objects are gone", async || {
        let objects = tranche_tests::snapshot(&cluster.dir().join("objects"));
        (!objects.iter().any(|(path, sum)| path.contains(id) && !sum.is_empty())).then_some(())
    })
    .await;
    // Not a key of it is left in etcd, but one of the 256 that name the last deletions.
    let mut left = std::collections::BTreeSet::new();
    for changes in cluster.history().await.changes.values() {
        for (name, value) in changes {
            match value {
                Some(_) => left.insert(name.clone()),
                None => left.remove(name),
            };
        }
    }
    left.retain(|name| !name.starts_with("coordinators/"));
    let deletions = left.extract_if(.., |name| name.starts_with("deletions/")).count();
    assert_eq!(deletions, 1);
    assert!(left.is_empty(), "{left:?}");
    // The request id is free again, the batch's own is not used twice.
    assert_ne!(client.create(request).await.unwrap().name, batch);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_at_another_coordinator_reaches_the_owner_and_its_workers() {
    let cluster = Cluster::builder().coordinators(2).start().await;
    let gate = Gate::new("noop");
    let _worker = cluster.attach("w1", 2, vec![gate.clone()]).await;
    let batch = cluster.submit(in_ranges_of(5, batch_for("noop")), tasks(50)).await;
    gate.wait_staging(1).await;
    let other = cluster.client_of(1);
    assert_eq!(other.get(&batch).await.unwrap().name, batch);
    let answer = other.cancel(&batch, "the other side", "").await.unwrap();
    assert_eq!(answer.decision.unwrap().actor, "the other side");
    gate.until("the worker is told", |g| (g.cancelled() >= 1).then_some(())).await;
    cluster.wait_state(&batch, State::RolledBack).await;
    assert_eq!(other.get(&batch).await.unwrap().state(), State::RolledBack);
    let history = cluster.assert_invariants(&batch).await;
    let owners: std::collections::BTreeSet<_> =
        history.snapshots.iter().filter_map(|s| s.lock.as_ref().map(|(_, epoch)| *epoch)).collect();
    assert_eq!(owners.len(), 1, "the owner stayed");
    assert_eq!(history.key, key(&batch));
}
