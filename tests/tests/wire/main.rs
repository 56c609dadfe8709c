//! The wire as people see it who have nothing but `grpcurl`: reflection, health, batches by JSON.

mod import;

use serde_json::{Value, json};
use tranche_client::v1::batch::State;
use tranche_tests::cluster::{batch_for, tasks};
use tranche_tests::{Cluster, Gate, Ran, grpcurl, run};

const BATCHES: &str = "tranche.v1.BatchService";
const SERVICES: [&str; 3] = [BATCHES, "tranche.v1.WorkerService", "tranche.v1.AdminService"];
const REFLECTION: [&str; 2] =
    ["grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"];

/// One coordinator's address.
struct Rpc(String);

impl Rpc {
    fn of(cluster: &Cluster) -> Self {
        Self(cluster.url(0).trim_start_matches("http://").to_owned())
    }

    async fn grpcurl(&self, arguments: &[&str], stdin: &str) -> Ran {
        let mut all = vec!["-plaintext", "-max-time", "50"];
        let (options, words): (Vec<&str>, Vec<&str>) = match arguments.iter().position(|a| *a == "--") {
            Some(at) => (arguments[..at].to_vec(), arguments[at + 1..].to_vec()),
            None => (Vec::new(), arguments.to_vec()),
        };
        all.extend(options);
        all.push(&self.0);
        all.extend(words);
        run(&grpcurl(), &all, stdin).await
    }

    /// A call with these requests, that succeeds.
    async fn call(&self, method: &str, requests: &[Value]) -> Vec<Value> {
        self.try_call(method, requests).await.exits(0).documents()
    }

    async fn try_call(&self, method: &str, requests: &[Value]) -> Ran {
        let text = requests.iter().map(Value::to_string).collect::<Vec<_>>().join("\n");
        self.grpcurl(&["-d", "@", "--", method], &text).await
    }

    async fn unary(&self, method: &str, request: Value) -> Value {
        let mut answers = self.call(&format!("{BATCHES}/{method}"), &[request]).await;
        assert_eq!(answers.len(), 1, "{answers:?}");
        answers.remove(0)
    }

