//! A batch at its owner, with a store that is always quick: every write is durable at once.

use std::time::Duration;
use tranche_engine::{
    Batch, Command, CommitMode, Decision, Epoch, Event, FailureLimit, Grant, Now, OpId, Outcome, Phase,
    Reason, Records, Report, Run, Runs, Segment, Settings, Spec, WorkerKey,
};

/// Workers that take turns.
const WORKERS: u64 = 16;
const BORN_MS: i64 = 1_700_000_000_000;
const NOW: Now = Now { at: Duration::from_secs(1000), wall_ms: BORN_MS };

/// One batch, whose ranges all have the same number of tasks.
#[derive(Debug)]
pub struct Owner {
    batch: Batch,
    ranges: u64,
    tasks: u64,
    workers: Vec<WorkerKey>,
}

impl Owner {
    /// An empty batch that will have `ranges` ranges of `tasks` tasks.
    pub fn new(ranges: u64, tasks: u64) -> Self {
        let spec = Spec {
            create_time_ms: BORN_MS,
            commit_mode: CommitMode::Auto,
            failure_limit: FailureLimit::default(),
            deadline: None,
            min_range: tasks,
            max_range: tasks,
            max_attempts: 3,
        };
        let settings = Settings {
            lease_ttl: Duration::from_secs(10),
            retry_pause: Duration::from_secs(1),
            retry_pause_max: Duration::from_secs(8),
            backup_after: Duration::from_hours(1),
            late_sweep_after: Duration::ZERO,
        };
        Self {
            batch: Batch::new(spec, Epoch(7), settings, Records::default(), NOW),
            ranges,
            tasks,
            workers: (0..WORKERS).map(|n| WorkerKey::new(format!("worker-{n}"), "1")).collect(),
        }
    }

    /// A batch whose tasks are all durable, and sealed.
    pub fn filled(ranges: u64, tasks: u64) -> Self {
        let mut owner = Self::new(ranges, tasks);
        let events = owner.segments();
        owner.take(events);
        owner.take(vec![Event::Seal { op: OpId(0), total: None }]);
        owner
    }

    /// A segment for each range.
    pub fn segments(&self) -> Vec<Event> {
        let segment = |n: u64| Segment {
            run: Run::new(n * self.tasks + 1, (n + 1) * self.tasks),
            object: "batches/default/b1/tasks-0123456789abcdef0123456789abcdef".into(),
            bytes: self.tasks * 16,
            crc32c: 7,
            offset: n * 4096,
        };
        (0..self.ranges).map(|n| Event::Appended { op: OpId(n), segment: segment(n) }).collect()
    }

    /// A request for each range.
    pub fn requests(&self) -> Vec<Event> {
        let worker = |n: u64| self.workers[(n % WORKERS) as usize].clone();
        (0..self.ranges).map(|n| Event::Request { worker: worker(n) }).collect()
    }

    /// Somebody cancels.
    pub fn cancel(&self) -> Vec<Event> {
        vec![Event::Decided(Decision {
            outcome: Outcome::Rollback,
            reason: Reason::Cancelled,
            actor: "ann".into(),
            message: String::new(),
            cutoff: self.batch.records().cutoff.cutoff,
            decide_time_ms: BORN_MS,
        })]
    }

    /// Works events in, until nothing is left to do.
    pub fn take(&mut self, events: Vec<Event>) -> Vec<Command> {
        for event in events {
            self.batch.push(event, NOW);
        }
        let mut all = Vec::new();
        loop {
            let step = self.batch.step(NOW);
            let wrote = step.write.is_some();
            let quiet = !wrote && step.commands.is_empty() && !self.batch.has_events();
            all.extend(step.commands);
            if wrote {
                all.extend(self.batch.written(NOW));
            }
            if quiet {
                return all;
            }
        }
    }

    /// Leases every range that can be leased.
    ///
    /// # Panics
    /// When some range gives no lease.
    pub fn lease_all(&mut self) -> Vec<Grant> {
        let events = self.requests();
        let grants = grants(self.take(events));
        assert_eq!(grants.len() as u64, self.ranges, "a lease for each range");
        grants
    }

    /// Whether all is committed.
    pub fn committed(&self) -> bool {
        self.batch.state().committed == self.ranges * self.tasks
    }
}

/// The leases among the commands.
pub fn grants(commands: Vec<Command>) -> Vec<Grant> {
    let grant = |command| if let Command::Grant(grant) = command { Some(grant) } else { None };
    commands.into_iter().filter_map(grant).collect()
}

/// All that was asked was done.
pub fn reports(grants: &[Grant]) -> Vec<Event> {
    grants.iter().map(|grant| Event::Report(report(grant))).collect()
}

fn report(grant: &Grant) -> Report {
    Report {
        worker: grant.worker.clone(),
        token: grant.token,
        phase: grant.phase,
        done: match grant.phase {
            Phase::Stage => grant.runs.count(),
            Phase::Commit => grant.attempts.iter().map(|attempt| attempt.runs.count()).sum(),
            Phase::Rollback | Phase::Publish | Phase::Sweep => 0,
        },
        failed: Runs::default(),
        failure_object: None,
        receipt: Vec::new(),
        error: None,
        published: grant.publish,
        residue: 0,
        elapsed: Duration::from_millis(100),
    }
}
