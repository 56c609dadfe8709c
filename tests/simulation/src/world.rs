//! What is outside of every process: time, the network, the store, the library, and the dice.
//!
//! One lock, never held while a host's code runs. Whatever a host does to the outside becomes an event at a
//! later time; events are worked off in the order of their times, so that a run depends on its seed alone.

use crate::check::Checker;
use crate::host::{HostId, Hosts};
use crate::library::Library;
use crate::net::Net;
use crate::stats::{Count, Stats};
use crate::store::Core;
use crate::trace::Trace;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// Virtual time since the run began.
pub(crate) type At = Duration;

type Action = Box<dyn FnOnce(&mut Inner) + Send>;

struct Event {
    at: At,
    number: u64,
    action: Action,
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
impl Eq for Event {}
impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Event {
    /// The earliest is the greatest: a heap gives it first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

/// What the conductor of the hosts is asked to do, since it alone has their runtimes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Loses the host at once; it starts again after the time.
    Crash(HostId, Duration),
    /// Asks its process to end; it starts again after the time.
    Leave(HostId, Duration),
    /// Stands still for the time.
    Pause(HostId, Duration),
    /// Stands still for the time; a little later it is lost.
    PauseCrash(HostId, Duration),
}

/// How likely what is that may happen to any call, frame or task. Shares of one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Knobs {
    /// A store call is refused.
    pub unavailable: f64,
    /// A transaction's answer is lost.
    pub answer_lost: f64,
    /// A watch lags.
    pub watch_lag: f64,
    /// A watch misses events.
    pub watch_missed: f64,
    /// A dial is refused.
    pub refuse: f64,
    /// A frame comes twice.
    pub twice: f64,
    /// A frame is late.
    pub late: f64,
    /// An object is read or written slowly.
    pub objects_slow: f64,
    /// The object storage is away.
    pub objects_away: f64,
    /// A handler's call fails as a whole.
    pub handler_error: f64,
    /// A write hangs.
    pub stuck: f64,
    /// A client's call or its answer is lost.
    pub call_lost: f64,
}

/// Everything outside of the processes.
pub(crate) struct Inner {
    me: Weak<Mutex<Inner>>,
    /// The time.
    pub now: At,
    /// The dice.
    pub rng: fastrand::Rng,
    events: BinaryHeap<Event>,
    next_event: u64,
    /// The hosts, as others see them.
    pub hosts: Hosts,
    /// The store.
    pub store: Core,
    /// The network between workers and coordinators.
    pub net: Net,
    /// Where the data goes.
    pub library: Library,
    /// The invariants.
    pub check: Checker,
    /// What happened how often.
    pub stats: Stats,
    /// What happened when.
    pub trace: Trace,
    /// How likely faults are now.
    pub knobs: Knobs,
    /// For the conductor.
    pub orders: Vec<Order>,
    /// Coordinators that can't reach the store, until when.
    pub cut_off: BTreeMap<HostId, At>,
    /// Clients that have seen their batches end, by their plans' numbers.
    pub done: std::collections::BTreeSet<usize>,
    /// Answers that never come: whoever waits for them waits on.
    pub never: Vec<Box<dyn std::any::Any + Send>>,
}

/// A handle on everything outside of the processes.
#[derive(Clone)]
pub(crate) struct World(Arc<Mutex<Inner>>);

impl World {
    /// A new world.
    pub(crate) fn new(seed: u64, trace: bool) -> Self {
        Self(Arc::new_cyclic(|me| {
            Mutex::new(Inner {
                me: me.clone(),
                now: At::ZERO,
                rng: fastrand::Rng::with_seed(seed),
                events: BinaryHeap::new(),
                next_event: 0,
                hosts: Hosts::default(),
                store: Core::default(),
                net: Net::default(),
                library: Library::default(),
                check: Checker::default(),
                stats: Stats::default(),
                trace: Trace::new(trace),
                knobs: Knobs::default(),
                orders: Vec::new(),
                cut_off: BTreeMap::new(),
                done: std::collections::BTreeSet::new(),
                never: Vec::new(),
            })
        }))
    }

    /// The world itself. Not to be held across a wait, nor while a host's code runs.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Something happens after a while.
    pub(crate) fn after(&mut self, pause: Duration, action: impl FnOnce(&mut Inner) + Send + 'static) {
        self.at(self.now + pause, action);
    }

    /// Something happens at a time.
    pub(crate) fn at(&mut self, at: At, action: impl FnOnce(&mut Inner) + Send + 'static) {
        self.next_event += 1;
        let number = self.next_event;
        self.events.push(Event { at: at.max(self.now), number, action: Box::new(action) });
    }

    /// Lets time pass.
    pub(crate) fn advance(&mut self, to: At) {
        while self.events.peek().is_some_and(|event| event.at <= to) {
            let Some(event) = self.events.pop() else { break };
            self.now = event.at;
            (event.action)(self);
        }
        self.now = to;
    }

    /// True with this likelihood. The dice aren't touched when it can't be.
    pub(crate) fn chance(&mut self, likelihood: f64) -> bool {
        likelihood > 0.0 && self.rng.f64() < likelihood
    }

    /// A time between two, in milliseconds.
    pub(crate) fn ms(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.rng.u64(from..=to))
    }

    /// Nothing happens any more. What is given back has handles on the world, and is to be dropped outside of
    /// its lock.
    pub(crate) fn end(&mut self) -> impl Sized + use<> {
        (std::mem::take(&mut self.events), std::mem::take(&mut self.never))
    }

    /// A handle on the world, for tasks; `None` when the run is over.
    pub(crate) fn world(&self) -> Option<World> {
        self.me.upgrade().map(World)
    }

    /// Counts something.
    pub(crate) fn count(&mut self, count: Count) {
        self.stats.add(count, 1);
    }

    /// Writes a line of the trace.
    pub(crate) fn say(&mut self, line: impl FnOnce() -> String) {
        let now = self.now;
        self.trace.say(now, line);
    }

    /// An invariant doesn't hold.
    pub(crate) fn violated(&mut self, text: String) {
        let now = self.now;
        self.trace.say(now, || format!("VIOLATED: {text}"));
        self.check.violated(now, text);
    }

    /// Whether a host can't reach the store now.
    pub(crate) fn is_cut_off(&self, host: HostId) -> bool {
        self.cut_off.get(&host).is_some_and(|until| *until > self.now)
    }
}
