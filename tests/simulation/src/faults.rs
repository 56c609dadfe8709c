//! Faults that come of themselves, each kind at its own rate.

use crate::host::{HostId, Kind};
use crate::net::Way;
use crate::plan::{LONGEST_PAUSE, SKEW_MS, Setup};
use crate::stats::Count;
use crate::world::{At, Inner, Order};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A kind of fault.
type Fault = fn(&mut Inner, &Setup);

/// Plans all faults of a run.
pub(crate) fn plan(inner: &mut Inner, setup: &Setup) {
    let rates = setup.rates;
    let kinds: [(f64, Fault); 15] = [
        (rates.coordinator_crash, coordinator_crash),
        (rates.coordinator_leave, coordinator_leave),
        (rates.coordinator_pause, coordinator_pause),
        (rates.worker_crash, worker_crash),
        (rates.worker_leave, worker_leave),
        (rates.worker_pause, worker_pause),
        (rates.store_partition, store_partition),
        (rates.stream_cut, stream_cut),
        (rates.link_silent, link_silent),
        (rates.link_down, link_down),
        (rates.worker_alone, worker_alone),
        (rates.session_taken, session_taken),
        (rates.store_outage, store_outage),
        (rates.all_crash, all_crash),
        (rates.clock_set, clock_set),
    ];
    for (rate, fault) in kinds {
        if rate <= 0.0 {
            continue;
        }
        let mut at = At::ZERO;
        loop {
            let pause = -(1.0 - inner.rng.f64()).ln() / rate;
            at += Duration::from_secs_f64(pause.min(3600.0));
            if at >= setup.faults_for {
                break;
            }
            let setup = setup.clone();
            inner.at(at, move |inner| fault(inner, &setup));
        }
    }
}

fn any(inner: &mut Inner, kind: Kind) -> HostId {
    let all = inner.hosts.all(kind);
    all[inner.rng.usize(0..all.len())]
}

/// One that runs.
fn running(inner: &mut Inner, kind: Kind) -> Option<HostId> {
    Some(any(inner, kind)).filter(|host| inner.hosts.of(*host).up)
}

fn order(inner: &mut Inner, count: Count, order: Order) {
    inner.count(count);
    inner.orders.push(order);
}

fn coordinator_crash(inner: &mut Inner, _: &Setup) {
    let pause = inner.ms(50, 2500);
    if let Some(host) = running(inner, Kind::Coordinator) {
        order(inner, Count::CoordinatorCrash, Order::Crash(host, pause));
    }
}

fn coordinator_leave(inner: &mut Inner, _: &Setup) {
    let pause = inner.ms(0, 1000);
    if let Some(host) = running(inner, Kind::Coordinator) {
        order(inner, Count::CoordinatorLeaves, Order::Leave(host, pause));
    }
}

fn worker_crash(inner: &mut Inner, _: &Setup) {
    let pause = inner.ms(20, 2500);
    if let Some(host) = running(inner, Kind::Worker) {
        order(inner, Count::WorkerCrash, Order::Crash(host, pause));
    }
}

fn worker_leave(inner: &mut Inner, _: &Setup) {
    let pause = inner.ms(0, 1000);
    if let Some(host) = running(inner, Kind::Worker) {
        order(inner, Count::WorkerLeaves, Order::Leave(host, pause));
    }
}

fn pause(inner: &mut Inner, ttl: Duration) -> (Duration, bool) {
    let ttl = ttl.as_millis() as u64;
    let long = inner.rng.bool();
    (if long { inner.ms(ttl, ttl * 2) } else { inner.ms(20, ttl) }, long)
}

fn coordinator_pause(inner: &mut Inner, setup: &Setup) {
    let (pause, long) = pause(inner, setup.session_ttl);
    let count = if long { Count::CoordinatorLongPause } else { Count::CoordinatorPause };
    if let Some(host) = running(inner, Kind::Coordinator) {
        order(inner, count, Order::Pause(host, pause));
    }
}

