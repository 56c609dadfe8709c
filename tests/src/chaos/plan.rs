//! What a seed stands for: which faults come when, and what each batch is like.
//!
//! Both are drawn from streams of random numbers of their own, so that a seed always gives the same plan,
//! whatever the processes do in between.

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, IteratorRandom as _};
use rand::{Rng as _, SeedableRng as _};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// etcd nodes of the system.
pub const ETCDS: usize = 3;
/// Its coordinators.
pub const COORDINATORS: usize = 3;
/// Its workers.
pub const WORKERS: usize = 6;

/// Random numbers for one purpose of a run.
pub fn random(seed: u64, purpose: &str, number: u64) -> StdRng {
    let mut hash = blake3::Hasher::new();
    hash.update(&seed.to_le_bytes()).update(purpose.as_bytes()).update(&number.to_le_bytes());
    StdRng::from_seed(*hash.finalize().as_bytes())
}

/// A member of the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// An etcd node.
    Etcd(usize),
    /// A coordinator.
    Coordinator(usize),
    /// A worker.
    Worker(usize),
}

impl Who {
    /// Everybody.
    pub fn all() -> impl Iterator<Item = Self> {
        let (etcds, coordinators) = (0..ETCDS, 0..COORDINATORS);
        etcds.map(Self::Etcd).chain(coordinators.map(Self::Coordinator)).chain((0..WORKERS).map(Self::Worker))
    }

    /// Its number among all.
    pub fn number(self) -> usize {
        match self {
            Self::Etcd(index) => index,
            Self::Coordinator(index) => ETCDS + index,
            Self::Worker(index) => ETCDS + COORDINATORS + index,
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Etcd(index) => write!(f, "etcd-{index}"),
            Self::Coordinator(index) => write!(f, "coordinator-{index}"),
            Self::Worker(index) => write!(f, "worker-{index}"),
        }
    }
}

/// Whom a fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// This one.
    One(Who),
    /// The coordinator that owns a batch which is under way; if there is none, the one with this number.
    Owner(usize),
    /// The etcd node that leads; if nobody knows it, the one with this number.
    Leader(usize),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(who) => write!(f, "{who}"),
            Self::Owner(_) => write!(f, "the owner"),
            Self::Leader(_) => write!(f, "the etcd leader"),
        }
    }
}

/// Which disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The one with the library and what is staged.
    Library,
    /// The coordinators' object storage.
    Objects,
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL, and a new start after the time.
    Kill(Target),
    /// SIGSTOP, and SIGCONT after the time.
    Pause(Target),
    /// SIGKILL to all of these at once, and a new start after the time.
    Blackout(Vec<Who>),
    /// SIGSTOP to all of these at once, and SIGCONT after the time: as a machine that is suspended.
    Freeze(Vec<Who>),
    /// SIGSTOP and SIGCONT again and again, for the time: a process that is starved, not gone.
    Stutter(Target),
    /// SIGTERM to a coordinator or a worker, and a new start after it ended and the time passed.
    Leave(Target),
    /// No packet goes from any of these to any of those; and none back, if it is `both` ways.
    Partition {
        /// These.
        from: Vec<Who>,
        /// Those.
        to: Vec<Who>,
        /// Back too.
        both: bool,
    },
    /// etcd forgets its history, and one node, if any, is defragmented.
    Compact(Option<usize>),
    /// etcd has no space: it takes no writes. `true`: its quota is really used up.
    NoSpace(bool),
    /// A disk is full.
    DiskFull(Full),
}

