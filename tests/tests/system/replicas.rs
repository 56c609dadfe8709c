//! Two coordinators: any takes any call, and clients go on when one is gone.

use futures::StreamExt as _;
use serde_json::{Value, json};
use std::time::Duration;
use tonic::Code;
use tranche_client::v1::batch::{CommitMode, State};
use tranche_client::{Client, Options, v1};
use tranche_tests::cluster::{batch_for, batch_into, tasks};
use tranche_tests::{Cluster, Gate, eventually, grpcurl, run, tranche};

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_mins(1);

/// Every third task fails, always; waits to be approved.
fn held_with_failures() -> v1::Batch {
    let params = [("fail_every".to_owned(), "3".to_owned())].into();
    let batch = batch_into(v1::Target { handler: "noop".into(), params });
    v1::Batch { commit_mode: CommitMode::Manual.into(), ..batch }
}

/// A new batch, its owner with the epoch, and the coordinator that owns nothing of it.
async fn owned(cluster: &Cluster, batch: v1::Batch) -> (String, (usize, u64), usize) {
    let batch = cluster.create(batch).await;
    let owner = cluster.owner(&batch).await.expect("made with its lock");
    (batch, owner, 1 - owner.0)
}

/// What a watch shows, until the batch ends.
fn watched(client: &Client, batch: &str) -> tokio::task::JoinHandle<Vec<v1::Batch>> {
    let updates = client.watch(batch);
    tokio::spawn(async move {
        let seen = updates.map(|update| update.expect("it goes on").batch.expect("always there")).collect();
        tokio::time::timeout(PATIENCE, seen).await.expect("the batch ends")
    })
}

