//! What a seed makes of a run: how many hosts, which batches, which faults.

use crate::world::Knobs;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tranche_proto::v1;

/// What one client does with one batch.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Its number.
    pub number: usize,
    /// When it begins.
    pub begin: Duration,
    /// Its tasks.
    pub tasks: u64,
    /// Tasks of one append.
    pub chunk: u64,
    /// Somebody has to commit it.
    pub manual: bool,
    /// The batch's own limit of failed tasks.
    pub max_failed: Option<i64>,
    /// The batch's deadline.
    pub deadline: Option<Duration>,
    /// The largest range.
    pub max_range: i32,
    /// Workers that a range may lose before it is split.
    pub max_attempts: i32,
    /// Tasks that fail, and how often.
    pub failing: BTreeMap<u64, u32>,
    /// Tasks that kill their worker.
    pub poison: BTreeSet<u64>,
    /// When it is cancelled.
    pub cancel: Option<Duration>,
    /// When failed tasks are retried while it is imported.
    pub retry: Option<Duration>,
    /// What becomes of it when it is held.
    pub held: Held,
    /// It is left open for so long before it is sealed.
    pub seal_after: Duration,
    /// It is deleted once it ended.
    pub delete: bool,
}

/// What becomes of a batch that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// It is committed.
    Commit,
    /// Its failed tasks are retried once, then it is committed.
    RetryCommit,
    /// It is cancelled.
    Cancel,
}

/// The task of a batch with this sequence number.
pub(crate) fn task(plan: usize, sequence: u64) -> v1::Task {
    v1::Task { key: format!("key-{sequence}"), payload: format!("{plan}:{sequence}").into() }
}

/// How often each fault comes in a second; 0: never.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rates {
    /// A coordinator crashes.
    pub coordinator_crash: f64,
    /// A coordinator is asked to leave.
    pub coordinator_leave: f64,
    /// A coordinator stands still.
    pub coordinator_pause: f64,
    /// A worker crashes.
    pub worker_crash: f64,
    /// A worker is asked to end.
    pub worker_leave: f64,
    /// A worker stands still.
    pub worker_pause: f64,
    /// A coordinator is cut off from the store.
    pub store_partition: f64,
    /// A stream is cut.
    pub stream_cut: f64,
    /// A link is silent one way.
    pub link_silent: f64,
    /// A link is down.
    pub link_down: f64,
    /// All links of a worker are down.
    pub worker_alone: f64,
    /// The store ends a session.
    pub session_taken: f64,
    /// The store is away.
    pub store_outage: f64,
    /// All coordinators crash.
    pub all_crash: f64,
    /// A clock is set.
    pub clock_set: f64,
}

/// What a run leaves alone, so that more can be asked of the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leaves {
    /// Nothing.
    Nothing,
    /// Workers and their links: what a living worker holds is never given to another, whatever becomes of the
    /// coordinators.
    Workers,
    /// The store and the coordinators: every call is answered soon.
    Coordinators,
}

/// A run.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// What has no faults.
    pub leaves: Leaves,
    /// Coordinators.
    pub coordinators: usize,
    /// Workers: what a task takes on each.
    pub workers: Vec<Worker>,
    /// Batches.
    pub batches: Vec<Plan>,
    /// How long there are faults.
    pub faults_for: Duration,
    /// What comes of itself.
    pub rates: Rates,
    /// What may happen to anything.
    pub knobs: Knobs,
    /// How long leases live.
    pub lease_ttl: Duration,
    /// How long sessions live.
    pub session_ttl: Duration,
    /// How long after its end a batch that lost a worker is swept again.
    pub late_sweep_after: Duration,
    /// When a slow range gets a second worker.
    pub backup_after: Duration,
    /// Clocks on the wall, in milliseconds, and how fast clocks run, by host.
    pub clocks: Vec<(i64, f64)>,
}

/// A worker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Worker {
    /// Leases at once.
    pub slots: usize,
    /// Leases more.
    pub prefetch: usize,
    /// What a task takes.
    pub pace: Duration,
}

/// How much a clock on the wall may be ahead or behind, in milliseconds.
pub(crate) const SKEW_MS: i64 = 2500;
/// The longest pause of a worker. A late sweep comes later, also by clocks that differ: what a worker stages
/// after that nobody finds, unless it removes it itself.
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(4);

