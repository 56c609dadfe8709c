//! Batches that are revoked while their tasks are still being appended.

use futures::{Stream, StreamExt as _, stream};
use tranche_client::v1;
use tranche_client::v1::batch::State;
use tranche_client::v1::decision::{Outcome, Reason};
use tranche_client::{Client, Options};
use tranche_tests::cluster::{batch_for, in_ranges_of, tasks};
use tranche_tests::{Cluster, Gate, eventually};

/// The only batch, as it is now.
async fn only(client: &Client) -> Option<v1::Batch> {
    let page = client.list_page(v1::ListBatchesRequest { page_size: 1, ..Default::default() }).await;
    page.expect("a list").batches.into_iter().next()
}

/// Some tasks at once, and the others when the batch is decided; or, with `swept`, when all of it is over.
fn revoked_between(client: &Client, swept: bool) -> impl Stream<Item = v1::Task> + use<> {
    let client = client.clone();
    let late = stream::once(async move {
        eventually("the batch is revoked", async || {
            let batch = only(&client).await?;
            (batch.decision.is_some() && (!swept || batch.swept)).then_some(())
        })
        .await;
        stream::iter(tasks(20))
    });
    stream::iter(tasks(20)).chain(late.flatten())
}

async fn assert_comes_back(spec: v1::Batch, swept: bool, cancel: bool, reason: Reason) {
    let cluster = Cluster::start().await;
    let gate = Gate::new("gate");
    gate.open();
    let _worker = cluster.attach("w1", 2, vec![gate.clone()]).await;
    gate.fail(1..=5, "BROKEN");
    let client = Client::connect_with(cluster.url(0), Options { chunk_tasks: 7, ..Options::default() });
    let client = client.await.unwrap();
    let request = v1::CreateBatchRequest { batch: Some(spec), ..Default::default() };
    let submitted = Box::pin(client.submit(request, revoked_between(&client, swept)));
    let canceller = async {
        if cancel {
            let batch = eventually("there is a batch", async || only(&client).await).await;
            client.cancel(&batch.name, "the editor", "not these").await.unwrap();
        }
    };
    let (batch, ()) = tokio::join!(submitted, canceller);
    let batch = batch.expect("the batch");
    assert!(matches!(batch.state(), State::RollingBack | State::RolledBack), "{:?}", batch.state());
    let decision = batch.decision.unwrap();
    assert_eq!((decision.outcome(), decision.reason()), (Outcome::Rollback, reason));
    assert_eq!(client.wait(&batch.name).await.unwrap().state(), State::RolledBack);
    cluster.assert_invariants(&batch.name).await;
}

fn spec() -> v1::Batch {
    in_ranges_of(5, batch_for("gate"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_submit_gives_a_batch_that_its_failure_limit_revoked() {
    for swept in [false, true] {
        let limit = v1::FailureLimit { max_failed_tasks: Some(4), ..Default::default() };
        let spec = v1::Batch { failure_limit: Some(limit), ..spec() };
        Box::pin(assert_comes_back(spec, swept, false, Reason::FailureLimit)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_submit_gives_a_batch_that_its_deadline_revoked() {
    let spec = v1::Batch { deadline: Some(prost_types::Duration { seconds: 1, nanos: 0 }), ..spec() };
    Box::pin(assert_comes_back(spec, false, false, Reason::Deadline)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_submit_gives_a_batch_that_was_cancelled() {
    for swept in [false, true] {
        Box::pin(assert_comes_back(spec(), swept, true, Reason::Cancelled)).await;
    }
}

/// What is wrong with the tasks isn't hidden by a revocation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_submit_of_other_tasks_than_before_is_an_error() {
    let cluster = Cluster::start().await;
    let client = cluster.client();
    let request = v1::CreateBatchRequest {
        batch: Some(batch_for("noop")),
        request_id: "the same".into(),
        ..Default::default()
    };
    let batch = client.submit(request.clone(), stream::iter(tasks(5))).await.unwrap();
    let error = client.submit(request.clone(), stream::iter(tasks(6))).await.unwrap_err();
    assert_eq!(error.reason().as_deref(), Some("BATCH_SEALED"));
    client.cancel(&batch.name, "the editor", "").await.unwrap();
    let again = client.submit(request, stream::iter(tasks(5))).await.unwrap();
    assert!(again.decision.is_some());
}
