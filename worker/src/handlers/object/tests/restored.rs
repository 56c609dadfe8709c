//! A batch is committed once more after its end: its coordinator's records were restored from a backup.

use super::*;

const KEYS: [(&str, &str); 3] = [("a", "1"), ("b/c", "2"), ("d", "3")];

fn info(world: &World) -> BatchInfo {
    BatchInfo { staged: 3, ..world.batch() }
}

/// Stages and commits two ranges, publishes.
async fn published(world: &World) -> Vec<Attempt> {
    world.sources(&KEYS);
    let first = world.lease(1, 1, &[("a", ""), ("missing", ""), ("b/c", "")]);
    let second = world.lease(2, 4, &[("d", "")]);
    let mut attempts = Vec::new();
    for lease in [first, second] {
        attempts.push(won(&lease, &world.stage(&lease).await.unwrap()));
    }
    world.object.commit(&world.commit_lease(attempts.clone())).await.unwrap();
    world.object.publish(&info(world)).await.unwrap();
    attempts
}

/// Each range is leased for itself, then the batch is published and swept.
async fn again(world: &World, attempts: &[Attempt]) -> Result<(), HandlerError> {
    for attempt in attempts {
        let tasks = crate::lease::count(&attempt.runs);
        assert_eq!(world.object.commit(&world.commit_lease(vec![attempt.clone()])).await?, tasks);
    }
    world.object.publish(&info(world)).await?;
    world.object.sweep(&world.batch()).await.map(drop)
}

#[tokio::test]
async fn a_batch_that_ended_is_committed_again_and_nothing_changes() {
    let world = World::new();
    let attempts = published(&world).await;
    world.object.sweep(&world.batch()).await.unwrap();
    // What somebody wrote since is theirs.
    world.write("library/d", "newer");
    let before = world.all();
    again(&world, &attempts).await.unwrap();
    again(&world, &attempts).await.unwrap();
    assert_eq!(world.all(), before);
}

/// Every part of staging that the sweep may have removed before the crash, in any order that a file system lists it.
#[tokio::test]
async fn a_sweep_that_was_interrupted_anywhere_is_no_hindrance() {
    let parts = ["5-1/index.jsonl", "5-1/tree", "5-1", "5-2", "claims"];
    for removed in 0..1_u32 << parts.len() {
        let world = World::new();
        let attempts = published(&world).await;
        let library = world.library();
        for (_, part) in parts.iter().enumerate().filter(|(bit, _)| removed & (1 << bit) != 0) {
            let path = world.staging().join("b1").join(part);
            if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }.ok();
        }
        again(&world, &attempts).await.unwrap();
        assert_eq!(world.library(), library, "{removed:b}");
        assert!(!world.path(".library.tranche").exists(), "{removed:b}");
    }
}

/// Without its manifest the batch wasn't published: what is staged is needed.
#[tokio::test]
async fn a_batch_that_wasnt_published_is_not_taken_for_committed() {
    let world = World::new();
    let attempts = published(&world).await;
    std::fs::remove_file(world.path("library/_tranche/b1.json")).unwrap();
    again(&world, &attempts[..1]).await.unwrap();
    let library = world.library();
    std::fs::remove_file(world.path("library/_tranche/b1.json")).unwrap();
    let error = again(&world, &attempts[1..]).await.unwrap_err();
    assert!(error.to_string().contains("opening the staged batch"), "{error}");
    assert_eq!(library.len(), world.library().len() + 1);
}

#[tokio::test]
async fn a_manifest_of_another_batch_proves_nothing() {
    for (what, other) in [
        ("/default/", "/other/"),
        ("2023-11-14T22:13:20.123Z", "2023-11-14T22:13:20.124Z"),
        ("\"count\"", "\"number\""),
    ] {
        let world = World::new();
        let attempts = published(&world).await;
        world.object.sweep(&world.batch()).await.unwrap();
        let path = world.path("library/_tranche/b1.json");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(what));
        std::fs::write(&path, text.replace(what, other)).unwrap();
        let before = world.all();
        let error = again(&world, &attempts).await.unwrap_err();
        assert!(matches!(&error, HandlerError::Refused(why) if why.contains("_tranche/b1.json")), "{error}");
        assert!(world.object.publish(&info(&world)).await.is_err());
        assert_eq!(world.all(), before);
    }
}

