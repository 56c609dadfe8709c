use super::*;
use std::collections::HashMap;
use tranche_proto::TaskList;
use tranche_proto::v1::{
    AppendTasksRequest, Batch, CreateBatchRequest, FailureLimit, RangeBounds, Target, Task,
};

fn known() -> Vec<String> {
    vec!["object".to_owned(), "noop".to_owned()]
}

fn batch() -> Batch {
    Batch { targets: vec![Target { handler: "noop".into(), params: HashMap::new() }], ..Batch::default() }
}

fn object(params: &[(&str, &str)]) -> Batch {
    let params = params.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
    Batch { targets: vec![Target { handler: "object".into(), params }], ..Batch::default() }
}

fn checked(batch: Batch) -> Result<Batch, Error> {
    let request = CreateBatchRequest { parent: String::new(), batch: Some(batch), request_id: String::new() };
    create(request, &known()).map(|create| create.spec)
}

/// The violations as `field: description`.
fn violations<T: std::fmt::Debug>(result: Result<T, Error>) -> Vec<String> {
    match result {
        Err(Error::Invalid(found)) => {
            found.into_iter().map(|v| format!("{}: {}", v.field, v.description)).collect()
        }
        other => panic!("not refused: {other:?}"),
    }
}

/// The one violation.
fn violation<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    let mut found = violations(result);
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

#[test]
fn defaults_are_filled_in_and_outputs_cleared() {
    let asked = Batch {
        name: "namespaces/x/batches/y".into(),
        state: 4,
        sealed: true,
        counters: Some(v1::Counters { total: 5, ..Default::default() }),
        decision: Some(v1::Decision::default()),
        create_time: Some(prost_types::Timestamp::default()),
        update_time: Some(prost_types::Timestamp::default()),
        end_time: Some(prost_types::Timestamp::default()),
        report_uri: "u".into(),
        status_message: "m".into(),
        failure_limit: Some(FailureLimit { max_failed_tasks: Some(1), ..Default::default() }),
        ..batch()
    };
    let wanted = Batch {
        priority: 10,
        commit_mode: v1::batch::CommitMode::Auto.into(),
        range_bounds: Some(RangeBounds { min_tasks: 1, max_tasks: 16_384 }),
        max_attempts: 3,
        failure_limit: Some(FailureLimit {
            max_failed_tasks: Some(1),
            max_failed_ratio: None,
            min_sample: 100,
        }),
        ..batch()
    };
    assert_eq!(checked(asked).expect("right"), wanted);
    assert_eq!(checked(batch()).expect("right").failure_limit, None);
    assert_eq!(checked(wanted.clone()).expect("right"), wanted, "what was filled in stays");
}

#[test]
fn numbers_are_checked_at_their_bounds() {
    type Set = fn(&mut Batch, i32);
    let set: [(&str, Set, i32); 4] = [
        ("batch.priority", |b, n| b.priority = n, 100),
        ("batch.max_attempts", |b, n| b.max_attempts = n, 100),
        (
            "batch.range_bounds.max_tasks",
            |b, n| b.range_bounds = Some(RangeBounds { min_tasks: 0, max_tasks: n }),
            65_536,
        ),
        (
            "batch.range_bounds.min_tasks",
            |b, n| b.range_bounds = Some(RangeBounds { min_tasks: n, max_tasks: 65_536 }),
            65_536,
        ),
    ];
    for (field, set, most) in set {
        let with = |n| {
            let mut batch = batch();
            set(&mut batch, n);
            checked(batch)
        };
        for good in [0, 1, most] {
            with(good).unwrap_or_else(|error| panic!("{good}: {error}"));
        }
        for bad in [-1, most + 1, i32::MIN] {
            let found = violations(with(bad));
            assert!(found[0].starts_with(&format!("{field}: is {bad}, must be 1 to {most}")), "{found:?}");
        }
    }
    let bounds = |min_tasks, max_tasks| {
        checked(Batch { range_bounds: Some(RangeBounds { min_tasks, max_tasks }), ..batch() })
    };
    bounds(5, 5).expect("one size");
    assert!(violation(bounds(6, 5)).starts_with("batch.range_bounds.min_tasks: is 6, more than"));
    bounds(16_384, 0).expect("up to the default");
    violation(bounds(16_385, 0));
}

