//! Leases: slots, parts, refusals.

use super::*;

#[test]
fn greets_then_opens_a_window_of_its_slots_and_one_more() {
    let mut sim = Sim::new(settings(3, 1, 1));
    sim.attach(0);
    let sent = sim.take_sent();
    assert_eq!(hello(&sent[0]), [0_u64; 0]);
    assert_eq!(sent[1], Out::Credit(v1::Credit { leases: 4, bytes: 100 }));
    assert_eq!(sent.len(), 2);
}

#[test]
fn slots_run_and_the_rest_waits() {
    let mut sim = Sim::attached(2);
    for counter in 1..=3 {
        sim.grant(counter, v1::Phase::Stage);
    }
    assert_eq!(sim.running(), [1, 2]);
    sim.finish(1);
    assert_eq!(sim.running(), [1, 2, 3]);
    assert_eq!(sim.machine.slots_taken(), 2);
}

#[test]
fn what_may_kill_runs_alone() {
    let mut sim = Sim::attached(3);
    sim.grant(1, v1::Phase::Stage);
    sim.grant(2, v1::Phase::Stage);
    sim.frame(0, In::Grant(v1::Grant { alone: true, ..grant(3, v1::Phase::Stage) }));
    sim.grant(4, v1::Phase::Stage);
    assert_eq!(sim.running(), [1, 2], "a slot is free, and stays so");
    sim.finish(1);
    assert_eq!(sim.running(), [1, 2]);
    sim.finish(2);
    assert_eq!(sim.running(), [1, 2, 3], "it is alone");
    sim.finish(3);
    assert_eq!(sim.running(), [1, 2, 3, 4]);
}

#[test]
fn nothing_starts_beside_what_may_kill_while_it_stops() {
    let mut sim = Sim::attached(2);
    sim.frame(0, In::Grant(v1::Grant { alone: true, ..grant(1, v1::Phase::Stage) }));
    sim.grant(2, v1::Phase::Stage);
    sim.revoke(0, 1);
    assert_eq!((sim.running(), &sim.cancelled[..]), (vec![1], &[1][..]));
    sim.finish(1);
    sim.removed(1);
    assert_eq!(sim.running(), [1, 2]);
}

#[test]
fn a_grant_in_parts_starts_with_its_last_part() {
    let mut sim = Sim::attached(1);
    let mut first = grant(1, v1::Phase::Stage);
    first.runs = vec![v1::Range { first: 1, last: 3 }];
    first.more = true;
    sim.frame(0, In::Grant(first));
    let mut part =
        v1::Grant { token: Some(token(1)), batch: "b".into(), phase: 1, more: true, ..Default::default() };
    part.tasks = tasks(&["second"]);
    sim.frame(0, In::Grant(part.clone()));
    assert!(sim.run.is_empty());
    part.more = false;
    sim.frame(0, In::Grant(part));
    let crate::lease::Work::Stage(lease) = &sim.run[0].work else { panic!("stage") };
    assert_eq!(lease.tasks.iter().map(|t| t.sequence).collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn parts_are_lost_with_their_stream() {
    let mut sim = Sim::attached(1);
    let mut first = grant(1, v1::Phase::Stage);
    first.more = true;
    sim.frame(0, In::Grant(first));
    sim.event(Event::Closed(0));
    sim.event(Event::Opened(0));
    assert_eq!(hello(&sim.take_sent()[0]), [0_u64; 0]);
}

#[test]
fn a_revoked_lease_is_stopped_and_not_reported() {
    let mut sim = Sim::attached(1);
    sim.grant(1, v1::Phase::Stage);
    sim.grant(2, v1::Phase::Stage);
    sim.revoke(0, 1);
    sim.revoke(0, 2);
    assert_eq!(sim.cancelled, [1]);
    // The slot is free when the lease has stopped and what it staged is removed, not before.
    sim.grant(3, v1::Phase::Stage);
    sim.finish(1);
    assert_eq!(sim.running(), [1]);
    sim.removed(1);
    assert_eq!(sim.running(), [1, 3]);
    assert!(sim.reports().is_empty());
}

#[test]
fn what_isnt_known_is_refused_never_taken_for_success() {
    let mut sim = Sim::attached(3);
    let mut phase = grant(1, v1::Phase::Stage);
    phase.phase = 17;
    sim.frame(0, In::Grant(phase));
    let mut handler = grant(2, v1::Phase::Stage);
    handler.handler = "teleport".into();
    sim.frame(0, In::Grant(handler));
    let mut short = grant(3, v1::Phase::Stage);
    short.tasks.clear();
    sim.frame(0, In::Grant(short));
    sim.event(Event::Frame(0, v1::AttachResponse { frame: None }));
    assert!(sim.run.is_empty());
    let errors: Vec<_> =
        sim.reports().into_iter().map(|report| (report.phase, report.done, report.error)).collect();
    assert_eq!(errors[0], (17, 0, "phase 17 is not known to this worker".into()));
    assert_eq!(errors[1], (1, 0, "handler `teleport` is not known to this worker".into()));
    assert_eq!(errors[2], (1, 0, "0 tasks came for 1 sequence numbers".into()));
}

#[test]
fn a_lease_that_is_sent_twice_runs_once() {
    let mut sim = Sim::attached(2);
    sim.grant(1, v1::Phase::Stage);
    sim.grant(1, v1::Phase::Stage);
    assert_eq!(sim.running(), [1]);
    sim.finish(1);
    sim.grant(1, v1::Phase::Stage);
    assert_eq!((sim.running().len(), sim.reports().len()), (1, 2));
}

#[test]
fn leave_is_told_to_the_handlers() {
    let mut sim = Sim::attached(1);
    sim.frame(0, In::Leave(v1::Leave { batch: "b".into(), state: 4 }));
    assert_eq!(sim.left, ["b"]);
}

#[test]
fn leases_that_come_and_go_while_a_slot_hangs_are_not_remembered() {
    let mut sim = Sim::attached(1);
    for counter in 1..=1000 {
        sim.grant(counter, v1::Phase::Stage);
        sim.revoke(0, counter);
    }
    assert_eq!(sim.running(), [1]);
    assert!(sim.machine.queue.len() < 10, "{}", sim.machine.queue.len());
}
