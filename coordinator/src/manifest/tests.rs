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

fn keys(tasks: &[Task]) -> Vec<u64> {
    tasks.iter().map(|task| task.key[1..].parse().expect("a number")).collect()
}

/// Three segments: 1..=10, 11..=11, 12..=30.
async fn three(objects: &Objects) -> Vec<SegmentRecord> {
    let mut records = Vec::new();
    for run in [1..=10, 11..=11, 12..=30] {
        let first = *run.start();
        records.push(objects.write_segment(&batch(), first, &tasks(run)).await.expect("written"));
    }
    records
}

/// A handle that has nothing in memory, as after a restart.
fn cold(dir: &Path) -> Objects {
    Objects::local(dir).expect("opened")
}

fn damage(result: Result<Vec<Task>, Error>) -> (String, String) {
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
        let last = &objects.read_tasks(&records[2..], &[(30, 30)]).await.expect("read")[0];
        assert_eq!(last.payload, "payload 30");
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
    let record = objects.write_segment(&batch(), 1, &[task]).await.expect("written");
    let records = [record];
    let one = objects.read_tasks(&records, &[(1, 1)]).await.expect("read");
    let two = objects.read_tasks(&records, &[(1, 1)]).await.expect("read");
    assert_eq!(one[0].payload.as_ptr(), two[0].payload.as_ptr());
    // From memory: the file isn't needed.
    fs::remove_file(objects.uri(&records[0].object)).expect("removed");
    objects.read_tasks(&records, &[(1, 1)]).await.expect("read");
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
async fn two_segments_one_after_the_other_decode_as_one() {
    let (a, b) = (Verified::encode(&tasks(1..=3)), Verified::encode(&tasks(4..=5)));
    let joined = Verified::index([a.bytes().as_ref(), b.bytes()].concat().into()).expect("indexed");
    let mut read = Vec::new();
    joined.read(0..5, &mut read).expect("decoded");
    assert_eq!(read, tasks(1..=5));
    let list = v1::Segment::decode(joined.bytes().clone()).expect("decoded");
    assert_eq!(list.tasks, read);
    // A newer version's field is passed over.
    let newer = [joined.bytes().as_ref(), &[0x78, 5]].concat();
    assert_eq!(Verified::index(newer.into()).expect("indexed").len(), 5);
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
    fs::write(&file, &good[..good.len() - 1]).expect("written");
    let (what, message) = damage(read(records.clone()).await);
    assert!(what.contains(&record.object), "{what}");
    assert!(message.contains("bytes instead of"), "{message}");

    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    fs::write(&file, &flipped).expect("written");
    let (_, message) = damage(read(records.clone()).await);
    assert!(message.contains("checksum"), "{message}");

    fs::write(&file, &good).expect("written");
    read(records.clone()).await.expect("right again");
    let mut wrong = records.clone();
    wrong[0].last = 9;
    let (_, message) = damage(read(wrong).await);
    assert!(message.contains("10 tasks instead of 9"), "{message}");

    fs::remove_file(&file).expect("removed");
    let (what, message) = damage(read(records.clone()).await);
    assert!(what.contains(&record.object) && message.contains("missing"), "{what}: {message}");

    let mut outside = records.clone();
    outside[0].object = "batches/../../etc/passwd".into();
    damage(read(outside).await);
}

#[test]
fn bytes_that_are_no_segment_are_refused() {
    for bytes in
        [&[0x0a][..], &[0x0a, 2, 0x0a], &[0x08, 1], &[0xff; 11], &[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]]
    {
        Verified::index(Bytes::copy_from_slice(bytes)).expect_err("refused");
    }
    let bad = Verified::index(Bytes::from_static(&[0x0a, 2, 0x0a, 9])).expect("indexed");
    bad.read(0..1, &mut Vec::new()).expect_err("a task that is cut off");
}

#[tokio::test]
async fn every_write_of_a_segment_is_an_object_of_its_own() {
    let dir = tempfile::tempdir().expect("a directory");
    let objects = cold(dir.path());
    let one = objects.write_segment(&batch(), 1, &tasks(1..=2)).await.expect("written");
    let two = objects.write_segment(&batch(), 1, &tasks(1..=2)).await.expect("written");
    assert_ne!(one.object, two.object);
    assert!(one.object.starts_with("batches/default/b1/segments/00000000000000000001-"), "{}", one.object);
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
    let kept = objects.write_segment(&other, 1, &tasks(1..=1)).await.expect("written");

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
    let error = objects.write_segment(&batch(), 1, &tasks(1..=1)).await.expect_err("refused");
    assert!(matches!(&error, Error::Objects(text) if text.contains("segments")), "{error}");
    assert!(Objects::local(&dir.path().join("batches")).is_err());
}
