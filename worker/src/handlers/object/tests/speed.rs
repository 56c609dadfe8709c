//! How fast staging and commit are beside `cp -r` and `sync`. Run on demand, it asserts nothing about time:
//! `cargo test -p tranche-worker --lib -- --ignored --nocapture object::tests::speed`.

use super::*;
use std::process::Command;
use std::time::Instant;

const FILES: usize = 20_000;
const BYTES: usize = 20_000;
const LEASES: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "writes 1.2 GB"]
async fn beside_cp_and_sync() {
    let world = World::new();
    let keys: Vec<String> = (0..FILES).map(|n| format!("{:02}/{n}.bin", n % 97)).collect();
    let mut content = vec![0_u8; BYTES];
    for (n, key) in keys.iter().enumerate() {
        content[..8].copy_from_slice(&n.to_le_bytes());
        world.write(&format!("source/{key}"), &content);
    }
    Command::new("sync").status().unwrap();

    let start = Instant::now();
    Command::new("cp").arg("-r").arg(world.path("source")).arg(world.path("copy")).status().unwrap();
    Command::new("sync").status().unwrap();
    let copied = start.elapsed();

    let start = Instant::now();
    let mut attempts = Vec::new();
    let mut sorted: Vec<&str> = keys.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    let leases: Vec<_> = sorted.chunks(FILES / LEASES).collect();
    // Two slots.
    for pair in leases.chunks(2).enumerate() {
        let lease = |side: usize| {
            let index = pair.0 * 2 + side;
            let tasks: Vec<_> = pair.1[side].iter().map(|key| (*key, "")).collect();
            world.lease(index as u64, (index * (FILES / LEASES)) as u64 + 1, &tasks)
        };
        let (one, two) = (lease(0), lease(1));
        let (first, second) = tokio::join!(world.stage(&one), world.stage(&two));
        attempts.push(won(&one, &first.unwrap()));
        attempts.push(won(&two, &second.unwrap()));
    }
    let staged = start.elapsed();
    for attempt in attempts {
        world.object.commit(&world.commit_lease(vec![attempt])).await.unwrap();
    }
    let committed = start.elapsed();
    world.object.publish(&BatchInfo { staged: FILES as u64, ..world.batch() }).await.unwrap();
    world.object.sweep(&world.batch()).await.unwrap();
    let all = start.elapsed();
    println!("cp -r + sync {copied:?}; staged {staged:?}, committed {committed:?}, swept {all:?}");
    assert_eq!(world.library().values().filter(|content| content.is_some()).count(), FILES + 1);
}
