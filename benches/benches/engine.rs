//! Nanoseconds of each event at the engine, in batches of 100, 1,000 and 10,000 ranges. One that takes longer in a
//! larger batch than the depth of a tree explains isn't worked in at its own cost only.

use divan::Bencher;
use divan::counter::ItemsCount;
use tranche_benches::engine::{Owner, reports};
use tranche_engine::Event;

const RANGES: [u64; 3] = [100, 1_000, 10_000];
const TASKS: u64 = 16_384;

fn main() {
    divan::main();
}

/// The time of working in the events that `begin` makes, a range each.
fn measure(bencher: Bencher, ranges: u64, begin: impl Fn(u64) -> (Owner, Vec<Event>)) {
    bencher.counter(ItemsCount::new(ranges)).with_inputs(|| begin(ranges)).bench_local_values(
        |(mut owner, events)| {
            let commands = owner.take(events);
            // Dropped outside of the measured time.
            (owner, commands)
        },
    );
}

/// A segment became durable.
#[divan::bench(args = RANGES, sample_count = 20, sample_size = 1)]
fn append(bencher: Bencher, ranges: u64) {
    measure(bencher, ranges, |ranges| {
        let owner = Owner::new(ranges, TASKS);
        let events = owner.segments();
        (owner, events)
    });
}

/// A worker asks, and gets a lease.
#[divan::bench(args = RANGES, sample_count = 20, sample_size = 1)]
fn grant(bencher: Bencher, ranges: u64) {
    measure(bencher, ranges, |ranges| {
        let owner = Owner::filled(ranges, TASKS);
        let events = owner.requests();
        (owner, events)
    });
}

/// A worker has staged a range. The last report of a batch brings its decision.
#[divan::bench(args = RANGES, sample_count = 20, sample_size = 1)]
fn report(bencher: Bencher, ranges: u64) {
    measure(bencher, ranges, |ranges| {
        let mut owner = Owner::filled(ranges, TASKS);
        let events = reports(&owner.lease_all());
        (owner, events)
    });
}

/// A worker asks, and gets a range to commit.
#[divan::bench(args = RANGES, sample_count = 20, sample_size = 1)]
fn grant_commit(bencher: Bencher, ranges: u64) {
    measure(bencher, ranges, |ranges| {
        let mut owner = Owner::filled(ranges, TASKS);
        let events = reports(&owner.lease_all());
        owner.take(events);
        let events = owner.requests();
        (owner, events)
    });
}

/// A worker has committed a range.
#[divan::bench(args = RANGES, sample_count = 20, sample_size = 1)]
fn report_commit(bencher: Bencher, ranges: u64) {
    measure(bencher, ranges, |ranges| {
        let mut owner = Owner::filled(ranges, TASKS);
        let events = reports(&owner.lease_all());
        owner.take(events);
        let events = reports(&owner.lease_all());
        (owner, events)
    });
}

/// Somebody cancels while all ranges are leased: one event, so this is the whole time, and not a range's.
#[divan::bench(args = RANGES, sample_count = 20, sample_size = 1)]
fn decision(bencher: Bencher, ranges: u64) {
    let begin = || {
        let mut owner = Owner::filled(ranges, TASKS);
        owner.lease_all();
        let events = owner.cancel();
        (owner, events)
    };
    bencher.with_inputs(begin).bench_local_values(|(mut owner, events)| {
        let commands = owner.take(events);
        (owner, commands)
    });
}