impl Fault {
    /// Its kind's name, as `--faults` takes it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Kill(_) => "kill",
            Self::Pause(_) => "pause",
            Self::Blackout(_) => "blackout",
            Self::Freeze(_) => "freeze",
            Self::Stutter(_) => "stutter",
            Self::Leave(_) => "leave",
            Self::Partition { .. } => "partition",
            Self::Compact(_) => "compact",
            Self::NoSpace(_) => "nospace",
            Self::DiskFull(_) => "diskfull",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |all: &[Who]| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        match self {
            Self::Kill(target) => write!(f, "kill {target}"),
            Self::Pause(target) => write!(f, "pause {target}"),
            Self::Blackout(all) => write!(f, "kill {}", names(all)),
            Self::Freeze(all) => write!(f, "pause {}", names(all)),
            Self::Stutter(target) => write!(f, "starve {target}"),
            Self::Leave(target) => write!(f, "ask {target} to leave"),
            Self::Partition { from, to, both } => {
                let arrow = if *both { "|" } else { "|>" };
                write!(f, "partition {} {arrow} {}", names(from), names(to))
            }
            Self::Compact(None) => write!(f, "compact etcd"),
            Self::Compact(Some(node)) => write!(f, "compact etcd, defragment etcd-{node}"),
            Self::NoSpace(false) => write!(f, "NOSPACE alarm"),
            Self::NoSpace(true) => write!(f, "fill etcd's quota"),
            Self::DiskFull(Full::Library) => write!(f, "fill the library's disk"),
            Self::DiskFull(Full::Objects) => write!(f, "fill the objects' disk"),
        }
    }
}

/// When a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// At once.
    Now,
    /// Right after the next decision to commit, or at once if none comes soon.
    Committing,
    /// Right after the next decision to roll back, or at once if none comes soon.
    RollingBack,
}

/// A fault and its time.
#[derive(Clone, Debug)]
pub struct Planned {
    /// How long after the one before.
    pub after: Duration,
    /// When.
    pub moment: Moment,
    /// What.
    pub fault: Fault,
    /// How long.
    pub lasts: Duration,
}

/// The faults' mean distance.
const DISTANCE_MS: f64 = 380.0;
/// How often each kind comes.
const WEIGHTS: [(&str, u32); 10] = [
    ("kill", 30),
    ("pause", 22),
    ("blackout", 4),
    ("freeze", 4),
    ("stutter", 6),
    ("leave", 24),
    ("partition", 22),
    ("compact", 7),
    ("nospace", 3),
    ("diskfull", 5),
];

/// Names of the kinds of faults.
pub fn kinds() -> impl Iterator<Item = &'static str> {
    WEIGHTS.iter().map(|(kind, _)| *kind)
}

/// A round's faults: an endless plan, of which a round carries out what fits into its time.
#[derive(Debug)]
pub struct Faults {
    random: StdRng,
    kinds: Vec<(&'static str, u32)>,
    /// The first one's kind.
    first: Option<&'static str>,
}

impl Faults {
    /// The plan of this round, of these kinds only. The first fault's kind goes through all kinds, round by
    /// round, so that also a short run has each.
    pub fn new(seed: u64, round: u64, wanted: impl Fn(&str) -> bool) -> Self {
        let kinds: Vec<_> = WEIGHTS.iter().filter(|(kind, _)| wanted(kind)).copied().collect();
        let first = kinds.get(round as usize % kinds.len().max(1)).map(|(kind, _)| *kind);
        Self { random: random(seed, "faults", round), kinds, first }
    }

    fn any(&mut self, of: usize) -> usize {
        self.random.random_range(0..of)
    }

    fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.random.random_range(range))
    }

    /// A process: mostly those that are ours.
    fn target(&mut self) -> Target {
        match self.random.random_range(0..100) {
            0..30 => Target::One(Who::Worker(self.any(WORKERS))),
            30..50 => Target::One(Who::Coordinator(self.any(COORDINATORS))),
            50..75 => Target::Owner(self.any(COORDINATORS)),
            75..88 => Target::One(Who::Etcd(self.any(ETCDS))),
            _ => Target::Leader(self.any(ETCDS)),
        }
    }

    /// Several members: one kind, some of everything, or all.
    fn group(&mut self) -> Vec<Who> {
        let kind = self.any(5);
        let all: Vec<Who> = Who::all().collect();
        let some = |wanted: fn(&Who) -> bool| all.iter().copied().filter(wanted).collect();
        match kind {
            0 => some(|who| matches!(who, Who::Etcd(_))),
            1 => some(|who| matches!(who, Who::Coordinator(_))),
            2 => some(|who| matches!(who, Who::Worker(_))),
            3 => all.clone(),
            _ => {
                let mut part: Vec<Who> = all.clone().into_iter().choose_multiple(&mut self.random, 4);
                part.sort();
                part
            }
        }
    }

    fn partition(&mut self) -> Fault {
        let both = self.random.random_bool(0.7);
        let etcds: Vec<_> = (0..ETCDS).map(Who::Etcd).collect();
        let coordinators: Vec<_> = (0..COORDINATORS).map(Who::Coordinator).collect();
        let workers: Vec<_> = (0..WORKERS).map(Who::Worker).collect();
        let coordinator = vec![Who::Coordinator(self.any(COORDINATORS))];
        let worker = vec![Who::Worker(self.any(WORKERS))];
        let etcd = vec![Who::Etcd(self.any(ETCDS))];
        let others =
            |all: &[Who], but: &[Who]| all.iter().copied().filter(|who| !but.contains(who)).collect();
        let (from, to) = match self.any(9) {
            0 | 1 => (coordinator, etcds),
            2 => (coordinator, etcd),
            3 => (coordinator, workers),
            4 => {
                let rest = others(&coordinators, &coordinator);
                (coordinator, rest)
            }
            5 => (worker, coordinators),
            6 => (worker, coordinator),
            7 => {
                let rest = others(&etcds, &etcd);
                (etcd, rest)
            }
            _ => {
                // Cut off from all the world.
                let rest = others(&Who::all().collect::<Vec<_>>(), &coordinator);
                (coordinator, rest)
            }
        };
        let turn = self.random.random_bool(0.5);
        let (from, to) = if turn { (to, from) } else { (from, to) };
        Fault::Partition { from, to, both }
    }
}

