//! What is looked at when somebody asks: nothing is kept beside what is there, so nothing can drift.

use super::disk::Disk;
use crate::dispatch::Figures;
use crate::node::Shared;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tranche_engine::State;
use tranche_ops::Reading;
use tranche_ops::prometheus_client::registry::Unit;
use tranche_proto::v1::batch::State as Told;

/// The most handlers that have figures of their own. The rest counts under [`REST`]: workers name their handlers,
/// and labels must stay few whatever they say.
const HANDLERS: usize = 64;
const REST: &str = "_other";
/// The same of namespaces: those with the most batches.
const NAMESPACES: usize = 64;

const STATES: [State; 6] = [
    State::Importing,
    State::Held,
    State::Committing,
    State::RollingBack,
    State::Committed,
    State::RolledBack,
];

/// A state's name among the labels.
pub(super) fn state_name(state: State) -> &'static str {
    match state {
        State::Importing => "importing",
        State::Held => "held",
        State::Committing => "committing",
        State::RollingBack => "rolling_back",
        State::Committed => "committed",
        State::RolledBack => "rolled_back",
    }
}

/// Whether the coordinator takes work now: what the health service says, too.
pub(super) fn ready(shared: &Shared, shutdown: &CancellationToken) -> Result<(), String> {
    if shutdown.is_cancelled() {
        return Err("draining".to_owned());
    }
    shared.ready().map_err(|error| error.to_string())
}

#[derive(Default)]
struct Owned {
    count: u64,
    stall: Duration,
}

#[derive(Clone, Copy, Default)]
struct Handler {
    workers: usize,
    waiting: usize,
    backlog: usize,
    tasks: u64,
    stranded: u64,
}

impl Handler {
    fn add(&mut self, other: Self) {
        self.workers += other.workers;
        self.waiting += other.waiting;
        self.backlog += other.backlog;
        self.tasks += other.tasks;
        self.stranded += other.stranded;
    }
}

/// All figures.
pub(super) fn readings(shared: &Shared, disks: &[Disk], shutdown: &CancellationToken) -> Vec<Reading> {
    let mut owned: BTreeMap<&str, Owned> = STATES.map(|state| (state_name(state), Owned::default())).into();
    let mut handlers: BTreeMap<String, Handler> = BTreeMap::new();
    let mut leases = 0;
    let figures = shared.dispatch.figures();
    for (key, handle) in shared.handles() {
        let view = handle.view().borrow().clone();
        let state = match view.state.state() {
            Told::Importing | Told::Unspecified => State::Importing,
            Told::Held => State::Held,
            Told::Committing => State::Committing,
            Told::RollingBack => State::RollingBack,
            Told::Committed => State::Committed,
            Told::RolledBack => State::RolledBack,
        };
        let of = owned.entry(state_name(state)).or_default();
        of.count += 1;
        of.stall = of.stall.max(handle.stalled(shared.origin.elapsed()));
        leases += u64::from(view.live.leases);
        if state == State::Importing {
            let target = view.spec.batch.as_ref().and_then(|batch| batch.targets.first());
            let left = view.state.total - view.state.staged - view.state.failed;
            let name = target.map_or_else(String::new, |target| target.handler.clone());
            let tasks = left.max(0).cast_unsigned();
            let served = figures.handlers.get(&name).is_some_and(|of| of.serves.namespace(&key.namespace));
            let of = handlers.entry(name).or_default();
            of.tasks += tasks;
            of.stranded += if served { 0 } else { tasks };
        }
    }
    for (name, of) in &figures.handlers {
        let (workers, waiting, backlog) = (of.workers, of.waiting, of.backlog);
        handlers.entry(name.clone()).or_default().add(Handler {
            workers,
            waiting,
            backlog,
            tasks: 0,
            stranded: 0,
        });
    }
    let mut all = batches(&owned, leases);
    all.extend(by_handler(&few(handlers, &shared.config.handlers)));
    all.extend(workers(&figures));
    all.extend(by_namespace(shared.bytes.usage()));
    all.extend(whole(shared, disks, shutdown));
    all
}

