//! What happens in a run, all of it drawn from the seed: the cluster, the batches, the faults.

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use std::fmt;
use std::time::Duration;

/// etcd's host.
pub const ETCD: &str = "etcd";
/// Faults begin within this time; the last ends soon after.
const FAULTS_WITHIN: Duration = Duration::from_secs(7);
/// The most faults of a run.
const MAX_FAULTS: usize = 6;

/// A run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What it is drawn from.
    pub seed: u64,
    /// Hosts of coordinators.
    pub coordinators: Vec<String>,
    /// Hosts of workers.
    pub workers: Vec<String>,
    /// What clients do.
    pub batches: Vec<BatchPlan>,
    /// What befalls them, by time.
    pub faults: Vec<Planned>,
    /// How long a task takes.
    pub task_time: Duration,
    /// How long a message travels at most, without faults.
    pub latency: Duration,
}

/// One batch, and what its client does with it.
#[derive(Clone, Debug)]
pub struct BatchPlan {
    /// When it is submitted.
    pub at: Duration,
    /// How many tasks.
    pub tasks: u64,
    /// Every Nth of them fails; 0: none.
    pub fail_every: u64,
    /// When it is cancelled, after its submission began.
    pub cancel: Option<Duration>,
}

/// A fault, and when.
#[derive(Clone, Debug)]
pub struct Planned {
    /// When it begins, since the start.
    pub at: Duration,
    /// How long it lasts, if it does.
    pub lasts: Duration,
    /// What.
    pub fault: Fault,
}

/// What can befall hosts and their connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing passes between these hosts.
    Partition(Vec<String>, Vec<String>),
    /// Nothing passes from the first to the second.
    OneWay(String, String),
    /// What passes between these hosts is held, and comes all at once at the end.
    Hold(Vec<String>, Vec<String>),
    /// Messages between the hosts travel long.
    Slow(String, String, Duration),
    /// The host's process dies, and is started again at the end.
    Crash(String),
    /// The coordinator leaves as at SIGTERM, and is started again at the end.
    Leave(String),
    /// All connections to the host are reset.
    Reset(String),
    /// All workers lose all coordinators at once, and come back at once.
    Storm(Vec<String>),
    /// etcd forgets its history.
    Compact,
}

/// The kinds, for the statistics.
pub const KINDS: [&str; 9] =
    ["partition", "one-way", "hold", "slow", "crash", "leave", "reset", "storm", "compaction"];

impl Fault {
    /// Which of [`KINDS`] it is.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Partition(..) => "partition",
            Self::OneWay(..) => "one-way",
            Self::Hold(..) => "hold",
            Self::Slow(..) => "slow",
            Self::Crash(_) => "crash",
            Self::Leave(_) => "leave",
            Self::Reset(_) => "reset",
            Self::Storm(_) => "storm",
            Self::Compact => "compaction",
        }
    }
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}+{:?} {:?}", self.at, self.lasts, self.fault)
    }
}

impl Plan {
    /// The plan of a seed.
    pub fn new(seed: u64) -> Self {
        let rng = &mut SmallRng::seed_from_u64(seed);
        let names = |kind: &str, count: usize| (1..=count).map(|n| format!("{kind}-{n}")).collect::<Vec<_>>();
        let coordinators = names("coordinator", rng.random_range(2..=3));
        let workers = names("worker", rng.random_range(2..=3));
        let batches = (0..rng.random_range(1..=2)).map(|_| batch(rng)).collect();
        let mut faults: Vec<_> = (0..rng.random_range(2..=MAX_FAULTS))
            .map(|_| Planned {
                at: between(rng, Duration::from_millis(200), FAULTS_WITHIN),
                lasts: if rng.random_bool(0.5) {
                    between(rng, Duration::from_millis(50), Duration::from_secs(2))
                } else {
                    // Beyond every time to live.
                    between(rng, Duration::from_secs(2), Duration::from_secs(9))
                },
                fault: fault(rng, &coordinators, &workers),
            })
            .collect();
        faults.sort_by_key(|planned| planned.at);
        Self {
            seed,
            coordinators,
            workers,
            batches,
            faults,
            task_time: *[20, 80, 200].map(Duration::from_millis).choose(rng).unwrap_or(&Duration::ZERO),
            latency: *[20, 40, 100].map(Duration::from_millis).choose(rng).unwrap_or(&Duration::ZERO),
        }
    }

    /// When all faults are over.
    pub fn faults_end(&self) -> Duration {
        self.faults.iter().map(|planned| planned.at + planned.lasts).max().unwrap_or_default()
    }
}

fn between(rng: &mut SmallRng, least: Duration, most: Duration) -> Duration {
    rng.random_range(least..most)
}

fn batch(rng: &mut SmallRng) -> BatchPlan {
    let cancelled = rng.random_bool(0.4);
    BatchPlan {
        at: between(rng, Duration::ZERO, Duration::from_secs(3)),
        tasks: rng.random_range(1..=120),
        fail_every: *[0, 0, 7].choose(rng).unwrap_or(&0),
        cancel: cancelled.then(|| between(rng, Duration::ZERO, Duration::from_secs(8))),
    }
}

fn fault(rng: &mut SmallRng, coordinators: &[String], workers: &[String]) -> Fault {
    let one = |rng: &mut SmallRng, of: &[String]| of.choose(rng).cloned().unwrap_or_default();
    let coordinator = one(rng, coordinators);
    let worker = one(rng, workers);
    let etcd = ETCD.to_owned();
    // Who can't reach whom.
    let others: Vec<_> = coordinators.iter().filter(|other| **other != coordinator).cloned().collect();
    let (a, b) = match rng.random_range(0..7) {
        0 | 1 => (vec![coordinator.clone()], vec![etcd.clone()]),
        2 => (vec![worker.clone()], coordinators.to_vec()),
        3 => (vec![worker.clone()], vec![coordinator.clone()]),
        4 => (vec![coordinator.clone()], others),
        5 => (vec![CLIENT.to_owned()], vec![coordinator.clone()]),
        _ => {
            let all = others.into_iter().chain(workers.to_vec()).chain([etcd.clone(), CLIENT.to_owned()]);
            (vec![coordinator.clone()], all.collect())
        }
    };
    match rng.random_range(0..18) {
        0..4 => Fault::Partition(a, b),
        4..6 => {
            let (from, to) = (a[0].clone(), one(rng, &b));
            if rng.random_bool(0.5) { Fault::OneWay(from, to) } else { Fault::OneWay(to, from) }
        }
        6..9 => Fault::Hold(a, b),
        9 => Fault::Slow(a[0].clone(), one(rng, &b), between(rng, SLOW, SLOW * 8)),
        10 => Fault::Crash(coordinator),
        11 => Fault::Crash(worker),
        12 => Fault::Crash(etcd),
        13 => Fault::Leave(coordinator),
        14 => Fault::Reset(etcd),
        15 => Fault::Reset(coordinator),
        16 => Fault::Storm(coordinators.to_vec()),
        _ => Fault::Compact,
    }
}

/// The clients' host.
pub const CLIENT: &str = "client";
/// The shortest latency of a slow link.
const SLOW: Duration = Duration::from_millis(200);
