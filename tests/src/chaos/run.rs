//! A run: rounds of faults and batches, and the checks after each.

use super::calls::Calls;
use super::inject::Injector;
use super::journal::{Counts, Journal};
use super::lane::{Lane, Round};
use super::options::Options;
use super::plan::{self, Faults};
use super::recorder::Recorder;
use super::sandbox::Sandbox;
use super::settled::Settled;
use super::system::{PREFIX, System};
use futures::future::join_all;
use rand::Rng as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Prefix of the run's folder; its process id follows.
const FOLDER: &str = "tranche-chaos-";
/// A folder with this file is never removed.
const KEPT: &str = "KEPT";
/// Batches under way at a time.
const LANES: usize = 4;
/// The most faults at a time.
const FAULTS: usize = 8;
/// How long a round's faults go on, in milliseconds.
const ROUND_MS: std::ops::Range<u64> = 6_000..12_000;
/// How long everything may take to end once faults have stopped (I9). Some hundred times what it takes on an
/// idle machine.
const SETTLING: Duration = Duration::from_mins(2);

/// What a run came to.
#[derive(Debug)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// How long it took, in minutes.
    pub minutes: f64,
    /// What was counted.
    pub counts: Counts,
    /// What must never be.
    pub violations: Vec<String>,
    /// The folder with logs and data, if it was kept.
    pub folder: Option<PathBuf>,
    /// How to run the same plan again.
    pub replay: String,
}

/// Runs chaos.
///
/// # Panics
/// When the machine doesn't let it: a program is missing, a folder can't be made.
pub async fn run(options: &Options, sandbox: &Sandbox) -> Report {
    remove_leftovers();
    let folder = std::env::temp_dir().join(format!("{FOLDER}{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder for the run");
    let journal = Arc::new(Journal::new(&folder));
    let replay = options.replay();
    journal.say(format!("seed {}, {} minutes; replay: {replay}", options.seed, options.minutes));
    journal.say(format!("in {sandbox}; logs in {}", folder.display()));
    let begun = Instant::now();
    let system = Arc::new(System::new(&folder, sandbox.is_own()));
    system.start().await;
    let recorder = Recorder::new(system.etcd.endpoints(), PREFIX);
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(recorder.clone().run(stop.clone()));
    let (supervised, told, until) = (system.clone(), journal.clone(), stop.clone());
    tasks.spawn(async move { supervised.supervise(&told, until).await });

    let lanes = (0..LANES).map(|index| Lane::new(index, options.seed, &system)).collect();
    let mut chaos = Chaos { options, sandbox, system, recorder, journal, lanes };
    let end = begun + Duration::from_secs_f64(options.minutes * 60.0);
    chaos.ready().await;
    let mut number = 0;
    while chaos.journal.violations().is_empty() && Instant::now() < end {
        chaos.round(number, end).await;
        number += 1;
    }
    stop.cancel();
    while let Some(task) = tasks.join_next().await {
        task.expect("a task that doesn't panic");
    }
    let Chaos { system, journal, .. } = chaos;
    system.stop(&journal).await;
    for panic in panics(&system.logs) {
        journal.violation(panic);
    }
    drop(system);
    let (violations, counts) = (journal.violations(), journal.counts().clone());
    let keep = options.keep || !violations.is_empty();
    if keep {
        std::fs::write(folder.join(KEPT), "remove this folder when you have read it\n").expect("a file");
        // Copies of what was built.
        let _ = std::fs::remove_dir_all(folder.join("bin"));
    } else {
        let _ = std::fs::remove_dir_all(&folder);
    }
    Report {
        seed: options.seed,
        minutes: begun.elapsed().as_secs_f64() / 60.0,
        counts,
        violations,
        folder: keep.then_some(folder),
        replay,
    }
}

struct Chaos<'a> {
    options: &'a Options,
    sandbox: &'a Sandbox,
    system: Arc<System>,
    recorder: Arc<Recorder>,
    journal: Arc<Journal>,
    lanes: Vec<Lane>,
}

