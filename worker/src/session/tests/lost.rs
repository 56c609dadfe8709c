//! Attempts that don't count are removed.

use super::*;
use v1::report_ack::Result;

fn change(phase: v1::Phase) -> In {
    In::PhaseChanged(v1::PhaseChanged { batch: "b".into(), phase: phase as i32 })
}

#[test]
pub(super) fn what_was_stopped_is_removed_once_its_handler_has_returned() {
    let stops: [fn(&mut Sim); 3] = [
        |sim| sim.revoke(0, 1),
        Sim::rollback,
        |sim| {
            sim.down(0);
            sim.pass(TTL);
        },
    ];
    for stop in stops {
        let mut sim = Sim::attached(1);
        sim.frame(
            0,
            In::Grant(v1::Grant { params: [("k".into(), "v".into())].into(), ..grant(1, v1::Phase::Stage) }),
        );
        stop(&mut sim);
        assert_eq!((sim.cancelled.clone(), sim.removing()), (vec![1], vec![]));
        // It had staged all when it was told to stop.
        let outcome = Outcome::Staged { done: 1, failures: Vec::new(), receipt: Bytes::from_static(b"r") };
        sim.event(Event::Finished(Token { epoch: 1, counter: 1 }, outcome));
        let [removal] = &sim.removals[..] else { panic!("{:?}", sim.removals) };
        let lease = &removal.lease;
        assert_eq!((removal.handler.as_str(), lease.batch.name.as_str()), ("noop", "b"));
        assert_eq!(lease.batch.params["k"], "v");
        let [attempt] = &lease.attempts[..] else { panic!("{lease:?}") };
        assert_eq!((attempt.token, attempt.runs.len()), (Token { epoch: 1, counter: 1 }, 0));
        assert_eq!(attempt.receipt, "r");
        assert_eq!(sim.machine.slots_taken(), 1, "it holds its slot meanwhile");
        sim.removed(1);
        assert_eq!(sim.machine.slots_taken(), 0);
        assert!(sim.reports().is_empty());
    }
}

#[test]
pub(super) fn what_was_reported_and_doesnt_count_is_removed() {
    for result in [Result::Stale, Result::Decided, Result::UnknownBatch, Result::Invalid] {
        let mut sim = Sim::attached(1);
        sim.grant(1, v1::Phase::Stage);
        sim.finish(1);
        assert!(sim.removals.is_empty());
        sim.ack_report(1, result as i32);
        assert_eq!(sim.removing(), [1]);
        sim.event(Event::Opened(0));
        assert_eq!(sim.take_sent().last().map(hello), Some(vec![]), "it isn't held any more");
    }
}

#[test]
pub(super) fn what_counts_stays_and_so_does_what_never_began() {
    let mut sim = Sim::attached(1);
    for counter in 1..=3 {
        sim.grant(counter, v1::Phase::Stage);
    }
    sim.finish(1);
    sim.ack_report(1, Result::Durable as i32);
    // A late answer to a report that was sent twice.
    sim.ack_report(1, Result::UnknownBatch as i32);
    sim.revoke(0, 3);
    let mut unknown = grant(4, v1::Phase::Stage);
    unknown.handler = "teleport".into();
    sim.frame(0, In::Grant(unknown));
    sim.ack_report(4, Result::Stale as i32);
    assert!(sim.removals.is_empty());
}

#[test]
pub(super) fn other_phases_stage_nothing() {
    let mut sim = Sim::attached(2);
    sim.grant(1, v1::Phase::Commit);
    sim.grant(2, v1::Phase::Rollback);
    sim.event(Event::Finished(Token { epoch: 1, counter: 1 }, Outcome::Done(1)));
    sim.ack_report(1, Result::Stale as i32);
    sim.revoke(0, 2);
    sim.event(Event::Finished(Token { epoch: 1, counter: 2 }, Outcome::Done(1)));
    assert!(sim.removals.is_empty());
    assert_eq!(sim.machine.slots_taken(), 0);
}

#[test]
pub(super) fn a_rollback_is_acknowledged_when_all_is_removed() {
    let mut sim = Sim::attached(3);
    sim.grant(1, v1::Phase::Stage);
    sim.finish(1);
    sim.ack_report(1, Result::Stale as i32);
    sim.frame(0, change(v1::Phase::Rollback));
    assert_eq!(sim.phase_acks(), 0);
    sim.removed(1);
    assert_eq!(sim.phase_acks(), 1);
}

#[test]
pub(super) fn a_removal_that_takes_too_long_doesnt_hold_up_the_end() {
    let mut sim = Sim::attached(1);
    sim.grant(1, v1::Phase::Stage);
    sim.event(Event::Shutdown);
    for number in 1..=3 {
        sim.pass(INTERVAL);
        sim.ack_heartbeat(number);
    }
    sim.pass(Duration::from_secs(1));
    sim.finish(1);
    sim.pass(Duration::from_secs(2) - Duration::from_millis(1));
    assert!(!sim.exited);
    sim.pass(Duration::from_millis(1));
    assert!(sim.exited);
}
