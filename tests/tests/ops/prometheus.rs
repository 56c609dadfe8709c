//! A real Prometheus: its tool checks the rules, it scrapes a real coordinator, and evaluates them.

use super::catalogue::{expressions, file, panels};
use serde_json::Value;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tranche_client::v1::batch::State;
use tranche_tests::cluster::{batch_for, tasks};
use tranche_tests::etcd::free_port;
use tranche_tests::{Cluster, Process, eventually, scrape};

/// `prometheus` or `promtool`: beside `TRANCHE_PROMETHEUS`, in the workspace's `.tools/bin`, or on `PATH`.
fn tool(name: &str) -> PathBuf {
    let beside =
        std::env::var_os("TRANCHE_PROMETHEUS").and_then(|path| Some(Path::new(&path).parent()?.to_owned()));
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = beside.into_iter().chain([ours]).chain(std::env::split_paths(&path));
    let found = folders.map(|folder| folder.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!("{name} is missing: run `make verify`, which fetches it, or name prometheus' binary in TRANCHE_PROMETHEUS")
    })
}

fn promtool(arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(tool("promtool"));
    command.args(arguments).current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("promtool runs");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("written");
    child.wait_with_output().expect("promtool ends")
}

#[track_caller]
fn well(output: &Output) {
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn the_rules_are_right_and_each_alert_fires_when_it_shall() {
    well(&promtool(&["check", "rules", "helm/tranche/alerts.yaml"], ""));
    well(&promtool(&["test", "rules", "helm/tranche/tests/alerts_test.yaml"], ""));
}

struct Prometheus {
    address: String,
    _process: Process,
}

impl Prometheus {
    /// Scrapes this port each second, and evaluates the rules as often, without their `for`.
    async fn start(dir: &Path, ops: &str) -> Self {
        let rules: String = file("helm/tranche/alerts.yaml")
            .lines()
            .filter(|line| !line.contains(" for: "))
            .fold(String::new(), |all, line| all + line + "\n");
        std::fs::write(dir.join("alerts.yaml"), rules).expect("written");
        let config = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n\
             rule_files: [alerts.yaml]\n\
             scrape_configs:\n\
             - job_name: tranche-coordinator\n  static_configs: [{{targets: ['{ops}'], labels: {{namespace: here}}}}]\n"
        );
        std::fs::write(dir.join("prometheus.yaml"), config).expect("written");
        let address = format!("127.0.0.1:{}", free_port());
        let arguments = [
            format!("--config.file={}", dir.join("prometheus.yaml").display()),
            format!("--storage.tsdb.path={}", dir.join("tsdb").display()),
            format!("--web.listen-address={address}"),
        ];
        let process = Process::spawn("prometheus", &tool("prometheus"), &arguments, dir);
        let prometheus = Self { address, _process: process };
        eventually("Prometheus is ready", async || {
            scrape::try_get(&prometheus.address, "/-/ready").await.filter(|(status, _)| *status == 200)
        })
        .await;
        prometheus
    }

    async fn asked(&self, path: &str) -> Value {
        let (status, text) = scrape::get(&self.address, path).await;
        assert_eq!(status, 200, "{path}: {text}");
        // It is chunked when it is long.
        let text = if text.starts_with('{') { text } else { unchunked(&text) };
        let answer: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert_eq!(answer["status"], "success", "{path}: {answer}");
        answer["data"].clone()
    }

    /// The values of an instant query.
    async fn query(&self, expression: &str) -> Vec<f64> {
        let escaped: String =
            expression.bytes().fold(String::new(), |all, byte| all + &format!("%{byte:02x}"));
        let data = self.asked(&format!("/api/v1/query?query={escaped}")).await;
        let result = data["result"].as_array().unwrap_or_else(|| panic!("{expression}: {data}"));
        let value = |sample: &Value| sample["value"][1].as_str().and_then(|value| value.parse().ok());
        result.iter().filter_map(value).collect()
    }

    /// The names of the alerts that fire.
    async fn firing(&self) -> Vec<String> {
        let alerts = self.asked("/api/v1/alerts").await;
        let all = alerts["alerts"].as_array().expect("a list").iter();
        let firing = all.filter(|alert| alert["state"] == "firing");
        firing.map(|alert| alert["labels"]["alertname"].as_str().expect("a name").to_owned()).collect()
    }
}

fn unchunked(mut text: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = text.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).expect("a chunk's size");
        if size == 0 {
            break;
        }
        whole += &rest[..size];
        text = rest[size..].trim_start_matches("\r\n");
    }
    whole
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_scrapes_a_coordinator_and_the_alerts_see_what_happens() {
    let mut cluster = Cluster::builder().flag("ops-listen", "127.0.0.1:0").start().await;
    let ops = cluster.coordinator(0).said("ops port on").await.expect("an ops port");
    let dir = tempfile::tempdir().expect("a folder");
    let prometheus = Prometheus::start(dir.path(), &ops).await;
    eventually("it is scraped", async || (prometheus.query("up").await == [1.0]).then_some(())).await;
    assert_eq!(prometheus.query("tranche_coordinators").await, [1.0]);

    let batch = cluster.submit(batch_for("noop"), tasks(100)).await;
    eventually("tasks wait without a worker", async || {
        prometheus.firing().await.contains(&"TrancheNoWorkers".to_owned()).then_some(())
    })
    .await;
    // What promtool says of the text itself: names, units, help.
    let (_, text) = scrape::get(&ops, "/metrics").await;
    well(&promtool(&["check", "metrics"], &text));
    cluster.worker("w1", 1).await;
    cluster.wait_state(&batch, State::Committed).await;
    eventually("nothing waits", async || {
        (!prometheus.firing().await.contains(&"TrancheNoWorkers".to_owned())).then_some(())
    })
    .await;
    eventually("the tasks are counted", async || {
        (prometheus.query("sum(tranche_tasks_total{outcome=\"committed\"})").await == [100.0]).then_some(())
    })
    .await;

    let rules = prometheus.asked("/api/v1/rules").await;
    let groups = rules["groups"].as_array().expect("groups");
    let mut evaluated = 0;
    for rule in groups.iter().flat_map(|group| group["rules"].as_array().expect("rules")) {
        assert_eq!(rule["health"], "ok", "{rule}");
        evaluated += 1;
    }
    assert_eq!(evaluated, file("helm/tranche/alerts.yaml").matches("- alert: ").count());
    // Every expression of the dashboard is one, as Grafana would send it.
    for panel in panels() {
        for expression in expressions(&panel) {
            let sent = expression.replace("$__rate_interval", "1m").replace("$namespace", ".*");
            prometheus.query(&sent).await;
        }
    }

    cluster.coordinator(0).kill9();
    eventually("nobody is ready", async || {
        prometheus.firing().await.contains(&"TrancheCoordinatorsGone".to_owned()).then_some(())
    })
    .await;
}
