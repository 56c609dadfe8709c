//! A simulated cluster, and what can be done to it from outside.

use crate::client::{Ended, User};
use crate::etcd;
use crate::hosts::{self, Controls, World};
use crate::plan::{CLIENT, ETCD, Fault, Plan};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use turmoil::Sim;

/// The simulation's step, and so the shortest time that a message travels.
pub const TICK: Duration = Duration::from_millis(10);

/// How the batches ended, by their place in the plan.
pub type Ends = Arc<Mutex<BTreeMap<usize, Result<Ended, String>>>>;

/// A simulated cluster.
pub struct Cluster {
    /// The hosts and the network between them.
    pub sim: Sim<'static>,
    /// What outlives the hosts.
    pub world: World,
    workers: Vec<String>,
    hosts: Vec<String>,
    controls: BTreeMap<String, Controls>,
    /// How the batches ended.
    pub ends: Ends,
    /// Hosts that were told to leave, or crashed.
    down: BTreeSet<String>,
    latency: Duration,
}

impl Cluster {
    /// The cluster of a plan, whose clients begin at once.
    pub fn new(plan: &Plan) -> Self {
        crate::log::init();
        let mut sim = turmoil::Builder::new()
            .rng_seed(plan.seed)
            .tick_duration(TICK)
            .simulation_duration(Duration::from_hours(1))
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(plan.latency)
            .tcp_capacity(4096)
            .enable_random_order()
            .build();
        let world = World::new(plan.task_time);
        let servers = plan.coordinators.iter().cloned().chain([ETCD.to_owned()]);
        let controls: BTreeMap<String, Controls> = servers.map(|host| (host, Controls::default())).collect();
        let (data, cuts) = (world.data.clone(), controls[ETCD].cuts.clone());
        sim.host(ETCD, move || etcd::serve(data.clone(), cuts.clone()));
        for host in &plan.coordinators {
            let (world, name, controls) = (world.clone(), host.clone(), controls[host].clone());
            sim.host(host.as_str(), move || {
                hosts::coordinator(world.clone(), name.clone(), controls.clone())
            });
        }
        for host in &plan.workers {
            let (world, name, coordinators) = (world.clone(), host.clone(), plan.coordinators.clone());
            sim.host(host.as_str(), move || hosts::worker(world.clone(), name.clone(), coordinators.clone()));
        }
        let ends = Ends::default();
        sim.client(CLIENT, clients(plan.clone(), ends.clone()));
        let hosts = [ETCD, CLIENT].map(str::to_owned).into_iter();
        let hosts =
            hosts.chain(plan.coordinators.iter().cloned()).chain(plan.workers.iter().cloned()).collect();
        let workers = plan.workers.clone();
        Self { sim, world, workers, hosts, controls, ends, down: BTreeSet::new(), latency: plan.latency }
    }

    /// Lets a fault begin.
    pub fn begin(&mut self, fault: &Fault) {
        tracing::info!(?fault, "fault begins");
        match fault {
            Fault::Partition(a, b) => pairs(a, b, |a, b| self.sim.partition(a, b)),
            Fault::OneWay(from, to) => self.sim.partition_oneway(from.as_str(), to.as_str()),
            Fault::Hold(a, b) => pairs(a, b, |a, b| self.sim.hold(a, b)),
            Fault::Slow(a, b, latency) => {
                self.sim.set_link_max_message_latency(a.as_str(), b.as_str(), *latency);
            }
            Fault::Crash(host) => {
                self.sim.crash(host.as_str());
                self.down.insert(host.clone());
            }
            Fault::Leave(host) => {
                self.controls[host].terminate();
                self.down.insert(host.clone());
            }
            Fault::Reset(host) => self.controls[host].cuts.cut(),
            Fault::Storm(coordinators) => {
                pairs(&self.workers, coordinators, |a, b| self.sim.partition(a, b));
                for host in coordinators {
                    self.controls[host].cuts.cut();
                }
            }
            Fault::Compact => self.world.data.compact(),
        }
    }

    /// Lets it end.
    pub fn end(&mut self, fault: &Fault) {
        tracing::info!(?fault, "fault ends");
        match fault {
            Fault::Partition(a, b) => pairs(a, b, |a, b| self.sim.repair(a, b)),
            Fault::OneWay(from, to) => self.sim.repair_oneway(from.as_str(), to.as_str()),
            Fault::Hold(a, b) => pairs(a, b, |a, b| self.sim.release(a, b)),
            Fault::Slow(a, b, _) => {
                self.sim.set_link_max_message_latency(a.as_str(), b.as_str(), self.latency);
            }
            Fault::Crash(host) | Fault::Leave(host) => self.start(&host.clone()),
            Fault::Reset(_) | Fault::Compact => {}
            Fault::Storm(coordinators) => pairs(&self.workers, coordinators, |a, b| self.sim.repair(a, b)),
        }
    }

    fn start(&mut self, host: &str) {
        if self.down.remove(host) {
            self.sim.bounce(host);
        }
    }

    /// Makes good whatever overlapping faults left.
    pub fn all_well(&mut self) {
        for (at, a) in self.hosts.iter().enumerate() {
            for b in &self.hosts[at + 1..] {
                self.sim.release(a.as_str(), b.as_str());
                self.sim.set_link_max_message_latency(a.as_str(), b.as_str(), self.latency);
            }
        }
        for host in self.down.clone() {
            self.start(&host);
        }
    }

    /// Lets time pass.
    ///
    /// # Panics
    /// When a host fails.
    pub fn pass(&mut self, time: Duration) {
        let until = self.sim.elapsed() + time;
        while self.sim.elapsed() < until {
            self.sim.step().expect("hosts that run");
        }
    }

    /// Lets time pass until something holds; says how much.
    ///
    /// # Panics
    /// When it doesn't hold within the limit, or a host or a client fails.
    pub fn until(&mut self, what: &str, limit: Duration, holds: impl Fn(&World) -> bool) -> Duration {
        let began = self.sim.elapsed();
        while !holds(&self.world) {
            self.sim.step().expect("hosts that run");
            assert_eq!(self.failed(), None);
            let waited = self.sim.elapsed().saturating_sub(began);
            assert!(
                waited <= limit,
                "{what}: not within {limit:?}; {}",
                crate::check::unsettled(&self.world)
            );
        }
        self.sim.elapsed().saturating_sub(began)
    }

    /// What a client was refused, as soon as it was.
    pub fn failed(&self) -> Option<String> {
        let ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        ends.iter().find_map(|(place, end)| Some(format!("batch {place}: {}", end.as_ref().err()?)))
    }
}

async fn clients(plan: Plan, ends: Ends) -> turmoil::Result {
    let imports = plan.batches.iter().enumerate().map(async |(place, batch)| {
        tokio::time::sleep(batch.at).await;
        let mut order = plan.coordinators.clone();
        let first = (plan.seed as usize + place) % order.len();
        order.rotate_left(first);
        let end = match User::new(&order) {
            Ok(user) => user.import(batch, format!("request-{place}")).await,
            Err(error) => Err(error),
        };
        let end = end.map_err(|error| format!("{error}: {error:?}"));
        ends.lock().unwrap_or_else(PoisonError::into_inner).insert(place, end);
    });
    futures::future::join_all(imports).await;
    Ok(())
}

fn pairs(a: &[String], b: &[String], each: impl Fn(&str, &str)) {
    for a in a {
        for b in b {
            each(a, b);
        }
    }
}