/// Says what each call does at the coordinator that owns nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_knows_only_the_other_coordinator_does_everything() {
    let mut cluster = Cluster::builder().coordinators(2).start().await;
    cluster.workers(2, 2).await;
    let (batch, owner, other) = owned(&cluster, held_with_failures()).await;
    let client = cluster.client_of(other);
    let watch = watched(&client, &batch);
    assert_eq!(client.append(&batch, tokio_stream::iter(tasks(30))).await.unwrap(), 30);
    assert!(client.seal(&batch, Some(30)).await.unwrap().sealed);
    let held = client.wait_until(&batch, |seen| seen.state() == State::Held).await.unwrap();
    let here = cluster.client_of(owner.0).get(&batch).await.unwrap();
    assert_eq!(client.get(&batch).await.unwrap().counters, here.counters);
    assert_eq!((held.state(), here.counters.unwrap().failed), (State::Held, 10));
    let listed: Vec<_> = client.list(v1::ListBatchesRequest::default()).collect().await;
    assert_eq!(listed[0].as_ref().unwrap().counters, here.counters, "the cut-off, too");
    assert_eq!(client.failures(&batch).count().await, 10);
    assert_eq!(client.retry_failed(&batch).await.unwrap().retried, 10);
    client.wait_until(&batch, |seen| seen.state() == State::Held).await.unwrap();
    assert_eq!(cluster.owner(&batch).await, Some(owner), "nothing moved");
    let early = client.delete(&batch).await.unwrap_err();
    assert_eq!((early.code(), early.reason().as_deref()), (Code::FailedPrecondition, Some("WRONG_STATE")));

    let cancelled = client.cancel(&batch, "me", "no more").await.unwrap();
    assert_eq!(cancelled.decision.unwrap().actor, "me");
    client.wait(&batch).await.unwrap();
    let late = client.commit(&batch, "me").await.unwrap_err();
    assert_eq!(late.reason().as_deref(), Some("ALREADY_DECIDED"));
    let seen = watch.await.unwrap();
    assert_eq!(seen.last().unwrap().state(), State::RolledBack);
    cluster.wait_swept(&batch).await;
    cluster.assert_invariants(&batch).await;
    client.delete(&batch).await.unwrap();
    for index in 0..2 {
        assert_eq!(cluster.client_of(index).get(&batch).await.unwrap_err().code(), Code::NotFound);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_only_grpcurl_may_ask_any_coordinator() {
    let mut cluster = Cluster::builder().coordinators(2).start().await;
    cluster.workers(1, 2).await;
    let (batch, _, other) = owned(&cluster, batch_for("noop")).await;
    let address = cluster.url(other).trim_start_matches("http://").to_owned();
    let call = async |method: &str, request: Value| {
        let method = format!("tranche.v1.{method}");
        let arguments = ["-plaintext", "-max-time", "50", "-d", "@", &address, &method];
        run(&grpcurl(), &arguments, &request.to_string()).await
    };
    let append = json!({"name": batch, "firstSequence": 1, "tasks": [{"key": "a"}, {"key": "b"}]});
    let acks = call("BatchService/AppendTasks", append).await.exits(0).documents();
    assert_eq!(acks.last().unwrap()["durableThrough"], "2");
    let wrong = call("BatchService/SealBatch", json!({"name": batch, "total": 9})).await;
    assert_ne!(wrong.code(), Some(0));
    assert!(wrong.stderr.contains("TOTAL_MISMATCH") && wrong.stderr.contains("durable_through"), "{wrong:?}");
    call("BatchService/SealBatch", json!({"name": batch})).await.exits(0);
    let told = call("BatchService/WatchBatch", json!({"name": batch})).await.exits(0).documents();
    assert_eq!(told.last().unwrap()["batch"]["state"], "STATE_COMMITTED");

    let coordinators = call("AdminService/ListCoordinators", json!({})).await.exits(0).json();
    let coordinators = coordinators["coordinators"].as_array().unwrap().clone();
    assert_eq!(coordinators.iter().filter(|one| one["answering"] == true).count(), 2, "{coordinators:?}");
    let workers = call("AdminService/ListWorkers", json!({})).await.exits(0).json();
    assert_eq!(workers["workers"].as_array().unwrap().len(), 1, "{workers}");
    assert_eq!(workers["workers"][0]["worker"], "w1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_with_both_urls_goes_on_when_the_coordinator_that_it_uses_is_killed() {
    let mut cluster = Cluster::builder().coordinators(2).start().await;
    cluster.workers(2, 2).await;
    let (batch, owner, other) = owned(&cluster, batch_for("noop")).await;
    let urls = format!("{},{}", cluster.url(owner.0), cluster.url(other));
    let client = Client::connect_lazy(urls.clone(), Options::default()).unwrap();
    let watch = watched(&client, &batch);
    // One that watches at the other all the time is told nothing of it.
    let there = watched(&cluster.client_of(other), &batch);
    let (send, receive) = tokio::sync::mpsc::channel(1);
    let append = tokio::spawn({
        let (client, batch) = (client.clone(), batch.clone());
        async move { client.append(&batch, tokio_stream::wrappers::ReceiverStream::new(receive)).await }
    });
    for (number, task) in tasks(400).into_iter().enumerate() {
        if number == 200 {
            eventually("half is durable", async || {
                (client.get(&batch).await.unwrap().counters?.total >= 100).then_some(())
            })
            .await;
            cluster.coordinator(owner.0).kill9();
        }
        send.send(task).await.unwrap();
    }
    drop(send);
    assert_eq!(append.await.unwrap().unwrap(), 400);
    client.seal(&batch, Some(400)).await.unwrap();
    for watch in [watch, there] {
        let seen = watch.await.unwrap();
        let order = |batch: &v1::Batch| {
            let counters = batch.counters.unwrap();
            (counters.total, counters.staged, counters.committed)
        };
        assert!(seen.is_sorted_by_key(order), "{:?}", seen.iter().map(order).collect::<Vec<_>>());
        let last = seen.last().unwrap();
        assert_eq!((last.state(), last.counters.unwrap().committed), (State::Committed, 400));
    }
    cluster.assert_invariants(&batch).await;
    let ran = tranche(&["--coordinator", &urls, "--output", "json", "get", &batch]).await.exits(0);
    assert_eq!(ran.json()["state"], "STATE_COMMITTED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_wait_for_the_next_owner_while_one_is_paused() {
    let mut cluster = Cluster::builder().coordinators(2).start().await;
    cluster.workers(1, 2).await;
    let (batch, owner, other) = owned(&cluster, held_with_failures()).await;
    let client = cluster.client_of(other);
    client.append(&batch, tokio_stream::iter(tasks(30))).await.unwrap();
    cluster.coordinator(owner.0).stop();
    // Its connections stay, and nobody answers on them.
    let workers = client.workers();
    assert!(client.seal(&batch, Some(30)).await.unwrap().sealed);
    assert_eq!(cluster.owner(&batch).await.map(|(index, _)| index), Some(other));
    assert_eq!(workers.count().await, 1);
    cluster.coordinator(owner.0).cont();
    let again = cluster.client_of(owner.0);
    again.wait_until(&batch, |seen| seen.state() == State::Held).await.unwrap();
    again.cancel(&batch, "", "").await.unwrap();
    assert_eq!(again.wait(&batch).await.unwrap().state(), State::RolledBack);
    cluster.assert_invariants(&batch).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn why_a_batch_does_not_move_is_said_at_any_coordinator() {
    let cluster = Cluster::builder().coordinators(2).flag("handlers", "gate").start().await;
    let gate = Gate::new("gate");
    gate.open();
    gate.err(usize::MAX);
    let _worker = cluster.attach("w1", 2, vec![gate.clone()]).await;
    let (batch, owner, other) = owned(&cluster, batch_for("gate")).await;
    let client = cluster.client_of(other);
    client.append(&batch, tokio_stream::iter(tasks(4))).await.unwrap();
    client.seal(&batch, None).await.unwrap();
    let stuck = eventually("the batch says why it doesn't move", async || {
        Some(client.get(&batch).await.unwrap()).filter(|seen| !seen.status_message.is_empty())
    })
    .await;
    assert_eq!(stuck.state(), State::Committing);
    assert_eq!(cluster.owner(&batch).await, Some(owner));
    gate.err(0);
    client.wait(&batch).await.unwrap();
}

/// On etcd, with real processes: what is over the limit is refused at each, and a client doesn't try for long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_namespace_may_have_is_of_both_together() {
    let twenty: tranche_proto::TaskList = tasks(20).into_iter().collect();
    let cluster = Cluster::builder()
        .coordinators(2)
        .flag("max-batches-per-namespace", "2")
        .flag("max-bytes-per-namespace", &twenty.bytes().len().to_string())
        .start()
        .await;
    let clients = [cluster.client_of(0), cluster.client_of(1)];
    let request = || v1::CreateBatchRequest { batch: Some(batch_for("noop")), ..Default::default() };
    let refused = |error: tranche_client::Error, setting: &str| {
        assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
        assert_eq!(error.reason().as_deref(), Some("QUOTA_EXCEEDED"), "{error}");
        assert_eq!(error.metadata()["setting"], setting, "{error}");
    };
    let mut batches = Vec::new();
    for client in &clients {
        batches.push(client.create(request()).await.expect("made").name);
    }
    for client in &clients {
        refused(client.create(request()).await.expect_err("the third"), "max_batches_per_namespace");
    }
    // The whole of it in one batch; then nothing fits into the other, whoever takes the call.
    cluster.append(&batches[0], 1, tasks(20)).await;
    for client in &clients {
        let append = client.append(&batches[1], tokio_stream::iter(tasks(1))).await;
        refused(append.expect_err("no room"), "max_bytes_per_namespace");
    }
    cluster.client().cancel(&batches[0], "ann", "").await.expect("decided");
    eventually("it is swept", async || cluster.get(&batches[0]).await.swept.then_some(())).await;
    clients[1].append(&batches[1], tokio_stream::iter(tasks(20))).await.expect("room again");
    clients[1].create(request()).await.expect("room again");
}
