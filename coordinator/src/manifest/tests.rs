use super::*;
use bytes::Bytes;
use std::fs;
use tranche_proto::v1::{SegmentRecord, Task, TaskFailure};

fn batch() -> BatchKey {
    BatchKey::new("default", "b1")
}

fn tasks(numbers: std::ops::RangeInclusive<u64>) -> Vec<Task> {
    numbers.map(|n| Task { key: format!("k{n}"), payload: format!("payload {n}").into() }).collect()
}

/// What `read_tasks` read, decoded.
fn decoded(pieces: &[TaskList]) -> Vec<Task> {
    let tasks = pieces.iter().flat_map(TaskList::iter).map(|task| task.expect("a task"));
    tasks.map(|task| Task { key: task.key.into(), payload: Bytes::copy_from_slice(task.payload) }).collect()
}

fn keys(pieces: &[TaskList]) -> Vec<u64> {
    decoded(pieces).iter().map(|task| task.key[1..].parse().expect("a number")).collect()
}

/// Writes as a stream of its own.
async fn written(
    objects: &Objects,
    batch: &BatchKey,
    first: u64,
    tasks: Vec<Task>,
) -> Result<SegmentRecord, Error> {
    objects.segments(batch).write(first, vec![tasks.into_iter().collect()]).await
}

/// Three segments: 1..=10, 11..=11, 12..=30. The first two are of one stream.
async fn three(objects: &Objects) -> Vec<SegmentRecord> {
    let mut records = Vec::new();
    let mut stream = objects.segments(&batch());
    for run in [1..=10, 11..=11, 12..=30] {
        let first = *run.start();
        if first == 12 {
            stream = objects.segments(&batch());
        }
        // What is pushed in parts is one segment.
        let lists = vec![
            tasks(run.start().to_owned()..=first).into_iter().collect(),
            tasks(first + 1..=*run.end()).into_iter().collect(),
        ];
        records.push(stream.write(first, lists).await.expect("written"));
    }
    records
}

/// A handle that has nothing in memory, as after a restart.
fn cold(dir: &Path) -> Objects {
    Objects::local(dir).expect("opened")
}

fn damage(result: Result<Vec<TaskList>, Error>) -> (String, String) {
    match result {
        Err(Error::Damaged { what, message }) => (what, message),
        other => panic!("not damaged: {other:?}"),
    }
}

#[tokio::test]
async fn runs_are_read_across_segments_at_every_boundary() {
    let dir = tempfile::tempdir().expect("a directory");
    let objects = cold(dir.path());
    let records = three(&objects).await;
    assert_eq!((records[0].first, records[0].last), (1, 10));
    assert_eq!((records[1].first, records[1].last), (11, 11));
    for objects in [objects, cold(dir.path())] {
        for (runs, wanted) in [
            (vec![(1, 1)], vec![1]),
            (vec![(1, 10)], (1..=10).collect()),
            (vec![(1, 11)], (1..=11).collect()),
            (vec![(10, 12)], vec![10, 11, 12]),
            (vec![(11, 11)], vec![11]),
            (vec![(12, 30)], (12..=30).collect()),
            (vec![(1, 30)], (1..=30).collect()),
            (vec![(2, 3), (9, 10), (12, 13), (30, 30)], vec![2, 3, 9, 10, 12, 13, 30]),
            (vec![], vec![]),
        ] {
            let read = objects.read_tasks(&records, &runs).await.expect("read");
            assert_eq!(keys(&read), wanted, "{runs:?}");
        }
        let last = objects.read_tasks(&records[2..], &[(30, 30)]).await.expect("read");
        assert_eq!(decoded(&last)[0].payload, "payload 30");
        for runs in [[(31, 31)], [(30, 31)]] {
            let (_, message) = damage(objects.read_tasks(&records, &runs).await);
            assert!(message.contains("31"), "{message}");
        }
        let (_, message) = damage(objects.read_tasks(&records[1..], &[(10, 12)]).await);
        assert!(message.contains("task 10"), "{message}");
        damage(objects.read_tasks(&[], &[(1, 1)]).await);
    }
}

#[tokio::test]
async fn payloads_are_slices_of_the_segment_in_memory() {
    let dir = tempfile::tempdir().expect("a directory");
    let objects = cold(dir.path());
    let payload = vec![7; 100_000];
    let task = Task { key: "k".into(), payload: payload.into() };
    let record = written(&objects, &batch(), 1, vec![task; 4]).await.expect("written");
    let records = [record];
    let one = objects.read_tasks(&records, &[(1, 1)]).await.expect("read");
    let two = objects.read_tasks(&records, &[(1, 1)]).await.expect("read");
    assert_eq!(one[0].bytes().as_ptr(), two[0].bytes().as_ptr());
    // From memory: the file isn't needed.
    fs::remove_file(objects.uri(&records[0].object)).expect("removed");
    objects.read_tasks(&records, &[(2, 3)]).await.expect("read");
    // All four were taken: it isn't in memory any more.
    damage(objects.read_tasks(&records, &[(4, 4)]).await);
}

