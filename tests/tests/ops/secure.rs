//! TLS on the ways of operators: traces to a collector, a worker's ops port.

use crate::collector::{PARENT, Stub, TRACE, bytes};
use std::path::Path;
use tempfile::TempDir;
use tranche_tests::pki::Pki;
use tranche_tests::process::program;
use tranche_tests::{Cluster, Process, eventually, scrape};
use tranche_tls::ServerFiles;

fn files(pki: &Pki, client_ca: Option<&Pki>) -> ServerFiles {
    let client_required = client_ca.is_some();
    let client_ca = client_ca.map(|pki| pki.path("ca.pem"));
    ServerFiles { cert: pki.path("server.pem"), key: pki.path("server.key"), client_ca, client_required }
}

/// A coordinator that sends its traces there, with these variables; and a call in a trace.
async fn traced(url: &str, env: &[(&str, &Path)], dir: &TempDir) -> Process {
    let store = format!("embedded:{}", dir.path().join("store").display());
    let words = ["--listen", "127.0.0.1:0", "--store", &store, "--otlp-endpoint", url].map(str::to_owned);
    let text = |(name, path): &(&str, &Path)| ((*name).to_owned(), path.display().to_string());
    let env: Vec<_> = env.iter().map(text).collect();
    let coordinator = program("tranche-coordinator");
    let mut process = Process::spawn_with("coordinator", &coordinator, &words, &env, dir.path());
    let address = process.said("listening on").await.expect("it serves");
    let mut command = tokio::process::Command::new(program("tranche"));
    command.args(["--coordinator", &format!("http://{}", address.trim()), "list"]);
    let listed =
        command.env("TRACEPARENT", format!("00-{TRACE}-{PARENT}-01")).output().await.expect("it ran");
    assert!(listed.status.success(), "{listed:?}");
    process
}

