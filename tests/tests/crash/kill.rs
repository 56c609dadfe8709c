//! kill -9 of workers and coordinators.

use super::{FILES, assert_all_or_nothing, pass_time, random, spec};
use rand::Rng as _;
use rand::rngs::StdRng;
use tranche_client::v1::batch::State;
use tranche_client::{Options, is_final, v1};
use tranche_tests::cluster::Builder;
use tranche_tests::{Cluster, Library};

/// Batches of one test.
const BATCHES: usize = 4;

fn builder() -> Builder {
    Cluster::builder().flag("lease-ttl", "600ms").flag("session-ttl", "1s")
}

/// Submits the library's files with many messages, so that a kill may fall between them.
fn submit(cluster: &Cluster, library: &Library) -> tokio::task::JoinHandle<String> {
    let options = Options { chunk_tasks: 7, window_chunks: 3, ..Options::default() };
    let client = tranche_client::Client::connect_lazy(cluster.url(0), options).unwrap();
    let (spec, tasks) = (spec(library), library.tasks());
    tokio::spawn(async move {
        let request = v1::CreateBatchRequest { batch: Some(spec), ..Default::default() };
        client.submit(request, tokio_stream::iter(tasks)).await.expect("a submitted batch").name
    })
}

/// The batch that is there beside those that ended.
async fn running(cluster: &Cluster) -> Option<v1::Batch> {
    let request = v1::ListBatchesRequest { page_size: 1, ..Default::default() };
    let page = cluster.client().list_page(request).await.expect("a list");
    page.batches.into_iter().next().filter(|batch| !is_final(batch))
}

#[tokio::test(flavor = "multi_thread")]
async fn i4_the_library_is_right_after_workers_were_killed() {
    let mut random = random(1);
    let mut cluster = builder().start().await;
    cluster.workers(2, 3).await;
    let mut kills = 0;
    for number in 0..BATCHES {
        let library = Library::with_files(&cluster.data(), &format!("l{number}"), FILES);
        let submitted = submit(&cluster, &library);
        for _ in 0..3 {
            pass_time(&mut random, 150).await;
            let id = if random.random_bool(0.5) { "w1" } else { "w2" };
            kills += usize::from(running(&cluster).await.is_some());
            // Kills the one that is there.
            cluster.worker(id, 3).await;
        }
        let name = submitted.await.unwrap();
        let ended = assert_all_or_nothing(&cluster, &library, &name).await;
        assert_eq!(ended.state(), State::Committed);
        cluster.assert_invariants(&name).await;
    }
    assert!(kills >= BATCHES, "only {kills} kills fell into a batch");
}

async fn coordinators_are_killed(mut cluster: Cluster, mut random: StdRng) -> Cluster {
    cluster.workers(2, 2).await;
    for number in 0..BATCHES {
        let library = Library::with_files(&cluster.data(), &format!("l{number}"), FILES);
        let submitted = submit(&cluster, &library);
        for _ in 0..2 {
            pass_time(&mut random, 300).await;
            cluster.restart(0).await;
        }
        let name = submitted.await.unwrap();
        let ended = assert_all_or_nothing(&cluster, &library, &name).await;
        assert_eq!(ended.state(), State::Committed);
    }
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn i4_the_library_is_right_after_coordinators_were_killed() {
    let cluster = coordinators_are_killed(builder().start().await, random(2)).await;
    let request = v1::ListBatchesRequest::default();
    for batch in cluster.client().list_page(request).await.unwrap().batches {
        cluster.assert_invariants(&batch.name).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn i4_the_library_is_right_after_coordinators_on_the_embedded_store_were_killed() {
    coordinators_are_killed(builder().embedded().start().await, random(3)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn i4_the_library_is_untouched_after_a_cancel_while_all_are_killed() {
    let mut random = random(4);
    let mut cluster = builder().start().await;
    cluster.workers(2, 2).await;
    let mut rolled_back = 0;
    for number in 0..BATCHES {
        let library = Library::with_files(&cluster.data(), &format!("l{number}"), FILES);
        let name = cluster.create(spec(&library)).await;
        let client = cluster.client().clone();
        let (batch, tasks) = (name.clone(), library.tasks());
        // It may find the batch decided.
        let appended = tokio::spawn(async move { client.append(&batch, tokio_stream::iter(tasks)).await });
        pass_time(&mut random, 250).await;
        let (client, batch) = (cluster.client().clone(), name.clone());
        let cancelled = tokio::spawn(async move { client.cancel(&batch, "test", "while all die").await });
        pass_time(&mut random, 20).await;
        cluster.coordinator(0).kill9();
        cluster.worker_process("w1").kill9();
        cluster.worker_process("w2").kill9();
        cluster.restart(0).await;
        cluster.workers(2, 2).await;
        cancelled.await.unwrap().expect("not sealed, so nothing else decided");
        let _ = appended.await.unwrap();
        let ended = assert_all_or_nothing(&cluster, &library, &name).await;
        rolled_back += usize::from(ended.state() == State::RolledBack);
        cluster.assert_invariants(&name).await;
    }
    assert_eq!(rolled_back, BATCHES);
}