#[tokio::test]
async fn what_does_not_fit_in_memory_is_read_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let objects = Objects::local_with_cache(dir.path(), 0).expect("opened");
    let records = three(&objects).await;
    assert_eq!(
        keys(&objects.read_tasks(&records, &[(5, 15)]).await.expect("read")),
        (5..=15).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn a_damaged_segment_is_refused_by_its_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let records = three(&cold(dir.path())).await;
    let path = dir.path();
    let record = &records[0];
    let file = dir.path().join(&record.object);
    let good = fs::read(&file).expect("read");

    let read = |records: Vec<SegmentRecord>| async move { cold(path).read_tasks(&records, &[(1, 1)]).await };
    // One byte less than its last task needs.
    let size = usize::try_from(record.size).expect("small");
    fs::write(&file, &good[..size - 1]).expect("written");
    let (what, message) = damage(read(records.clone()).await);
    assert!(what.contains(&record.object), "{what}");
    assert!(message.contains("bytes, the tasks end at"), "{message}");

    let mut flipped = good.clone();
    flipped[size / 2] ^= 1;
    fs::write(&file, &flipped).expect("written");
    let (_, message) = damage(read(records.clone()).await);
    assert!(message.contains("checksum"), "{message}");

    fs::write(&file, &good).expect("written");
    read(records.clone()).await.expect("right again");
    let mut wrong = records.clone();
    wrong[0].last = 9;
    let (_, message) = damage(read(wrong).await);
    assert!(message.contains("10 tasks instead of 9"), "{message}");
    let mut behind = records.clone();
    behind[0].offset = 1 << 40;
    let (_, message) = damage(read(behind).await);
    assert!(message.contains("the tasks end at"), "{message}");

    fs::remove_file(&file).expect("removed");
    let (what, message) = damage(read(records.clone()).await);
    assert!(what.contains(&record.object) && message.contains("missing"), "{what}: {message}");

    let mut outside = records.clone();
    outside[0].object = "batches/../../etc/passwd".into();
    damage(read(outside).await);
}

#[tokio::test]
async fn a_stream_has_a_file_of_its_own_and_its_segments_lie_in_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let objects = cold(dir.path());
    let one = written(&objects, &batch(), 1, tasks(1..=2)).await.expect("written");
    let two = written(&objects, &batch(), 1, tasks(1..=2)).await.expect("written");
    assert_ne!(one.object, two.object);
    assert!(one.object.starts_with("batches/default/b1/tasks-"), "{}", one.object);
    let records = three(&objects).await;
    assert_eq!(records[0].object, records[1].object);
    assert!(records[1].offset >= records[0].offset + records[0].size);
    assert_ne!(records[1].object, records[2].object);
}

#[tokio::test]
async fn failures_come_back_and_damage_is_noticed() {
    let dir = tempfile::tempdir().expect("a directory");
    let objects = cold(dir.path());
    let failures: Vec<_> = (1..=3)
        .map(|n| TaskFailure {
            sequence: n,
            key: format!("k{n}"),
            code: "NOT_FOUND".into(),
            message: "gone".into(),
        })
        .collect();
    let object = objects.write_failures(&batch(), 1, (7, 8), failures.clone()).await.expect("written");
    assert_eq!(objects.write_failures(&batch(), 1, (7, 8), failures.clone()).await.expect("again"), object);
    assert_ne!(objects.write_failures(&batch(), 1, (7, 8), vec![]).await.expect("other"), object);
    assert_eq!(objects.read_failures(&object).await.expect("read"), failures);

    let file = dir.path().join(&object);
    let good = fs::read(&file).expect("read");
    // Cut between two entries: still a valid message.
    let two = v1::FailureList { failures: failures[..2].to_vec() }.encode_to_vec();
    assert!(good.starts_with(&two));
    for bad in [two, vec![], [good.as_slice(), &[0]].concat()] {
        fs::write(&file, bad).expect("written");
        let error = objects.read_failures(&object).await.expect_err("damaged");
        assert!(matches!(&error, Error::Damaged { what, .. } if what.contains(&object)), "{error}");
    }
    fs::remove_file(&file).expect("removed");
    assert!(matches!(objects.read_failures(&object).await, Err(Error::Damaged { .. })));
}

#[tokio::test]
async fn a_batch_is_deleted_wholly_and_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let objects = cold(dir.path());
    let records = three(&objects).await;
    objects.write_failures(&batch(), 1, (1, 1), vec![]).await.expect("written");
    let uri =
        objects.write_report(&batch(), &serde_json::json!({"state": "COMMITTED"})).await.expect("written");
    let report: serde_json::Value =
        serde_json::from_slice(&fs::read(&uri).expect("at its uri")).expect("is JSON");
    assert_eq!(report["state"], "COMMITTED");
    objects.write_report(&batch(), &serde_json::json!({"state": "ROLLED_BACK"})).await.expect("again");
    assert!(fs::read_to_string(&uri).expect("read").contains("ROLLED_BACK"));
    // What a crash in the middle of a write leaves.
    fs::write(dir.path().join(format!("{}#1", records[0].object)), "x").expect("written");

    // Its id begins with the other's.
    let other = BatchKey::new("default", "b10");
    let kept = written(&objects, &other, 1, tasks(1..=1)).await.expect("written");

    objects.delete_batch(&batch()).await.expect("deleted");
    assert!(!dir.path().join("batches/default/b1").exists());
    damage(objects.read_tasks(&records, &[(1, 1)]).await);
    objects.read_tasks(std::slice::from_ref(&kept), &[(1, 1)]).await.expect("the other is there");
    cold(dir.path()).read_tasks(&[kept], &[(1, 1)]).await.expect("and on disk");
    objects.delete_batch(&batch()).await.expect("again is no error");
}

#[tokio::test]
async fn a_write_that_fails_is_an_error_and_counts_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let objects = cold(dir.path());
    fs::write(dir.path().join("batches"), "a file in the way").expect("written");
    let error = written(&objects, &batch(), 1, tasks(1..=1)).await.expect_err("refused");
    assert!(matches!(&error, Error::Objects(text) if text.contains("/tasks-")), "{error}");
    assert!(Objects::local(&dir.path().join("batches")).is_err());
}
