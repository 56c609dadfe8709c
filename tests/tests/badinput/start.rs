//! Programs that can't start, and say why.

use std::path::Path;
use tranche_tests::process::program;
use tranche_tests::{Ran, run};

async fn start(name: &str, arguments: &[&str]) -> Ran {
    run(&program(name), arguments, "").await
}

fn file(folder: &Path, text: &str) -> String {
    let path = folder.join("config.toml");
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_key_in_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let config = file(dir.path(), "lease_ttl = \"3s\"\nlease_tll = \"4s\"\n");
    let ran = start("tranche-coordinator", &["--config", &config]).await.exits(2);
    ran.says(&["lease_tll", "is unknown", &config]);
    let config = file(dir.path(), "slots = 2\nslotz = 3\n");
    let ran = start("tranche-worker", &["--config", &config]).await.exits(2);
    ran.says(&["slotz", "unknown", &config]);
    let config = file(dir.path(), "slots = [\n");
    start("tranche-worker", &["--config", &config]).await.exits(2).says(&[&config]);
    start("tranche-coordinator", &["--config", &config]).await.exits(2).says(&[&config]);
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_are_none() {
    let dir = tempfile::tempdir().unwrap();
    for (arguments, texts) in [
        (vec!["--lease-ttl", "soon"], vec!["--lease-ttl", "lease_ttl", "soon"]),
        (vec!["--lease-ttl", "10ms"], vec!["lease_ttl", "10ms", "200ms"]),
        (vec!["--listen", "somewhere"], vec!["listen", "somewhere"]),
        (vec!["--listen", "0.0.0.0:1"], vec!["listen", "0.0.0.0:1", "insecure"]),
        (vec!["--store", "redis:x"], vec!["store", "redis:x", "embedded"]),
        (vec!["--max-watchers", "-1"], vec!["max_watchers", "-1"]),
        (vec!["--log-format", "xml"], vec!["log_format", "xml", "json"]),
        (vec!["--heartbeat-interval", "1h"], vec!["heartbeat_interval", "3600s"]),
        (vec!["--lease-tll", "1s"], vec!["--lease-tll"]),
    ] {
        let mut all: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
        if let [flag, value] = arguments[..]
            && value.starts_with('-')
        {
            all = vec![format!("{flag}={value}")];
        }
        let ran = run(&program("tranche-coordinator"), &all, "").await.exits(2);
        assert!(texts.iter().any(|text| ran.stderr.contains(text)), "{texts:?}: {}", ran.stderr);
        let last = texts[texts.len() - 1];
        assert!(ran.stderr.contains(last) && !ran.stderr.contains("panicked"), "{last}: {}", ran.stderr);
    }
    for (arguments, text) in [
        (vec!["--slots", "0"], "slots"),
        (vec!["--slots", "many"], "many"),
        (vec!["--coordinator", "not a url"], "not a url"),
        (vec!["--handlers", "exec"], "exec"),
        (vec!["--drain-timeout", "soon"], "soon"),
        (vec!["--log", "info,=x=y"], "info,=x=y"),
        (vec!["--ops-listen", "0.0.0.0:0"], "clear text"),
        (vec!["--ops-listen", "127.0.0.1:0", "--ops-tls-cert", "/c"], "ops_tls_key is required"),
        (vec!["--ops-listen", "127.0.0.1:0", "--ops-tls-key", "/k"], "ops_tls_cert is required"),
        (vec!["--ops-tls-cert", "/c", "--ops-tls-key", "/k"], "there is none"),
        (vec!["--ops-listen", "127.0.0.1:0", "--ops-client-ca", "/c"], "ops_client_ca does nothing"),
        (vec!["--ops-listen", "0.0.0.0:0", "--ops-tls-cert", "/nowhere", "--ops-tls-key", "/k"], "/nowhere"),
    ] {
        start("tranche-worker", &arguments).await.exits(2).says(&[text]);
    }
    // A path that can't be a folder.
    let taken = file(dir.path(), "");
    let store = format!("embedded:{taken}/x");
    let words = ["--listen", "127.0.0.1:0", "--store", &store, "--start-timeout", "300ms"];
    let ran = start("tranche-coordinator", &words).await;
    assert!(matches!(ran.code(), Some(1 | 2)), "{ran:?}");
    ran.says(&[&taken]);
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_away_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let objects = dir.path().display().to_string();
    // Nothing listens on port 1 (tcpmux).
    let arguments = ["--listen", "127.0.0.1:0", "--objects", &objects, "--store", "etcd:http://127.0.0.1:1"];
    let more = ["--start-timeout", "800ms"];
    let ran = start("tranche-coordinator", &[&arguments[..], &more[..]].concat()).await.exits(1);
    assert!(ran.stderr.matches("trying again").count() >= 2, "it retries: {}", ran.stderr);
    assert_eq!(ran.stdout, "", "it never served");
    ran.says(&["store etcd:http://127.0.0.1:1 not reached", "start_timeout"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_coordinator_on_an_embedded_store() {
    let mut cluster = tranche_tests::Cluster::builder().embedded().start().await;
    let state = cluster.dir().join("state").display().to_string();
    let store = format!("embedded:{state}");
    let arguments = ["--listen", "127.0.0.1:0", "--store", &store, "--start-timeout", "500ms"];
    let ran = start("tranche-coordinator", &arguments).await.exits(1);
    ran.says(&[&state]);
    assert!(cluster.coordinator(0).has_ended().is_none(), "the first one isn't disturbed");
    // An address that is taken.
    let other = format!("embedded:{}", cluster.dir().join("other").display());
    let address = cluster.url(0).trim_start_matches("http://").to_owned();
    let ran = start("tranche-coordinator", &["--listen", &address, "--store", &other]).await.exits(1);
    ran.says(&["can't listen on", &address]);
}
