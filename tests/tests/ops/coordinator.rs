//! What a coordinator counts is what happened.

use tranche_client::v1;
use tranche_client::v1::batch::State;
use tranche_tests::cluster::{batch_for, in_ranges_of, tasks};
use tranche_tests::{Cluster, eventually, scrape};

#[tokio::test(flavor = "multi_thread")]
async fn batches_tasks_leases_and_calls_are_counted() {
    let mut cluster = Cluster::builder().flag("ops-listen", "127.0.0.1:0").start().await;
    let ops = cluster.coordinator(0).said("ops port on").await.expect("an ops port");
    let before = scrape::samples(&ops).await;
    assert!(before.values().all(|value| value.is_finite()));
    assert_eq!(before[r#"tranche_tasks_total{outcome="staged"}"#], 0.0);
    assert_eq!(
        (before["tranche_coordinator_ready"], before["tranche_store_up"], before["tranche_coordinators"]),
        (1.0, 1.0, 1.0)
    );

    // Held up for want of a worker.
    let waiting = cluster.submit(in_ranges_of(10, batch_for("noop")), tasks(100)).await;
    let seen = scrape::samples(&ops).await;
    assert_eq!(seen[r#"tranche_backlog_tasks{handler="noop"}"#], 100.0);
    assert_eq!(seen[r#"tranche_stranded_tasks{handler="noop"}"#], 100.0);
    assert_eq!(seen[r#"tranche_handler_workers{handler="noop"}"#], 0.0);
    assert_eq!(seen[r#"tranche_batches{state="importing"}"#], 1.0);
    assert_eq!(seen["tranche_appended_tasks_total"], 100.0);
    assert!(seen["tranche_appended_bytes_total"] > 100.0);

    cluster.worker("w1", 2).await;
    cluster.wait_state(&waiting, State::Committed).await;
    cluster.wait_swept(&waiting).await;
    let seen = scrape::samples(&ops).await;
    for (name, value) in [
        (r#"tranche_tasks_total{outcome="staged"}"#, 100.0),
        (r#"tranche_tasks_total{outcome="committed"}"#, 100.0),
        (r#"tranche_tasks_total{outcome="failed"}"#, 0.0),
        (r#"tranche_batches_ended_total{state="committed"}"#, 1.0),
        (r#"tranche_decisions_total{outcome="commit",reason="all_accounted"}"#, 1.0),
        (r#"tranche_leases_granted_total{phase="stage"}"#, 10.0),
        (r#"tranche_backlog_tasks{handler="noop"}"#, 0.0),
        (r#"tranche_stranded_tasks{handler="noop"}"#, 0.0),
        ("tranche_batches_created_total", 1.0),
        ("tranche_attached_workers", 1.0),
        ("tranche_attached_slots", 2.0),
        (r#"tranche_handler_workers{handler="noop"}"#, 1.0),
        (r#"tranche_calls_total{method="CreateBatch",code="OK"}"#, 1.0),
        (r#"tranche_calls_total{method="SealBatch",code="OK"}"#, 1.0),
        (r#"tranche_call_seconds_count{method="CreateBatch"}"#, 1.0),
        ("tranche_grant_seconds_count", seen[r#"tranche_grant_seconds_bucket{le="+Inf"}"#]),
        ("tranche_driver_panics_total", 0.0),
    ] {
        assert_eq!(seen.get(name), Some(&value), "{name}: {seen:#?}");
    }
    assert!(seen["tranche_grant_seconds_count"] >= 10.0);
    assert!(seen["tranche_report_seconds_count"] >= 10.0);
    assert!(seen[r#"tranche_reports_total{result="durable"}"#] >= 10.0);
    assert!(seen[r#"tranche_store_transactions_total{outcome="applied"}"#] >= 3.0);
    assert!(seen[r#"tranche_store_request_seconds_count{operation="txn"}"#] >= 3.0);
    let disk = eventually("the disk was looked at", async || {
        scrape::samples(&ops).await.get(r#"tranche_disk_size_bytes{place="objects"}"#).copied()
    });
    assert!(disk.await > 0.0);
    // Each label has few values: no name of a batch or a worker.
    let id = waiting.rsplit('/').next().expect("a name");
    assert!(seen.keys().all(|name| !name.contains(id) && !name.contains("w1")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_and_refused_calls_are_counted() {
    let mut cluster = Cluster::builder().flag("ops-listen", "127.0.0.1:0").start().await;
    let ops = cluster.coordinator(0).said("ops port on").await.expect("an ops port");
    cluster.worker("w1", 2).await;
    let batch = v1::Batch { commit_mode: v1::batch::CommitMode::Manual.into(), ..batch_for("noop") };
    let held = cluster.submit(in_ranges_of(10, batch), tasks(30)).await;
    cluster.wait_state(&held, State::Held).await;
    assert_eq!(scrape::samples(&ops).await[r#"tranche_batches{state="held"}"#], 1.0);
    let stall = r#"tranche_batch_stall_seconds{state="held"}"#;
    eventually("it is seen that nothing moves", async || {
        Some(scrape::samples(&ops).await[stall]).filter(|stall| *stall > 0.05)
    })
    .await;
    cluster.client().cancel(&held, "tests", "enough").await.expect("cancelled");
    cluster.wait_state(&held, State::RolledBack).await;
    cluster.client().commit(&held, "tests").await.expect_err("too late");
    cluster.client().get("namespaces/default/batches/nobody").await.expect_err("there is none");
    let seen = scrape::samples(&ops).await;
    for (name, value) in [
        (r#"tranche_tasks_total{outcome="rolled_back"}"#, 30.0),
        (r#"tranche_batches_ended_total{state="rolled_back"}"#, 1.0),
        (r#"tranche_decisions_total{outcome="rollback",reason="cancelled"}"#, 1.0),
        (r#"tranche_refused_calls_total{reason="ALREADY_DECIDED"}"#, 1.0),
        (r#"tranche_refused_calls_total{reason="BATCH_NOT_FOUND"}"#, 1.0),
        (r#"tranche_calls_total{method="GetBatch",code="NOT_FOUND"}"#, 1.0),
    ] {
        assert_eq!(seen.get(name), Some(&value), "{name}: {seen:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_take_over_says_whether_the_owner_left_or_was_lost() {
    let mut cluster = Cluster::builder().coordinators(2).flag("ops-listen", "127.0.0.1:0").start().await;
    let second = cluster.coordinator(1).said("ops port on").await.expect("an ops port");
    let batch = cluster.create(batch_for("noop")).await;
    let mut owner = cluster.owner(&batch).await.expect("an owner");
    if owner.0 == 1 {
        // To the one whose figures aren't looked at first.
        cluster.coordinator(1).kill9();
        owner = cluster.wait_owner_after(&batch, owner).await;
        assert_eq!(owner.0, 0);
        cluster.restart(1).await;
    }
    let second = if cluster.coordinator(1).log().matches("ops port").count() > 1 {
        cluster.coordinator(1).said("ops port on").await.expect("an ops port")
    } else {
        second
    };
    eventually("both are known", async || {
        Some(scrape::samples(&second).await["tranche_coordinators"]).filter(|n| *n == 2.0)
    })
    .await;
    cluster.coordinator(0).sigterm();
    let next = cluster.wait_owner_after(&batch, owner).await;
    assert_eq!(next.0, 1);
    let causes = async |address: &str| {
        let seen = scrape::samples(address).await;
        ["start", "handover", "loss"]
            .map(|cause| seen[&format!("tranche_takeovers_total{{cause=\"{cause}\"}}")])
    };
    eventually("the hand-over is counted", async || (causes(&second).await == [0.0, 1.0, 0.0]).then_some(()))
        .await;
    cluster.coordinator(0).ended().await;
    cluster.restart(0).await;
    let first = cluster.coordinator(0).said("ops port on").await.expect("an ops port");
    eventually("both are known", async || {
        Some(scrape::samples(&first).await["tranche_coordinators"]).filter(|n| *n == 2.0)
    })
    .await;
    cluster.coordinator(1).kill9();
    assert_eq!(cluster.wait_owner_after(&batch, next).await.0, 0);
    eventually("the loss is counted", async || (causes(&first).await == [0.0, 0.0, 1.0]).then_some(())).await;
}
