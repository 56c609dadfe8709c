//! Staging, and what it leaves.

use super::*;

#[tokio::test]
async fn staged_files_are_copies_that_no_reader_sees() {
    let world = World::new();
    world.sources(&[("a.txt", "alpha"), ("deep/er/b.txt", "beta"), ("日本/写真 1", "gamma"), ("empty", "")]);
    let lease =
        world.lease(7, 1, &[("a.txt", ""), ("deep/er/b.txt", ""), ("日本/写真 1", ""), ("empty", "")]);
    let progress = Progress::default();
    let staged = world.object.stage(&lease, &CancellationToken::new(), &progress).await.unwrap();
    assert!(staged.failures.is_empty(), "{:?}", staged.failures);
    assert_eq!(progress.done(), 4);
    assert!(!world.path("library").exists(), "nothing is made in the library before commit");
    let attempt = tree(&world.staging().join("b1/5-7"));
    let staged: Vec<_> = files(&attempt).into_iter().filter(|(path, _)| path.starts_with("tree/")).collect();
    assert_eq!(
        staged,
        [
            ("tree/a.txt", "alpha".to_owned()),
            ("tree/deep/er/b.txt", "beta".to_owned()),
            ("tree/empty", String::new()),
            ("tree/日本/写真 1", "gamma".to_owned()),
        ]
    );
    let index = String::from_utf8(attempt["index.jsonl"].clone().unwrap()).unwrap();
    let first =
        format!(r#"{{"seq":1,"key":"a.txt","size":5,"blake3":"{}"}}"#, blake3::hash(b"alpha").to_hex());
    assert_eq!(index.lines().next().unwrap(), first);
    assert_eq!(index.lines().count(), 4);
}

#[tokio::test]
async fn a_payload_may_name_another_source() {
    let world = World::new();
    world.sources(&[("x/raw.bin", "data")]);
    let lease = world.lease(1, 1, &[("nice/name", r#"{"source":"x/raw.bin"}"#)]);
    let staged = world.stage(&lease).await.unwrap();
    world.object.commit(&world.commit_lease(vec![won(&lease, &staged)])).await.unwrap();
    assert_eq!(files(&world.library()), [("nice/name", "data".to_owned())]);
}

#[tokio::test]
async fn one_task_fails_and_its_neighbours_are_staged() {
    let world = World::new();
    world.sources(&[("a", "1"), ("c", "3")]);
    assert_eq!(world.failures(&[("a", ""), ("b", ""), ("c", "")]).await, [(2, "NOT_FOUND".to_owned())]);
    assert_eq!(files(&tree(&world.staging().join("b1/5-1/tree"))).len(), 2);
}

#[tokio::test]
async fn a_lease_that_is_run_again_starts_afresh() {
    let world = World::new();
    world.sources(&[("a", "1"), ("b", "2")]);
    world.stage(&world.lease(1, 1, &[("a", ""), ("b", "")])).await.unwrap();
    world.stage(&world.lease(1, 2, &[("b", "")])).await.unwrap();
    assert_eq!(files(&tree(&world.staging().join("b1/5-1/tree"))), [("b", "2".to_owned())]);
}

#[tokio::test]
async fn a_cancelled_lease_stops_and_leaves_nothing() {
    let world = World::new();
    // A file that doesn't end soon: all holes.
    let huge = std::fs::File::create(world.path("source/huge")).unwrap();
    huge.set_len(64 << 30).unwrap();
    world.sources(&[("a", "1")]);
    let lease = world.lease(3, 1, &[("a", ""), ("huge", ""), ("never", "")]);
    let cancel = CancellationToken::new();
    let progress = Progress::default();
    let canceller = async {
        // The first task is done, so the second is being copied or about to be.
        while progress.done() == 0 {
            tokio::task::yield_now().await;
        }
        cancel.cancel();
    };
    let (result, ()) = tokio::join!(world.object.stage(&lease, &cancel, &progress), canceller);
    assert_eq!(result, Err(HandlerError::Cancelled));
    assert_eq!(progress.done(), 1);
    // Not even empty folders: the batch may have ended long ago.
    assert!(!world.path(".library.tranche").exists());
    assert!(!world.path("library").exists());
    world.rollback(&[3]).await.unwrap();
    assert_eq!(files(&tree(&world.path(".library.tranche"))), []);
}

#[tokio::test]
async fn wrong_targets_fail_every_task_and_name_the_parameter() {
    let other = tempfile::tempdir().unwrap();
    let outside = other.path().to_str().unwrap();
    let cases = [
        ("source", "relative/path", "absolute"),
        ("source", "/does/not/exist", "isn't under any allow-root"),
        ("source", outside, "isn't under any allow-root"),
        ("library", "", "absolute"),
        ("library", "/", "root"),
        ("library", "/tmp/../etc", "without `..`"),
        ("library", outside, "isn't under any allow-root"),
        ("staging", outside, "isn't under any allow-root"),
        ("check", "taste", "`none` or `image`"),
        ("if_exists", "ask", "`overwrite` or `fail`"),
        ("colour", "blue", "unknown"),
    ];
    for (param, value, why) in cases {
        let world = World::new().param(param, value);
        world.sources(&[("a", "1"), ("b", "1")]);
        let staged = world.stage(&world.lease(1, 1, &[("a", ""), ("b", "")])).await.unwrap();
        let codes: Vec<_> = staged.failures.iter().map(|failure| failure.code.as_str()).collect();
        assert_eq!(codes, ["INVALID_TARGET"; 2], "{param} {value}");
        let message = &staged.failures[0].message;
        assert!(message.contains(&format!("`{param}`")) && message.contains(value), "{message}");
        assert!(message.contains(why), "{message}");
        assert!(world.all().is_empty(), "{param} {value}");
        // Such a batch ends all the same.
        assert_eq!(world.rollback(&[1]).await, Ok(1000));
        assert_eq!(world.object.sweep(&world.batch()).await, Ok(0));
        let publishes = world.object.publish(&world.batch()).await;
        assert!(publishes.is_ok(), "{param} {value}: {publishes:?}");
    }
}

#[tokio::test]
async fn a_link_that_leads_out_of_the_allowed_folders_is_refused() {
    let other = tempfile::tempdir().unwrap();
    let world = World::new();
    world.sources(&[("a", "1")]);
    for (link, target) in [("library", other.path()), ("library", Path::new("/nowhere/at/all"))] {
        std::os::unix::fs::symlink(target, world.path(link)).unwrap();
        let (code, message) = world.failure("a", "").await;
        assert_eq!(code, "INVALID_TARGET", "{message}");
        std::fs::remove_file(world.path(link)).unwrap();
    }
    assert!(tree(other.path()).is_empty());
}

#[tokio::test]
async fn without_allowed_folders_everything_is_refused() {
    let mut world = World::new();
    world.object = Object::new([]);
    world.sources(&[("a", "1")]);
    assert_eq!(world.failure("a", "").await.0, "INVALID_TARGET");
}

#[tokio::test]
async fn staging_inside_the_library_is_refused() {
    let world = World::new();
    let staging = world.path("library/staging");
    let world = World { params: world.params.clone(), ..world }.param("staging", staging.to_str().unwrap());
    world.sources(&[("a", "1")]);
    assert_eq!(world.failure("a", "").await.0, "INVALID_TARGET");
}
