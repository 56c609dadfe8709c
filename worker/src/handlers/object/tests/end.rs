//! Commit, rollback, publish, sweep, and all of them again.

use super::*;

async fn two_attempts(world: &World) -> Vec<Attempt> {
    world.sources(&[("a", "1"), ("b/c", "2"), ("d", "3")]);
    let first = world.lease(1, 1, &[("a", ""), ("missing", ""), ("b/c", "")]);
    let second = world.lease(2, 4, &[("d", "")]);
    let mut attempts = Vec::new();
    for lease in [first, second] {
        let staged = world.stage(&lease).await.unwrap();
        attempts.push(won(&lease, &staged));
    }
    attempts
}

fn index_of(attempt: &Attempt) -> String {
    let receipt: serde_json::Value = serde_json::from_slice(&attempt.receipt).unwrap();
    receipt["index"].as_str().unwrap().to_owned()
}

fn expected() -> Vec<(&'static str, String)> {
    vec![("a", "1".to_owned()), ("b/c", "2".to_owned()), ("d", "3".to_owned())]
}

#[tokio::test]
async fn commit_makes_exactly_the_staged_tasks_final() {
    let world = World::new();
    let attempts = two_attempts(&world).await;
    assert_eq!(world.object.commit(&world.commit_lease(attempts.clone())).await, Ok(3));
    assert_eq!(files(&world.library()), expected());
    assert_eq!(world.object.commit(&world.commit_lease(attempts)).await, Ok(3));
    assert_eq!(files(&world.library()), expected());
}