impl Chaos<'_> {
    async fn round(&mut self, number: u64, end: Instant) {
        let last = CancellationToken::new();
        let overdue = CancellationToken::new();
        let seed = self.options.seed.wrapping_add(number);
        let calls = Arc::new(Calls::new(self.system.urls(), seed, self.journal.clone(), overdue.clone()));
        let round = Round {
            calls: calls.clone(),
            journal: self.journal.clone(),
            last: last.clone(),
            overdue: overdue.clone(),
        };
        self.journal.note(format!("---- round {number}"));
        let before = self.journal.counts().clone();
        let mut lanes = std::mem::take(&mut self.lanes);
        let over = CancellationToken::new();
        let batches = join_all(lanes.iter_mut().map(|lane| lane.run(&round)));
        let troubles = async {
            let injector = self.faults(number, end).await;
            last.cancel();
            let stop = over.clone();
            let operator = tokio::spawn(async move { injector.operate(stop).await });
            let late = tokio::spawn(async move {
                sleep(SETTLING).await;
                overdue.cancel();
            });
            let healed = Instant::now();
            self.ready().await;
            (healed, late, operator)
        };
        let (ended, (healed, late, operator)) = tokio::join!(batches, troubles);
        late.abort();
        self.lanes = lanes;
        let ended = ended.concat();
        let settled = healed.elapsed();
        {
            let mut counts = self.journal.counts();
            counts.longest_settling = counts.longest_settling.max(settled);
            let (kills, pauses) = (counts.kills - before.kills, counts.pauses - before.pauses);
            let partitions = counts.partitions - before.partitions;
            let batches = counts.batches - before.batches;
            drop(counts);
            self.journal.say(format!(
                "round {number}: {batches} batches, {kills} kills, {pauses} pauses, {partitions} partitions; \
                 all ended {:.1} s after the last fault",
                settled.as_secs_f64()
            ));
        }
        if self.journal.violations().is_empty() {
            let settled = Settled {
                system: &self.system,
                recorder: &self.recorder,
                journal: &self.journal,
                calls: &calls,
                lanes: &self.lanes,
                ended: &ended,
            };
            settled.check().await;
            settled.tidy().await;
        }
        over.cancel();
        operator.await.expect("an operator who doesn't panic");
    }

    /// Lets faults strike for a while, then heals all. Returns who looks after etcd then.
    async fn faults(&self, round: u64, end: Instant) -> Arc<Injector> {
        let own = self.sandbox.is_own();
        let needs_own = |kind: &str| matches!(kind, "partition" | "diskfull");
        let wanted = |kind: &str| self.options.faults.contains(kind) && (own || !needs_own(kind));
        let mut random = plan::random(self.options.seed, "round", round);
        let length = Duration::from_millis(random.random_range(ROUND_MS));
        let over = (Instant::now() + length).min(end);
        let injector = Arc::new(Injector {
            system: self.system.clone(),
            recorder: self.recorder.clone(),
            journal: self.journal.clone(),
            heal: CancellationToken::new(),
            alarm: Mutex::default(),
            disks: Default::default(),
        });
        let mut striking = JoinSet::new();
        for planned in Faults::new(self.options.seed, round, wanted) {
            if Instant::now() + planned.after >= over {
                break;
            }
            sleep(planned.after).await;
            while striking.try_join_next().is_some() {}
            if striking.len() < FAULTS {
                striking.spawn(injector.clone().strike(planned));
            }
        }
        tokio::time::sleep_until(over).await;
        self.journal.note("faults end");
        injector.heal.cancel();
        while let Some(strike) = striking.join_next().await {
            strike.expect("a fault that doesn't panic");
        }
        self.journal.note("all faults are taken back");
        injector
    }

    /// Waits until everybody serves again.
    async fn ready(&self) {
        let all = async {
            while let Err(error) = self.system.all_ready().await {
                self.journal.note(error.lines().next().unwrap_or_default());
                sleep(Duration::from_secs(1)).await;
            }
        };
        if timeout(SETTLING, all).await.is_err() {
            self.journal.violation(format!("I9: not everybody serves within {SETTLING:?}"));
        }
    }
}

/// Lines of logs where a thread panicked.
fn panics(logs: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(logs).expect("the logs").flatten() {
        let text = std::fs::read(entry.path()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let name = entry.file_name().to_string_lossy().into_owned();
        found
            .extend(text.lines().filter(|l| l.contains("panicked at")).map(|line| format!("{name}: {line}")));
    }
    found
}

/// Removes the folders of runs that were killed.
fn remove_leftovers() {
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.strip_prefix(FOLDER).and_then(|pid| pid.parse::<u32>().ok()) else { continue };
        let alive = Path::new(&format!("/proc/{pid}")).exists();
        if !alive && !entry.path().join(KEPT).exists() {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
