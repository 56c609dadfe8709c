//! Decisions.

use super::*;

#[test]
pub(super) fn rollback_stops_staging_and_is_acknowledged_when_it_has_stopped() {
    let mut sim = Sim::attached(2);
    for counter in 1..=3 {
        sim.grant(counter, v1::Phase::Stage);
    }
    let mut part = grant(4, v1::Phase::Stage);
    part.more = true;
    sim.frame(0, In::Grant(part.clone()));
    sim.rollback();
    assert_eq!(sim.cancelled, [1, 2]);
    assert_eq!(sim.phase_acks(), 0);
    sim.finish(1);
    sim.removed(1);
    assert_eq!(sim.phase_acks(), 0);
    sim.finish(2);
    assert_eq!(sim.phase_acks(), 0, "what the second staged is still there");
    sim.removed(2);
    let sent = sim.take_sent();
    assert_eq!(sent, [Out::PhaseAck(v1::PhaseAck { batch: "b".into(), phase: v1::Phase::Rollback as i32 })]);
    // The waiting one never ran, and the rest of a grant in parts is no grant.
    part.more = false;
    sim.frame(0, In::Grant(part));
    assert_eq!(sim.running(), [1, 2]);
    // Removing what was staged is leased like anything else.
    sim.grant(5, v1::Phase::Rollback);
    assert_eq!(sim.running(), [1, 2, 5]);
}

#[test]
pub(super) fn rollback_of_a_batch_that_isnt_here_is_acknowledged_at_once() {
    let mut sim = Sim::attached(2);
    let mut other = grant(1, v1::Phase::Stage);
    other.batch = "other".into();
    sim.frame(0, In::Grant(other));
    sim.rollback();
    assert_eq!((sim.phase_acks(), sim.cancelled.len()), (1, 0));
}

#[test]
pub(super) fn commit_stops_nothing() {
    let mut sim = Sim::attached(1);
    let change = |phase| v1::PhaseChanged { batch: "b".into(), phase };
    sim.frame(0, In::PhaseChanged(change(v1::Phase::Commit as i32)));
    assert_eq!((sim.phase_acks(), sim.cancelled.len()), (1, 0));
    sim.frame(0, In::PhaseChanged(change(42)));
    assert_eq!((sim.phase_acks(), sim.cancelled.len()), (0, 0));
}

#[test]
pub(super) fn commit_is_acknowledged_when_an_attempt_that_lost_has_stopped() {
    let mut sim = Sim::attached(1);
    sim.grant(1, v1::Phase::Stage);
    sim.revoke(0, 1);
    let phase = v1::Phase::Commit as i32;
    sim.frame(0, In::PhaseChanged(v1::PhaseChanged { batch: "b".into(), phase }));
    assert_eq!((sim.phase_acks(), sim.cancelled.len()), (0, 1), "it may still write");
    sim.finish(1);
    assert_eq!(sim.phase_acks(), 0, "what it staged is still there");
    sim.removed(1);
    assert!(sim.take_sent().contains(&Out::PhaseAck(v1::PhaseAck { batch: "b".into(), phase })));
}
