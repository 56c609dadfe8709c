//! One run: makes the hosts that the seed says, lets faults happen, then none, and waits for the end.

use crate::client::Client;
use crate::faults;
use crate::handler::{self, SimHandler};
use crate::host::{Host, HostId, Kind, Life, wall};
use crate::objects::SimObjects;
use crate::plan::{self, Setup};
use crate::stats::{Count, Stats};
use crate::store::{CALL_TIMEOUT, SimStore};
use crate::transport::SimTransport;
use crate::world::{At, Order, World};
use object_store::memory::InMemory;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tranche_coordinator::config::{Config, StoreConfig};
use tranche_coordinator::manifest::Objects;
use tranche_coordinator::node::{Host as Machine, Node};
use tranche_proto::v1::batch::State;
use tranche_worker::Worker;

/// How far time goes on at once: nothing that hosts do to each other takes less.
const TICK: Duration = Duration::from_millis(10);
/// A host for which nothing came is wound at least so often.
const IDLE: Duration = Duration::from_millis(50);
/// The same, once all batches ended.
const QUIET: Duration = Duration::from_millis(100);
/// How long all may take to end once nothing fails any more: beyond every pause and limit of the code.
const END_WITHIN: Duration = Duration::from_secs(150);
/// How long is watched after the end, for what comes late.
const AFTERWARDS: Duration = Duration::from_millis(1500);

/// What a run is to do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Print what happens.
    pub trace: bool,
}

/// What a run brought.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its seed.
    pub seed: u64,
    /// The first violation, and when it was seen.
    pub violation: Option<(At, String)>,
    /// The hash of all that happened.
    pub digest: u64,
    /// How often things happened.
    pub stats: Stats,
    /// How long it was, in virtual time.
    pub virtual_time: At,
}

/// Runs one seed.
pub fn run(seed: u64, options: Options) -> Outcome {
    crate::panics::watch();
    // Jitter of pauses in the code that is run.
    fastrand::seed(seed);
    let mut rng = fastrand::Rng::with_seed(seed ^ 0x7261_6e63_6865);
    let setup = plan::setup(&mut rng);
    let mut conductor = Conductor::new(seed, setup, options);
    conductor.conduct();
    let outcome = conductor.finish();
    crate::panics::unwatch();
    outcome
}

struct Conductor {
    seed: u64,
    setup: Setup,
    world: World,
    hosts: Vec<Host>,
    clock: Arc<AtomicU64>,
    objects: Arc<InMemory>,
    healed: bool,
}

impl Conductor {
    fn new(seed: u64, setup: Setup, options: Options) -> Self {
        let world = World::new(seed, options.trace);
        let mut hosts = Vec::new();
        {
            let inner = &mut *world.lock();
            let names = (0..setup.coordinators)
                .map(|n| (Kind::Coordinator, format!("c{n}")))
                .chain((0..setup.workers.len()).map(|n| (Kind::Worker, format!("w{n}"))))
                .chain([(Kind::Clients, "clients".to_owned())]);
            for ((kind, name), (skew, rate)) in names.zip(setup.clocks.clone()) {
                inner.hosts.add(kind, name, skew);
                hosts.push(Host::new(kind, rate));
                inner.stats.add(Count::ClockSkew, u64::from(skew != 0));
            }
            let slow =
                setup.workers.iter().filter(|worker| worker.pace >= Duration::from_millis(100)).count();
            inner.stats.add(Count::SlowWorker, slow as u64);
            inner.library.plans.clone_from(&setup.batches);
            inner.knobs = setup.knobs;
            inner.check.rules(&setup);
            faults::plan(inner, &setup);
            inner.at(setup.faults_for, faults::stop);
            inner.say(|| format!("{setup:#?}"));
        }
        let objects = Arc::new(InMemory::new());
        Self { seed, setup, world, hosts, clock: Arc::default(), objects, healed: false }
    }