#[tokio::test]
async fn commit_goes_on_wherever_it_was_interrupted() {
    // Every set of files that an interrupted commit may have moved.
    for moved in 0..8_u32 {
        for winner_written in [false, true] {
            let world = World::new();
            let attempts = two_attempts(&world).await;
            std::fs::create_dir_all(world.path("library/b")).unwrap();
            for (bit, (attempt, key)) in [("5-1", "a"), ("5-1", "b/c"), ("5-2", "d")].into_iter().enumerate()
            {
                if moved & (1 << bit) != 0 {
                    let staged = world.staging().join("b1").join(attempt).join("tree").join(key);
                    std::fs::rename(staged, world.path("library").join(key)).unwrap();
                }
            }
            if winner_written {
                std::fs::write(world.staging().join("b1/5-1/winner-1"), r#"{"runs":[[1,1],[3,3]]}"#).unwrap();
            }
            assert_eq!(world.object.commit(&world.commit_lease(attempts)).await, Ok(3), "{moved:b}");
            assert_eq!(files(&world.library()), expected(), "{moved:b}");
        }
    }
}

#[tokio::test]
async fn commit_moves_only_what_the_attempt_won() {
    let world = World::new();
    let mut attempts = two_attempts(&world).await;
    attempts[0].runs = vec![Range { first: 3, last: 3 }];
    assert_eq!(world.object.commit(&world.commit_lease(attempts)).await, Ok(2));
    assert_eq!(files(&world.library()), [("b/c", "2".to_owned()), ("d", "3".to_owned())]);
}

/// Its range was split after it had reported: each half is a commit lease of its own.
#[tokio::test]
async fn an_attempt_that_won_in_two_ranges_is_committed_in_both() {
    let world = World::new();
    let both = two_attempts(&world).await.remove(0);
    let half = |number| vec![Attempt { runs: vec![Range { first: number, last: number }], ..both.clone() }];
    assert_eq!(world.object.commit(&world.commit_lease(half(1))).await, Ok(1));
    assert_eq!(files(&world.library()), [("a", "1".to_owned())]);
    assert_eq!(world.object.commit(&world.commit_lease(half(3))).await, Ok(1));
    assert_eq!(files(&world.library()), [("a", "1".to_owned()), ("b/c", "2".to_owned())]);
    let info = BatchInfo { staged: 2, ..world.batch() };
    assert_eq!(world.object.publish(&info).await, Ok(()), "the manifest has both");
}

#[tokio::test]
async fn commit_of_a_file_that_is_nowhere_is_an_error() {
    let world = World::new();
    let attempts = two_attempts(&world).await;
    std::fs::remove_file(world.staging().join("b1/5-1/tree/a")).unwrap();
    let error = world.object.commit(&world.commit_lease(attempts)).await.unwrap_err();
    assert_eq!(error, HandlerError::Refused("`a` is neither staged nor in the library".into()));
}

#[tokio::test]
async fn commit_of_what_was_never_staged_is_an_error() {
    let world = World::new();
    let mut attempts = two_attempts(&world).await;
    attempts[0].runs = vec![Range { first: 1, last: 3 }];
    let error = world.object.commit(&world.commit_lease(attempts.clone())).await.unwrap_err();
    assert_eq!(error.to_string(), "`5-1` has 2 of the 3 files that it staged");
    attempts[0].token.counter = 77;
    let error = world.object.commit(&world.commit_lease(attempts)).await.unwrap_err();
    assert!(error.to_string().contains("5-77"), "{error}");
}

#[tokio::test]
async fn a_changed_index_is_noticed() {
    let world = World::new();
    let attempts = two_attempts(&world).await;
    let index = world.staging().join("b1/5-1/index.jsonl");
    let text = std::fs::read_to_string(&index).unwrap().replace("\"size\":1", "\"size\":2");
    std::fs::write(index, text).unwrap();
    let error = world.object.commit(&world.commit_lease(attempts)).await.unwrap_err();
    assert!(error.to_string().contains("isn't the one that was reported"), "{error}");
}

#[tokio::test]
async fn rollback_leaves_nothing_and_may_be_repeated() {
    let world = World::new();
    world.write("library/kept", "k");
    let before = world.all();
    two_attempts(&world).await;
    assert_eq!(world.rollback(&[1, 2, 3]).await, Ok(1000));
    assert_eq!(world.rollback(&[1, 2, 3]).await, Ok(1000));
    assert_eq!(world.object.sweep(&world.batch()).await, Ok(0), "rollback had left nothing to sweep");
    assert_eq!(world.object.sweep(&world.batch()).await, Ok(0));
    assert_eq!(world.all(), before);
    assert_eq!(world.rollback(&[1]).await, Ok(1000));
}

#[tokio::test]
async fn a_rollback_leaves_a_missing_library_missing() {
    let world = World::new();
    two_attempts(&world).await;
    world.rollback(&[1, 2]).await.unwrap();
    world.object.sweep(&world.batch()).await.unwrap();
    assert!(world.all().is_empty());
}

#[tokio::test]
async fn sweep_counts_and_removes_what_a_late_worker_left() {
    let world = World::new();
    let attempts = two_attempts(&world).await;
    world.object.commit(&world.commit_lease(attempts)).await.unwrap();
    // A worker that was paused stages under a token that was lost long ago.
    world.stage(&world.lease(9, 1, &[("a", ""), ("missing", ""), ("b/c", "")])).await.unwrap();
    assert_eq!(world.object.sweep(&world.batch()).await, Ok(2));
    assert!(!world.path(".library.tranche").exists());
    assert_eq!(files(&world.library()), expected());
}

#[tokio::test]
async fn sweep_leaves_other_batches_alone() {
    let world = World::new();
    two_attempts(&world).await;
    let mut other = world.lease(1, 1, &[("a", "")]);
    other.batch.name = "namespaces/default/batches/b2".into();
    world.stage(&other).await.unwrap();
    assert_eq!(world.object.sweep(&world.batch()).await, Ok(3));
    assert_eq!(files(&tree(&world.staging().join("b2/5-1/tree"))), [("a", "1".to_owned())]);
}

#[tokio::test]
async fn publish_lists_exactly_what_was_committed_and_is_done_once() {
    let world = World::new();
    let attempts = two_attempts(&world).await;
    // A losing attempt of the same tasks.
    world.stage(&world.lease(8, 1, &[("a", "")])).await.unwrap();
    world.object.commit(&world.commit_lease(attempts.clone())).await.unwrap();
    let batch = BatchInfo { staged: 3, ..world.batch() };
    world.object.publish(&batch).await.unwrap();
    let text = std::fs::read(world.path("library/_tranche/b1.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let object = |key: &str, data: &[u8]| serde_json::json!({"key": key, "size": data.len(), "blake3": blake3::hash(data).to_hex().as_str()});
    let expected = serde_json::json!({
        "batch": "namespaces/default/batches/b1",
        "create_time": "2023-11-14T22:13:20.123Z",
        "objects": [object("a", b"1"), object("b/c", b"2"), object("d", b"3")],
        "count": 3,
        "attempts": [
            {"token": "5-1", "index": index_of(&attempts[0]), "runs": [[1, 1], [3, 3]]},
            {"token": "5-2", "index": index_of(&attempts[1]), "runs": [[4, 4]]},
        ],
    });
    assert_eq!(manifest, expected);

    let before = world.library();
    world.object.publish(&batch).await.unwrap();
    world.object.sweep(&batch).await.unwrap();
    world.object.publish(&batch).await.unwrap();
    assert_eq!(world.library(), before);
    assert!(!world.path(".library.tranche").exists());
}

#[tokio::test]
async fn publish_refuses_a_batch_that_isnt_all_there() {
    let world = World::new();
    let attempts = two_attempts(&world).await;
    world.object.commit(&world.commit_lease(attempts[..1].to_vec())).await.unwrap();
    let error = world.object.publish(&BatchInfo { staged: 3, ..world.batch() }).await.unwrap_err();
    assert_eq!(error.to_string(), "2 committed objects were found, not 3");
    assert!(!world.path("library/_tranche/b1.json").exists());
    let left = std::fs::read_dir(world.staging().join("b1")).unwrap();
    assert!(
        left.into_iter().all(|entry| !entry.unwrap().file_name().to_str().unwrap().starts_with("manifest"))
    );
}

#[tokio::test]
async fn an_empty_commit_needs_nothing() {
    let world = World::new();
    assert_eq!(world.object.commit(&world.commit_lease(Vec::new())).await, Ok(0));
    assert!(world.all().is_empty());
}

#[tokio::test]
async fn staging_of_another_place_may_be_chosen() {
    let world = World::new();
    let staging = world.path("elsewhere/staging");
    let world = World { params: world.params.clone(), ..world }.param("staging", staging.to_str().unwrap());
    let attempts = two_attempts(&world).await;
    assert!(staging.join("b1/5-1/tree/a").exists());
    world.object.commit(&world.commit_lease(attempts)).await.unwrap();
    world.object.sweep(&world.batch()).await.unwrap();
    assert_eq!(files(&world.library()), expected());
    assert!(!staging.exists());
}
