//! A full disk while staging: nothing is reported staged that isn't durable, nothing short is committed.

use std::path::{Path, PathBuf};
use std::process::Command;
use tranche_client::v1::{self, batch::State, decision::Reason};
use tranche_tests::cluster::batch_into;
use tranche_tests::{Cluster, Library};

/// A mounted tmpfs; unmounted when dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    /// None if this process may not mount.
    fn mount(path: &Path, size: &str) -> Option<Self> {
        std::fs::create_dir_all(path).unwrap();
        let options = format!("size={size}");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tranche-test"]).arg(path);
        let mounted = mount.output().is_ok_and(|output| output.status.success());
        if !mounted {
            eprintln!("skipped: this process may not mount a tmpfs");
        }
        mounted.then(|| Self(path.to_owned()))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

/// Files of a batch.
const FILES: usize = 60;

/// A library on a small disk, with sources that need about twice as much.
fn library(small: &Path) -> Library {
    let source = small.parent().unwrap();
    let mut library = Library::with_files(small, "library", 0);
    let sources = Library::with_files(source, "sources", FILES);
    for key in sources.keys() {
        let file = sources.source.join(key);
        let bytes = std::fs::read(&file).unwrap().repeat(20);
        std::fs::write(file, bytes).unwrap();
    }
    library.source = sources.source;
    library
}

async fn full(limit: Option<v1::FailureLimit>) -> Option<(Cluster, Tmpfs, Library, v1::Batch)> {
    let mut cluster = Cluster::builder().embedded().start().await;
    let small = cluster.data().join("small");
    let disk = Tmpfs::mount(&small, "1m")?;
    let library = library(&small);
    cluster.workers(1, 2).await;
    let spec = v1::Batch {
        failure_limit: limit,
        max_attempts: 2,
        range_bounds: Some(v1::RangeBounds { min_tasks: 1, max_tasks: 4 }),
        ..batch_into(library.target())
    };
    let batch = cluster.submit(spec, library.tasks()).await;
    let ended = cluster.client().wait(&batch).await.expect("an end");
    let failures = cluster.failures(&batch).await;
    assert!(!failures.is_empty());
    for failure in &failures {
        let told = failure.message.contains("No space left on device");
        assert!(failure.code == "STAGE_ERROR" && told, "{failure:?}");
    }
    cluster.wait_swept(&batch).await;
    Some((cluster, disk, library, ended))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_doesnt_fit_fails_and_what_fits_is_whole() {
    let Some((cluster, _disk, library, ended)) = full(None).await else { return };
    assert_eq!(ended.state(), State::Committed);
    let counters = ended.counters.unwrap();
    assert!(counters.failed > 0 && counters.committed > 0, "{counters:?}");
    assert_eq!(counters.failed + counters.committed, i64::try_from(FILES).unwrap());
    let failed: Vec<String> = cluster.failures(&ended.name).await.into_iter().map(|f| f.key).collect();
    library.assert_exactly(library.keys().into_iter().filter(|key| !failed.contains(key)));
    library.assert_no_staging_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_rolls_it_back_and_the_space_is_free_again() {
    let limit = v1::FailureLimit { max_failed_tasks: Some(0), ..Default::default() };
    let Some((_cluster, _disk, library, ended)) = full(Some(limit)).await else { return };
    assert_eq!(ended.state(), State::RolledBack);
    assert_eq!(ended.decision.unwrap().reason(), Reason::FailureLimit);
    library.assert_untouched();
    library.assert_no_staging_left();
}
