//! A second coordinator on the same records: it serves reads, and owns a batch only when the first is gone.

use tranche_client::v1::{self, batch::State};
use tranche_tests::cluster::{batch_for, tasks};
use tranche_tests::{Cluster, Gate};

#[tokio::test(flavor = "multi_thread")]
async fn i6_a_second_coordinator_owns_a_batch_only_when_the_first_is_gone() {
    let mut cluster = Cluster::builder().coordinators(2).flag("session-ttl", "1s").start().await;
    let gate = Gate::new("gate");
    let worker = cluster.attach("w", 1, vec![gate.clone()]).await;
    let batch = cluster.submit(batch_for("gate"), tasks(20)).await;
    gate.wait_staging(1).await;

    // Reads work everywhere.
    let second = cluster.client_of(1);
    assert_eq!(second.get(&batch).await.expect("a batch").state(), State::Importing);
    let listed = second.list_page(v1::ListBatchesRequest::default()).await.expect("a list");
    assert_eq!(listed.batches[0].name, batch);

    // What only the owner can do is passed on to it.
    let own = cluster.create(batch_for("gate")).await;
    let owner = cluster.owner(&own).await.expect("an owner").0;
    let appended = cluster.client_of(1 - owner).append(&own, tokio_stream::iter(tasks(1))).await;
    assert_eq!(appended.expect("the owner took it"), 1);

    // A decision can be made anywhere; the owner acts on it.
    let cancelled = cluster.create(batch_for("gate")).await;
    cluster.append(&cancelled, 1, tasks(3)).await;
    let answer = second.cancel(&cancelled, "anna", "at the other one").await.expect("cancelled");
    assert_eq!(answer.decision.expect("made").actor, "anna");
    let ended = cluster.wait_state(&cancelled, State::RolledBack).await;
    assert_eq!(ended.decision.expect("made").actor, "anna");

    // It takes over, and finishes what the first began.
    cluster.coordinator(0).kill9();
    gate.open();
    let ended = second.wait(&batch).await.expect("an end");
    assert_eq!(ended.state(), State::Committed);
    let appended = second.appender(&own).starting_at(2).run(tokio_stream::iter(tasks(4))).await;
    assert_eq!(appended.expect("it is the owner now"), 4);
    second.seal(&own, Some(5)).await.expect("sealed");
    assert_eq!(second.wait(&own).await.expect("an end").state(), State::Committed);
    cluster.assert_invariants(&own).await;
    let history = cluster.assert_invariants(&batch).await;
    let epochs: std::collections::BTreeSet<_> =
        history.snapshots.iter().filter_map(|s| s.lock.as_ref().map(|(_, epoch)| *epoch)).collect();
    assert_eq!(epochs.len(), 2, "two owners, one after the other");
    worker.drain().await;
}
