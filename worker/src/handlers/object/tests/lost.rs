//! What a lost attempt staged is removed, whenever it came.

use super::*;

/// A worker that was paused wakes up after its batch has ended and was swept.
#[tokio::test]
async fn a_late_attempt_is_removed_without_a_trace() {
    for (known, staging_given) in [(true, false), (false, false), (true, true)] {
        let mut world = World::new();
        if staging_given {
            let staging = world.path("elsewhere").to_str().unwrap().to_owned();
            world = world.param("staging", &staging);
        }
        world.write("library/kept", "k");
        let before = world.all();
        world.sources(&[("a/b", "1"), ("c", "2")]);
        if known {
            // Its folders are still open from the batch's life.
            world.stage(&world.lease(1, 1, &[("a/b", "")])).await.unwrap();
        }
        world.object.rollback(&RollbackLease { attempts: Vec::new(), ..lost(&world, 1) }).await.unwrap();
        let sweeper = Object::new([world.dir.path().to_owned()]);
        sweeper.sweep(&world.batch()).await.unwrap();
        assert_eq!(world.all(), before);

        let staged =
            world.stage(&world.lease(9, 1, &[("a/b", ""), ("c", ""), ("missing", "")])).await.unwrap();
        assert_eq!(staged.failures.len(), 1);
        assert_ne!(world.all(), before);
        assert_eq!(world.object.rollback(&lost(&world, 9)).await, Ok(1));
        assert_eq!(world.all(), before, "neither files nor claims nor folders");
        assert_eq!(world.object.rollback(&lost(&world, 9)).await, Ok(1));
        assert_eq!(world.all(), before);
    }
}

fn lost(world: &World, counter: u64) -> RollbackLease {
    let token = Token { epoch: 5, counter };
    RollbackLease {
        batch: world.batch(),
        token,
        range: Range { first: 1, last: 1 },
        attempts: vec![Attempt { token, runs: Vec::new(), receipt: Bytes::new() }],
        attempt: 0,
    }
}

/// Its handler failed after it had claimed keys, and removed its files itself.
#[tokio::test]
async fn claims_without_an_attempt_go_with_the_last_rollback() {
    let world = World::new();
    world.write(".library.tranche/staging/b1/claims/a/x", "");
    world.write(".library.tranche/staging/b1/claims-aside-1/x", "");
    assert_eq!(world.rollback(&[1]).await, Ok(1000));
    assert!(world.all().is_empty());
}

#[tokio::test]
async fn other_attempts_and_their_claims_stay() {
    let world = World::new();
    world.sources(&[("a", "1"), ("b", "2")]);
    let kept = world.lease(1, 1, &[("a", "")]);
    let staged = world.stage(&kept).await.unwrap();
    world.stage(&world.lease(2, 2, &[("b", "")])).await.unwrap();
    let with_both = world.all();
    world.object.rollback(&lost(&world, 2)).await.unwrap();
    let mut expected = with_both;
    expected.retain(|path, _| !path.contains("5-2"));
    assert_eq!(world.all(), expected);
    // The key of a task that counts is still its own.
    let second = world.stage(&world.lease(3, 7, &[("a", "")])).await.unwrap();
    assert_eq!(second.failures[0].code, "DUPLICATE_KEY");
    world.object.rollback(&lost(&world, 3)).await.unwrap();
    assert_eq!(world.object.commit(&world.commit_lease(vec![won(&kept, &staged)])).await, Ok(1));
}

#[tokio::test]
async fn a_batch_goes_on_after_its_only_attempt_was_lost() {
    let world = World::new();
    world.sources(&[("a", "1")]);
    world.stage(&world.lease(1, 1, &[("a", "")])).await.unwrap();
    world.object.rollback(&lost(&world, 1)).await.unwrap();
    assert!(!world.path(".library.tranche").exists());
    let again = world.lease(2, 1, &[("a", "")]);
    let staged = world.stage(&again).await.unwrap();
    assert_eq!(world.object.commit(&world.commit_lease(vec![won(&again, &staged)])).await, Ok(1));
}

/// Leases begin at the very moment that the last attempt is removed: none fails for good, and a key is never
/// given to two tasks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_that_begin_meanwhile_keep_their_claims() {
    for round in 0..100 {
        let world = World::new();
        world.sources(&[("a", "1"), ("b", "2")]);
        world.stage(&world.lease(1, 1, &[("a", "")])).await.unwrap();
        let other = Object::new([world.dir.path().to_owned()]);
        let lease = lost(&world, 1);
        let (removed, staged) = tokio::join!(other.rollback(&lease), async {
            let lease = world.lease(2, 1, &[("a", "")]);
            loop {
                match world.stage(&lease).await {
                    // The folder went just then: the coordinator leases it again.
                    Err(HandlerError::Retryable(_)) => {}
                    result => return result.unwrap(),
                }
            }
        });
        assert_eq!((removed, staged.failures.len()), (Ok(1), 0), "{round}");
        let second = world.stage(&world.lease(3, 7, &[("a", "")])).await.unwrap();
        assert_eq!(second.failures.len(), 1, "{round}: the key was given twice");
    }
}
