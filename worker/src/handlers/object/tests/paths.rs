//! Keys and sources that lead elsewhere, or nowhere.

use super::*;
use std::os::unix::fs::symlink;

#[tokio::test]
async fn keys_never_lead_out_of_the_library() {
    let world = World::new();
    world.sources(&[("a", "1")]);
    let other = tempfile::tempdir().unwrap();
    std::fs::create_dir(world.path("library")).unwrap();
    std::fs::create_dir(world.path("beside")).unwrap();
    symlink(other.path(), world.path("library/absolute")).unwrap();
    symlink("../beside", world.path("library/relative")).unwrap();
    symlink("../beside/missing", world.path("library/missing")).unwrap();
    symlink("nothing", world.path("library/dangling")).unwrap();
    world.write("library/file", "f");
    world.write("library/folder/x", "x");
    for key in [
        "../x",
        "/etc/x",
        "a/../../x",
        "_tranche/b1.json",
        "absolute/x",
        "relative/x",
        "missing/x",
        "dangling/x",
        "relative/deeper/x",
        "file/x",
        "file/x/y",
        "folder",
        "a//b",
        "",
    ] {
        let (code, message) = world.failure(key, r#"{"source":"a"}"#).await;
        assert_eq!(code, "INVALID_KEY", "{key}: {message}");
    }
    assert!(tree(other.path()).is_empty() && tree(&world.path("beside")).is_empty());
}

#[tokio::test]
async fn a_link_inside_the_library_is_followed_and_one_at_the_end_replaced() {
    let world = World::new();
    world.sources(&[("a", "new"), ("b", "new")]);
    world.write("library/real/old", "old");
    symlink("real", world.path("library/link")).unwrap();
    symlink("../source/a", world.path("library/end")).unwrap();
    let lease = world.lease(1, 1, &[("link/x", r#"{"source":"a"}"#), ("end", r#"{"source":"b"}"#)]);
    let staged = world.stage(&lease).await.unwrap();
    assert!(staged.failures.is_empty(), "{:?}", staged.failures);
    world.object.commit(&world.commit_lease(vec![won(&lease, &staged)])).await.unwrap();
    assert_eq!(std::fs::read(world.path("library/real/x")).unwrap(), b"new");
    assert!(!world.path("library/end").is_symlink());
}

#[tokio::test]
async fn sources_never_lead_out_of_the_source_folder() {
    let world = World::new();
    world.write("secret", "s");
    symlink("../secret", world.path("source/out")).unwrap();
    symlink(world.path("secret"), world.path("source/absolute")).unwrap();
    symlink("..", world.path("source/up")).unwrap();
    for source in ["../secret", "/etc/passwd", "out", "absolute", "up/secret", "a//b", ""] {
        let (code, message) = world.failure("k", &format!(r#"{{"source":"{source}"}}"#)).await;
        assert_eq!(code, "INVALID_SOURCE", "{source}: {message}");
    }
}

#[tokio::test]
async fn a_link_inside_the_source_folder_is_followed() {
    let world = World::new();
    world.sources(&[("real/a", "1")]);
    symlink("real/a", world.path("source/link")).unwrap();
    assert!(world.failures(&[("link", "")]).await.is_empty());
}

#[tokio::test]
async fn sources_that_cant_be_read_fail_alone_and_say_why() {
    let world = World::new();
    world.sources(&[("folder/x", "1"), ("good", "1")]);
    symlink("nothing", world.path("source/dangling")).unwrap();
    symlink("loop", world.path("source/loop")).unwrap();
    // Opening a pipe must not wait for its writer.
    rustix::fs::mknodat(
        rustix::fs::CWD,
        world.path("source/pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    let failures = world
        .failures(&[
            ("folder", ""),
            ("dangling", ""),
            ("loop", ""),
            ("pipe", ""),
            ("gone", ""),
            ("good/x", ""),
            ("good", ""),
        ])
        .await;
    let expected = [
        (1, "UNREADABLE"),
        (2, "NOT_FOUND"),
        (3, "UNREADABLE"),
        (4, "UNREADABLE"),
        (5, "NOT_FOUND"),
        (6, "NOT_FOUND"),
    ];
    assert_eq!(failures, expected.map(|(sequence, code)| (sequence, code.to_owned())));
    let (_, message) = world.failure("folder", "").await;
    assert_eq!(message, "source `folder`: is no regular file");
}
