//! Who loses whom, for longer than every time to live, and comes back.

use futures::FutureExt as _;
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tranche_coordinator::store::etcd::{Dial, Etcd};
use tranche_coordinator::store::{Store as _, Txn, WatchEvent, keys};
use tranche_network::cluster::{Cluster, TICK};
use tranche_network::etcd::{self, Data};
use tranche_network::hosts::{self, PREFIX, World};
use tranche_network::plan::{BatchPlan, ETCD, Fault, Plan};
use tranche_network::{check, wire};

const SECOND: Duration = Duration::from_secs(1);
/// Longer than every time to live and every ping.
const AWAY: Duration = Duration::from_secs(30);
/// In which a cluster without faults does whatever there is to do: the coordinators' pings (10 s and 5 s),
/// a session's time, a lease's time, a second for the work.
const SOON: Duration = Duration::from_secs(40);

fn plan(coordinators: usize, workers: usize, batch: BatchPlan) -> Plan {
    let names = |kind: &str, count: usize| (1..=count).map(|n| format!("{kind}-{n}")).collect();
    Plan {
        seed: 1,
        coordinators: names("coordinator", coordinators),
        workers: names("worker", workers),
        batches: vec![batch],
        faults: Vec::new(),
        task_time: Duration::from_millis(100),
        latency: Duration::from_millis(20),
    }
}

fn batch() -> BatchPlan {
    BatchPlan { at: Duration::ZERO, tasks: 100, fail_every: 0, cancel: None }
}

fn all(hosts: &[String]) -> Vec<String> {
    hosts.to_vec()
}

/// Some of the batch is staged, and some isn't.
fn under_way(world: &World) -> bool {
    check::states(world).iter().any(|(_, state)| state.staged > 10)
}

fn ended(world: &World) -> bool {
    let states = check::states(world);
    !states.is_empty() && check::settled(world)
}

/// The ids of the coordinators that are registered, without the part that is new at each start.
fn registered(world: &World) -> Vec<String> {
    let ids = world.data.values(&format!("{PREFIX}{}", keys::COORDINATORS));
    let mut ids: Vec<_> = ids.iter().filter_map(|(id, _)| Some(id.split_once('-')?.1.to_owned())).collect();
    ids.sort();
    ids
}

fn owner(world: &World) -> Option<String> {
    check::owners(world).pop()
}

/// The coordinator that drives the batch.
fn owner_of(cluster: &Cluster) -> String {
    owner(&cluster.world).expect("an owner")
}

#[test]
fn the_only_worker_loses_all_coordinators_and_comes_back() {
    let plan = plan(2, 1, batch());
    let mut cluster = Cluster::new(&plan);
    cluster.until("the batch is under way", SOON, under_way);
    let away = Fault::Partition(all(&plan.workers), all(&plan.coordinators));
    cluster.begin(&away);
    cluster.pass(AWAY);
    assert!(!ended(&cluster.world));
    cluster.end(&away);
    let took = cluster.until("the batch ends", SOON, ended);
    println!("ended {took:?} after the worker came back");
    check::run(&plan, &cluster).unwrap();
}

#[test]
fn an_owner_loses_etcd_beyond_its_session_and_comes_back() {
    let plan = plan(2, 2, batch());
    let mut cluster = Cluster::new(&plan);
    cluster.until("the batch is under way", SOON, under_way);
    let first = owner_of(&cluster);
    let away = Fault::Partition(vec![first.clone()], vec![ETCD.to_owned()]);
    cluster.begin(&away);
    // The session's time to live, and a second.
    let took =
        cluster.until("another owner", 6 * SECOND, |world| owner(world).is_some_and(|owner| owner != first));
    println!("taken over after {took:?}");
    cluster.pass(AWAY);
    assert!(!registered(&cluster.world).contains(&first));
    cluster.end(&away);
    cluster.until("both are registered", SOON, |world| registered(world).len() == 2);
    cluster.until("the batch ends", SOON, ended);
    check::run(&plan, &cluster).unwrap();
}

#[test]
fn the_only_coordinator_loses_etcd_beyond_its_session_and_goes_on() {
    let plan = plan(1, 2, batch());
    let mut cluster = Cluster::new(&plan);
    cluster.until("the batch is under way", SOON, under_way);
    let away = Fault::Partition(all(&plan.coordinators), vec![ETCD.to_owned()]);
    cluster.begin(&away);
    cluster.pass(AWAY);
    assert_eq!(owner(&cluster.world), None);
    cluster.end(&away);
    let took = cluster.until("the batch ends", SOON, ended);
    println!("ended {took:?} after etcd came back");
    check::run(&plan, &cluster).unwrap();
}