fn worker_pause(inner: &mut Inner, setup: &Setup) {
    let (pause, long) = pause(inner, setup.lease_ttl);
    let count = if long { Count::WorkerLongPause } else { Count::WorkerPause };
    let lost = long && inner.rng.u8(0..3) == 0;
    if let Some(host) = running(inner, Kind::Worker) {
        if lost {
            inner.count(Count::PausedThenLost);
            // Long enough for what it worked on to end without it.
            return order(inner, count, Order::PauseCrash(host, (pause * 2).min(LONGEST_PAUSE)));
        }
        order(inner, count, Order::Pause(host, pause));
    }
}

fn worker_alone(inner: &mut Inner, setup: &Setup) {
    let (pause, _) = pause(inner, setup.lease_ttl);
    let worker = any(inner, Kind::Worker);
    inner.count(Count::WorkerAlone);
    inner.say(|| format!("worker {worker} is alone for {:?}", pause * 2));
    for coordinator in inner.hosts.all(Kind::Coordinator) {
        inner.block(worker, coordinator, &[Way::Up, Way::Down], pause * 2);
    }
}

fn store_partition(inner: &mut Inner, setup: &Setup) {
    let (pause, _) = pause(inner, setup.session_ttl);
    let host = any(inner, Kind::Coordinator);
    inner.count(Count::StorePartition);
    let until = inner.now + pause;
    inner.say(|| format!("host {host} can't reach the store until {until:?}"));
    inner.cut_off.insert(host, until);
}

fn session_taken(inner: &mut Inner, _: &Setup) {
    let sessions: Vec<i64> = inner.store.sessions.keys().copied().collect();
    if !sessions.is_empty() {
        let session = sessions[inner.rng.usize(0..sessions.len())];
        inner.count(Count::SessionTaken);
        inner.say(|| format!("the store ends session {session}"));
        inner.end_session(session);
    }
}

fn store_outage(inner: &mut Inner, setup: &Setup) {
    let (pause, _) = pause(inner, setup.session_ttl);
    inner.count(Count::StoreOutage);
    let until = inner.now + pause;
    inner.say(|| format!("the store is away until {until:?}"));
    for host in inner.hosts.all(Kind::Coordinator) {
        inner.cut_off.insert(host, until);
    }
}

fn all_crash(inner: &mut Inner, _: &Setup) {
    inner.count(Count::AllCrash);
    for host in inner.hosts.all(Kind::Coordinator) {
        let pause = inner.ms(50, 2000);
        inner.orders.push(Order::Crash(host, pause));
    }
}

fn clock_set(inner: &mut Inner, _: &Setup) {
    let host = any(inner, Kind::Coordinator);
    let skew = inner.rng.i64(-SKEW_MS..=SKEW_MS);
    inner.count(Count::ClockSet);
    inner.say(|| format!("the clock of host {host} is set to {skew} ms"));
    inner.hosts.of(host).skew_ms.store(skew, Ordering::Relaxed);
}

fn stream_cut(inner: &mut Inner, _: &Setup) {
    let host = any(inner, Kind::Worker);
    let streams = inner.streams_of(host);
    if !streams.is_empty() {
        let stream = streams[inner.rng.usize(0..streams.len())];
        inner.count(Count::StreamCut);
        inner.say(|| format!("stream {stream} is cut"));
        inner.break_stream(stream);
    }
}

fn link_silent(inner: &mut Inner, setup: &Setup) {
    let way = if inner.rng.bool() { Way::Up } else { Way::Down };
    block(inner, setup, Count::LinkSilent, &[way]);
}

fn link_down(inner: &mut Inner, setup: &Setup) {
    block(inner, setup, Count::LinkPartition, &[Way::Up, Way::Down]);
}

fn block(inner: &mut Inner, setup: &Setup, count: Count, ways: &[Way]) {
    let (pause, _) = pause(inner, setup.lease_ttl);
    let (worker, coordinator) = (any(inner, Kind::Worker), any(inner, Kind::Coordinator));
    inner.count(count);
    inner.say(|| format!("worker {worker} and coordinator {coordinator} are apart ({ways:?}) for {pause:?}"));
    inner.block(worker, coordinator, ways, pause);
}

/// From now on all is well.
pub(crate) fn stop(inner: &mut Inner) {
    inner.say(|| "no more faults".to_owned());
    inner.knobs = crate::world::Knobs::default();
    inner.cut_off.clear();
    inner.unblock_all();
}
