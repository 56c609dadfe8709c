//! SIGTERM: a coordinator and a worker end in good order.

use tokio_stream::StreamExt as _;
use tranche_client::v1::{self, batch::State};
use tranche_tests::cluster::{batch_for, tasks};
use tranche_tests::{Cluster, Gate, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_ends_within_its_grace_while_streams_are_open() {
    let mut cluster = Cluster::builder().flag("shutdown-grace", "20s").start().await;
    cluster.worker("w1", 2).await;
    let gate = Gate::new("gate");
    let _worker = cluster.attach("held", 2, vec![gate.clone()]).await;
    let batch = cluster.create(batch_for("gate")).await;
    cluster.append(&batch, 1, tasks(10)).await;
    gate.wait_staging(1).await;
    let mut client = cluster.client().batches();
    let request = v1::WatchBatchRequest { name: batch.clone() };
    let mut watch = client.watch_batch(request).await.unwrap().into_inner();
    watch.next().await.expect("an update").expect("no error");
    let (requests, outbox) = tokio::sync::mpsc::channel(4);
    requests.send(v1::AppendTasksRequest { name: batch.clone(), ..Default::default() }).await.unwrap();
    let append = client.append_tasks(tokio_stream::wrappers::ReceiverStream::new(outbox)).await.unwrap();
    let mut append = append.into_inner();
    append.next().await.expect("an acknowledgement").expect("no error");

    cluster.coordinator(0).sigterm();
    let status = cluster.coordinator(0).ended().await;
    assert!(status.success(), "{status}");
    let log = cluster.coordinator(0).log();
    assert!(!log.contains("not all ended within the grace time"), "{log}");
    let error = loop {
        match watch.next().await.expect("an error at the end") {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.code(), tonic::Code::Unavailable, "{error}");
    let error = append.next().await.expect("an error at the end").expect_err("no acknowledgement");
    assert_eq!(error.code(), tonic::Code::Unavailable, "{error}");

    // And it goes on after a start.
    cluster.restart(0).await;
    gate.open();
    cluster.append(&batch, 11, tasks(5)).await;
    cluster.seal(&batch).await;
    let ended = cluster.wait_state(&batch, State::Committed).await;
    assert_eq!(ended.counters.unwrap().committed, 15);
    cluster.assert_invariants(&batch).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_ends_without_losing_a_report() {
    let mut cluster = Cluster::builder().flag("lease-ttl", "30s").start().await;
    cluster.worker("w1", 2).await;
    let target =
        v1::Target { handler: "noop".into(), params: [("delay_per_task".into(), "2ms".into())].into() };
    let spec = v1::Batch {
        targets: vec![target],
        range_bounds: Some(v1::RangeBounds { min_tasks: 20, max_tasks: 20 }),
        ..Default::default()
    };
    let batch = cluster.submit(spec, tasks(1_000)).await;
    let staged = eventually("some are staged", async || {
        let counters = cluster.get(&batch).await.counters.unwrap();
        Some(counters.staged).filter(|staged| *staged > 100)
    });
    assert!(staged.await < 1_000, "it is still at work");
    cluster.worker_process("w1").sigterm();
    let status = cluster.worker_process("w1").ended().await;
    assert!(status.success(), "{status}");
    // Nothing waits for a lease to run out, which would be 30 s.
    let leases: Vec<_> = cluster.client().leases(None).collect().await;
    assert!(leases.is_empty(), "all were reported or released: {leases:?}");
    cluster.worker("w2", 2).await;
    let ended = cluster.wait_state(&batch, State::Committed).await;
    assert_eq!(ended.counters.unwrap().committed, 1_000);
    let history = cluster.assert_invariants(&batch).await;
    let lost =
        history.snapshots.iter().flat_map(|s| s.ranges.values()).filter(|range| range.losses > 0).count();
    assert_eq!(lost, 0, "no range lost its worker");
}
