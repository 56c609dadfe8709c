//! Tasks that can't be staged: they fail with their reason, the batch goes on.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use tranche_client::v1::{self, batch::State};
use tranche_tests::cluster::batch_into;
use tranche_tests::{Cluster, Library};

fn task(key: &str, payload: &str) -> v1::Task {
    v1::Task { key: key.into(), payload: payload.to_owned().into() }
}

/// The failures' codes and messages by key.
async fn failures(cluster: &Cluster, batch: &str) -> BTreeMap<String, (String, String)> {
    cluster.failures(batch).await.into_iter().map(|f| (f.key, (f.code, f.message))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_that_lead_out_or_cant_be_read_fail_alone() {
    let mut cluster = Cluster::builder().embedded().start().await;
    cluster.workers(1, 2).await;
    let library = Library::with_files(&cluster.data(), "library", 10);
    let good = library.keys();
    let first = good.iter().find(|key| key.starts_with("d00/")).unwrap();
    let outside = cluster.data().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("secret"), b"not to be imported").unwrap();
    symlink(&outside, library.library.join("older/way-out")).unwrap();
    symlink(&outside, library.source.join("way-out")).unwrap();
    symlink(outside.join("secret"), library.source.join("link-out")).unwrap();
    std::fs::create_dir(library.source.join("folder")).unwrap();
    let bad = [
        (task("../escaped", ""), "INVALID_KEY", "`..`"),
        (task("a/../../escaped", ""), "INVALID_KEY", "`..`"),
        (task("/etc/passwd", ""), "INVALID_KEY", "is absolute"),
        (task("", ""), "INVALID_KEY", "is empty"),
        (task("_tranche/x.json", ""), "INVALID_KEY", "_tranche"),
        (task("older/way-out/x.bin", &format!("{{\"source\":\"{first}\"}}")), "INVALID_KEY", "older/way-out"),
        (task("s1", "{\"source\":\"../outside/secret\"}"), "INVALID_SOURCE", "`..`"),
        (task("s2", "{\"source\":\"/etc/passwd\"}"), "INVALID_SOURCE", "is absolute"),
        (task("s3", "{\"source\":\"way-out/secret\"}"), "INVALID_SOURCE", "way-out/secret"),
        (task("s4", "{\"source\":\"link-out\"}"), "INVALID_SOURCE", "link-out"),
        (task("s5", "{\"sorce\":\"x\"}"), "INVALID_PAYLOAD", "sorce"),
        (task("missing.bin", ""), "NOT_FOUND", "missing.bin"),
        (task("folder", ""), "UNREADABLE", "is no regular file"),
        (task("size", &format!("{{\"source\":\"{first}\",\"size\":1}}")), "SIZE_MISMATCH", "1"),
        (
            task("sum", &format!("{{\"source\":\"{first}\",\"checksum\":\"sha256:{}\"}}", "0".repeat(64))),
            "CHECKSUM_MISMATCH",
            "sha256",
        ),
    ];
    let tasks = good.iter().map(|key| task(key, "")).chain(bad.iter().map(|(task, ..)| task.clone()));
    let batch = cluster.submit(batch_into(library.target()), tasks.collect::<Vec<_>>()).await;
    let ended = cluster.wait_state(&batch, State::Committed).await;
    let counters = ended.counters.unwrap();
    assert_eq!((counters.staged, counters.committed, counters.failed), (10, 10, 15));
    let found = failures(&cluster, &batch).await;
    for (task, code, text) in &bad {
        let (found, message) = &found[&task.key];
        assert!(found == code && message.contains(text), "{:?}: {found}: {message}", task.key);
    }
    for link in [
        library.library.join("older/way-out"),
        library.source.join("way-out"),
        library.source.join("link-out"),
    ] {
        std::fs::remove_file(link).unwrap();
    }
    library.assert_exactly(good);
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1, "nothing was written outside");
    assert!(!cluster.data().join("escaped").exists());
    cluster.wait_swept(&batch).await;
    library.assert_no_staging_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_may_not_be_read_fails_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut cluster = Cluster::builder().embedded().start().await;
    cluster.workers(1, 2).await;
    let library = Library::with_files(&cluster.data(), "library", 5);
    let keys = library.keys();
    let closed = library.source.join(&keys[2]);
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o000)).unwrap();
    if std::fs::read(&closed).is_ok() {
        // Root reads everything; a socket can't be opened by anybody.
        std::fs::remove_file(&closed).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&closed).unwrap());
    }
    let batch = cluster.submit(batch_into(library.target()), keys.iter().map(|key| task(key, ""))).await;
    cluster.wait_state(&batch, State::Committed).await;
    let found = failures(&cluster, &batch).await;
    let (code, message) = &found[&keys[2]];
    assert!(found.len() == 1 && code == "UNREADABLE" && message.contains(&keys[2]), "{found:?}");
    std::fs::remove_file(&closed).unwrap();
    library.assert_exactly(library.keys());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_refuses_folders_that_it_isnt_allowed() {
    let mut cluster = Cluster::builder().embedded().start().await;
    cluster.workers(1, 2).await;
    let elsewhere = tempfile::tempdir().unwrap();
    let inside = Library::with_files(&cluster.data(), "library", 3);
    let outside = Library::with_files(elsewhere.path(), "library", 3);
    symlink(&outside.library, cluster.data().join("link")).unwrap();
    let mut link = Library::with_files(&cluster.data(), "other", 3);
    link.library = cluster.data().join("link");
    let source = v1::Target {
        params: [
            ("source".into(), outside.source.display().to_string()),
            ("library".into(), inside.library.display().to_string()),
        ]
        .into(),
        ..inside.target()
    };
    for (target, param, value) in [
        (outside.target(), "library", outside.library.display().to_string()),
        (link.target(), "library", link.library.display().to_string()),
        (source, "source", outside.source.display().to_string()),
        (
            inside.target_with(&[("staging", "/var/tmp/elsewhere")]),
            "staging",
            "/var/tmp/elsewhere".to_owned(),
        ),
    ] {
        let spec = v1::Batch {
            // By share: it counts when all are accounted for, so that no failure comes before the seal.
            failure_limit: Some(v1::FailureLimit { max_failed_ratio: Some(0.5), ..Default::default() }),
            ..batch_into(target)
        };
        let batch = cluster.submit(spec, inside.tasks()).await;
        cluster.wait_state(&batch, State::RolledBack).await;
        let failures = cluster.failures(&batch).await;
        assert!(!failures.is_empty());
        for failure in failures {
            assert_eq!(failure.code, "INVALID_TARGET", "{failure:?}");
            let named = failure.message.contains(param) && failure.message.contains(&value);
            assert!(named && failure.message.contains("allow-root"), "{failure:?}");
        }
        cluster.wait_swept(&batch).await;
    }
    inside.assert_untouched();
    outside.assert_untouched();
    inside.assert_no_staging_left();
    outside.assert_no_staging_left();
}
