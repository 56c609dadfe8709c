//! One key, one task, whichever lease stages it.

use super::*;

/// Stages each list in a lease of its own, the numbers going on; returns what failed of all.
async fn leases(world: &World, leases: &[&[&str]]) -> Vec<(u64, String)> {
    let mut first = 1;
    let mut failed = Vec::new();
    for (counter, keys) in leases.iter().enumerate() {
        for key in *keys {
            world.write(&format!("source/{key}.file"), key);
        }
        let payloads: Vec<String> = keys.iter().map(|key| format!(r#"{{"source":"{key}.file"}}"#)).collect();
        let tasks: Vec<(&str, &str)> =
            keys.iter().copied().zip(payloads.iter().map(String::as_str)).collect();
        let staged = world.stage(&world.lease(counter as u64 + 1, first, &tasks)).await.unwrap();
        failed.extend(staged.failures.into_iter().map(|failure| (failure.sequence, failure.code)));
        first += keys.len() as u64;
    }
    failed
}

#[tokio::test]
async fn a_key_of_two_leases_belongs_to_the_first() {
    let world = World::new();
    let failed = leases(&world, &[&["a", "d/b"], &["c", "d/b", "d/e"]]).await;
    assert_eq!(failed, [(4, "DUPLICATE_KEY".to_owned())]);
}

#[tokio::test]
async fn a_key_inside_another_key_fails_whichever_comes_first() {
    for (first, second) in [("a", "a/b"), ("a/b", "a"), ("x/a", "x/a/b/c"), ("x/a/b/c", "x/a")] {
        let world = World::new();
        let failed = leases(&world, &[&[first], &[second]]).await;
        assert_eq!(failed, [(2, "INVALID_KEY".to_owned())], "{first}, then {second}");
    }
}

/// A claim is a link: it must not be followed to a folder that happens to have its target's name.
#[tokio::test]
async fn claims_do_not_lead_to_each_other() {
    let world = World::new();
    let failed =
        leases(&world, &[&["a"], &["1/x", "task/1/y", "claims/z", "winner-1", "tree/t"], &["a/b"]]).await;
    assert_eq!(failed, [(7, "INVALID_KEY".to_owned())]);
}

#[tokio::test]
async fn a_task_that_is_staged_again_has_its_key_already() {
    let world = World::new();
    world.sources(&[("a", "1"), ("b", "2")]);
    for counter in 1..=3 {
        let staged = world.stage(&world.lease(counter, 1, &[("a", ""), ("b", "")])).await.unwrap();
        assert!(staged.failures.is_empty(), "{:?}", staged.failures);
    }
}

#[tokio::test]
async fn a_task_that_failed_leaves_its_key_to_another() {
    let world = World::new();
    world.sources(&[("right", "1")]);
    let one = world.stage(&world.lease(1, 1, &[("a", r#"{"source":"missing"}"#)])).await.unwrap();
    assert_eq!(one.failures.len(), 1);
    let two = world.stage(&world.lease(2, 2, &[("a", r#"{"source":"right"}"#)])).await.unwrap();
    assert!(two.failures.is_empty(), "{:?}", two.failures);
}

#[tokio::test]
async fn claims_are_no_residue_and_nothing_of_them_is_left() {
    let world = World::new();
    let before = world.all();
    assert_eq!(leases(&world, &[&["tree/a", "winner-3", "b"]]).await, []);
    assert_eq!(world.rollback(&[1]).await, Ok(1000));
    assert_eq!(world.object.sweep(&world.batch()).await, Ok(0));
    assert_eq!(world.all(), before);
}

#[tokio::test]
async fn keys_that_look_like_our_own_files_are_committed_and_published() {
    let world = World::new();
    let keys = ["winner-1", "committed-1", "tree/a", "claims/b", "index.jsonl"];
    assert_eq!(leases(&world, &[&keys]).await, []);
    let runs = vec![Range { first: 1, last: 5 }];
    let attempt = Attempt { token: Token { epoch: 5, counter: 1 }, runs, receipt: Bytes::new() };
    assert_eq!(world.object.commit(&world.commit_lease(vec![attempt])).await, Ok(5));
    assert_eq!(world.object.publish(&BatchInfo { staged: 5, ..world.batch() }).await, Ok(()));
    assert_eq!(world.object.sweep(&world.batch()).await, Ok(0));
    for key in keys {
        assert_eq!(std::fs::read_to_string(world.path("library").join(key)).unwrap(), key);
    }
}
