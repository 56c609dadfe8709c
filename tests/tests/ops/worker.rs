//! A worker's port.

use tranche_client::v1::batch::State;
use tranche_tests::cluster::{batch_for, in_ranges_of, tasks};
use tranche_tests::{Cluster, Process, eventually, scrape};

/// A worker's port, from its log: the line on its output was passed over for the one that it is attached.
pub(crate) fn ops_port(worker: &Process) -> String {
    let log = worker.log();
    let line = log.lines().find(|line| line.contains("ops port address=")).expect("told in the log");
    line.rsplit_once("address=").expect("an address").1.trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_tells_what_it_did_and_is_ready_while_a_coordinator_has_it() {
    let mut cluster = Cluster::builder().start().await;
    let flags = [("ops-listen", "127.0.0.1:0")];
    cluster.worker_with("w1", 2, &flags).await;
    let ops = ops_port(cluster.worker_process("w1"));
    eventually("it is ready", async || (scrape::get(&ops, "/readyz").await.0 == 200).then_some(())).await;

    let batch = cluster.submit(in_ranges_of(10, batch_for("noop")), tasks(50)).await;
    cluster.wait_state(&batch, State::Committed).await;
    let seen = scrape::samples(&ops).await;
    for (name, value) in [
        (r#"tranche_worker_tasks_total{outcome="staged"}"#, 50.0),
        (r#"tranche_worker_tasks_total{outcome="committed"}"#, 50.0),
        (r#"tranche_worker_leases_total{phase="stage",result="done"}"#, 5.0),
        (r#"tranche_worker_leases_total{phase="stage",result="failed"}"#, 0.0),
        (r#"tranche_worker_lease_seconds_count{phase="stage"}"#, 5.0),
        ("tranche_worker_slots", 2.0),
        ("tranche_worker_streams", 1.0),
        ("tranche_worker_ready", 1.0),
    ] {
        assert_eq!(seen.get(name), Some(&value), "{name}: {seen:#?}");
    }
    cluster.coordinator(0).kill9();
    eventually("it isn't ready", async || {
        let (status, text) = scrape::get(&ops, "/readyz").await;
        (status == 503).then(|| assert_eq!(text, "not ready: no coordinator has taken this worker in\n"))
    })
    .await;
    assert_eq!(scrape::get(&ops, "/livez").await.0, 200);
}
