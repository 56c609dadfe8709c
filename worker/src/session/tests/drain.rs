//! Leaving: a coordinator, the worker.

use super::*;

#[test]
fn a_draining_coordinator_gets_no_credit_and_is_left_when_all_is_settled() {
    let mut sim = Sim::attached(1);
    sim.grant(1, v1::Phase::Stage);
    sim.frame(0, In::Drain(v1::Drain {}));
    assert_eq!(sim.take_sent(), [Out::Credit(v1::Credit { leases: 0, bytes: 0 })]);
    sim.finish(1);
    assert_eq!((sim.reports().len(), sim.closed.len()), (1, 0));
    sim.ack_report(1, v1::report_ack::Result::Durable as i32);
    assert_eq!(sim.closed, [0]);
}

#[test]
fn shutdown_gives_back_what_waits_and_ends_when_the_rest_is_acknowledged() {
    let mut sim = Sim::attached(1);
    sim.grant(1, v1::Phase::Stage);
    sim.grant(2, v1::Phase::Stage);
    sim.event(Event::Shutdown);
    let release = |counter| Out::Release(v1::Release { batch: "b".into(), token: Some(token(counter)) });
    assert_eq!(sim.take_sent(), [Out::Credit(v1::Credit { leases: 0, bytes: 0 }), release(2)]);
    // It was under way.
    sim.grant(3, v1::Phase::Stage);
    assert_eq!(sim.take_sent(), [release(3)]);
    sim.finish(1);
    assert_eq!((sim.reports().len(), sim.exited), (1, false));
    sim.ack_report(1, v1::report_ack::Result::Durable as i32);
    assert!(sim.exited && sim.cancelled.is_empty());
}

#[test]
fn shutdown_cancels_what_runs_when_the_time_is_over() {
    let mut sim = Sim::attached(1);
    sim.grant(1, v1::Phase::Stage);
    sim.event(Event::Shutdown);
    for number in 1..=3 {
        sim.pass(INTERVAL);
        sim.ack_heartbeat(number);
    }
    assert!(sim.cancelled.is_empty());
    sim.pass(Duration::from_secs(1));
    assert_eq!(sim.cancelled, [1]);
    // It has a little time to stop, and to remove what it staged.
    sim.finish(1);
    assert_eq!((sim.removing(), sim.exited), (vec![1], false));
    sim.removed(1);
    assert!(sim.exited && sim.reports().is_empty());
}

#[test]
fn shutdown_with_nothing_to_do_ends_at_once() {
    let mut sim = Sim::new(settings(1, 1, 1));
    sim.event(Event::Shutdown);
    assert!(sim.exited);
}