impl Iterator for Faults {
    type Item = Planned;

    fn next(&mut self) -> Option<Planned> {
        let uniform: f64 = self.random.random_range(f64::EPSILON..1.0);
        let after = Duration::from_millis((-uniform.ln() * DISTANCE_MS) as u64);
        let drawn = self.kinds.choose_weighted(&mut self.random, |(_, weight)| *weight).ok()?.0;
        let kind = self.first.take().unwrap_or(drawn);
        let moment = match self.random.random_range(0..10) {
            0..4 => Moment::Now,
            4..7 => Moment::Committing,
            _ => Moment::RollingBack,
        };
        let (fault, lasts) = match kind {
            "kill" => (Fault::Kill(self.target()), self.millis(100..2_500)),
            // The sessions live 2 s, the leases 3 s.
            "pause" => (Fault::Pause(self.target()), self.millis(2_500..7_500)),
            "blackout" => (Fault::Blackout(self.group()), self.millis(100..2_000)),
            "freeze" => (Fault::Freeze(self.group()), self.millis(2_000..6_000)),
            "stutter" => (Fault::Stutter(self.target()), self.millis(1_000..4_000)),
            "leave" => {
                let coordinator = Target::One(Who::Coordinator(self.any(COORDINATORS)));
                let worker = Target::One(Who::Worker(self.any(WORKERS)));
                let owner = Target::Owner(self.any(COORDINATORS));
                let target = *[coordinator, worker, owner].choose(&mut self.random)?;
                (Fault::Leave(target), self.millis(50..1_500))
            }
            "partition" => (self.partition(), self.millis(1_000..6_000)),
            "compact" => {
                let node = self.random.random_bool(0.5).then(|| self.any(ETCDS));
                (Fault::Compact(node), Duration::ZERO)
            }
            "nospace" => (Fault::NoSpace(self.random.random_bool(0.3)), self.millis(500..3_000)),
            _ => {
                let disk = if self.random.random_bool(0.6) { Full::Library } else { Full::Objects };
                (Fault::DiskFull(disk), self.millis(500..4_000))
            }
        };
        Some(Planned { after, moment, fault, lasts })
    }
}

/// What is wrong with a task's source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The file isn't there.
    Missing,
    /// The checksum that the task names is another.
    Checksum,
    /// The size that the task names is another.
    Size,
    /// Its key would leave the library.
    Key,
}

impl Broken {
    /// The failure's code.
    pub fn code(self) -> &'static str {
        match self {
            Self::Missing => "NOT_FOUND",
            Self::Checksum => "CHECKSUM_MISMATCH",
            Self::Size => "SIZE_MISMATCH",
            Self::Key => "INVALID_KEY",
        }
    }
}

/// What is done with a batch that is HELD.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    /// What can be mended is mended, and the failed tasks are retried.
    pub retry: bool,
    /// It is approved; otherwise it is cancelled.
    pub approve: bool,
    /// How long it is left so.
    pub lasts: Duration,
}

