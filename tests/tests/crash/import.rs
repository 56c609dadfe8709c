//! `tranche import` that is killed, and run again.

use super::{pass_time, random};
use rustix::process::Signal;
use std::path::Path;
use tranche_tests::{Library, Session, eventually, snapshot, tranche};

/// Files of an import: with two of them in a lease it takes long enough to be killed in the middle.
const FILES: usize = 300;

fn words(library: &Library, source: &Path, more: &[&str]) -> Vec<String> {
    let (source, into) = (source.display().to_string(), library.library.display().to_string());
    let mut words = vec!["import".to_owned(), source, "--into".to_owned(), into];
    words.extend(["--slots", "2", "--range-max", "2"].map(str::to_owned));
    words.extend(more.iter().map(|word| (*word).to_owned()));
    words
}

fn start(library: &Library, more: &[&str]) -> Session {
    Session::start("tranche", &words(library, &library.source, more))
}

/// Files that are staged now.
fn staged(library: &Library) -> usize {
    let staging = library.staging().join("staging");
    // It changes while it is read.
    let files = walkdir::WalkDir::new(staging).into_iter().filter_map(Result::ok);
    files.filter(|file| file.path().extension().is_some_and(|ending| ending == "bin")).count()
}

/// Files in the library that weren't there before.
fn arrived(library: &Library) -> usize {
    let files = walkdir::WalkDir::new(&library.library).into_iter().filter_map(Result::ok);
    files.filter(|file| file.file_name().to_string_lossy().starts_with('f')).count()
}

/// A folder with one file that the first import doesn't have: so a second one shows what it did with it.
fn other(library: &Library) -> std::path::PathBuf {
    let other = library.source.with_file_name("other");
    std::fs::create_dir_all(&other).unwrap();
    std::fs::write(other.join("other.txt"), b"of the second import").unwrap();
    other
}

/// Imports another folder, which settles what was interrupted, and returns what it says of that.
async fn settle(library: &Library) -> Option<String> {
    let ran = tranche(&words(library, &other(library), &["--output", "json"])).await.exits(0);
    let json = ran.json();
    let settled = json["settled"].as_array().expect("a list");
    assert!(settled.len() <= 1, "{settled:?}");
    assert_eq!(json["batch"]["state"], "STATE_COMMITTED");
    settled.first().map(|batch| batch["state"].as_str().expect("a state").to_owned())
}

/// Asserts that the library has the second import, and the first one wholly or not at all.
fn assert_whole(library: &Library, first: bool) {
    let other = library.library.join("other.txt");
    assert_eq!(std::fs::read(&other).expect("the second import"), b"of the second import");
    std::fs::remove_file(other).unwrap();
    library.assert_exactly(if first { library.keys() } else { Vec::new() });
    assert!(!library.staging().join("staging").exists(), "nothing is left staged");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_killed_while_staging_is_rolled_back_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let library = Library::with_files(dir.path(), "library", FILES);
    // Without approval nothing can commit.
    let import = start(&library, &["--approve"]);
    eventually("files are staged", async || Some(()).filter(|()| staged(&library) > 20)).await;
    assert!(import.kill9().await);
    library.assert_untouched();
    assert!(staged(&library) > 0);
    assert_eq!(settle(&library).await.as_deref(), Some("STATE_ROLLED_BACK"));
    assert_whole(&library, false);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_killed_while_committing_is_finished_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let library = Library::with_files(dir.path(), "library", FILES);
    let import = start(&library, &[]);
    eventually("files arrive", async || Some(()).filter(|()| arrived(&library) > 0)).await;
    assert!(import.kill9().await);
    assert!(arrived(&library) < FILES, "it was in the middle");
    assert_eq!(settle(&library).await.as_deref(), Some("STATE_COMMITTED"));
    assert_whole(&library, true);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_killed_at_any_moment_leaves_all_or_nothing() {
    let mut random = random(21);
    for _ in 0..5 {
        let dir = tempfile::tempdir().unwrap();
        let library = Library::with_files(dir.path(), "library", FILES);
        let import = start(&library, &[]);
        pass_time(&mut random, 1_500).await;
        let killed = import.kill9().await;
        let settled = settle(&library).await;
        let first = match settled.as_deref() {
            Some("STATE_COMMITTED") => true,
            Some("STATE_ROLLED_BACK") => false,
            // It had no batch yet, or had ended.
            None => library.library.join("_tranche").read_dir().expect("manifests").count() == 2,
            other => panic!("{other:?} is no end"),
        };
        assert!(killed || first);
        assert_whole(&library, first);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_leaves_the_library_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let library = Library::with_files(dir.path(), "library", FILES);
    let import = start(&library, &["--approve"]);
    eventually("files are staged", async || Some(()).filter(|()| staged(&library) > 20)).await;
    import.signal(Signal::INT);
    let ran = import.ended().await.exits(130);
    assert!(ran.stdout.contains("ROLLED_BACK"), "{}", ran.stdout);
    library.assert_untouched();
    assert!(!library.staging().join("staging").exists(), "nothing is left staged");
    // The next one has nothing to settle.
    assert_eq!(settle(&library).await, None);
    assert_whole(&library, false);
    assert!(!snapshot(&library.library).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_after_the_decision_waits_for_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let library = Library::with_files(dir.path(), "library", FILES);
    let import = start(&library, &[]);
    eventually("files arrive", async || Some(()).filter(|()| arrived(&library) > 0)).await;
    import.signal(Signal::INT);
    let ran = import.ended().await.exits(0);
    assert!(ran.stdout.contains("COMMITTED"), "{}", ran.stdout);
    library.assert_exactly(library.keys());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_import_into_the_same_library_says_that_there_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let library = Library::with_files(dir.path(), "library", 20);
    let mut import = start(&library, &["--approve"]);
    import.said("importing ").await;
    let ran = tranche(&words(&library, &other(&library), &[])).await.exits(1);
    ran.says(&["in use by another process", "does another import into this library run?"]);
    import.type_line("y").await;
    import.ended().await.exits(0);
    library.assert_exactly(library.keys());
    assert_eq!(settle(&library).await, None);
}