    fn conduct(&mut self) {
        let mut now = At::ZERO;
        let mut over: Option<At> = None;
        let limit = self.setup.faults_for + END_WITHIN;
        loop {
            let quiet = over.is_some() || self.healed && self.only_sweeps_left();
            now += if quiet { QUIET } else { TICK };
            self.clock.store(now.as_millis() as u64, Ordering::Relaxed);
            let orders = {
                let inner = &mut *self.world.lock();
                inner.advance(now);
                std::mem::take(&mut inner.orders)
            };
            for order in orders {
                self.carry_out(order, now);
            }
            if !self.healed && now >= self.setup.faults_for {
                self.heal(now);
            }
            self.start_those_due(now);
            self.wind(now);
            if let Some(panic) = crate::panics::take() {
                self.world.lock().violated(format!("panic: {panic}"));
            }
            if self.world.lock().check.violation.is_some() {
                return;
            }
            if over.is_none() && self.healed && self.is_over() {
                over = Some(now.max(self.world.lock().store.late_until) + AFTERWARDS);
            }
            if over.is_some_and(|at| now >= at) {
                if self.is_over() {
                    return;
                }
                // What came late began something anew.
                over = None;
            }
            if now >= limit {
                let text = self.what_is_open();
                self.world
                    .lock()
                    .violated(format!("I9 not all ended {END_WITHIN:?} after the last fault: {text}"));
                return;
            }
        }
    }

    fn carry_out(&mut self, order: Order, now: At) {
        match order {
            Order::Crash(id, pause) => {
                if self.hosts[id].up() {
                    self.world.lock().say(|| format!("host {id} crashes for {pause:?}"));
                    self.hosts[id].start_at = Some(now + pause);
                    self.lose(id);
                }
            }
            Order::Leave(id, pause) => {
                let host = &mut self.hosts[id];
                self.world.lock().say(|| format!("host {id} is asked to leave"));
                host.restart = pause;
                host.stop.cancel();
                self.world.lock().hosts.touch(id);
            }
            Order::PauseCrash(id, pause) => {
                self.carry_out(Order::Pause(id, pause), now);
                let inner = &mut *self.world.lock();
                let (a_little, down) = (inner.ms(10, 200), inner.ms(100, 1000));
                inner.after(pause + a_little, move |inner| inner.orders.push(Order::Crash(id, down)));
            }
            Order::Pause(id, pause) => {
                let host = &mut self.hosts[id];
                if host.up() && host.paused.is_none() {
                    self.world.lock().say(|| format!("host {id} stands still for {pause:?}"));
                    host.paused = Some(now + pause);
                }
            }
        }
    }

    /// Nothing of its memory survives.
    fn lose(&mut self, id: HostId) {
        let gone = {
            let inner = &mut *self.world.lock();
            inner.host_lost(id);
            if self.hosts[id].kind == Kind::Worker {
                inner.lose_unsynced(id);
            }
            let seen = inner.hosts.of_mut(id);
            seen.up = false;
            seen.ended = false;
            seen.handle = None;
            seen.node.take()
        };
        // Not under the lock: what is dropped here may hang up.
        self.hosts[id].lose();
        drop(gone);
    }

    /// Everything that stood still or was lost is back.
    fn heal(&mut self, now: At) {
        self.healed = true;
        for host in &mut self.hosts {
            if host.paused.is_some() {
                host.paused = Some(now);
            }
            if host.start_at.is_some() {
                host.start_at = Some(now);
            }
        }
    }

    fn start_those_due(&mut self, now: At) {
        for id in 0..self.hosts.len() {
            if self.world.lock().hosts.of(id).ended {
                self.world.lock().say(|| format!("host {id} ended"));
                let pause = if self.healed { Duration::ZERO } else { self.hosts[id].restart };
                self.hosts[id].start_at = Some(now + pause);
                self.lose(id);
            }
            if self.hosts[id].start_at.is_some_and(|at| at <= now) {
                self.boot(id, now);
            }
        }
    }

    fn boot(&mut self, id: HostId, now: At) {
        let handle = self.hosts[id].boot(now);
        let life = {
            let inner = &mut *self.world.lock();
            let seen = inner.hosts.of_mut(id);
            seen.life += 1;
            seen.up = true;
            seen.dirty = true;
            seen.handle = Some(handle.clone());
            let life = seen.life;
            inner.say(|| format!("host {id} starts, life {life}"));
            life
        };
        let world = self.world.clone();
        match self.hosts[id].kind {
            Kind::Coordinator => {
                handle.spawn(self.coordinator(world, id, life));
            }
            Kind::Worker => {
                handle.spawn(self.worker(world, id, life));
            }
            Kind::Clients => {
                for plan in self.setup.batches.clone() {
                    handle.spawn(Client::new(world.clone(), (id, life), plan).run());
                }
            }
        }
    }