#[test]
fn texts_are_checked_at_their_bounds() {
    let long = |n| "ä".repeat(n);
    let name = |n| checked(Batch { display_name: long(n), ..batch() });
    name(200).expect("200");
    assert_eq!(violation(name(201)), "batch.display_name: has 201 characters, must have 0 to 200");

    let labels =
        |labels: Vec<(String, String)>| checked(Batch { labels: labels.into_iter().collect(), ..batch() });
    let many = |n: usize| (0..n).map(|i| (format!("k{i}"), String::new())).collect();
    labels(many(32)).expect("32 labels");
    assert_eq!(violation(labels(many(33))), "batch.labels: has 33 labels, may have 32");
    labels(vec![(long(63), long(255))]).expect("at the limits");
    assert!(violation(labels(vec![(long(64), String::new())])).contains("64 characters, must have 1 to 63"));
    assert!(violation(labels(vec![(String::new(), String::new())])).contains("0 characters"));
    assert!(violation(labels(vec![("k".into(), long(256))])).starts_with("batch.labels[\"k\"]: has 256"));

    let params = |params: Vec<(String, String)>| {
        let target = Target { handler: "noop".into(), params: params.into_iter().collect() };
        checked(Batch { targets: vec![target], ..Batch::default() })
    };
    params(many(64)).expect("64 parameters");
    assert_eq!(violation(params(many(65))), "batch.targets[0].params: has 65 parameters, may have 64");
    params(vec![("k".into(), long(4096))]).expect("4096 characters");
    assert!(
        violation(params(vec![("k".into(), long(4097))]))
            .starts_with("batch.targets[0].params[\"k\"]: has 4097")
    );

    let id = |n| {
        create(
            CreateBatchRequest { batch: Some(batch()), request_id: long(n), ..Default::default() },
            &known(),
        )
    };
    assert_eq!(id(128).expect("128").request_id, long(128));
    assert!(violation(id(129)).starts_with("request_id: has 129"));
}

#[test]
fn failure_limits_and_deadlines_are_checked_at_their_bounds() {
    let limit = |tasks, ratio, sample| {
        checked(Batch {
            failure_limit: Some(FailureLimit {
                max_failed_tasks: tasks,
                max_failed_ratio: ratio,
                min_sample: sample,
            }),
            ..batch()
        })
    };
    limit(Some(0), Some(0.0), 0).expect("none may fail");
    limit(Some(i64::MAX), Some(1.0), i64::MAX).expect("all may fail");
    assert!(violation(limit(Some(-1), None, 0)).contains("max_failed_tasks: is -1"));
    for ratio in [-0.01, 1.01, f64::NAN, f64::INFINITY] {
        assert!(violation(limit(None, Some(ratio), 0)).contains("max_failed_ratio: is "));
    }
    assert!(violation(limit(None, None, -1)).contains("min_sample: is -1"));

    let deadline = |seconds, nanos| {
        checked(Batch { deadline: Some(prost_types::Duration { seconds, nanos }), ..batch() })
    };
    let month = 30 * 24 * 3600;
    for (seconds, nanos) in [(1, 0), (1, 999_999_999), (month - 1, 999_999_999), (month, 0)] {
        deadline(seconds, nanos).expect("right");
    }
    for (seconds, nanos) in [
        (0, 999_999_999),
        (0, 0),
        (-1, 0),
        (month, 1),
        (month + 1, 0),
        (i64::MAX, 0),
        (5, -1),
        (5, 1_000_000_000),
    ] {
        assert!(violation(deadline(seconds, nanos)).starts_with(&format!("batch.deadline: is {seconds} s")));
    }
}

