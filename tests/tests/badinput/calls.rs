//! What the service refuses.

use super::{create, invalid, names, refused};
use tokio_stream::StreamExt as _;
use tonic::Code;
use tranche_client::v1::{self, batch::State};
use tranche_client::{Error, Options};
use tranche_proto::{MAX_APPEND_TASKS, MAX_KEY_BYTES, MAX_PAYLOAD_BYTES};
use tranche_tests::cluster::{batch_for, batch_into, tasks};
use tranche_tests::{Cluster, Gate};

async fn cluster() -> Cluster {
    // A refusal is never tried again.
    Cluster::builder()
        .embedded()
        .client(Options { retry_for: std::time::Duration::ZERO, ..Options::default() })
        .start()
        .await
}

/// Sends one message on an append stream of its own, past the client's own checks.
async fn append(cluster: &Cluster, batch: &str, first: i64, tasks: Vec<v1::Task>) -> Result<i64, Error> {
    let tasks = tasks.into_iter().collect();
    let message = v1::AppendTasksRequest { name: batch.to_owned(), first_sequence: first, tasks };
    let wanted = first.saturating_add(i64::try_from(message.tasks.len()).unwrap()) - 1;
    let wrong = |status| Error::Call { call: "AppendTasks", status: Box::new(status) };
    let mut client = cluster.client().batches();
    let mut answers = client.append_tasks(tokio_stream::once(message)).await.map_err(wrong)?.into_inner();
    let mut durable = 0;
    while let Some(answer) = answers.next().await {
        durable = answer.map_err(wrong)?.durable_through;
    }
    assert!(durable >= wanted, "{durable} of {wanted}");
    Ok(durable)
}