async fn arrives(stub: &Stub) {
    eventually("the span is there", async || {
        stub.of("tranche-coordinator", &bytes(TRACE)).remove("tranche.v1.BatchService/ListBatches")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn traces_go_to_a_collector_by_tls() {
    let (pki, dir) = (Pki::new(), tempfile::tempdir().expect("a folder"));
    let stub = Stub::start_tls(files(&pki, None));
    let ca = pki.path("ca.pem");
    let process = traced(&stub.url, &[("OTEL_EXPORTER_OTLP_CERTIFICATE", &ca)], &dir).await;
    arrives(&stub).await;
    assert!(!process.log().contains("spans are dropped"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_may_ask_for_a_certificate() {
    let (pki, ours) = (Pki::new(), Pki::new());
    ours.issue("client", &["dns:coordinator"]);
    let stub = Stub::start_tls(files(&pki, Some(&ours)));
    let (ca, cert, key) = (pki.path("ca.pem"), ours.path("client.pem"), ours.path("client.key"));
    let dir = tempfile::tempdir().expect("a folder");
    let env = [
        // What is for traces alone wins.
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", Path::new("/nowhere")),
        ("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", &ca),
        ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", &cert),
        ("OTEL_EXPORTER_OTLP_CLIENT_KEY", &key),
    ];
    let _process = traced(&stub.url, &env, &dir).await;
    arrives(&stub).await;
}

/// Nobody gets a span who isn't the collector, and the log says why nothing arrives.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_isnt_known_gets_nothing() {
    let (pki, other) = (Pki::new(), Pki::new());
    for (ca, client_ca) in [(&other, None), (&pki, Some(&other))] {
        let stub = Stub::start_tls(files(&pki, client_ca));
        let (ca, dir) = (ca.path("ca.pem"), tempfile::tempdir().expect("a folder"));
        let process = traced(&stub.url, &[("OTEL_EXPORTER_OTLP_CERTIFICATE", &ca)], &dir).await;
        eventually("it is told", async || process.log().contains("spans are dropped").then_some(())).await;
        assert!(stub.spans.lock().expect("not poisoned").is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_the_collector_that_cant_be_used_are_told_at_the_start() {
    for name in ["tranche-coordinator", "tranche-worker"] {
        let mut command = tokio::process::Command::new(program(name));
        command.args(["--otlp-endpoint", "https://127.0.0.1:1"]);
        let ran =
            command.env("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/ca.pem").output().await.expect("it ran");
        assert_eq!(ran.status.code(), Some(2), "{ran:?}");
        let said = String::from_utf8_lossy(&ran.stderr);
        assert!(said.contains("otlp_endpoint") && said.contains("/nowhere/ca.pem"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workers_ops_port_speaks_tls_with_the_newest_certificate() {
    let (pki, old) = (Pki::new(), Pki::new());
    let mut cluster = Cluster::start().await;
    for end in ["pem", "key"] {
        let text = std::fs::read(old.path(&format!("server.{end}"))).expect("read");
        std::fs::write(cluster.data().join(format!("ops.{end}")), text).expect("written");
    }
    let (cert, key) = (cluster.data().join("ops.pem"), cluster.data().join("ops.key"));
    let (cert, key) = (cert.display().to_string(), key.display().to_string());
    let flags = [("ops-listen", "127.0.0.1:0"), ("ops-tls-cert", &cert), ("ops-tls-key", &key)];
    cluster.worker_with("w1", 1, &flags).await;
    let ops = crate::worker::ops_port(cluster.worker_process("w1"));
    for path in ["/livez", "/readyz", "/metrics"] {
        let (status, _) = scrape::try_get_tls(&ops, path, &old.path("ca.pem")).await.expect("an answer");
        assert_eq!(status, 200, "{path}");
    }
    assert_eq!(scrape::try_get(&ops, "/metrics").await, None, "not in clear text");
    assert_eq!(scrape::try_get_tls(&ops, "/metrics", &pki.path("ca.pem")).await, None, "another CA");

    // A certificate of another CA takes the place of the old one.
    for end in ["key", "pem"] {
        let fresh = cluster.data().join(format!("fresh.{end}"));
        std::fs::copy(pki.path(&format!("server.{end}")), &fresh).expect("copied");
        std::fs::rename(fresh, cluster.data().join(format!("ops.{end}"))).expect("renamed");
    }
    let ca = pki.path("ca.pem");
    eventually("the new certificate serves", async || scrape::try_get_tls(&ops, "/livez", &ca).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_answer_to_certificates_alone_where_that_is_asked_and_probes_to_everybody() {
    let (pki, ours, other) = (Pki::new(), Pki::new(), Pki::new());
    for ca in [&ours, &other] {
        ca.issue("scraper", &["dns:prometheus"]);
    }
    let text = |path: std::path::PathBuf| path.display().to_string();
    let (cert, key) = (text(pki.path("server.pem")), text(pki.path("server.key")));
    let client_ca = text(ours.path("ca.pem"));
    let mut cluster = Cluster::start().await;
    let flags = [
        ("ops-listen", "127.0.0.1:0"),
        ("ops-tls-cert", &cert),
        ("ops-tls-key", &key),
        ("ops-client-ca", &client_ca),
    ];
    cluster.worker_with("w1", 1, &flags).await;
    let worker = crate::worker::ops_port(cluster.worker_process("w1"));

    let dir = tempfile::tempdir().expect("a folder");
    let store = format!("embedded:{}", dir.path().join("store").display());
    let words = ["--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0", "--store", &store];
    let words = [&words[..], &["--tls-cert", &cert, "--tls-key", &key, "--ops-client-ca", &client_ca]];
    let words: Vec<String> = words.concat().into_iter().map(str::to_owned).collect();
    let mut process =
        Process::spawn_with("coordinator", &program("tranche-coordinator"), &words, &[], dir.path());
    let coordinator = process.said("ops port on").await.expect("an ops port").trim().to_owned();

    let ca = pki.path("ca.pem");
    for ops in [&worker, &coordinator] {
        let ask = async |path: &str, of: Option<&Pki>| {
            let pair = of.map(|pki| (pki.path("scraper.pem"), pki.path("scraper.key")));
            let pair = pair.as_ref().map(|(cert, key)| (cert.as_path(), key.as_path()));
            scrape::try_get_tls_as(ops, path, &ca, pair).await
        };
        for path in ["/livez", "/readyz"] {
            assert_eq!(ask(path, None).await.map(|(status, _)| status), Some(200), "{path}");
        }
        let (status, text) = ask("/metrics", None).await.expect("an answer");
        assert_eq!((status, text.as_str()), (403, "a client certificate is needed here\n"));
        let (status, text) = ask("/metrics", Some(&ours)).await.expect("an answer");
        assert!(status == 200 && text.contains("tranche_"), "{status} {text}");
        assert_eq!(ask("/metrics", Some(&other)).await, None, "a certificate of another CA");
    }
}
