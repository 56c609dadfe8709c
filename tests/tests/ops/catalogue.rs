//! What is documented, alerted on and drawn is what there is.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tranche_client::v1::batch::State;
use tranche_tests::cluster::{batch_for, tasks};
use tranche_tests::{Cluster, eventually, scrape};

/// A file of the project.
pub(crate) fn file(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Metrics by name: type and labels.
type Metrics = BTreeMap<String, (String, String)>;

/// What a process tells.
fn told(text: &str, into: &mut Metrics) {
    let mut kinds = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            kinds.insert(name, kind);
        }
        if line.starts_with('#') {
            continue;
        }
        let sample = line.rsplit_once(' ').expect("a sample").0;
        let (name, labels) = sample.split_once('{').unwrap_or((sample, ""));
        let parts = ["_bucket", "_sum", "_count"].into_iter();
        let family =
            parts.filter_map(|part| name.strip_suffix(part)).find(|of| kinds.get(of) == Some(&"histogram"));
        let family = family.unwrap_or(name);
        let kind = kinds.get(family).unwrap_or_else(|| panic!("{name} has no type"));
        let labels: BTreeSet<&str> = labels
            .trim_end_matches('}')
            .split("\",")
            .filter_map(|label| Some(label.split_once('=')?.0))
            .filter(|label| *label != "le")
            .collect();
        let labels = labels.into_iter().collect::<Vec<_>>().join(", ");
        let known = into.entry(family.to_owned()).or_insert_with(|| ((*kind).to_owned(), labels.clone()));
        assert_eq!(*known, ((*kind).to_owned(), labels), "{family}");
    }
}

/// What a coordinator and a worker tell once something was done.
async fn there() -> Metrics {
    let mut cluster = Cluster::builder().flag("ops-listen", "127.0.0.1:0").start().await;
    let ops = cluster.coordinator(0).said("ops port on").await.expect("an ops port");
    let worker = cluster.worker_with("w1", 1, &[("ops-listen", "127.0.0.1:0")]).await;
    let port = super::worker::ops_port(worker);
    let batch = cluster.submit(batch_for("noop"), tasks(10)).await;
    cluster.wait_state(&batch, State::Committed).await;
    eventually("the disk was looked at", async || {
        scrape::get(&ops, "/metrics").await.1.contains("tranche_disk_size_bytes{").then_some(())
    })
    .await;
    // Left open.
    cluster.create(batch_for("noop")).await;
    // The other one may not be swept yet.
    eventually("the namespace has one batch", async || {
        let text = scrape::get(&ops, "/metrics").await.1;
        text.contains("tranche_namespace_batches{batch_namespace=\"default\"} 1").then_some(())
    })
    .await;
    let mut metrics = Metrics::new();
    told(&scrape::get(&ops, "/metrics").await.1, &mut metrics);
    told(&scrape::get(&port, "/metrics").await.1, &mut metrics);
    metrics
}

/// A row of the tables of docs/metrics.md.
fn is_row(line: &&str) -> bool {
    line.starts_with("| `tranche_") || line.starts_with("| `process_")
}

/// The words of an expression that name metrics of ours.
fn named(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words
        .filter(|word| word.starts_with("tranche_") || word.starts_with("process_"))
        .map(str::to_owned)
        .collect()
}

/// The alerts' names and expressions.
fn alerts() -> Vec<(String, String)> {
    let text = file("helm/tranche/alerts.yaml");
    let rules = text.split("- alert: ").skip(1).map(|rule| {
        let (name, rest) = rule.split_once('\n').expect("more");
        let from = rest.find("expr:").expect("an expression");
        let to = rest.find("annotations:").expect("annotations");
        assert!(rest.contains(&format!("runbook_url: docs/runbooks.md#{}\n", name.to_lowercase())), "{name}");
        assert!(rest.contains("summary: ") && rest.contains("severity: "), "{name}");
        (name.to_owned(), rest[from..to].to_owned())
    });
    rules.collect()
}

/// The dashboard's panels.
pub(crate) fn panels() -> Vec<Value> {
    let dashboard: Value = serde_json::from_str(&file("helm/tranche/dashboards/tranche.json")).expect("JSON");
    dashboard["panels"].as_array().expect("panels").clone()
}