/// What a batch is like, and what its client does.
#[derive(Clone, Debug)]
pub struct BatchPlan {
    /// On the small disk in memory, or the machine's own.
    pub small_disk: bool,
    /// How many tasks.
    pub tasks: usize,
    /// The most tasks of a lease.
    pub range: i32,
    /// Which tasks are broken, by index.
    pub broken: BTreeMap<usize, Broken>,
    /// The most tasks that may fail.
    pub limit: Option<i64>,
    /// It waits for approval.
    pub held: Option<Held>,
    /// It is cancelled after this time.
    pub cancel: Option<Duration>,
    /// It rolls back when it isn't decided by then.
    pub deadline: Option<Duration>,
    /// Keys that are in the library already fail.
    pub if_exists_fail: bool,
    /// The client that appends is given up after this time, and another goes on.
    pub resume: Option<Duration>,
    /// It is created twice, with the same request id.
    pub create_twice: bool,
    /// Its end is waited for by a watch; otherwise it is asked again and again, at any coordinator.
    pub watch: bool,
    /// Seed for sizes and contents of its files.
    pub contents: u64,
}

impl BatchPlan {
    /// The plan of a lane's batch with this number.
    pub fn new(seed: u64, lane: usize, number: u64) -> Self {
        let mut random = random(seed, &format!("lane {lane}"), number);
        let random = &mut random;
        let tasks =
            if random.random_bool(0.1) { random.random_range(1..20) } else { random.random_range(150..900) };
        let failing = if random.random_bool(0.6) { random.random_range(1..12).min(tasks) } else { 0 };
        let kinds = [Broken::Missing, Broken::Missing, Broken::Checksum, Broken::Size, Broken::Key];
        let indices = (0..tasks).choose_multiple(random, failing);
        let broken: BTreeMap<_, _> =
            indices.into_iter().map(|index| (index, *kinds.choose(random).expect("some"))).collect();
        let limit = random.random_bool(0.25).then(|| {
            let failing = super::files::count(failing);
            // Crossed just so, or just not.
            if random.random_bool(0.5) { (failing - 1).max(0) } else { failing }
        });
        let held = random.random_bool(0.25).then(|| Held {
            retry: random.random_bool(0.6),
            approve: random.random_bool(0.7),
            lasts: Duration::from_millis(random.random_range(0..2_500)),
        });
        Self {
            small_disk: random.random_bool(0.6),
            tasks,
            range: *[2, 3, 5, 8, 20, 60].choose(random).expect("some"),
            broken,
            limit,
            held,
            cancel: random.random_bool(0.3).then(|| Duration::from_millis(random.random_range(0..3_500))),
            deadline: random
                .random_bool(0.05)
                .then(|| Duration::from_millis(random.random_range(1_000..3_000))),
            if_exists_fail: random.random_bool(0.15),
            resume: random.random_bool(0.3).then(|| Duration::from_millis(random.random_range(5..400))),
            create_twice: random.random_bool(0.3),
            watch: random.random_bool(0.4),
            contents: random.random(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_always_gives_the_same_plan() {
        let plan = |seed| {
            let faults: Vec<_> = Faults::new(seed, 3, |_| true).take(200).map(|p| format!("{p:?}")).collect();
            let batches: Vec<_> = (0..50).map(|n| format!("{:?}", BatchPlan::new(seed, 1, n))).collect();
            (faults, batches)
        };
        assert_eq!(plan(7), plan(7));
        assert_ne!(plan(7), plan(8));
    }

    #[test]
    fn every_kind_of_fault_comes_and_only_the_wanted_ones() {
        for kind in kinds() {
            assert!(
                Faults::new(1, 0, |_| true).take(500).any(|planned| planned.fault.kind() == kind),
                "{kind}"
            );
            assert!(Faults::new(1, 0, |k| k == kind).take(50).all(|planned| planned.fault.kind() == kind));
        }
        assert_eq!(Faults::new(1, 0, |_| false).count(), 0);
    }

    #[test]
    fn a_partition_never_cuts_a_member_off_from_itself() {
        for planned in Faults::new(5, 0, |kind| kind == "partition").take(300) {
            let Fault::Partition { from, to, .. } = planned.fault else { panic!("only partitions") };
            assert!(!from.is_empty() && !to.is_empty() && from.iter().all(|who| !to.contains(who)));
        }
    }
}