#[test]
fn a_silent_etcd_is_noticed_and_the_batch_goes_on_when_it_is_heard_again() {
    let plan = plan(2, 2, batch());
    let mut cluster = Cluster::new(&plan);
    cluster.until("the batch is under way", SOON, under_way);
    let silent = Fault::Hold(all(&plan.coordinators), vec![ETCD.to_owned()]);
    cluster.begin(&silent);
    cluster.pass(AWAY);
    cluster.end(&silent);
    let took = cluster.until("the batch ends", SOON, ended);
    println!("ended {took:?} after etcd was heard again");
    check::run(&plan, &cluster).unwrap();
}

#[test]
fn a_cancel_reaches_an_owner_that_was_away_while_etcd_compacted_it() {
    let plan = plan(2, 2, BatchPlan { cancel: Some(4 * SECOND), ..batch() });
    let mut cluster = Cluster::new(&plan);
    cluster.until("the batch is under way", SOON, under_way);
    let away = Fault::Partition(vec![owner_of(&cluster)], vec![ETCD.to_owned()]);
    cluster.begin(&away);
    cluster.until("the decision", 20 * SECOND, |world| !check::decided(world).is_empty());
    cluster.begin(&Fault::Compact);
    cluster.pass(2 * SECOND);
    cluster.begin(&Fault::Compact);
    cluster.end(&away);
    cluster.until("the batch ends", SOON, ended);
    check::run(&plan, &cluster).unwrap();
}

#[test]
fn all_connections_of_all_coordinators_break_at_once_again_and_again() {
    let plan = plan(3, 4, batch());
    let mut cluster = Cluster::new(&plan);
    for _ in 0..5 {
        let storm = Fault::Storm(plan.coordinators.clone());
        cluster.begin(&storm);
        cluster.pass(SECOND / 5);
        cluster.end(&storm);
        cluster.pass(SECOND);
    }
    cluster.until("the batch ends", SOON, ended);
    let seen = cluster.world.library.counts();
    println!("{seen:?}");
    check::run(&plan, &cluster).unwrap();
}

#[test]
fn a_watch_that_was_compacted_while_away_says_so_and_goes_on() {
    let data = Data::default();
    let mut sim = turmoil::Builder::new()
        .tick_duration(TICK)
        .simulation_duration(Duration::from_mins(10))
        .tcp_capacity(4096)
        .build();
    let served = data.clone();
    sim.host(ETCD, move || etcd::serve(served.clone(), wire::Cuts::default()));
    let client = async move {
        let connect = || Etcd::connect_with(hosts::etcd_config(), Dial::new(wire::lazy));
        let store = connect().await?;
        let mut watch = store.watch("a/", 0).await?;
        store.txn(&Txn::new().put("a/1", "1")).await?;
        assert!(matches!(watch.recv().await, Some(WatchEvent::Put(entry)) if entry.key == "a/1"));
        // What is written now, with its answer and its event lost, is compacted away with all before it.
        turmoil::partition_oneway(ETCD, "client");
        for _ in 0..3 {
            let _ = timeout(SECOND / 10, store.txn(&Txn::new().put("a/2", "2"))).await;
        }
        sleep(SECOND).await;
        data.compact();
        let compacted_at = data.revision().cast_unsigned();
        turmoil::repair_oneway(ETCD, "client");
        let event = timeout(SOON, watch.recv()).await?;
        match event {
            Some(WatchEvent::Missed(revision)) => assert!(revision >= compacted_at, "{revision}"),
            // The revision that was compacted at is still there, and was all that was missed.
            other => assert!(
                matches!(&other, Some(WatchEvent::Put(entry)) if entry.mod_revision == compacted_at),
                "{other:?}"
            ),
        }
        connect().await?.txn(&Txn::new().put("a/3", "3")).await?;
        let mut next = timeout(SOON, watch.recv()).await?;
        while matches!(&next, Some(WatchEvent::Put(entry)) if entry.key == "a/2") {
            next = timeout(SOON, watch.recv()).await?;
        }
        assert!(matches!(&next, Some(WatchEvent::Put(entry)) if entry.key == "a/3"), "{next:?}");
        Ok(())
    };
    sim.client("client", client.boxed_local());
    sim.run().unwrap();
}