/// A panel's expressions.
pub(crate) fn expressions(panel: &Value) -> Vec<String> {
    let targets = panel["targets"].as_array().expect("targets");
    targets.iter().map(|target| target["expr"].as_str().expect("an expression").to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_is_documented_and_every_name_that_is_used_is_there() {
    let there = there().await;
    // | `name` | type | labels | meaning |
    let text = file("docs/metrics.md");
    let mut documented = Metrics::new();
    for line in text.lines().filter(is_row) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        assert_eq!(cells.len(), 4, "{line}");
        let name = cells[0].trim_matches('`').to_owned();
        let labels = cells[2].replace('`', "");
        assert!(cells[3].len() > 10, "{name} has no meaning");
        assert!(
            documented.insert(name.clone(), (cells[1].to_owned(), labels)).is_none(),
            "{name} is there twice"
        );
    }
    for (name, found) in &there {
        assert_eq!(documented.get(name), Some(found), "docs/metrics.md and /metrics say otherwise of {name}");
    }
    for name in documented.keys() {
        assert!(there.contains_key(name), "docs/metrics.md has {name}, which isn't in /metrics");
    }

    let exists = |word: &str| {
        let parts = ["_bucket", "_sum", "_count"].into_iter();
        let family =
            parts.filter_map(|part| word.strip_suffix(part)).find(|family| there.contains_key(*family));
        there.contains_key(word) || family.is_some_and(|family| there[family].0 == "histogram")
    };
    for (alert, expression) in alerts() {
        let named = named(&expression);
        assert!(!named.is_empty(), "{alert}");
        for word in named {
            assert!(exists(&word), "alert {alert} asks for {word}");
        }
    }
    for panel in panels() {
        for word in expressions(&panel).iter().flat_map(|expression| named(expression)) {
            assert!(exists(&word), "panel {} draws {word}", panel["title"]);
        }
    }
}

#[test]
fn names_follow_prometheus_conventions() {
    let text = file("docs/metrics.md");
    for line in text.lines().filter(is_row) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let (name, kind) = (cells[0].trim_matches('`'), cells[1]);
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name}");
        assert!(kind != "histogram" || name.ends_with("_seconds"), "{name}");
        assert!(name.starts_with("tranche_") || name.starts_with("process_"), "{name}");
        for unit in ["_ms", "_millis", "_microseconds", "_kib", "_percent"] {
            assert!(!name.contains(unit), "{name}: not in its base unit");
        }
        for label in cells[2].replace('`', "").split(", ") {
            assert!(
                !["batch", "worker", "id", "token", "key"].contains(&label),
                "{name}: {label} has no bound"
            );
        }
    }
}

#[test]
fn every_alert_has_a_runbook_and_every_runbook_an_alert() {
    let text = file("docs/runbooks.md");
    let books: BTreeSet<&str> = text.lines().filter_map(|line| line.strip_prefix("## Tranche")).collect();
    let alerts = alerts();
    let named: BTreeSet<&str> = alerts.iter().filter_map(|(name, _)| name.strip_prefix("Tranche")).collect();
    assert_eq!(books, named);
    let tested = file("helm/tranche/tests/alerts_test.yaml");
    for (alert, _) in &alerts {
        let of: Vec<&str> =
            tested.split("- eval_time: ").filter(|t| t.contains(&format!("alertname: {alert}\n"))).collect();
        assert!(of.iter().any(|test| test.contains("exp_labels")), "{alert} is fired by no test");
        assert!(of.iter().any(|test| test.contains("exp_alerts: []")), "{alert} isn't shown not to fire");
    }
}

#[test]
fn the_dashboard_is_well_formed() {
    let panels = panels();
    let mut ids = BTreeSet::new();
    let mut cells = BTreeSet::new();
    for panel in &panels {
        let title = panel["title"].as_str().expect("a title");
        assert!(ids.insert(panel["id"].as_i64().expect("an id")), "{title}");
        assert!(!expressions(panel).is_empty(), "{title}");
        assert!(panel["description"].as_str().is_some_and(|text| !text.is_empty()), "{title}");
        let place = |name: &str| panel["gridPos"][name].as_u64().expect("a place");
        assert!(place("x") + place("w") <= 24, "{title}");
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(cells.insert((x, y)), "{title} lies on another panel");
            }
        }
        for target in panel["targets"].as_array().expect("targets") {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
        }
    }
    assert!(panels.len() >= 12);
}