    fn coordinator(&self, world: World, id: HostId, life: Life) -> impl Future<Output = ()> + use<> {
        let mut config = Config::embedded("/nowhere".into());
        config.store = StoreConfig::Etcd {
            endpoints: Vec::new(),
            prefix: String::new(),
            session_ttl: self.setup.session_ttl,
            call_timeout: CALL_TIMEOUT,
        };
        config.handlers = vec![handler::NAME.to_owned()];
        config.lease_ttl = self.setup.lease_ttl;
        config.retry_pause = Duration::from_millis(100);
        config.backup_after = self.setup.backup_after;
        config.late_sweep_after = self.setup.late_sweep_after;
        config.shutdown_grace = Duration::from_secs(2);
        let ids = Arc::new(AtomicU64::new(0));
        let clock = self.clock.clone();
        let new_id = move || {
            let number = ids.fetch_add(1, Ordering::Relaxed);
            // Later ids are greater, whoever made them.
            format!("{:08}-{id}-{life}-{number}", clock.load(Ordering::Relaxed))
        };
        let machine = Machine::new(wall(world.lock().hosts.of(id), &self.clock), new_id);
        let (stop, objects) = (self.hosts[id].stop.clone(), self.objects.clone());
        coordinator(world, id, life, config, machine, objects, stop)
    }

    fn worker(&self, world: World, id: HostId, life: Life) -> impl Future<Output = ()> + use<> {
        let number = id - self.setup.coordinators;
        let setup = self.setup.workers[number];
        let urls = (0..self.setup.coordinators).map(|n| format!("http://c{n}"));
        let mut config = tranche_worker::Config::new(urls);
        config.id = format!("w{number}");
        config.slots = setup.slots;
        config.prefetch = setup.prefetch;
        config.drain_timeout = Duration::from_secs(1);
        config.reconnect_min = Duration::from_millis(30);
        config.reconnect_max = Duration::from_millis(600);
        let stop = self.hosts[id].stop.clone();
        async move {
            let handler = SimHandler::new(world.clone(), id, life, setup.pace, setup.slots);
            let transport = SimTransport::new(world.clone(), id, life);
            let worker = Worker::with_transport(config, vec![Arc::new(handler)], Arc::new(transport));
            if let Err(error) = worker.run(stop).await {
                world.lock().violated(format!("a worker doesn't run: {error}"));
            }
            world.lock().hosts.of_mut(id).ended = true;
        }
    }

    fn wind(&mut self, now: At) {
        // No host is always the first.
        let turn = self.world.lock().rng.usize(0..self.hosts.len());
        for place in 0..self.hosts.len() {
            let id = (place + turn) % self.hosts.len();
            let host = &mut self.hosts[id];
            if !host.up() || host.paused.is_some_and(|until| until > now) {
                continue;
            }
            let jump = host.paused.take().is_some();
            if jump {
                self.world.lock().woke(id);
            }
            let dirty = std::mem::take(&mut self.world.lock().hosts.of_mut(id).dirty);
            if dirty || jump || host.behind(now) >= IDLE {
                crate::log::here(id, now);
                host.wind(now, jump);
            }
        }
    }

    fn is_over(&self) -> bool {
        let inner = &*self.world.lock();
        let swept = |name: &String| inner.check.batches[name].state.as_ref().is_some_and(|state| state.swept);
        inner.done.len() == self.setup.batches.len() && inner.check.batches.keys().all(swept)
    }

    fn only_sweeps_left(&self) -> bool {
        let inner = &*self.world.lock();
        let ended = |state: State| matches!(state, State::Committed | State::RolledBack);
        inner.done.len() == self.setup.batches.len() && inner.check.batches.values().all(|m| ended(m.at()))
    }