/// Only the very attempts that it names, with all their numbers and what they reported.
#[tokio::test]
async fn only_what_the_manifest_names_counts_as_committed() {
    let world = World::new();
    let attempts = published(&world).await;
    world.object.sweep(&world.batch()).await.unwrap();
    let before = world.all();
    let changed = |change: fn(&mut Attempt)| {
        let mut attempt = attempts[0].clone();
        change(&mut attempt);
        [attempt]
    };
    for wrong in [
        changed(|attempt| attempt.token.counter = 3),
        changed(|attempt| attempt.token.epoch = 6),
        changed(|attempt| attempt.runs = vec![Range { first: 1, last: 3 }]),
        changed(|attempt| attempt.runs = vec![Range { first: 4, last: 4 }]),
        changed(|attempt| attempt.receipt = format!(r#"{{"index":"{}"}}"#, "0".repeat(64)).into()),
    ] {
        let error = again(&world, &wrong).await.unwrap_err();
        assert!(error.to_string().starts_with("opening the staged attempt"), "{error}");
    }
    assert_eq!(world.all(), before);
    // Its parts are what it won, too: the range may not have been split yet, or was since.
    again(&world, &changed(|attempt| attempt.runs = vec![Range { first: 3, last: 3 }])).await.unwrap();
}

/// It won both halves of a range that was whole when the backup was made.
#[tokio::test]
async fn halves_are_as_good_as_the_whole() {
    let world = World::new();
    world.sources(&KEYS);
    let lease = world.lease(1, 1, &[("a", ""), ("b/c", ""), ("d", "")]);
    let whole = won(&lease, &world.stage(&lease).await.unwrap());
    for (first, last) in [(1, 2), (3, 3)] {
        let half = Attempt { runs: vec![Range { first, last }], ..whole.clone() };
        world.object.commit(&world.commit_lease(vec![half])).await.unwrap();
    }
    world.object.publish(&info(&world)).await.unwrap();
    world.object.sweep(&world.batch()).await.unwrap();
    again(&world, &[whole]).await.unwrap();
}

/// The records count other tasks than were committed: some were tried again after the backup, say. Nobody can tell
/// whether that was meant, so it doesn't end by itself.
#[tokio::test]
async fn another_count_is_refused() {
    let world = World::new();
    published(&world).await;
    world.object.sweep(&world.batch()).await.unwrap();
    for staged in [2, 4] {
        let batch = BatchInfo { staged, ..world.batch() };
        let error = world.object.publish(&batch).await.unwrap_err();
        let message = format!("the library's manifest has 3 objects of this batch, its records {staged}");
        assert_eq!(error, HandlerError::Refused(message));
    }
}

/// The backup was made before the range was staged, so it is staged once more.
#[tokio::test]
async fn what_is_staged_again_must_be_what_readers_have_seen() {
    let world = World::new();
    let mut attempts = published(&world).await;
    world.object.sweep(&world.batch()).await.unwrap();
    let (before, library) = (world.all(), world.library());
    let lease = world.lease(7, 4, &[("d", "")]);
    attempts[1] = won(&lease, &world.stage(&lease).await.unwrap());
    again(&world, &attempts).await.unwrap();
    assert_eq!(world.all(), before);

    // Its source is another one now.
    world.sources(&[("d", "4")]);
    let lease = world.lease(8, 4, &[("d", "")]);
    attempts[1] = won(&lease, &world.stage(&lease).await.unwrap());
    let error = again(&world, &attempts).await.unwrap_err();
    assert!(
        matches!(&error, HandlerError::Refused(why) if why.contains("`d` as it is staged now")),
        "{error}"
    );
    assert_eq!(world.library(), library);
}

/// The commit had begun when the backup was restored, which knows of less: some ranges are staged and committed once
/// more, in other pieces.
#[tokio::test]
async fn a_commit_that_had_begun_goes_on_with_what_is_staged_once_more() {
    let world = World::new();
    world.sources(&KEYS);
    let known = world.lease(1, 1, &[("a", "")]);
    let known = won(&known, &world.stage(&known).await.unwrap());
    let forgotten = world.lease(2, 2, &[("b/c", ""), ("d", "")]);
    let forgotten = won(&forgotten, &world.stage(&forgotten).await.unwrap());
    world.object.commit(&world.commit_lease(vec![known.clone(), forgotten])).await.unwrap();

    world.sources(&[("d", "4")]);
    let mut attempts = vec![known];
    for (counter, first, key) in [(10, 2, "b/c"), (9, 3, "d")] {
        let lease = world.lease(counter, first, &[(key, "")]);
        attempts.push(won(&lease, &world.stage(&lease).await.unwrap()));
    }
    again(&world, &attempts).await.unwrap();
    let text = std::fs::read_to_string(world.path("library/_tranche/b1.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(manifest["count"], 3);
    let published: Vec<&str> =
        manifest["attempts"].as_array().unwrap().iter().map(|a| a["token"].as_str().unwrap()).collect();
    assert_eq!(published, ["5-1", "5-10", "5-9"]);
    assert_eq!(manifest["objects"][2]["blake3"], blake3::hash(b"4").to_hex().as_str());
    assert!(!world.path(".library.tranche").exists());
}
