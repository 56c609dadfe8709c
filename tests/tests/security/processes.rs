//! The programs, as their users start them.

use crate::world::{TEAMS, identities, of_team};
use serde_json::{Value, json};
use std::path::PathBuf;
use tranche_coordinator::identity::Role;
use tranche_tests::{Pki, Process, Ran, Session, grpcurl, run, tranche};

const CANARY: &str = "canary-7f3a9c-not-in-any-log";

/// All that our own crates ever say; of others what is asked for when something is looked for. (h2 prints the headers of its
/// frames at `trace`, as docs/security.md says.)
const LOG: &str = "debug,tranche_coordinator=trace,tranche_worker=trace,tranche_client=trace,tranche_tls=trace,\
                   tranche_ops=trace,tranche_engine=trace,tranche_proto=trace,tonic=trace,tower=trace";

struct Running {
    pki: Pki,
    dir: tempfile::TempDir,
    coordinator: Session,
    address: String,
}

impl Running {
    async fn start() -> Self {
        let (pki, dir) = (Pki::new(), tempfile::tempdir().expect("a folder"));
        let canary = format!(
            "[[identity]]\nname = 'canary'\ntoken_sha256 = {:?}\nnamespace = '*'\nroles = ['admin', 'worker']\n",
            tranche_tests::sha256_hex(CANARY)
        );
        pki.write("identities.toml", identities() + &canary);
        pki.write("token", format!("{CANARY}\n"));
        pki.issue("stranger", &["dns:stranger"]);
        let data = dir.path().join("data").display().to_string();
        let all = [
            ("--listen", "127.0.0.1:0".to_owned()),
            ("--store", format!("embedded:{data}")),
            ("--tls-cert", pki.text("server.pem")),
            ("--tls-key", pki.text("server.key")),
            ("--tls-client-ca", pki.text("ca.pem")),
            ("--identities", pki.text("identities.toml")),
            ("--tls-ca", pki.text("ca.pem")),
            ("--token-file", pki.text("token")),
            ("--log", LOG.to_owned()),
        ];
        let arguments: Vec<String> =
            all.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect();
        let mut coordinator = Session::start("tranche-coordinator", &arguments);
        let address = coordinator.said("listening on ").await;
        Self { pki, dir, coordinator, address }
    }

    async fn grpcurl(&self, options: &[&str], words: &[&str]) -> Ran {
        let ca = self.pki.text("ca.pem");
        let all = [&["-cacert", &ca, "-max-time", "50"][..], options, &[&self.address], words].concat();
        run(&grpcurl(), &all, "").await
    }

