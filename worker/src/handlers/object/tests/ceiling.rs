//! What a file may cost, in counts: seconds depend on the machine.

use super::*;
use crate::handlers::object::{commit, remove, sync::seen};

/// Files of the lease, in folders of 100.
const FILES: u64 = 500;
/// Reads and writes that a lease as a whole may cost: its index, its mark.
const OF_A_LEASE: u64 = 40;

/// Calls of `read` and of `write` that this thread made, as the kernel counts them.
fn calls() -> (u64, u64) {
    let io = std::fs::read_to_string("/proc/thread-self/io").unwrap();
    let field =
        |name: &str| io.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().parse().unwrap();
    (field("syscr:"), field("syscw:"))
}

/// What `work` reads and writes on this thread.
fn counted<T>(work: impl FnOnce() -> T) -> (u64, u64, T) {
    let before = calls();
    let done = work();
    let after = calls();
    (after.0 - before.0, after.1 - before.1, done)
}

#[test]
fn a_small_file_costs_one_read_and_one_write_and_a_lease_one_sync() {
    let world = World::new();
    let keys: Vec<String> = (0..FILES).map(|n| format!("{}/{n}", n / 100)).collect();
    for key in &keys {
        world.write(&format!("source/{key}"), vec![7; 20_000]);
    }
    let tasks: Vec<(&str, &str)> = keys.iter().map(|key| (key.as_str(), "")).collect();
    let lease = world.lease(1, 1, &tasks);
    let inner = &world.object.inner;

    let (reads, writes, staged) =
        counted(|| inner.stage(&lease, &CancellationToken::new(), &Progress::default()).unwrap());
    assert!(staged.failures.is_empty(), "{:?}", staged.failures);
    assert!(
        reads <= FILES + OF_A_LEASE && writes <= FILES + OF_A_LEASE,
        "stage: {reads} reads, {writes} writes"
    );
    assert_eq!(seen::of(&world.staging().join("b1/5-1")), 1, "syncs of a staged lease");

    // A commit moves: of the files' contents it touches nothing.
    let lease = world.commit_lease(vec![won(&lease, &staged)]);
    let (reads, writes, done) = counted(|| commit::commit(&lease, &inner.roots));
    assert_eq!(done, Ok(FILES));
    assert!(reads <= OF_A_LEASE && writes <= OF_A_LEASE, "commit: {reads} reads, {writes} writes");
    assert_eq!(seen::of(&world.path("library")), 1, "syncs of a committed lease");

    let (reads, writes, swept) = counted(|| remove::sweep(&world.batch(), &inner.roots));
    assert_eq!(swept, Ok(0));
    assert!(reads <= OF_A_LEASE && writes <= OF_A_LEASE, "sweep: {reads} reads, {writes} writes");
}

/// The size that a file had when it was opened ends the copy, unless the file doesn't know it.
#[tokio::test]
async fn files_that_do_not_know_their_size_are_copied_wholly() {
    let world = World::new().param("source", "/proc/self");
    let world = World { object: Object::new([world.dir.path().to_owned(), "/proc".into()]), ..world };
    let lease = world.lease(1, 1, &[("limits", "")]);
    let staged = world.stage(&lease).await.unwrap();
    assert!(staged.failures.is_empty(), "{:?}", staged.failures);
    let copied = std::fs::read(world.staging().join("b1/5-1/tree/limits")).unwrap();
    assert_eq!(copied, std::fs::read("/proc/self/limits").unwrap());
}
