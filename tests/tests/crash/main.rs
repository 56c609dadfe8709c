//! Processes that are killed at random moments, with the library compared by checksum after each batch.
//!
//! The moments are random but the same at each run; `TRANCHE_SEED` chooses others.

mod appends;
mod import;
mod kill;
mod owner;
mod race;
mod shutdown;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use std::time::Duration;
use tranche_client::v1::{self, batch::State};
use tranche_tests::cluster::batch_into;
use tranche_tests::{Cluster, Library};

/// Files of a batch: with [`RANGE`] tasks a lease, leases enough for a kill to fall between them.
const FILES: usize = 240;
/// The most tasks of a lease.
const RANGE: i32 = 6;

/// The random numbers of one test.
fn random(test: u64) -> StdRng {
    let seed: u64 =
        std::env::var("TRANCHE_SEED").map_or(1, |seed| seed.parse().expect("TRANCHE_SEED is a number"));
    eprintln!("TRANCHE_SEED={seed}");
    StdRng::seed_from_u64(seed.wrapping_mul(1_000).wrapping_add(test))
}

/// Lets time pass: when something is killed is the test's input, not a condition that it waits for.
async fn pass_time(random: &mut StdRng, most_ms: u64) {
    tokio::time::sleep(Duration::from_millis(random.random_range(0..=most_ms))).await;
}

/// A batch of small leases that outlives any number of lost workers.
fn spec(library: &Library) -> v1::Batch {
    v1::Batch {
        range_bounds: Some(v1::RangeBounds { min_tasks: 1, max_tasks: RANGE }),
        max_attempts: 100,
        ..batch_into(library.target())
    }
}

/// The batch's end: the library has exactly what was staged, or is untouched; nothing is left over.
async fn assert_all_or_nothing(cluster: &Cluster, library: &Library, batch: &str) -> v1::Batch {
    let ended = cluster.wait_swept(batch).await;
    let failures = cluster.failures(batch).await;
    assert!(failures.is_empty(), "{failures:#?}");
    let counters = ended.counters.unwrap();
    match ended.state() {
        State::Committed => {
            let all = i64::try_from(library.keys().len()).unwrap();
            assert_eq!((counters.total, counters.staged, counters.committed), (all, all, all));
            library.assert_exactly(library.keys());
            assert!(library.manifest(batch).is_some(), "the manifest is published");
        }
        State::RolledBack => library.assert_untouched(),
        other => panic!("{other:?} is no end"),
    }
    library.assert_no_staging_left();
    ended
}
