//! What happened: a log with times, the counts for the table, the violations.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tranche_client::v1::batch::State;

/// What a run counts.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// How often each kind of fault struck while a batch was in each state.
    pub struck: BTreeMap<(&'static str, State), u64>,
    /// Batches that ended.
    pub batches: u64,
    /// Of these, COMMITTED.
    pub committed: u64,
    /// Of these, ROLLED_BACK.
    pub rolled_back: u64,
    /// Tasks of the batches that ended.
    pub tasks: u64,
    /// Processes killed (SIGKILL): etcd nodes, coordinators, workers.
    pub kills: u64,
    /// Processes stopped beyond their time to live, and continued.
    pub pauses: u64,
    /// Processes that were starved.
    pub stutters: u64,
    /// Partitions that were made and healed.
    pub partitions: u64,
    /// Kills of the etcd node that led. They count as kills too.
    pub leader_kills: u64,
    /// Compactions of etcd at its head.
    pub compactions: u64,
    /// NOSPACE alarms.
    pub alarms: u64,
    /// Disks that were full.
    pub disk_fulls: u64,
    /// Coordinators asked to leave (SIGTERM).
    pub hand_overs: u64,
    /// Workers asked to leave (SIGTERM).
    pub drains: u64,
    /// Cancels that were sent.
    pub cancels: u64,
    /// Retries of failed tasks.
    pub retries: u64,
    /// Appends given up by one client and taken up by another.
    pub resumes: u64,
    /// Batches whose whole history in etcd was checked.
    pub histories: u64,
    /// The most memory that a coordinator had, in bytes.
    pub coordinator_memory: u64,
    /// The most memory that a worker had, in bytes.
    pub worker_memory: u64,
    /// The longest that a round's batches took to end after the faults had stopped.
    pub longest_settling: Duration,
}

/// The log, the counts and the violations of a run.
#[derive(Debug)]
pub struct Journal {
    file: Mutex<File>,
    counts: Mutex<Counts>,
    violations: Mutex<Vec<String>>,
}

impl Journal {
    /// A journal in `events.log` of this folder.
    pub fn new(folder: &Path) -> Self {
        let file = File::create(folder.join("events.log")).expect("a log");
        Self { file: Mutex::new(file), counts: Mutex::default(), violations: Mutex::default() }
    }

    /// Writes a line, with the time of day in UTC as the programs' logs have it.
    pub fn note(&self, line: impl AsRef<str>) {
        let line = format!("{} {}\n", time_of_day(), line.as_ref());
        let mut file = self.file.lock().expect("not poisoned");
        file.write_all(line.as_bytes()).expect("a log that can be written");
    }

    /// Writes a line, also to standard error.
    pub fn say(&self, line: impl AsRef<str>) {
        self.note(&line);
        eprintln!("chaos: {}", line.as_ref());
    }

    /// Something that must never be.
    pub fn violation(&self, what: impl Into<String>) {
        let what = what.into();
        self.say(format!("VIOLATION: {what}"));
        self.violations.lock().expect("not poisoned").push(what);
    }

    /// The violations so far.
    pub fn violations(&self) -> Vec<String> {
        self.violations.lock().expect("not poisoned").clone()
    }

    /// The counts, to add to.
    pub fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().expect("not poisoned")
    }
}

fn time_of_day() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (seconds, millis) = (since.as_secs() % 86_400, since.subsec_millis());
    format!("{:02}:{:02}:{:02}.{millis:03}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}