    fn what_is_open(&self) -> String {
        let inner = &*self.world.lock();
        let open = inner.check.batches.iter().filter(|(_, m)| m.state.as_ref().is_none_or(|s| !s.swept));
        let mut text: Vec<String> = open
            .map(|(name, m)| {
                let held: Vec<String> = m
                    .ranges
                    .values()
                    .filter(|r| r.lease.is_some() || r.backup.is_some())
                    .map(|r| format!("[{}, {}]", r.first, r.last))
                    .collect();
                format!("{name} is {:?}, lock {:?}, leased {held:?}", m.state, m.lock)
            })
            .collect();
        text.push(format!("{} of {} clients done", inner.done.len(), self.setup.batches.len()));
        text.join("; ")
    }

    fn finish(mut self) -> Outcome {
        let outcome = {
            let inner = &mut *self.world.lock();
            if inner.check.violation.is_none() {
                end_checks(inner);
            }
            Outcome {
                seed: self.seed,
                violation: inner.check.violation.clone(),
                digest: inner.trace.digest(),
                stats: inner.stats.clone(),
                virtual_time: inner.now,
            }
        };
        for id in 0..self.hosts.len() {
            self.lose(id);
        }
        let left = self.world.lock().end();
        drop(left);
        outcome
    }
}

/// I4, exactly.
fn end_checks(inner: &mut crate::world::Inner) {
    let mut wrong = Vec::new();
    for (name, mirror) in &inner.check.batches {
        let visible: BTreeMap<u64, (u64, u64)> = inner
            .library
            .visible(name)
            .into_iter()
            .map(|(n, token)| (n, (token.epoch, token.counter)))
            .collect();
        let expected = match mirror.at() {
            State::Committed => mirror.winners(),
            _ => BTreeMap::new(),
        };
        if visible != expected {
            let missing: Vec<_> = expected.iter().filter(|(n, t)| visible.get(n) != Some(t)).collect();
            let odd: Vec<_> = visible.iter().filter(|(n, t)| expected.get(n) != Some(t)).collect();
            wrong.push(format!(
                "I4 {name} is {:?}: missing {missing:?}, not to be there {odd:?}",
                mirror.at()
            ));
        }
        let left = inner.library.staged(name);
        if !left.is_empty() {
            wrong.push(format!("I4 {name} is {:?} and swept: {left:?} is still staged", mirror.at()));
        }
        // A batch without tasks has nothing to publish.
        let publishes = mirror.at() == State::Committed && !mirror.ranges.is_empty();
        if inner.library.published(name) != publishes {
            wrong.push(format!(
                "I4 {name} is {:?}: published {}",
                mirror.at(),
                inner.library.published(name)
            ));
        }
    }
    for text in wrong {
        inner.violated(text);
    }
}

/// A coordinator's process, as `Server::run` is without its sockets.
async fn coordinator(
    world: World,
    id: HostId,
    life: Life,
    config: Config,
    machine: Machine,
    objects: Arc<InMemory>,
    leave: CancellationToken,
) {
    let grace = config.shutdown_grace;
    let ended = || world.lock().hosts.of_mut(id).ended = true;
    let name = world.lock().hosts.of(id).name.clone();
    let stop = CancellationToken::new();
    let node = loop {
        let store = Arc::new(SimStore::new(world.clone(), id, life));
        let objects = Objects::over(Arc::new(SimObjects::new(world.clone(), objects.clone())));
        let start = Node::start(
            config.clone(),
            format!("http://{name}"),
            store,
            objects,
            machine.clone(),
            stop.clone(),
        );
        match leave.run_until_cancelled(start).await {
            Some(Ok(node)) => break Arc::new(node),
            Some(Err(error)) => {
                world.lock().say(|| format!("host {id} doesn't start yet: {error}"));
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            None => return ended(),
        }
    };
    let streams = CancellationToken::new();
    world.lock().hosts.of_mut(id).node = Some((node.clone(), streams.clone()));
    leave.cancelled().await;
    node.shared().leave().await;
    node.shared().dispatch.drain();
    stop.cancel();
    let _ = tokio::time::timeout(grace, node.stopped()).await;
    streams.cancel();
    let serving = world.lock().hosts.of_mut(id).node.take();
    drop(serving);
    // The last frames leave.
    tokio::time::sleep(Duration::from_millis(50)).await;
    ended();
}
