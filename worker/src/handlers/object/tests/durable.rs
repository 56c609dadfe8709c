//! What is reported is durable: its file system was synced before.

use super::*;
use crate::handlers::object::sync::seen;

/// How often the file system was synced by the time that a stage, and a commit, returned.
async fn syncs() -> (usize, usize) {
    let world = World::new();
    world.sources(&[("a", "1"), ("deep/b", "2")]);
    let lease = world.lease(1, 1, &[("a", ""), ("deep/b", "")]);
    let staged = world.stage(&lease).await.unwrap();
    let at_stage = seen::of(&world.staging().join("b1/5-1"));
    world.object.commit(&world.commit_lease(vec![won(&lease, &staged)])).await.unwrap();
    (at_stage, seen::of(&world.path("library")))
}

#[tokio::test]
async fn i7_what_is_staged_or_committed_is_synced_and_planted_bugs_are_seen() {
    assert_eq!(syncs().await, (1, 1));
    #[cfg(feature = "planted")]
    planted().await;
}

/// Part of the same test: the guards are off for the whole process meanwhile.
#[cfg(feature = "planted")]
async fn planted() {
    use tranche_guards::{Guard, everywhere_without};
    everywhere_without(Some(Guard::SyncBeforeReport));
    assert_eq!(syncs().await, (0, 1));
    everywhere_without(Some(Guard::SyncBeforeCommitted));
    assert_eq!(syncs().await, (1, 0));
    everywhere_without(None);
}
