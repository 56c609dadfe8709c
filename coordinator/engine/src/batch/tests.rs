use super::{Batch, Settings, looks};
use crate::spec::{CommitMode, FailureLimit, Spec};
use crate::{
    Command, Decision, Epoch, Event, Grant, Now, OpId, Outcome, Phase, Reason, Records, Report, Run, Runs,
    Segment, State, WorkerKey,
};
use std::time::Duration;

/// Two leases a worker.
const WORKERS: u64 = 2_000;
const LEASES: u64 = 2 * WORKERS;

/// A batch of which every worker holds two leases of one task each.
struct Fleet {
    batch: Batch,
    workers: Vec<WorkerKey>,
    now: Now,
}

impl Fleet {
    fn new() -> Self {
        let spec = Spec {
            create_time_ms: 0,
            commit_mode: CommitMode::Auto,
            failure_limit: FailureLimit::default(),
            deadline: None,
            min_range: 1,
            max_range: 1,
            max_attempts: 3,
        };
        let settings = Settings {
            lease_ttl: Duration::from_secs(10),
            retry_pause: Duration::from_secs(1),
            retry_pause_max: Duration::from_secs(8),
            backup_after: Duration::from_hours(1),
            late_sweep_after: Duration::ZERO,
        };
        let now = Now { at: Duration::from_secs(1_000), wall_ms: 0 };
        let batch = Batch::new(spec, Epoch(7), settings, Records::default(), now);
        let workers = (1..=WORKERS).map(|n| WorkerKey::new(format!("worker-{n}"), "1")).collect();
        let mut fleet = Self { batch, workers, now };
        let run = Run::new(1, LEASES);
        let segment = Segment { run, object: "s".into(), offset: 0, bytes: 100 * LEASES, crc32c: 7 };
        fleet.push(Event::Appended { op: OpId(1), segment });
        fleet.push(Event::Seal { op: OpId(2), total: None });
        for _ in 0..2 {
            let requests = fleet.workers.iter().map(|worker| Event::Request { worker: worker.clone() });
            requests.collect::<Vec<_>>().into_iter().for_each(|request| fleet.push(request));
        }
        let leases = grants(&fleet.settle()).len();
        assert_eq!(leases as u64, LEASES);
        looks::taken();
        fleet
    }

    fn push(&mut self, event: Event) {
        self.batch.push(event, self.now);
    }

    /// Steps, with every write applied, until nothing is left to do.
    fn settle(&mut self) -> Vec<Command> {
        let mut all = Vec::new();
        loop {
            let step = self.batch.step(self.now);
            let idle = step.commands.is_empty() && step.write.is_none();
            all.extend(step.commands);
            if step.write.is_some() {
                all.extend(self.batch.written(self.now));
            } else if idle && !self.batch.has_events() {
                return all;
            }
        }
    }

    fn cancel(&mut self) -> Vec<Command> {
        self.push(Event::Decided(Decision {
            outcome: Outcome::Rollback,
            reason: Reason::Cancelled,
            actor: "ann".into(),
            message: String::new(),
            cutoff: LEASES,
            decide_time_ms: 0,
        }));
        self.settle()
    }
}

fn grants(commands: &[Command]) -> Vec<Grant> {
    let grant = |command: &Command| match command {
        Command::Grant(grant) => Some(grant.clone()),
        _ => None,
    };
    commands.iter().filter_map(grant).collect()
}

fn done(grant: Grant) -> Report {
    Report {
        worker: grant.worker,
        token: grant.token,
        phase: grant.phase,
        done: 0,
        failed: Runs::default(),
        failure_object: None,
        receipt: Vec::new(),
        error: None,
        published: false,
        residue: 0,
        elapsed: Duration::from_millis(10),
    }
}

#[test]
fn what_every_worker_says_after_a_cancel_costs_what_it_holds() {
    let mut fleet = Fleet::new();
    let told = fleet.cancel();
    assert!(told.contains(&Command::Broadcast { phase: Phase::Rollback }));
    // Once for each state and write; every lease once for its worker's word; nothing for each pair of both.
    let looked = looks::taken();
    assert!(looked as u64 <= LEASES, "{looked} looks to tell them");
    for worker in fleet.workers.clone() {
        fleet.push(Event::PhaseAck { worker });
    }
    fleet.settle();
    let looked = looks::taken();
    assert!(looked as u64 <= 2 * LEASES, "{looked} looks for {WORKERS} answers");
}

#[test]
fn every_worker_rolls_back_what_it_staged_and_finding_it_takes_no_search() {
    let mut fleet = Fleet::new();
    fleet.cancel();
    for worker in fleet.workers.clone() {
        fleet.push(Event::PhaseAck { worker });
    }
    fleet.settle();
    looks::taken();
    // From the queue's end: nobody's own are at its head.
    for worker in fleet.workers.clone().into_iter().rev().flat_map(|worker| [worker.clone(), worker]) {
        fleet.push(Event::Request { worker });
    }
    let leases = grants(&fleet.settle());
    assert_eq!(leases.len() as u64, LEASES);
    for lease in &leases {
        let index = (lease.run.first - 1) % WORKERS;
        assert_eq!(lease.worker, fleet.workers[usize::try_from(index).expect("small")], "of {:?}", lease.run);
    }
    let looked = looks::taken();
    assert!(looked as u64 <= 2 * LEASES, "{looked} looks for {LEASES} requests");
    for lease in leases {
        fleet.push(Event::Report(done(lease)));
    }
    fleet.settle();
    let looked = looks::taken();
    assert!(looked as u64 <= 2 * LEASES, "{looked} looks for {LEASES} reports");
    assert_eq!(fleet.batch.state().state, State::RollingBack, "the sweep is left");
    assert_eq!(fleet.batch.state().rolled_back, LEASES);
}