    async fn tranche(&self, token: &str, words: &[&str]) -> Ran {
        let (url, ca) = (format!("https://{}", self.address), self.pki.text("ca.pem"));
        let flags = ["--coordinator", &url, "--tls-ca", &ca, "--token-file", token, "--output", "json"];
        tranche(&[&flags[..], words].concat()).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn grpcurl_with_a_certificate_and_a_token_and_no_secret_in_any_log() {
    let running = Running::start().await;
    let (cert, key) = (running.pki.text("stranger.pem"), running.pki.text("stranger.key"));
    let bearer = format!("authorization: Bearer {CANARY}");
    let mutual = ["-cert", &cert, "-key", &key];
    let known = [&mutual[..], &["-H", &bearer]].concat();
    let list = ["tranche.v1.BatchService/ListBatches"];
    running.grpcurl(&known, &list).await.exits(0);
    let services = running.grpcurl(&known, &["list"]).await.exits(0).stdout;
    assert!(services.contains("tranche.v1.AdminService"), "{services}");
    // Without the token its certificate says who it is, and nobody knows that name.
    let protos = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../proto").display().to_string();
    let files = ["-import-path", &protos, "-proto", "tranche/v1/batch.proto"];
    let refused = running.grpcurl(&[&mutual[..], &files].concat(), &list).await;
    assert!(
        refused.stderr.contains("Unauthenticated") && refused.stderr.contains("no name (SAN)"),
        "{refused:?}"
    );
    let refused = running.grpcurl(&files, &list).await;
    assert!(refused.stderr.contains("who calls isn't said"), "{refused:?}");
    let wrong = format!("authorization: Bearer {CANARY}-wrong");
    let refused = running.grpcurl(&[&files[..], &["-H", &wrong]].concat(), &list).await;
    assert!(
        refused.stderr.contains("the token isn't known") && !refused.stderr.contains(CANARY),
        "{refused:?}"
    );

    let token = running.pki.text("token");
    let listed = running.tranche(&token, &["workers"]).await.exits(0);
    assert!(!listed.stderr.contains(CANARY));
    let (url, ca) = (format!("https://{}", running.address), running.pki.text("ca.pem"));
    let flags = ["--coordinator", &url, "--tls-ca", &ca, "--token-file", &token, "--id", "w1", "--log", LOG];
    let mut worker = Session::start("tranche-worker", &flags);
    assert_eq!(worker.said("attached to ").await, url);
    let listed = running.tranche(&token, &["workers"]).await.exits(0).stdout;
    assert!(listed.contains("canary/w1"), "{listed}");
    running.pki.write("wrong", format!("{CANARY}-wrong"));
    let refused = running.tranche(&running.pki.text("wrong"), &["list"]).await;
    assert!(refused.code() != Some(0) && refused.stderr.contains("isn't known"), "{refused:?}");
    assert!(!refused.stderr.contains(CANARY), "{refused:?}");
    // In clear text to another machine it isn't even tried.
    let away = ["--coordinator", "http://192.0.2.1:7070", "--token-file", &token, "list"];
    let refused = tranche(&away).await;
    assert!(refused.stderr.contains("https://") && !refused.stderr.contains(CANARY), "{refused:?}");

    worker.signal(rustix::process::Signal::TERM);
    running.coordinator.signal(rustix::process::Signal::TERM);
    for ran in [worker.ended().await, running.coordinator.ended().await] {
        let ran = ran.exits(0);
        assert!(!ran.stderr.contains(CANARY) && !ran.stderr.contains("PRIVATE KEY"), "{}", ran.stderr);
        assert!(ran.stderr.len() > 200, "nothing was logged: {}", ran.stderr);
    }
    drop(running.dir);
}

/// Two namespaces, each with its own worker and client; nobody names one.
#[tokio::test(flavor = "multi_thread")]
async fn each_namespace_s_worker_does_its_own_work_and_nobody_needs_to_name_a_namespace() {
    let running = Running::start().await;
    let token = |text: &str| {
        running.pki.write(text, text);
        running.pki.text(text)
    };
    let [a, b] = TEAMS.map(|(text, _)| token(text));
    running.pki.write("tasks.ndjson", "{\"key\": \"k1\"}\n{\"key\": \"k2\"}\n");
    let manifest = running.pki.text("tasks.ndjson");
    let submit = ["submit", "--manifest", &manifest, "--handler", "noop"];
    let (url, ca) = (format!("https://{}", running.address), running.pki.text("ca.pem"));
    let work = async |namespace: &str| {
        let token = token(&of_team(Role::Worker, namespace));
        let flags = ["--coordinator", &url, "--tls-ca", &ca, "--token-file", &token, "--id", "w"];
        let mut worker = Session::start("tranche-worker", &flags);
        worker.said("attached to ").await;
        worker
    };
    let batch = |ran: Ran| serde_json::from_str::<Value>(&ran.exits(0).stdout).expect("a batch");
    let _of_a = work(TEAMS[0].1).await;
    let of_b = batch(running.tranche(&b, &submit).await)["name"].as_str().expect("a name").to_owned();
    assert!(of_b.starts_with("namespaces/team-b/batches/"), "{of_b}");
    let done = batch(running.tranche(&a, &[&submit[..], &["--wait"]].concat()).await);
    assert_eq!(done["state"], "STATE_COMMITTED", "{done}");
    let of_a = done["name"].as_str().expect("a name").to_owned();
    // The only worker has worked, and not on this one.
    let id = tranche_client::names::batch_id(&of_b);
    let waits = batch(running.tranche(&b, &["get", id]).await);
    assert_eq!((&waits["name"], &waits["state"]), (&json!(of_b), &json!("STATE_IMPORTING")), "{waits}");
    assert_eq!(waits["counters"]["cutoff"], 0, "nothing of it was ever leased: {waits}");
    running.tranche(&a, &["get", id]).await.exits(1).says(&["NOT_FOUND"]);
    running.tranche(&a, &["get", &of_b]).await.exits(1).says(&["NOT_FOUND"]);
    running.tranche(&a, &["--namespace", "team-b", "list"]).await.exits(1).says(&["NAMESPACE_DENIED"]);
    for (token, own, other) in [(&a, &of_a, &of_b), (&b, &of_b, &of_a)] {
        let listed = running.tranche(token, &["list"]).await.exits(0).stdout;
        assert!(listed.contains(own) && !listed.contains(other), "{listed}");
    }
    let bearer = format!("authorization: Bearer {}", TEAMS[1].0);
    let asked = ["-H", &bearer, "-d", &json!({"name": format!("namespaces/-/batches/{id}")}).to_string()]
        .map(str::to_owned);
    let asked: Vec<&str> = asked.iter().map(String::as_str).collect();
    let got = running.grpcurl(&asked, &["tranche.v1.BatchService/GetBatch"]).await.exits(0).stdout;
    assert!(got.contains(&of_b), "{got}");
    let admin = token(&of_team(Role::Admin, TEAMS[1].1));
    let seen = running.tranche(&admin, &["workers"]).await.exits(0).stdout;
    assert!(!seen.contains("worker-of-team-a"), "{seen}");

    let _of_b = work(TEAMS[1].1).await;
    let watched = running.tranche(&b, &["watch", id]).await.exits(0).stdout;
    assert!(watched.contains("STATE_COMMITTED") && watched.contains(&of_b), "{watched}");
    let seen = running.tranche(&admin, &["workers"]).await.exits(0).stdout;
    assert!(seen.contains("worker-of-team-b/w") && !seen.contains("worker-of-team-a"), "{seen}");
}

#[tokio::test]
async fn a_coordinator_that_others_could_reach_does_not_start_open() {
    let pki = Pki::new();
    pki.write("identities.toml", identities());
    let program = tranche_tests::process::program("tranche-coordinator");
    let (cert, key) = (pki.text("server.pem"), pki.text("server.key"));
    let open = ["--listen", "0.0.0.0:0", "--advertise", "https://h:1"];
    let tls = ["--tls-cert", &cert, "--tls-key", &key];
    let identities = pki.text("identities.toml");
    for (flags, says) in [
        (open.to_vec(), "give tls_cert, tls_key and identities"),
        ([&open[..], &tls].concat(), "give identities"),
        ([&open[..], &["--identities", &identities]].concat(), "in clear text: give tls_cert"),
    ] {
        run(&program, &flags, "").await.exits(2).says(&[says, "--insecure"]);
    }
    // What can't be read is told at the start, too.
    pki.write("broken.toml", json!({"not": "toml"}).to_string());
    for (flag, file) in
        [("--identities", "broken.toml"), ("--tls-client-ca", "broken.toml"), ("--token-file", "none")]
    {
        let store = format!("embedded:{}", pki.text("store"));
        let path = pki.text(file);
        let flags = [&tls[..], &["--listen", "127.0.0.1:0", "--store", &store, flag, &path]].concat();
        run(&program, &flags, "").await.exits(1).says(&["can't start", file]);
    }
}

/// What a call brought is in no metric, and no secret in what other users of the machine see of a process.
#[tokio::test(flavor = "multi_thread")]
async fn no_secret_in_metrics_or_arguments() {
    let (pki, dir) = (Pki::new(), tempfile::tempdir().expect("a folder"));
    let admin = format!(
        "[[identity]]\nname = 'canary'\ntoken_sha256 = {:?}\nnamespace = '*'\nroles = ['admin', 'worker']\n",
        tranche_tests::sha256_hex(CANARY)
    );
    pki.write("identities.toml", admin);
    pki.write("token", format!("{CANARY}\n"));
    let flags = [
        "--listen=127.0.0.1:0".to_owned(),
        "--ops-listen=127.0.0.1:0".to_owned(),
        format!("--store=embedded:{}", dir.path().join("state").display()),
        format!("--identities={}", pki.text("identities.toml")),
        format!("--token-file={}", pki.text("token")),
    ];
    let program = tranche_tests::process::program;
    let mut coordinator = Process::spawn("coordinator", &program("tranche-coordinator"), &flags, dir.path());
    let address = coordinator.said("listening on").await.expect("it starts");
    let ops = coordinator.said("ops port on").await.expect("an ops port");
    let flags = [
        format!("--coordinator=http://{address}"),
        format!("--token-file={}", pki.text("token")),
        "--id=w1".to_owned(),
        "--ops-listen=127.0.0.1:0".to_owned(),
    ];
    let mut worker = Process::spawn("worker", &program("tranche-worker"), &flags, dir.path());
    worker.said("attached to").await.expect("its token is known");
    for bearer in [CANARY.to_owned(), format!("{CANARY}-wrong")] {
        let header = format!("authorization: Bearer {bearer}");
        // Where a name, a label or a path would be.
        for method in ["tranche.v1.AdminService/ListWorkers", "tranche.v1.BatchService/GetBatch"] {
            let words = ["-plaintext", "-max-time", "50", "-H", &header, "-d", "{}", &address, method];
            run(&grpcurl(), &words, "").await;
        }
    }
    let metrics = tranche_tests::scrape::get(&ops, "/metrics").await.1;
    assert!(metrics.contains("tranche_calls_total{") && !metrics.contains("canary"), "{metrics}");
    for process in [&coordinator, &worker] {
        let seen = std::fs::read(format!("/proc/{}/cmdline", process.id())).expect("a process");
        let seen = String::from_utf8_lossy(&seen);
        assert!(seen.contains("--token-file") && !seen.contains(CANARY), "{seen}");
    }
}
