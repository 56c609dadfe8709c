//! Random batches: whatever the sources, the library is all staged tasks, or as it was.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
struct Item {
    key: String,
    content: Vec<u8>,
    there: bool,
}

fn item() -> impl Strategy<Value = Item> {
    let content = prop::collection::vec(any::<u8>(), 0..600);
    ("[a-c]{1,2}(/[a-cé]{1,2}){0,3}", content, prop::bool::weighted(0.8))
        .prop_map(|(key, content, there)| Item { key, content, there })
}

/// Writes what can be written of the items; later ones may be in the way of earlier ones.
fn write_sources(world: &World, items: &[Item]) {
    for (index, item) in items.iter().enumerate().filter(|(_, item)| item.there) {
        world.write(&format!("source/{index}"), &item.content);
    }
}

fn run(items: &[Item], cut: usize, commit: bool, existing: &[Item], twice: bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let world = World::new();
        write_sources(&world, items);
        for item in existing {
            let path = world.path("library").join(&item.key);
            if std::fs::create_dir_all(path.parent().unwrap()).is_ok() {
                std::fs::write(path, &item.content).ok();
            }
        }
        let before = world.all();
        let payloads: Vec<String> =
            (0..items.len()).map(|index| format!(r#"{{"source":"{index}"}}"#)).collect();
        let tasks: Vec<_> = items.iter().zip(&payloads).map(|(i, p)| (i.key.as_str(), p.as_str())).collect();
        let mut attempts = Vec::new();
        // What the library must hold, in the order of the commits.
        let mut library: BTreeMap<String, Option<Vec<u8>>> = tree(&world.path("library"));
        // Keys in conflict between leases are the caller's to avoid: one lease holds them all here.
        let lease = world.lease(1, 1, &tasks);
        let staged = world.stage(&lease).await.unwrap();
        assert_eq!(world.library(), library, "staging doesn't touch the library");
        for (task, item) in lease.tasks.iter().zip(items) {
            let failed = staged.failures.iter().find(|failure| failure.sequence == task.sequence);
            if failed.is_none() {
                assert!(item.there, "{task:?}");
                library.insert(item.key.clone(), Some(item.content.clone()));
                let folders = Path::new(&item.key).ancestors().skip(1).filter(|path| *path != Path::new(""));
                library.extend(folders.map(|path| (path.to_str().unwrap().to_owned(), None)));
            }
        }
        attempts.push(won(&lease, &staged));
        // An attempt that never reported.
        world.stage(&world.lease(2, 1, &tasks[..cut.min(tasks.len())])).await.unwrap();
        if commit {
            for _ in 0..=usize::from(twice) {
                world.object.commit(&world.commit_lease(attempts.clone())).await.unwrap();
            }
            world.object.sweep(&world.batch()).await.unwrap();
            let mut after = world.all();
            let expected = library.into_iter().map(|(path, content)| (format!("library/{path}"), content));
            let mut expected: Tree = expected.collect();
            after.remove("library");
            expected.remove("library");
            assert_eq!(after, expected);
        } else {
            for _ in 0..=usize::from(twice) {
                world.rollback(&[1, 2]).await.unwrap();
            }
            assert_eq!(world.object.sweep(&world.batch()).await, Ok(0));
            assert_eq!(world.all(), before);
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    /// I4: after a commit exactly the staged tasks, after a rollback exactly what was before.
    #[test]
    fn i4_all_or_nothing(
        items in prop::collection::vec(item(), 1..24),
        existing in prop::collection::vec(item(), 0..4),
        cut in 1..24_usize,
        commit: bool,
        twice: bool,
    ) {
        run(&items, cut, commit, &existing, twice);
    }
}