    async fn refused(&self, method: &str, request: Value) -> String {
        let ran = self.try_call(&format!("{BATCHES}/{method}"), &[request]).await;
        assert_ne!(ran.code(), Some(0), "{ran:?}");
        ran.stderr
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_service_is_listed_and_described() {
    let cluster = Cluster::builder().embedded().start().await;
    let rpc = Rpc::of(&cluster);
    let listed = rpc.grpcurl(&["list"], "").await.exits(0).stdout;
    for service in SERVICES.iter().chain(&REFLECTION).chain(&["grpc.health.v1.Health"]) {
        assert!(listed.lines().any(|line| line == *service), "{service} isn't in\n{listed}");
    }
    let methods = rpc.grpcurl(&["list", BATCHES], "").await.exits(0).stdout;
    for method in ["CreateBatch", "AppendTasks", "SealBatch", "WatchBatch", "CancelBatch", "ListFailures"] {
        assert!(methods.contains(&format!("{BATCHES}.{method}")), "{methods}");
    }
    let service = rpc.grpcurl(&["describe", BATCHES], "").await.exits(0).stdout;
    let append = "rpc AppendTasks ( stream .tranche.v1.AppendTasksRequest ) \
                  returns ( stream .tranche.v1.AppendTasksResponse );";
    assert!(service.contains(append), "{service}");
    let message = rpc.grpcurl(&["describe", "tranche.v1.Task"], "").await.exits(0).stdout;
    assert!(message.contains("string key = 1;") && message.contains("bytes payload = 2;"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn both_versions_of_reflection_answer() {
    let cluster = Cluster::builder().embedded().start().await;
    let rpc = Rpc::of(&cluster);
    for service in REFLECTION {
        let method = format!("{service}/ServerReflectionInfo");
        let requests = [json!({"listServices": ""}), json!({"fileContainingSymbol": BATCHES})];
        let answers = rpc.call(&method, &requests).await;
        let listed = &answers[0]["listServicesResponse"]["service"];
        let names: Vec<&str> =
            listed.as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
        for service in SERVICES {
            assert!(names.contains(&service), "{names:?}");
        }
        let files = &answers[1]["fileDescriptorResponse"]["fileDescriptorProto"];
        assert!(!files.as_array().unwrap().is_empty(), "{service}: {answers:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_told_by_service() {
    let cluster = Cluster::builder().embedded().start().await;
    let rpc = Rpc::of(&cluster);
    for service in SERVICES.iter().chain(&[""]) {
        let answer = rpc.call("grpc.health.v1.Health/Check", &[json!({"service": service})]).await;
        assert_eq!(answer, [json!({"status": "SERVING"})], "{service:?}");
    }
    let ran = rpc.try_call("grpc.health.v1.Health/Check", &[json!({"service": "tranche.v1.Nobody"})]).await;
    assert!(ran.stderr.contains("Code: NotFound"), "{}", ran.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_goes_through_by_json() {
    let mut cluster = Cluster::start().await;
    cluster.workers(1, 2).await;
    let rpc = Rpc::of(&cluster);
    let spec =
        json!({"targets": [{"handler": "noop", "params": {"fail_every": "4"}}], "labels": {"by": "hand"}});
    let batch = rpc.unary("CreateBatch", json!({"batch": spec, "requestId": "by-hand-1"})).await;
    let name = batch["name"].as_str().expect("a name").to_owned();
    assert_eq!((batch["state"].as_str(), batch["priority"].as_i64()), (Some("STATE_IMPORTING"), Some(10)));
    let again = rpc.unary("CreateBatch", json!({"batch": spec, "requestId": "by-hand-1"})).await;
    assert_eq!(again["name"], batch["name"], "the same request id is the same batch");

    // One stream of several messages, the second of them repeating a part of the first.
    let task = |n: usize| json!({"key": format!("k{n}"), "payload": "eHh4".repeat(n)});
    let message = |first: usize, last: usize| json!({"name": name, "firstSequence": first, "tasks": (first..=last).map(task).collect::<Vec<_>>()});
    let answers = rpc
        .call(&format!("{BATCHES}/AppendTasks"), &[message(1, 30), message(20, 50), message(51, 100)])
        .await;
    assert_eq!(answers.last().unwrap()["durableThrough"], "100", "{answers:?}");
    let through: Vec<i64> =
        answers.iter().map(|a| a["durableThrough"].as_str().map_or(0, |n| n.parse().unwrap())).collect();
    assert!(through.is_sorted(), "{through:?}");
    let sealed = rpc.unary("SealBatch", json!({"name": name, "total": 100})).await;
    assert_eq!(sealed["sealed"], true);

    let updates = rpc.call(&format!("{BATCHES}/WatchBatch"), &[json!({"name": name})]).await;
    let last = &updates.last().unwrap()["batch"];
    assert_eq!(last["state"], "STATE_COMMITTED", "a watch ends with the final state");
    assert_eq!(last["decision"]["reason"], "REASON_ALL_ACCOUNTED");
    let counters =
        json!({"total": "100", "staged": "75", "failed": "25", "committed": "75", "cutoff": "100"});
    assert_eq!(last["counters"], counters);
    let read = rpc.unary("GetBatch", json!({"name": name})).await;
    assert_eq!(read["counters"], counters);
    let listed =
        rpc.unary("ListBatches", json!({"labels": {"by": "hand"}, "states": ["STATE_COMMITTED"]})).await;
    assert_eq!(listed["batches"][0]["name"].as_str(), Some(name.as_str()), "{listed}");

    // Pages of the failure list: ten, ten, five.
    let (mut token, mut sizes, mut found) = (String::new(), Vec::new(), Vec::new());
    loop {
        let request = json!({"parent": name, "pageSize": 10, "pageToken": token});
        let page = rpc.unary("ListFailures", request).await;
        let failures = page["failures"].as_array().cloned().unwrap_or_default();
        sizes.push(failures.len());
        found.extend(failures.iter().map(|f| f["sequence"].as_str().unwrap().parse::<i64>().unwrap()));
        assert!(failures.iter().all(|f| f["code"].is_string() && f["message"].is_string()), "{failures:?}");
        match page["nextPageToken"].as_str() {
            Some(next) if !next.is_empty() => next.clone_into(&mut token),
            _ => break,
        }
    }
    assert_eq!((sizes.as_slice(), found), ([10, 10, 5].as_slice(), (1..=25).map(|n| n * 4).collect()));
    let other = rpc.refused("ListBatches", json!({"pageToken": token})).await;
    assert!(other.contains("page_token"), "{other}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_cancelled_by_json() {
    let cluster = Cluster::start().await;
    let gate = Gate::new("gate");
    let _worker = cluster.attach("w", 2, vec![gate.clone()]).await;
    let name = cluster.submit(batch_for("gate"), tasks(10)).await;
    gate.wait_staging(1).await;
    let rpc = Rpc::of(&cluster);
    let request = json!({"name": name, "actor": "anna", "message": "wrong folder"});
    let batch = rpc.unary("CancelBatch", request.clone()).await;
    assert_eq!(batch["decision"]["outcome"], "OUTCOME_ROLLBACK", "{batch}");
    cluster.wait_state(&name, State::RolledBack).await;
    let batch = rpc.unary("CancelBatch", request).await;
    assert_eq!(batch["state"], "STATE_ROLLED_BACK", "a cancel can be repeated");
    let decision = &batch["decision"];
    assert_eq!((&decision["actor"], &decision["message"]), (&json!("anna"), &json!("wrong folder")));
    let late = rpc.refused("CommitBatch", json!({"name": name})).await;
    for text in ["Code: FailedPrecondition", "\"reason\": \"ALREADY_DECIDED\"", "OUTCOME_ROLLBACK"] {
        assert!(late.contains(text), "{text} isn't in\n{late}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_readable() {
    let cluster = Cluster::builder().embedded().start().await;
    let rpc = Rpc::of(&cluster);
    let bad = json!({"batch": {"targets": [{"handler": "nobody"}], "priority": 500}});
    let error = rpc.refused("CreateBatch", bad).await;
    for text in [
        "Code: InvalidArgument",
        "\"@type\": \"type.googleapis.com/google.rpc.ErrorInfo\"",
        "\"reason\": \"INVALID_ARGUMENT\"",
        "\"domain\": \"tranche\"",
        "\"@type\": \"type.googleapis.com/google.rpc.BadRequest\"",
        "\"field\": \"batch.targets[0].handler\"",
        "\"field\": \"batch.priority\"",
        "is 500, must be 1 to 100",
    ] {
        assert!(error.contains(text), "{text} isn't in\n{error}");
    }
    let name = "namespaces/default/batches/nobody";
    let error = rpc.refused("GetBatch", json!({"name": name})).await;
    for text in ["Code: NotFound", "\"reason\": \"BATCH_NOT_FOUND\"", name] {
        assert!(error.contains(text), "{text} isn't in\n{error}");
    }
}