/// A few kinds of faults a run, each at its own rate: all at once hide each other.
pub(crate) fn setup(rng: &mut fastrand::Rng) -> Setup {
    let coordinators = rng.usize(2..=3);
    let workers: Vec<Worker> = (0..rng.usize(2..=4))
        .map(|_| {
            let slow = rng.u8(0..12) == 0;
            let pace = Duration::from_millis(rng.u64(2..=20)) * if slow { 50 } else { 1 };
            Worker { slots: rng.usize(1..=3), prefetch: rng.usize(0..=2), pace }
        })
        .collect();
    let faults_for = Duration::from_millis(rng.u64(2000..=9000));
    let number = rng.usize(1..=3);
    let mut batches: Vec<Plan> = (0..number).map(|number| batch(rng, number, faults_for)).collect();
    let mut rate = |likely: f64, most: f64| if rng.f64() < likely { most * rng.f64() } else { 0.0 };
    let mut rates = Rates {
        coordinator_crash: rate(0.35, 0.5),
        coordinator_leave: rate(0.25, 0.5),
        coordinator_pause: rate(0.35, 0.5),
        worker_crash: rate(0.3, 0.6),
        worker_leave: rate(0.25, 0.5),
        worker_pause: rate(0.4, 0.8),
        store_partition: rate(0.3, 0.5),
        stream_cut: rate(0.35, 2.0),
        link_silent: rate(0.3, 1.0),
        link_down: rate(0.3, 1.0),
        worker_alone: rate(0.3, 0.5),
        session_taken: rate(0.2, 0.3),
        store_outage: rate(0.15, 0.3),
        all_crash: rate(0.1, 0.2),
        clock_set: rate(0.2, 0.5),
    };
    let mut knobs = Knobs {
        unavailable: rate(0.3, 0.1),
        answer_lost: rate(0.4, 0.15),
        watch_lag: rate(0.3, 0.3),
        watch_missed: rate(0.3, 0.3),
        refuse: rate(0.3, 0.3),
        twice: rate(0.4, 0.2),
        late: rate(0.3, 0.1),
        handler_error: rate(0.3, 0.15),
        stuck: rate(0.3, 0.05),
        call_lost: rate(0.4, 0.3),
        objects_slow: rate(0.3, 0.3),
        objects_away: rate(0.2, 0.2),
    };
    let mut lease_ttl = Duration::from_millis(rng.u64(800..=2000));
    let mut backup_after = Duration::from_millis(rng.u64(300..=1500));
    let session_ttl = Duration::from_millis(rng.u64(800..=2000));
    let leaves = match rng.u8(0..8) {
        0 => Leaves::Workers,
        1 => Leaves::Coordinators,
        _ => Leaves::Nothing,
    };
    match leaves {
        Leaves::Nothing => {}
        Leaves::Workers => {
            (rates.worker_crash, rates.worker_leave, rates.worker_pause) = (0.0, 0.0, 0.0);
            (rates.link_silent, rates.link_down, rates.worker_alone) = (0.0, 0.0, 0.0);
            rates.coordinator_crash = rates.coordinator_crash.max(0.3);
            (knobs.handler_error, knobs.refuse, knobs.late, knobs.stuck) = (0.0, 0.0, 0.0, 0.0);
            // Longer than it takes to have another owner, come what may.
            lease_ttl = Duration::from_secs(30);
            // Longer than a run: a slow worker with three leases of many tasks has the last for over a minute.
            backup_after = Duration::from_mins(10);
            for batch in &mut batches {
                batch.poison.clear();
            }
        }
        Leaves::Coordinators => {
            (rates.coordinator_crash, rates.coordinator_leave, rates.coordinator_pause) = (0.0, 0.0, 0.0);
            (rates.store_partition, rates.session_taken, rates.store_outage, rates.all_crash) =
                (0.0, 0.0, 0.0, 0.0);
            (knobs.unavailable, knobs.answer_lost, knobs.watch_lag, knobs.watch_missed) =
                (0.0, 0.0, 0.0, 0.0);
            (knobs.objects_slow, knobs.objects_away) = (0.0, 0.0);
            for batch in &mut batches {
                // A cancel among many calls: those that it gets ahead of must be answered all the same.
                let after = Duration::from_millis(rng.u64(100..=1500));
                batch.cancel = Some(batch.begin + after);
                (batch.tasks, batch.chunk) = (rng.u64(60..=120), rng.u64(2..=4));
            }
        }
    }
    let skewed = rng.bool();
    let clocks = (0..=coordinators + workers.len())
        .map(|_| if skewed { (rng.i64(-SKEW_MS..=SKEW_MS), 0.97 + 0.06 * rng.f64()) } else { (0, 1.0) })
        .collect();
    Setup {
        leaves,
        coordinators,
        workers,
        batches,
        faults_for,
        rates,
        knobs,
        lease_ttl,
        session_ttl,
        late_sweep_after: Duration::from_millis(rng.u64(10_000..=14_000)),
        backup_after,
        clocks,
    }
}

fn batch(rng: &mut fastrand::Rng, number: usize, faults_for: Duration) -> Plan {
    let tasks = if rng.u8(0..20) == 0 { rng.u64(0..=2) } else { rng.u64(5..=120) };
    let any = |rng: &mut fastrand::Rng| rng.u64(1..=tasks.max(1));
    let mut failing = BTreeMap::new();
    if rng.u8(0..3) == 0 {
        for _ in 0..rng.usize(1..=5) {
            let times = if rng.bool() { u32::MAX } else { rng.u32(1..=3) };
            failing.insert(any(rng), times);
        }
    }
    let poison = if rng.u8(0..8) == 0 { BTreeSet::from([any(rng)]) } else { BTreeSet::new() };
    let sometime =
        |rng: &mut fastrand::Rng| Duration::from_millis(rng.u64(0..=faults_for.as_millis() as u64));
    let some = |rng: &mut fastrand::Rng, one_in: u8| rng.u8(0..one_in) == 0;
    Plan {
        number,
        begin: Duration::from_millis(rng.u64(0..=1500)),
        tasks,
        chunk: rng.u64(3..=60),
        manual: some(rng, 3),
        max_failed: some(rng, 5).then(|| rng.i64(0..=4)),
        deadline: some(rng, 8).then(|| Duration::from_millis(rng.u64(1000..=9000))),
        max_range: rng.i32(3..=25),
        max_attempts: rng.i32(1..=3),
        failing,
        poison,
        cancel: some(rng, 3).then(|| sometime(rng)),
        retry: some(rng, 4).then(|| sometime(rng)),
        held: [Held::Commit, Held::RetryCommit, Held::Cancel][rng.usize(0..3)],
        seal_after: Duration::from_millis(rng.u64(0..=500)),
        delete: some(rng, 3),
    }
}
