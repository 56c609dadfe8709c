//! `tranche` against a cluster: every command, its exit codes, its JSON.

mod bench;

use serde_json::Value;
use std::path::Path;
use tranche_client::v1::batch::State;
use tranche_tests::cluster::batch_for;
use tranche_tests::process::program;
use tranche_tests::{Cluster, Gate, Library, Ran, Session, eventually, run, tranche};

/// The command line of one cluster.
struct Cli(String);

impl Cli {
    fn of(cluster: &Cluster) -> Self {
        Self(cluster.url(0))
    }

    fn words<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        [&["--coordinator", &self.0], arguments].concat()
    }

    async fn run(&self, arguments: &[&str]) -> Ran {
        tranche(&self.words(arguments)).await
    }

    async fn with_input(&self, arguments: &[&str], stdin: &str) -> Ran {
        run(&program("tranche"), &self.words(arguments), stdin).await
    }

    async fn json(&self, arguments: &[&str]) -> Value {
        self.run(&[&["--output", "json"], arguments].concat()).await.exits(0).json()
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// A text of these lines.
fn lines(lines: impl Iterator<Item = String>) -> String {
    lines.flat_map(|line| [line, "\n".to_owned()]).collect()
}

/// What is printed first: the batch's id.
fn id(ran: &Ran) -> String {
    ran.stdout.lines().next().expect("a line").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_is_submitted_and_looked_at() {
    let mut cluster = Cluster::start().await;
    cluster.workers(1, 2).await;
    let cli = Cli::of(&cluster);
    let library = Library::with_files(&cluster.data(), "library", 30);
    let (source, into) = (text(&library.source), text(&library.library));
    let submit = ["submit", &source, "--into", &into, "--label", "run=7", "--wait"];
    let ran = cli.run(&submit).await.exits(0);
    let id = id(&ran);
    assert!(ran.stdout.contains("COMMITTED"), "{}", ran.stdout);
    library.assert_exactly(library.keys());

    let got = cli.json(&["get", &id]).await;
    assert_eq!((&got["state"], &got["counters"]["committed"]), (&"STATE_COMMITTED".into(), &30.into()));
    let table = cli.run(&["get", &id]).await.exits(0).stdout;
    assert!(table.contains("COMMITTED") && table.contains("30"), "{table}");
    let name = got["name"].as_str().unwrap();
    assert_eq!(cli.json(&["get", name]).await, got, "by full name too");

    let listed = cli.json(&["list", "--label", "run=7", "--state", "COMMITTED"]).await;
    assert_eq!(listed["batches"][0]["name"], name);
    assert_eq!(cli.json(&["list", "--label", "run=8"]).await["batches"], Value::Array(Vec::new()));
    assert!(cli.run(&["list"]).await.exits(0).stdout.contains(&id));

    let watched = cli.run(&["--output", "json", "watch", &id]).await.exits(0);
    assert_eq!(watched.documents().last().unwrap()["batch"]["state"], "STATE_COMMITTED");
    let workers = cli.json(&["workers"]).await;
    assert_eq!(
        (&workers["workers"][0]["worker"], &workers["workers"][0]["slots"]),
        (&"w1".into(), &2.into())
    );
    assert_eq!(cli.json(&["coordinators"]).await["coordinators"][0]["answering"], true);
    assert_eq!(cli.json(&["leases"]).await["leases"], Value::Array(Vec::new()));
    assert!(cli.json(&["failures", &id]).await["failures"].as_array().unwrap().is_empty());

    cli.run(&["delete", &id]).await.exits(2).says(&["--yes"]);
    cluster.wait_swept(name).await;
    // As it was asked for: the server says nothing of it.
    let deleted = cli.json(&["delete", &id, "--yes"]).await;
    assert_eq!(deleted["deleted"], format!("namespaces/-/batches/{id}"));
    cli.run(&["get", &id]).await.exits(1).says(&["not found", &id]);
    library.assert_exactly(library.keys());
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_are_submitted() {
    let mut cluster = Cluster::builder().embedded().start().await;
    cluster.workers(1, 2).await;
    let cli = Cli::of(&cluster);
    let library = Library::with_files(&cluster.data(), "library", 12);
    let (source, into, keys) = (text(&library.source), text(&library.library), library.keys());
    let line = |key: &String| {
        let bytes = std::fs::read(library.source.join(key)).unwrap();
        let (size, sum) = (bytes.len(), blake3::hash(&bytes));
        (serde_json::json!({"key": key, "size": size, "checksum": format!("blake3:{sum}")}), size, sum)
    };
    let ndjson = |keys: &[String]| lines(keys.iter().map(|key| line(key).0.to_string()));

    let file = cluster.data().join("first.ndjson");
    std::fs::write(&file, ndjson(&keys[..4])).unwrap();
    let ran = cli.run(&["submit", &source, "--manifest", &text(&file), "--into", &into, "--wait"]).await;
    ran.exits(0);
    library.assert_exactly(&keys[..4]);

    let rows = keys[4..8].iter().map(|key| format!("{key},{},blake3:{}\n", line(key).1, line(key).2));
    let file = cluster.data().join("second.csv");
    std::fs::write(&file, format!("key,size,checksum\n{}", rows.collect::<String>())).unwrap();
    let ran = cli.run(&["submit", &source, "--manifest", &text(&file), "--into", &into, "--wait"]).await;
    ran.exits(0);
    library.assert_exactly(&keys[..8]);

    let words = ["submit", &source, "--manifest", "-", "--format", "ndjson", "--into", &into, "--wait"];
    cli.with_input(&words, &ndjson(&keys[8..])).await.exits(0);
    library.assert_exactly(&keys);

    // Payloads for another handler.
    let words = ["submit", "--manifest", "-", "--format", "ndjson", "--handler", "noop", "--wait"];
    let ran =
        cli.with_input(&words, "{\"key\":\"a\",\"payload\":{\"n\":1}}\n{\"key\":\"b\"}\n").await.exits(0);
    assert_eq!(cli.json(&["get", &id(&ran)]).await["counters"]["committed"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_manifest_revokes_the_batch_and_names_the_line() {
    let mut cluster = Cluster::builder().embedded().start().await;
    cluster.workers(1, 2).await;
    let cli = Cli::of(&cluster);
    let words = ["submit", "--manifest", "-", "--format", "ndjson", "--handler", "noop"];
    let ran = cli.with_input(&words, "{\"key\":\"a\"}\n{\"key\":\"b\",\"sizze\":1}\n").await.exits(1);
    let id = id(&ran);
    ran.says(&["line 2", "sizze"]);
    cluster.wait_state(&tranche_client::names::batch(&id), State::RolledBack).await;

    let words = ["submit", "/nowhere/at/all", "--into", "/tmp/x"];
    cli.run(&words).await.exits(1).says(&["/nowhere/at/all"]);
    cli.run(&["submit", "--manifest", "m.xml", "--into", "/l"]).await.exits(2).says(&["m.xml", "--format"]);
    cli.run(&["submit", "/tmp"]).await.exits(2).says(&["--into"]);
    cli.run(&["submit", "--manifest", "-", "--format", "csv", "--handler", "nobody"])
        .await
        .exits(1)
        .says(&["nobody"]);
    let listed = cli.json(&["list"]).await;
    assert_eq!(listed["batches"].as_array().unwrap().len(), 1, "nothing else was made: {listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_batch_is_retried_and_committed_or_cancelled() {
    let cluster = Cluster::builder().embedded().start().await;
    let gate = Gate::new("gate");
    gate.open();
    gate.fail([2, 4], "BROKEN");
    let _worker = cluster.attach("w", 2, vec![gate.clone()]).await;
    let cli = Cli::of(&cluster);
    let lines = lines((1..=5).map(|n| format!("{{\"key\":\"k{n}\"}}")));
    let words =
        ["submit", "--manifest", "-", "--format", "ndjson", "--handler", "gate", "--approve", "--wait"];
    let held = cli.with_input(&words, &lines).await.exits(5);
    let first = id(&held);
    let failures = cli.json(&["failures", &first]).await;
    let codes: Vec<_> =
        failures["failures"].as_array().unwrap().iter().map(|f| (&f["key"], &f["code"])).collect();
    assert_eq!(codes, [(&"k2".into(), &"BROKEN".into()), (&"k4".into(), &"BROKEN".into())]);
    let table = cli.run(&["failures", &first, "--limit", "1"]).await.exits(0).stdout;
    assert!(table.contains("k2") && !table.contains("k4"), "{table}");
    gate.fail_none();
    assert_eq!(cli.json(&["retry", &first]).await["retried"], 2);
    let name = tranche_client::names::batch(&first);
    cluster.wait_state(&name, State::Held).await;
    let committed = cli.json(&["commit", &first]).await;
    assert_eq!(committed["decision"]["reason"], "REASON_APPROVED");
    cli.run(&["watch", &first, "--fail-on-failed"]).await.exits(0);
    cli.run(&["cancel", &first]).await.exits(1).says(&["already decided"]);
    cli.run(&["commit", &first]).await.exits(0);

    let second = id(&cli.with_input(&words, &lines).await.exits(5));
    let cancelled = cli.json(&["cancel", &second, "--message", "not these", "--wait"]).await;
    assert_eq!(
        (&cancelled["state"], &cancelled["decision"]["message"]),
        (&"STATE_ROLLED_BACK".into(), &"not these".into())
    );
    cli.run(&["watch", &second]).await.exits(3);
    cli.run(&["commit", &second]).await.exits(1).says(&["already decided"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_are_the_outcome() {
    let mut cluster = Cluster::builder().embedded().start().await;
    cluster.workers(1, 2).await;
    let cli = Cli::of(&cluster);
    let lines = "{\"key\":\"a\"}\n{\"key\":\"b\"}\n{\"key\":\"c\"}\n{\"key\":\"d\"}\n";
    let submit = |more: &'static [&'static str]| {
        let words = ["submit", "--manifest", "-", "--format", "ndjson", "--handler", "noop"];
        [&words[..], &["--param", "fail_every=2", "--output", "json"], more].concat()
    };
    let ran = cli.with_input(&submit(&["--wait"]), lines).await.exits(0);
    assert_eq!(ran.json()["counters"]["failed"], 2);
    cli.with_input(&submit(&["--wait", "--fail-on-failed"]), lines).await.exits(4);
    let ran = cli.with_input(&submit(&["--wait", "--max-failed", "1"]), lines).await.exits(3);
    assert_eq!(ran.json()["decision"]["reason"], "REASON_FAILURE_LIMIT");
    let ran = cli.with_input(&submit(&["--watch"]), lines).await.exits(0);
    let last = ran.documents().pop().unwrap();
    assert_eq!(last["batch"]["state"], "STATE_COMMITTED");

    // An error is JSON, too.
    let ran = cli.run(&["--output", "json", "get", "nobody"]).await.exits(1);
    let printed = if ran.stdout.is_empty() { &ran.stderr } else { &ran.stdout };
    let error: Value = serde_json::from_str(printed).unwrap_or_else(|e| panic!("{e}: {printed}"));
    assert!(error.to_string().contains("BATCH_NOT_FOUND"), "{error}");
    // Nobody there.
    let ran = tranche(&["--coordinator", "http://127.0.0.1:1", "list"]).await.exits(1);
    ran.says(&["127.0.0.1:1"]);
    tranche(&["--coordinator", "not a url", "list"]).await.exits(1).says(&["not a url"]);
    tranche(&["frobnicate"]).await.exits(2).says(&["frobnicate"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submission_is_resumed_by_its_request_id() {
    let cluster = Cluster::builder().embedded().start().await;
    let cli = Cli::of(&cluster);
    let words =
        ["submit", "--manifest", "-", "--format", "ndjson", "--handler", "noop", "--request-id", "night"];
    let lines = lines((1..=50).map(|n| format!("{{\"key\":\"k{n}\"}}")));
    let mut session = Session::start("tranche", &cli.words(&words));
    for line in lines.lines().take(20) {
        session.type_line(line).await;
    }
    let first = session.said("").await;
    let name = tranche_client::names::batch(&first);
    eventually("some are there", async || {
        let batch = cluster.get(&name).await;
        Some(()).filter(|()| batch.counters.is_some_and(|counters| counters.total > 0))
    })
    .await;
    session.signal(rustix::process::Signal::INT);
    session.ended().await.exits(130).says(&["--request-id"]);
    let ran = cli.with_input(&words, &lines).await.exits(0);
    assert_eq!(id(&ran), first, "the same batch");
    let batch = cluster.get(&name).await;
    assert!(batch.sealed);
    assert_eq!(batch.counters.unwrap().total, 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_on_a_watch_leaves_the_batch_alone() {
    let cluster = Cluster::builder().embedded().start().await;
    let cli = Cli::of(&cluster);
    let name = cluster.create(batch_for("noop")).await;
    let mut session = Session::start("tranche", &cli.words(&["watch", &name]));
    session.said("IMPORTING").await;
    session.signal(rustix::process::Signal::INT);
    session.ended().await.exits(130).says(&["goes on"]);
    assert_eq!(cluster.get(&name).await.state(), State::Importing);
}

#[tokio::test(flavor = "multi_thread")]
async fn completions_are_printed_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = tranche(&["completions", shell]).await.exits(0).stdout;
        assert!(script.contains("failures") && script.contains("tranche"), "{shell}: {script}");
    }
    tranche(&["completions", "tcsh"]).await.exits(2).says(&["tcsh"]);
}