fn one(key: usize, payload: usize) -> Vec<v1::Task> {
    vec![v1::Task { key: "k".repeat(key), payload: vec![b'p'; payload].into() }]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_handler() {
    let cluster = cluster().await;
    invalid(
        create(&cluster, batch_for("objct")).await,
        "batch.targets[0].handler",
        &["\"objct\"", "noop, object"],
    );
    // One that a worker announces is known.
    let _worker = cluster.attach("w", 1, vec![Gate::new("objct")]).await;
    create(&cluster, batch_for("objct")).await.expect("known now");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spec_beyond_its_limits() {
    let cluster = cluster().await;
    let with = |change: fn(&mut v1::Batch)| {
        let mut batch = batch_for("noop");
        change(&mut batch);
        batch
    };
    for (batch, field, texts) in [
        (with(|b| b.targets.clear()), "batch.targets", ["exactly one", "required"]),
        (with(|b| b.targets.push(v1::Target::default())), "batch.targets", ["2 targets", "exactly one"]),
        (with(|b| b.priority = 101), "batch.priority", ["is 101", "1 to 100"]),
        (with(|b| b.priority = -1), "batch.priority", ["is -1", "1 to 100"]),
        (with(|b| b.commit_mode = 77), "batch.commit_mode", ["77", "no commit mode"]),
        (with(|b| b.max_attempts = 101), "batch.max_attempts", ["is 101", "1 to 100"]),
        (
            with(|b| b.range_bounds = Some(v1::RangeBounds { min_tasks: 9, max_tasks: 8 })),
            "batch.range_bounds.min_tasks",
            ["is 9", "max_tasks, 8"],
        ),
        (
            with(|b| b.deadline = Some(prost_types::Duration { seconds: 0, nanos: 5 })),
            "batch.deadline",
            ["is 0 s and 5 ns", "1 s to 30 days"],
        ),
        (
            with(|b| {
                b.failure_limit =
                    Some(v1::FailureLimit { max_failed_ratio: Some(f64::NAN), ..Default::default() });
            }),
            "batch.failure_limit.max_failed_ratio",
            ["is NaN", "0.0 to 1.0"],
        ),
    ] {
        invalid(create(&cluster, batch).await, field, &texts);
    }
    let nothing = cluster.client().create(v1::CreateBatchRequest::default()).await;
    invalid(nothing, "batch", &["is required"]);
    let listed = cluster.client().list_page(v1::ListBatchesRequest::default()).await.unwrap();
    assert!(listed.batches.is_empty(), "nothing was made: {listed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_library_path_that_escapes() {
    let cluster = cluster().await;
    let target = |library: &str, source: &str| {
        let params = [("library".to_owned(), library.to_owned()), ("source".to_owned(), source.to_owned())];
        batch_into(v1::Target { handler: "object".into(), params: params.into() })
    };
    for path in ["/data/../etc", "..", "photos", "./photos", "~/photos", "/data/library/..", "/a\0b"] {
        let field = "batch.targets[0].params[\"library\"]";
        let text = format!("{path:?}");
        invalid(create(&cluster, target(path, "/data/in")).await, field, &[&text]);
        let field = "batch.targets[0].params[\"source\"]";
        invalid(create(&cluster, target("/data/library", path)).await, field, &[&text]);
    }
    let error = create(&cluster, target("", "/data/in")).await.unwrap_err();
    names(&error, "batch.targets[0].params[\"library\"]", &["is required"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_total_that_isnt_what_is_there() {
    let cluster = cluster().await;
    let batch = cluster.create(batch_for("noop")).await;
    cluster.append(&batch, 1, tasks(7)).await;
    let answer = cluster.client().seal(&batch, Some(8)).await;
    let error = refused(answer, Code::FailedPrecondition, "TOTAL_MISMATCH", &["total is 8", "7 tasks"]);
    assert_eq!(
        (error.metadata()["total"].as_str(), error.metadata()["durable_through"].as_str()),
        ("8", "7")
    );
    invalid(cluster.client().seal(&batch, Some(-1)).await, "total", &["is -1"]);
    assert!(!cluster.get(&batch).await.sealed, "nothing changed");
    cluster.append(&batch, 8, tasks(1)).await;
    assert!(cluster.client().seal(&batch, Some(8)).await.expect("right now").sealed);
    cluster.client().seal(&batch, Some(8)).await.expect("a seal can be repeated");
    let answer = cluster.client().seal(&batch, Some(9)).await;
    refused(answer, Code::FailedPrecondition, "TOTAL_MISMATCH", &["total is 9", "8 tasks"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_that_cant_be() {
    let cluster = cluster().await;
    let batch = cluster.create(batch_for("noop")).await;
    append(&cluster, &batch, 1, tasks(3)).await.unwrap();
    let error = refused(
        append(&cluster, &batch, 5, tasks(1)).await,
        Code::OutOfRange,
        "APPEND_GAP",
        &["first_sequence 5", "the next is 4"],
    );
    assert_eq!(error.metadata()["expected_sequence"], "4");
    invalid(
        append(&cluster, &batch, 0, tasks(1)).await,
        "first_sequence",
        &["is 0", "the first of a batch is 1"],
    );
    invalid(append(&cluster, &batch, -3, tasks(1)).await, "first_sequence", &["is -3"]);
    invalid(append(&cluster, &batch, i64::MAX, tasks(2)).await, "first_sequence", &["no numbers"]);
    let many = vec![v1::Task::default(); MAX_APPEND_TASKS + 1];
    invalid(append(&cluster, &batch, 4, many).await, "tasks", &["65537 tasks", "65536"]);
    // I8: what is there already changes nothing.
    append(&cluster, &batch, 1, tasks(3)).await.unwrap();
    append(&cluster, &batch, 2, tasks(4)).await.expect("a part is new");
    assert_eq!(cluster.get(&batch).await.counters.unwrap().total, 5);

    cluster.seal(&batch).await;
    let answer = append(&cluster, &batch, 6, tasks(1)).await;
    let error = refused(answer, Code::FailedPrecondition, "BATCH_SEALED", &["is sealed at 5 tasks"]);
    assert_eq!(error.metadata()["total"], "5");
    append(&cluster, &batch, 4, tasks(2)).await.expect("a repeat, after the seal");
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_at_their_limits_and_one_beyond() {
    let cluster = cluster().await;
    let batch = cluster.create(batch_for("noop")).await;
    append(&cluster, &batch, 1, one(MAX_KEY_BYTES, 1)).await.expect("a key of the most bytes");
    append(&cluster, &batch, 2, one(1, MAX_PAYLOAD_BYTES)).await.expect("a payload of the most bytes");
    let answer = append(&cluster, &batch, 3, one(MAX_KEY_BYTES + 1, 1)).await;
    invalid(answer, "tasks[0].key", &["has 1025 bytes", "1024"]);
    let answer = append(&cluster, &batch, 3, one(1, MAX_PAYLOAD_BYTES + 1)).await;
    invalid(answer, "tasks[0].payload", &["has 1048577 bytes", "1048576"]);
    // The client says so before it sends anything.
    let mut all = vec![v1::Task::default(); 3];
    all[2] = one(5, MAX_PAYLOAD_BYTES + 1).remove(0);
    let error = cluster.client().append(&batch, tokio_stream::iter(all)).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("task 3 (\"kkkkk\"): its payload has 1048577 bytes"), "{text}");
    assert_eq!(cluster.get(&batch).await.counters.unwrap().total, 2, "nothing else was taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn i8_the_same_request_id_is_the_same_batch_or_an_error() {
    let cluster = cluster().await;
    let request = |label: &str, id: &str| v1::CreateBatchRequest {
        batch: Some(v1::Batch { labels: [("l".into(), label.into())].into(), ..batch_for("noop") }),
        request_id: id.into(),
        ..Default::default()
    };
    let client = cluster.client();
    let first = client.create(request("a", "night-run")).await.unwrap();
    assert_eq!(client.create(request("a", "night-run")).await.unwrap().name, first.name);
    let answer = client.create(request("b", "night-run")).await;
    let texts = ["\"night-run\"", first.name.as_str(), "another spec"];
    let error = refused(answer, Code::AlreadyExists, "REQUEST_ID_REUSED", &texts);
    assert_eq!(error.metadata()["batch"], first.name);
    invalid(client.create(request("a", &"x".repeat(129))).await, "request_id", &["129 characters", "128"]);
    // At once: still one batch.
    let both = futures::future::join_all((0..8).map(|_| client.create(request("c", "at-once")))).await;
    let names: std::collections::BTreeSet<_> =
        both.into_iter().map(|batch| batch.expect("made").name).collect();
    assert_eq!(names.len(), 1, "{names:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_in_the_wrong_state() {
    let cluster = cluster().await;
    let client = cluster.client();
    let batch = cluster.create(batch_for("noop")).await;
    let wrong = |answer, texts: &[&str]| refused(answer, Code::FailedPrecondition, "WRONG_STATE", texts);
    wrong(client.delete(&batch).await, &[&batch, "Importing", "only a batch that ended can be deleted"]);
    let error = wrong(client.commit(&batch, "").await.map(drop), &[&batch, "only a batch that is HELD"]);
    assert_eq!(error.metadata()["state"], "STATE_IMPORTING");
    let long = client.cancel(&batch, &"a".repeat(201), "").await;
    invalid(long, "actor", &["201 characters", "200"]);

    client.cancel(&batch, "anna", "").await.expect("cancelled");
    cluster.wait_state(&batch, State::RolledBack).await;
    let retried = client.retry_failed(&batch).await;
    let error = retried.expect_err("it is decided");
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(error.to_string().contains(&batch), "{error}");
    let decided = client.commit(&batch, "").await;
    refused(decided, Code::FailedPrecondition, "ALREADY_DECIDED", &[&batch, "Rollback", "Cancelled"]);
    let appended = append(&cluster, &batch, 1, tasks(1)).await.unwrap_err();
    assert_eq!(appended.code(), Code::FailedPrecondition, "{appended}");
    cluster.wait_swept(&batch).await;
    client.delete(&batch).await.expect("it ended");
    refused(client.get(&batch).await, Code::NotFound, "BATCH_NOT_FOUND", &[&batch]);
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_that_arent_there_and_names_that_are_none() {
    let cluster = cluster().await;
    let client = cluster.client();
    let nobody = "namespaces/default/batches/nobody";
    let missing = |answer| drop(refused(answer, Code::NotFound, "BATCH_NOT_FOUND", &[nobody]));
    missing(client.get(nobody).await.map(drop));
    missing(client.wait(nobody).await.map(drop));
    missing(client.seal(nobody, None).await.map(drop));
    missing(client.cancel(nobody, "", "").await.map(drop));
    missing(client.commit(nobody, "").await.map(drop));
    missing(client.retry_failed(nobody).await.map(drop));
    missing(client.delete(nobody).await);
    missing(append(&cluster, nobody, 1, tasks(1)).await.map(drop));
    missing(client.failures(nobody).next().await.expect("an answer").map(drop));

    let mut raw = client.batches();
    for name in [
        "",
        "b1",
        "namespaces/a/batches/",
        "namespaces//batches/b",
        "namespaces/a/batches/b/c",
        "namespaces/A b/batches/c",
    ] {
        let call = |status| Error::Call { call: "GetBatch", status: Box::new(status) };
        let answer = raw.get_batch(v1::GetBatchRequest { name: name.into() }).await.map_err(call);
        let quoted = if name.is_empty() { "is required".to_owned() } else { format!("{name:?}") };
        invalid(answer, "name", &[&quoted]);
        let answer = raw.watch_batch(v1::WatchBatchRequest { name: name.into() }).await.map_err(call);
        invalid(answer.map(drop), "name", &[&quoted]);
        let answer = append(&cluster, name, 1, tasks(1)).await;
        invalid(answer, "name", &[]);
    }
    let parent = v1::ListBatchesRequest { parent: "namespaces/No Such".into(), ..Default::default() };
    invalid(client.list_page(parent).await, "parent", &["\"namespaces/No Such\""]);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_that_are_none() {
    let cluster = cluster().await;
    let client = cluster.client();
    for _ in 0..3 {
        cluster.create(batch_for("noop")).await;
    }
    let list = |page_size, page_token: &str, states: &[State]| {
        client.list_page(v1::ListBatchesRequest {
            page_size,
            page_token: page_token.into(),
            states: states.iter().map(|state| i32::from(*state)).collect(),
            ..Default::default()
        })
    };
    invalid(list(-1, "", &[]).await, "page_size", &["is -1"]);
    for token in ["x", "zz", "00", "01020304", "\u{e9}", &"ab".repeat(500)] {
        invalid(list(1, token, &[]).await, "page_token", &["is no page token"]);
    }
    let token = list(1, "", &[]).await.unwrap().next_page_token;
    assert!(!token.is_empty());
    invalid(list(1, &token, &[State::Held]).await, "page_token", &["another list or another filter"]);
    let mut changed = token.clone().into_bytes();
    let last = changed.last_mut().unwrap();
    *last = if *last == b'0' { b'1' } else { b'0' };
    invalid(list(1, &String::from_utf8(changed).unwrap(), &[]).await, "page_token", &["is no page token"]);
    assert_eq!(list(5, &token, &[]).await.unwrap().batches.len(), 2, "the size may change");
    let states = v1::ListBatchesRequest { states: vec![99], ..Default::default() };
    invalid(client.list_page(states).await, "states[0]", &["99"]);
}
