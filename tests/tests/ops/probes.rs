//! Liveness and readiness.

use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tranche_tests::etcd::EtcdServer;
use tranche_tests::{Cluster, eventually, scrape};

async fn connect(url: &str) -> Channel {
    Channel::from_shared(url.to_owned()).expect("a URL").connect().await.expect("connected")
}

async fn health(url: &str, service: &str) -> ServingStatus {
    let mut client = HealthClient::new(connect(url).await);
    let request = HealthCheckRequest { service: service.to_owned() };
    client.check(request).await.expect("an answer").into_inner().status()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_whose_store_is_away_lives_and_is_not_ready() {
    let etcd = EtcdServer::start().await;
    let mut cluster = Cluster::builder()
        .etcd(&etcd)
        .flag("ops-listen", "127.0.0.1:0")
        .flag("call-timeout", "1s")
        .start()
        .await;
    let ops = cluster.coordinator(0).said("ops port on").await.expect("an ops port");
    let url = cluster.url(0);
    let both = async |wanted: (u16, ServingStatus)| {
        let seen = (scrape::get(&ops, "/readyz").await.0, health(&url, "").await);
        (seen == wanted).then_some(())
    };
    eventually("it is ready", async || both((200, ServingStatus::Serving)).await).await;
    etcd.stop();
    eventually("it isn't ready", async || both((503, ServingStatus::NotServing)).await).await;
    assert_eq!(scrape::get(&ops, "/livez").await.0, 200);
    assert_eq!(health(&url, "tranche.live").await, ServingStatus::Serving);
    assert_eq!(health(&url, "tranche.v1.BatchService").await, ServingStatus::NotServing);
    assert_eq!(scrape::samples(&ops).await["tranche_store_up"], 0.0);
    let asked = cluster.client_of(0);
    let asking = tokio::spawn(async move { asked.get("namespaces/default/batches/nobody").await });
    eventually("calls that fail are counted", async || {
        let seen = scrape::samples(&ops).await;
        let failed = seen.iter().filter(|(name, _)| name.starts_with("tranche_store_errors_total"));
        Some(failed.map(|(_, count)| count).sum::<f64>()).filter(|failed| *failed >= 1.0)
    })
    .await;
    etcd.cont();
    asking.await.expect("joined").expect_err("there is no such batch");
    eventually("it is ready again", async || both((200, ServingStatus::Serving)).await).await;
    let seen = scrape::samples(&ops).await;
    assert_eq!(seen["tranche_store_sessions_lost_total"], 1.0);
    assert!(seen["tranche_store_sessions_total"] >= 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_leaves_says_so_to_the_end() {
    let etcd = EtcdServer::start().await;
    let mut cluster = Cluster::builder().etcd(&etcd).flag("ops-listen", "127.0.0.1:0").start().await;
    let ops = cluster.coordinator(0).said("ops port on").await.expect("an ops port");
    // It wants to close its session, which takes the half of its grace then.
    etcd.stop();
    cluster.coordinator(0).sigterm();
    eventually("it says that it leaves", async || {
        let (status, text) = scrape::try_get(&ops, "/readyz").await.expect("it leaves without a word");
        (status == 503 && text == "not ready: draining\n").then_some(())
    })
    .await;
    assert_eq!(scrape::get(&ops, "/livez").await.0, 200, "nobody must kill it for it");
    assert!(cluster.coordinator(0).ended().await.success());
    assert_eq!(scrape::try_get(&ops, "/livez").await, None);
}