#[test]
fn exactly_one_known_target_is_needed() {
    let targets = |names: &[&str]| {
        let target = |name: &&str| Target { handler: (*name).to_owned(), params: HashMap::new() };
        checked(Batch { targets: names.iter().map(target).collect(), ..Batch::default() })
    };
    targets(&["noop"]).expect("known");
    assert!(violation(targets(&[])).starts_with("batch.targets: is required"));
    assert!(violation(targets(&["noop", "noop"])).starts_with("batch.targets: has 2"));
    let wrong = violation(targets(&["s3"]));
    assert_eq!(wrong, "batch.targets[0].handler: \"s3\" is unknown; known are object, noop");
    assert!(violation(targets(&[""])).starts_with("batch.targets[0].handler: is required"));
    let mode = violation(checked(Batch { commit_mode: 3, ..batch() }));
    assert_eq!(mode, "batch.commit_mode: 3 is no commit mode");
    assert!(violation(create(CreateBatchRequest::default(), &known())).starts_with("batch: is required"));
    let request =
        CreateBatchRequest { parent: "x".into(), batch: Some(Batch::default()), request_id: "r".into() };
    let found = violations(create(request, &known()));
    assert_eq!(found.len(), 2, "all at once: {found:?}");
}

#[test]
fn parameters_of_object_are_checked() {
    let good = [("source", "/a"), ("library", "/b")];
    checked(object(&good)).expect("right");
    let all = [("staging", "/c"), ("check", "image"), ("if_exists", "fail")];
    checked(object(&[&good[..], &all[..]].concat())).expect("right");
    let with = |name, value| {
        let mut params: HashMap<_, _> = good.into_iter().collect();
        params.insert(name, value);
        violation(checked(object(&params.into_iter().collect::<Vec<_>>())))
    };
    for name in ["source", "library"] {
        let field = format!("batch.targets[0].params[{name:?}]: ");
        assert!(with(name, "").starts_with(&format!("{field}is required")));
        assert_eq!(with(name, "rel/x"), format!("{field}\"rel/x\" is not absolute"));
        assert_eq!(with(name, "/a/../b"), format!("{field}\"/a/../b\" contains .."));
        assert_eq!(with(name, "/a\0"), format!("{field}\"/a\\0\" contains NUL"));
    }
    assert!(with("library", "/").contains("is the root"));
    assert!(with("staging", "x").contains("is not absolute"));
    assert!(with("staging", "").contains("is not absolute"));
    assert!(with("check", "pdf").contains("\"pdf\" must be none or image"));
    assert!(with("if_exists", "skip").contains("\"skip\" must be overwrite or fail"));
    assert!(with("libary", "/x").contains("params[\"libary\"]: is unknown; object has source, library"));
    assert_eq!(violations(checked(object(&[]))).len(), 2);
    // Another handler's parameters are its own.
    let target = Target { handler: "noop".into(), params: [("x".to_owned(), String::new())].into() };
    checked(Batch { targets: vec![target], ..Batch::default() }).expect("right");
}

#[test]
fn names_are_checked() {
    let key = batch_name("name", "namespaces/a-1/batches/b-2").expect("right");
    assert_eq!((key.namespace.as_str(), key.id.as_str()), ("a-1", "b-2"));
    let long = |n: usize| format!("namespaces/{}/batches/x", "a".repeat(n));
    batch_name("name", &long(63)).expect("63 characters");
    for bad in [
        "x",
        "namespaces/a/batches/",
        "namespaces//batches/b",
        "namespaces/A/batches/b",
        "namespaces/../batches/b",
        "namespaces/a/batches/b/c",
        &long(64),
    ] {
        assert!(violation(batch_name("parent", bad)).starts_with("parent: \""), "{bad}");
    }
    assert!(violation(batch_name("name", "")).starts_with("name: is required"));

    assert_eq!(namespace("parent", "").expect("right"), None);
    assert_eq!(namespace("parent", "namespaces/-").expect("right"), None);
    assert_eq!(namespace("parent", "namespaces/a-1").expect("right").as_deref(), Some("a-1"));
    for bad in [
        "a",
        "namespaces/",
        "namespaces/A",
        "namespaces/a/",
        "namespaces/a/batches/b",
        "namespaces/a/batches/x/batches/x",
    ] {
        assert!(violation(namespace("parent", bad)).starts_with("parent: "), "{bad}");
    }
}

