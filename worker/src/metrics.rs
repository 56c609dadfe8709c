//! What a worker counts, by lease, and what the ops port tells of it.

use crate::handler::HandlerError;
use crate::session::{Job, Outcome};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tranche_ops::prometheus_client::encoding::text::encode;
use tranche_ops::prometheus_client::metrics::counter::Counter;
use tranche_ops::prometheus_client::metrics::family::Family;
use tranche_ops::prometheus_client::metrics::histogram::Histogram;
use tranche_ops::prometheus_client::registry::{Registry, Unit};
use tranche_ops::{Operated, Reading, Readings, seconds};

type One = [(&'static str, &'static str); 1];
type Two = [(&'static str, &'static str); 2];

const PHASES: [&str; 5] = ["stage", "commit", "rollback", "publish", "sweep"];
const TASKS: [&str; 4] = ["staged", "failed", "committed", "rolled_back"];

/// What a worker counts, and how it is now.
#[derive(Debug)]
pub(crate) struct Metrics {
    leases: Family<Two, Counter>,
    seconds: Family<One, Histogram, fn() -> Histogram>,
    tasks: Family<One, Counter>,
    /// Lost attempts whose staged data was removed, or tried to.
    pub(crate) removals: Counter,
    slots: usize,
    running: AtomicUsize,
    streams: AtomicUsize,
    draining: AtomicBool,
}

impl Metrics {
    pub(crate) fn new(slots: usize) -> Self {
        let (leases, tasks) = (Family::<Two, Counter>::default(), Family::<One, Counter>::default());
        let times = Family::new_with_constructor(seconds as fn() -> Histogram);
        for phase in PHASES {
            times.get_or_create_owned(&[("phase", phase)]);
            for result in ["done", "failed", "cancelled"] {
                leases.get_or_create_owned(&[("phase", phase), ("result", result)]);
            }
        }
        for outcome in TASKS {
            tasks.get_or_create_owned(&[("outcome", outcome)]);
        }
        Self {
            leases,
            seconds: times,
            tasks,
            removals: Counter::default(),
            slots,
            running: AtomicUsize::new(0),
            streams: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
        }
    }

    /// A lease's handler returned; `None`: it panicked.
    pub(crate) fn ran(&self, job: &Job, took: Duration, result: Option<&Result<Outcome, HandlerError>>) {
        let phase = job.work.phase();
        self.seconds.get_or_create(&[("phase", phase)]).observe(took.as_secs_f64());
        let name = match result {
            Some(Ok(_)) => "done",
            Some(Err(HandlerError::Cancelled)) => "cancelled",
            Some(Err(_)) | None => "failed",
        };
        self.leases.get_or_create(&[("phase", phase), ("result", name)]).inc();
        let count = |outcome, tasks: u64| {
            self.tasks.get_or_create(&[("outcome", outcome)]).inc_by(tasks);
        };
        match result {
            Some(Ok(Outcome::Staged { done, failures, .. })) => {
                count("staged", *done);
                count("failed", failures.len() as u64);
            }
            Some(Ok(Outcome::Published(done))) => count("committed", *done),
            Some(Ok(Outcome::Done(done))) if phase == "commit" => count("committed", *done),
            Some(Ok(Outcome::Done(done))) if phase == "rollback" => count("rolled_back", *done),
            _ => {}
        }
    }

    /// How it is now.
    pub(crate) fn now(&self, running: usize, streams: usize, draining: bool) {
        self.running.store(running, Ordering::Relaxed);
        self.streams.store(streams, Ordering::Relaxed);
        self.draining.store(draining, Ordering::Relaxed);
    }

    fn readings(&self) -> Vec<Reading> {
        let gauge = |name, help, value: usize| Reading::gauge(name, help, None).is(value as f64);
        vec![
            gauge("worker_slots", "Leases that this worker works on at once", self.slots),
            gauge(
                "worker_running",
                "Leases, and removals of lost attempts, in work now",
                self.running.load(Ordering::Relaxed),
            ),
            gauge(
                "worker_streams",
                "Coordinators that have taken this worker in",
                self.streams.load(Ordering::Relaxed),
            ),
            gauge(
                "worker_ready",
                "1 if new work is taken here, as /readyz says",
                self.ready().is_ok().into(),
            ),
        ]
    }

    fn ready(&self) -> Result<(), String> {
        if self.draining.load(Ordering::Relaxed) {
            return Err("draining".to_owned());
        }
        if self.streams.load(Ordering::Relaxed) == 0 {
            return Err("no coordinator has taken this worker in".to_owned());
        }
        Ok(())
    }
}

/// What the ops port tells of a worker.
#[derive(Debug)]
pub struct Operator {
    metrics: std::sync::Arc<Metrics>,
    registry: Registry,
}

impl Operator {
    pub(crate) fn new(metrics: std::sync::Arc<Metrics>) -> Self {
        let mut registry = tranche_ops::registry("worker");
        let ours = registry.sub_registry_with_prefix("tranche");
        ours.register("worker_leases", "Leases worked on, by phase and result", metrics.leases.clone());
        ours.register_with_unit(
            "worker_lease",
            "Time that the handler took for a lease, by phase",
            Unit::Seconds,
            metrics.seconds.clone(),
        );
        ours.register(
            "worker_tasks",
            "Tasks by what the handler did with them; repeated work counts again",
            metrics.tasks.clone(),
        );
        ours.register(
            "worker_lost_attempts",
            "Attempts that were lost to this worker, and whose staged data it removed",
            metrics.removals.clone(),
        );
        let live = metrics.clone();
        ours.register_collector(Box::new(Readings(move || live.readings())));
        Self { metrics, registry }
    }
}

impl Operated for Operator {
    fn ready(&self) -> Result<(), String> {
        self.metrics.ready()
    }

    fn metrics(&self) -> String {
        let mut text = String::with_capacity(8 * 1024);
        // Writing into memory doesn't fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