/// Not more than [`HANDLERS`], and [`REST`]: the configured ones first.
fn few(all: BTreeMap<String, Handler>, configured: &[String]) -> BTreeMap<String, Handler> {
    let mut few: BTreeMap<String, Handler> =
        configured.iter().take(HANDLERS).map(|name| (name.clone(), Handler::default())).collect();
    for (name, handler) in all {
        let name = if few.contains_key(&name) || few.len() < HANDLERS { name } else { REST.to_owned() };
        few.entry(name).or_default().add(handler);
    }
    few
}

fn batches(owned: &BTreeMap<&str, Owned>, leases: u64) -> Vec<Reading> {
    let mut count = Reading::gauge(
        "batches",
        "Batches that are owned here, by state; those that ended need no owner",
        None,
    );
    let mut stall = Reading::gauge(
        "batch_stall",
        "Time since the last progress of the batch owned here, of this state, that stands still the longest",
        Some(Unit::Seconds),
    );
    for (state, of) in owned {
        let labels = || vec![("state", (*state).to_owned())];
        count = count.with(labels(), of.count as f64);
        stall = stall.with(labels(), of.stall.as_secs_f64());
    }
    let leases = Reading::gauge("leases", "Leases out, of batches owned here", None).is(leases as f64);
    vec![count, stall, leases]
}

fn by_handler(handlers: &BTreeMap<String, Handler>) -> Vec<Reading> {
    type Value = fn(&Handler) -> f64;
    let metrics: [(_, _, Value); 5] = [
        (
            "backlog_tasks",
            "Tasks appended to batches owned here, neither staged nor failed yet, by handler",
            |of| of.tasks as f64,
        ),
        (
            "stranded_tasks",
            "Those of the backlog's tasks for which no worker of their handler and namespace is attached here, by handler",
            |of| of.stranded as f64,
        ),
        ("backlog_leases", "Leases that batches owned here could give now, by handler", |of| {
            of.backlog as f64
        }),
        ("handler_workers", "Workers attached here, by handler", |of| of.workers as f64),
        (
            "waiting_workers",
            "Workers attached here with free credit, waiting for a lease, by handler",
            |of| of.waiting as f64,
        ),
    ];
    let reading = |(name, help, value): (_, _, Value)| {
        let labelled = |reading: Reading, (handler, of): (&String, &Handler)| {
            reading.with(vec![("handler", handler.clone())], value(of))
        };
        handlers.iter().fold(Reading::gauge(name, help, None), labelled)
    };
    metrics.map(reading).to_vec()
}

/// Not under the label `namespace`, which is that of Kubernetes wherever it scrapes.
fn by_namespace(mut usage: Vec<(String, usize, u64)>) -> Vec<Reading> {
    usage.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    if usage.len() > NAMESPACES {
        let rest = usage.split_off(NAMESPACES);
        let sum = |(batches, bytes), (_, more, size): &(String, usize, u64)| (batches + more, bytes + size);
        let (batches, bytes) = rest.iter().fold((0, 0), sum);
        usage.push((REST.to_owned(), batches, bytes));
    }
    let mut count = Reading::gauge(
        "namespace_batches",
        "Batches owned here, by namespace; the sum over all coordinators is what max_batches_per_namespace limits",
        None,
    );
    let mut size = Reading::gauge(
        "namespace_tasks",
        "Durable bytes of the tasks of batches owned here, by namespace; the sum over all coordinators is what max_bytes_per_namespace limits",
        Some(Unit::Bytes),
    );
    for (namespace, batches, bytes) in usage {
        let labels = || vec![("batch_namespace", namespace.clone())];
        count = count.with(labels(), batches as f64);
        size = size.with(labels(), bytes as f64);
    }
    vec![count, size]
}