#[test]
fn decisions_and_seals_are_checked() {
    let name = "namespaces/a/batches/b".to_owned();
    let cancel = |actor, message| {
        let (actor, message) = ("x".repeat(actor), "x".repeat(message));
        super::cancel(&v1::CancelBatchRequest { name: name.clone(), actor, message })
    };
    cancel(200, 1000).expect("at the limits");
    assert!(violation(cancel(201, 0)).starts_with("actor: has 201"));
    assert!(violation(cancel(0, 1001)).starts_with("message: has 1001"));
    let commit = |n| super::commit(&v1::CommitBatchRequest { name: name.clone(), actor: "x".repeat(n) });
    commit(200).expect("at the limit");
    assert!(violation(commit(201)).starts_with("actor: has 201"));
    let seal = |total| super::seal(&v1::SealBatchRequest { name: name.clone(), total });
    seal(None).expect("not checked");
    seal(Some(0)).expect("none");
    assert_eq!(violation(seal(Some(-1))), "total: is -1, must not be negative");
    assert_eq!(states(&[1, 6]).expect("right"), [v1::batch::State::Importing, v1::batch::State::Held]);
    assert_eq!(violations(states(&[1, 0, 7])), ["states[1]: 0 is no state", "states[2]: 7 is no state"]);
}

fn task(key: usize, payload: usize) -> Task {
    Task { key: "k".repeat(key), payload: vec![0; payload].into() }
}

fn appended(first_sequence: i64, tasks: Vec<Task>) -> Result<u64, Error> {
    let batch = BatchKey::new("a", "b");
    super::append(
        &batch,
        &AppendTasksRequest { name: String::new(), first_sequence, tasks: tasks.into_iter().collect() },
    )
}

#[test]
fn appended_tasks_are_checked_at_their_limits() {
    assert_eq!(appended(7, vec![task(1024, 1024 * 1024)]).expect("at the limits"), 7);
    let wrong = violation(appended(1, vec![task(1, 1), task(1, 1), task(1, 1), task(1, 1024 * 1024 + 1)]));
    assert_eq!(wrong, "tasks[3].payload: has 1048577 bytes, it may have 1048576");
    assert_eq!(violation(appended(1, vec![task(1025, 0)])), "tasks[0].key: has 1025 bytes, it may have 1024");

    appended(1, vec![task(0, 0); 65_536]).expect("at the limit");
    assert!(violation(appended(1, vec![task(0, 0); 65_537])).starts_with("tasks: has 65537 tasks"));

    let message = |last| {
        vec![task(0, 1_000_000), task(0, 1_000_000), task(0, 1_000_000), task(0, 1_000_000), task(0, last)]
    };
    let size = |tasks: Vec<Task>| {
        let tasks = tasks.into_iter().collect();
        AppendTasksRequest { name: String::new(), first_sequence: 1, tasks }.encoded_len()
    };
    let room = MAX_APPEND_BYTES - size(message(100_000)) + 100_000;
    assert_eq!(size(message(room)), MAX_APPEND_BYTES);
    appended(1, message(room)).expect("4 MiB");
    assert!(violation(appended(1, message(room + 1))).contains("4194305 bytes, it may have 4194304"));
    assert_eq!(
        violations(appended(1, vec![task(2000, 0); 100])).len(),
        MAX_VIOLATIONS,
        "not a page of errors"
    );
}

#[test]
fn an_append_names_its_first_number_and_keeps_its_batch() {
    assert_eq!(appended(0, vec![]).expect("asks where to go on"), 0);
    assert!(violation(appended(0, vec![task(1, 1)])).starts_with("first_sequence: is 0"));
    assert!(violation(appended(-1, vec![])).starts_with("first_sequence: is -1"));
    appended(1, vec![task(1, 1)]).expect("the first");
    assert!(violation(appended(i64::MAX, vec![task(1, 1)])).starts_with("first_sequence"));
    let batch = BatchKey::new("a", "b");
    let named =
        |name: &str| AppendTasksRequest { name: name.into(), first_sequence: 1, tasks: TaskList::default() };
    super::append(&batch, &named("namespaces/a/batches/b")).expect("the same");
    let wrong = violation(super::append(&batch, &named("namespaces/a/batches/c")));
    assert!(wrong.starts_with("name: \"namespaces/a/batches/c\" differs from"), "{wrong}");
}

#[test]
fn long_values_are_not_repeated_wholly() {
    assert!(quoted(&"ä".repeat(5000)).chars().count() < 130);
    assert_eq!(quoted("a\nb"), "\"a\\nb\"");
    assert!(is_handler_name("my_handler-2") && !is_handler_name("My") && !is_handler_name(""));
}
