//! I7: what was acknowledged is durable.

use super::random;
use async_trait::async_trait;
use rand::Rng as _;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tranche_client::v1::{self, batch::State};
use tranche_tests::cluster::batch_for;
use tranche_tests::{Cluster, eventually};
use tranche_worker::{CommitLease, Handler, HandlerError, Progress, RollbackLease, StageLease, Staged};

/// Tasks that are sent and not acknowledged.
const AHEAD: i64 = 190;

/// Writes down every task that it is given.
#[derive(Default)]
struct Collect(Mutex<BTreeMap<u64, (String, String)>>);

#[async_trait]
impl Handler for Collect {
    fn name(&self) -> &'static str {
        "collect"
    }

    async fn stage(
        &self,
        lease: &StageLease,
        _: &CancellationToken,
        _: &Progress,
    ) -> Result<Staged, HandlerError> {
        for task in &lease.tasks {
            let payload = String::from_utf8(task.payload.to_vec()).expect("as it was sent");
            let new = (task.key.to_owned(), payload);
            if let Some(old) = self.0.lock().unwrap().insert(task.sequence, new.clone()) {
                assert_eq!(old, new, "task {} changed", task.sequence);
            }
        }
        Ok(Staged::default())
    }

    async fn commit(&self, lease: &CommitLease) -> Result<u64, HandlerError> {
        Ok(lease.tasks())
    }

    async fn rollback(&self, lease: &RollbackLease) -> Result<u64, HandlerError> {
        Ok(lease.range.len())
    }
}

fn task(number: i64) -> v1::Task {
    v1::Task { key: format!("key-{number}"), payload: format!("payload-{number}").into() }
}

/// Appends by hand until an acknowledgement is beyond `enough`, and returns it with the coordinator killed.
async fn append_and_kill(cluster: &mut Cluster, batch: &str, durable: i64, enough: i64) -> i64 {
    let (requests, mut answers, mut acks) = eventually("a coordinator that owns the batch", async || {
        let (requests, outbox) = tokio::sync::mpsc::channel(64);
        let first = v1::AppendTasksRequest { name: batch.to_owned(), ..Default::default() };
        requests.send(first).await.expect("room for one");
        let stream = cluster.client().batches().append_tasks(ReceiverStream::new(outbox)).await;
        let mut answers = stream.ok()?.into_inner();
        let acks = answers.next().await?.ok()?.durable_through;
        Some((requests, answers, acks))
    })
    .await;
    assert!(acks >= durable, "{durable} were acknowledged, and only {acks} are there");
    let mut next = acks + 1;
    while acks < enough {
        // Several messages are on their way, fewer tasks than the callers append after the kill.
        if next <= acks + AHEAD {
            let tasks = (next..next + 10).map(task).collect();
            let message = v1::AppendTasksRequest { first_sequence: next, tasks, ..Default::default() };
            requests.send(message).await.expect("a stream that is read");
            next += 10;
            continue;
        }
        acks = answers.next().await.expect("goes on").expect("no error").durable_through;
    }
    cluster.coordinator(0).kill9();
    acks
}

async fn acknowledged_tasks_survive(mut cluster: Cluster, seed: u64) {
    let mut random = random(seed);
    let batch = cluster.create(batch_for("noop")).await;
    let mut durable = 0;
    for _ in 0..4 {
        let enough = durable + random.random_range(1..400);
        durable = append_and_kill(&mut cluster, &batch, durable, enough).await;
        cluster.restart(0).await;
    }
    // The client goes on from what is there.
    let total = durable + 500;
    let appended = cluster.client().append(&batch, tokio_stream::iter((1..=total).map(task))).await;
    assert_eq!(appended.expect("appended"), total);
    let sealed = cluster.client().seal(&batch, Some(total)).await.expect("all are there, none twice");
    assert_eq!(sealed.counters.unwrap().total, total);
}

#[tokio::test(flavor = "multi_thread")]
async fn i7_acknowledged_tasks_survive_kills_on_etcd() {
    acknowledged_tasks_survive(Cluster::builder().flag("session-ttl", "1s").start().await, 11).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn i7_acknowledged_tasks_survive_kills_on_the_embedded_store() {
    acknowledged_tasks_survive(Cluster::builder().embedded().start().await, 12).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn i8_tasks_sent_again_after_a_kill_are_there_once_and_unchanged() {
    let mut cluster = Cluster::builder().embedded().start().await;
    let collect = Arc::new(Collect::default());
    let _worker = cluster.attach("w", 2, vec![collect.clone()]).await;
    let batch = cluster.create(batch_for("collect")).await;
    let durable = append_and_kill(&mut cluster, &batch, 0, 100).await;
    cluster.restart(0).await;
    let total = durable + 300;
    let tasks = tokio_stream::iter((1..=total).map(task));
    cluster.client().append(&batch, tasks).await.expect("appended");
    cluster.client().seal(&batch, Some(total)).await.expect("sealed");
    cluster.wait_state(&batch, State::Committed).await;
    let seen = collect.0.lock().unwrap();
    let expected = (1..=total).map(|n| (n.cast_unsigned(), (format!("key-{n}"), format!("payload-{n}"))));
    assert!(*seen == expected.collect(), "every task once, as it was sent");
}

/// A stream that broke may still have tasks on their way when the next one asks what is durable.
#[tokio::test(flavor = "multi_thread")]
async fn i8_appends_resume_beside_what_a_broken_stream_left_behind() {
    let cluster = Cluster::start().await;
    let collect = Arc::new(Collect::default());
    let _worker = cluster.attach("w", 2, vec![collect.clone()]).await;
    let options = tranche_client::Options { chunk_tasks: 7, ..Default::default() };
    let client = tranche_client::Client::connect_lazy(cluster.url(0), options).unwrap();
    for _ in 0..8 {
        collect.0.lock().unwrap().clear();
        let batch = cluster.create(batch_for("collect")).await;
        let (requests, outbox) = tokio::sync::mpsc::channel(64);
        for first in (1..400).step_by(10) {
            let tasks = (first..first + 10).map(task).collect();
            let message = v1::AppendTasksRequest { name: batch.clone(), first_sequence: first, tasks };
            requests.send(message).await.unwrap();
        }
        let mut broken =
            cluster.client().batches().append_tasks(ReceiverStream::new(outbox)).await.unwrap().into_inner();
        broken.next().await.expect("what is durable at the start").expect("no error");
        drop(broken);
        let submit = async || client.append(&batch, tokio_stream::iter((1..=500).map(task))).await;
        let (one, other) = tokio::join!(submit(), submit());
        assert_eq!((one.expect("appended"), other.expect("appended, too")), (500, 500));
        cluster.client().seal(&batch, Some(500)).await.expect("each is there once");
        cluster.wait_state(&batch, State::Committed).await;
        let seen = collect.0.lock().unwrap();
        let expected =
            (1..=500).map(|n: i64| (n.cast_unsigned(), (format!("key-{n}"), format!("payload-{n}"))));
        assert!(*seen == expected.collect(), "every task once, as it was sent");
    }
}