fn workers(figures: &Figures) -> Vec<Reading> {
    let gauge = |name, help, value: usize| Reading::gauge(name, help, None).is(value as f64);
    vec![
        gauge("attached_workers", "Workers attached here", figures.workers),
        gauge("attached_slots", "Leases that the workers attached here work on at once", figures.slots),
        gauge("credit_leases", "Leases that the workers attached here would take now", figures.credit),
        gauge(
            "attached_leases",
            "Leases given from here that the workers attached here hold",
            figures.leases,
        ),
    ]
}

fn whole(shared: &Shared, disks: &[Disk], shutdown: &CancellationToken) -> Vec<Reading> {
    let gauge = |name, help, value: f64| Reading::gauge(name, help, None).is(value);
    let config = &shared.config;
    let free = shared.append_bytes.available_permits();
    let inflight = config.max_append_inflight_bytes.saturating_sub(free) as f64;
    let mut all = vec![
        gauge(
            "coordinator_ready",
            "1 if new work is taken here, as /readyz says",
            ready(shared, shutdown).is_ok().into(),
        ),
        gauge("store_up", "1 if a session with the store lives", shared.ready().is_ok().into()),
        gauge(
            "coordinators",
            "Coordinators that are registered in the store, as seen from here",
            shared.members.list().borrow().len() as f64,
        ),
        gauge("watchers", "WatchBatch streams open here", shared.watchers.count() as f64),
        gauge("watchers_limit", "The most WatchBatch streams at once", config.max_watchers as f64),
        gauge("append_streams", "AppendTasks streams open here", shared.appenders.count() as f64),
        gauge(
            "append_streams_limit",
            "The most AppendTasks streams at once",
            config.max_append_streams as f64,
        ),
        gauge(
            "namespace_batches_limit",
            "The most batches of a namespace that haven't ended, 0: any number",
            config.max_batches_per_namespace as f64,
        ),
        Reading::gauge(
            "namespace_tasks_limit",
            "The most bytes of tasks in batches of a namespace that haven't ended, 0: any number",
            Some(Unit::Bytes),
        )
        .is(config.max_bytes_per_namespace as f64),
        gauge("attach_streams", "Streams of workers open here", shared.workers.count() as f64),
        gauge("attach_streams_limit", "The most streams of workers at once", config.max_workers as f64),
        Reading::gauge("append_inflight", "Bytes of tasks not durable yet", Some(Unit::Bytes)).is(inflight),
    ];
    let bytes = |name, help| Reading::gauge(name, help, Some(Unit::Bytes));
    let (mut free, mut size) = (
        bytes("disk_free", "Bytes free for us on the file system of the task segments, or of the store"),
        bytes("disk_size", "All bytes of that file system"),
    );
    for disk in disks {
        let labels = || vec![("place", disk.place.to_owned())];
        if let Some((left, of)) = disk.last() {
            free = free.with(labels(), left as f64);
            size = size.with(labels(), of as f64);
        }
    }
    all.extend([free, size]);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_have_figures_of_their_own_up_to_a_number() {
        let text = |n: usize| {
            let usage = (0..n).map(|i| (format!("n{i:03}"), 1 + usize::from(i == n - 1), 7)).collect();
            format!("{:?}", by_namespace(usage))
        };
        assert!(!text(NAMESPACES).contains(REST));
        let told = text(NAMESPACES + 2);
        assert!(told.contains(REST) && told.contains("n065") && !told.contains("n064"), "{told}");
    }

    #[test]
    fn handlers_have_figures_of_their_own_up_to_a_number() {
        let names = |n: usize| -> BTreeMap<String, Handler> {
            (0..n).map(|i| (format!("h{i:03}"), Handler { workers: 1, ..Handler::default() })).collect()
        };
        let configured = vec!["zz".to_owned()];
        let told = few(names(HANDLERS - 1), &configured);
        assert_eq!((told.len(), told.contains_key(REST)), (HANDLERS, false));
        let told = few(names(HANDLERS + 9), &configured);
        assert_eq!((told.len(), told[REST].workers), (HANDLERS + 1, 10));
        assert!(told.contains_key("zz"), "the configured ones come first");
    }
}
