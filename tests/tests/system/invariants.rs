//! The design's invariants, read from etcd's history.

use tonic::Code;
use tranche_client::v1;
use tranche_client::v1::batch::State;
use tranche_proto::v1::RangeRecord;
use tranche_tests::cluster::{batch_for, batch_into, tasks};
use tranche_tests::{Cluster, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i1_i2_i3_i5_hold_at_every_revision_with_workers_that_come_and_go() {
    let mut cluster = Cluster::builder().flag("lease-ttl", "1s").start().await;
    cluster.workers(3, 2).await;
    let params = [("fail_every", "13"), ("delay_per_task", "2ms")];
    let params = params.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let bounds = v1::RangeBounds { min_tasks: 5, max_tasks: 25 };
    let target = v1::Target { handler: "noop".into(), params };
    let batch = v1::Batch { range_bounds: Some(bounds), ..batch_into(target) };
    let batch = cluster.submit(batch, tasks(2000)).await;
    let staged = async |cluster: &Cluster, number: i64| {
        eventually("some are staged", async || {
            (cluster.get(&batch).await.counters?.staged >= number).then_some(())
        })
        .await;
    };
    staged(&cluster, 200).await;
    cluster.worker_process("w1").kill9();
    staged(&cluster, 400).await;
    cluster.worker("w4", 2).await;
    cluster.worker_process("w2").sigterm();
    let status = cluster.worker_process("w2").ended().await;
    assert!(status.success(), "a worker that is asked to end drains: {status}");

    let done = cluster.wait_state(&batch, State::Committed).await;
    let counters = done.counters.unwrap();
    assert_eq!((counters.staged, counters.failed), (2000 - 2000 / 13, 2000 / 13));
    let history = cluster.assert_invariants(&batch).await;
    let lost: i32 = history.decided().unwrap().ranges.values().map(|range: &RangeRecord| range.losses).sum();
    assert!(lost > 0, "the killed worker held leases");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i8_the_same_request_makes_one_batch_and_the_same_append_no_second_task() {
    let mut cluster = Cluster::start().await;
    let request = |batch| v1::CreateBatchRequest {
        batch: Some(batch),
        request_id: "import of the 3rd".into(),
        ..Default::default()
    };
    let client = cluster.client().clone();
    let once = client.create(request(batch_for("noop"))).await.unwrap();
    let again = client.create(request(batch_for("noop"))).await.unwrap();
    assert_eq!(once.name, again.name);
    let other = v1::Batch { priority: 20, ..batch_for("noop") };
    let error = client.create(request(other)).await.unwrap_err();
    assert_eq!(error.code(), Code::AlreadyExists, "{error}");
    let all = client.list_page(v1::ListBatchesRequest::default()).await.unwrap();
    assert_eq!(all.batches.len(), 1);

    // The same tasks, from the start, from the middle, and beyond the end.
    let all = tasks(100);
    assert_eq!(cluster.append(&once.name, 1, all[..60].to_vec()).await, 60);
    assert_eq!(cluster.append(&once.name, 1, all[..60].to_vec()).await, 60);
    cluster.append(&once.name, 31, all[30..].to_vec()).await;
    assert_eq!(cluster.get(&once.name).await.counters.unwrap().total, 100);
    // The whole call again, after a restart too.
    cluster.restart(0).await;
    let submitted = client.submit(request(batch_for("noop")), tokio_stream::iter(all.clone())).await.unwrap();
    assert_eq!((submitted.name.as_str(), submitted.counters.unwrap().total), (once.name.as_str(), 100));
    cluster.worker("w1", 2).await;
    let done = cluster.wait_state(&once.name, State::Committed).await;
    assert_eq!(done.counters.unwrap().committed, 100);
    cluster.wait_swept(&once.name).await;
    let submitted = client.submit(request(batch_for("noop")), tokio_stream::iter(all)).await.unwrap();
    assert_eq!((submitted.name.as_str(), submitted.state()), (once.name.as_str(), State::Committed));
    let error = client.append(&once.name, tokio_stream::iter(tasks(101))).await.unwrap_err();
    assert_eq!((error.code(), error.reason().as_deref()), (Code::FailedPrecondition, Some("WRONG_STATE")));
    cluster.assert_invariants(&once.name).await;
}
