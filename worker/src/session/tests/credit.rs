//! Windows: who is told what, and when.

use super::*;

fn ack(backlog: i32) -> In {
    In::Ack(v1::Ack { heartbeat: 0, reports: Vec::new(), backlog })
}

#[test]
fn one_coordinator_is_told_its_window_once() {
    let mut sim = Sim::new(settings(3, 1, 1));
    sim.attach(0);
    assert_eq!(sim.credits(), [(0, 4, 100)]);
    sim.frame(0, ack(17));
    for counter in 1..=4 {
        sim.frame(0, In::Grant(v1::Grant { backlog: 100, ..grant(counter, v1::Phase::Stage) }));
    }
    for counter in 1..=4 {
        sim.finish(counter);
        sim.ack_report(counter, v1::report_ack::Result::Durable as i32);
    }
    assert_eq!(sim.credits(), []);
}

#[test]
fn the_window_is_split_over_the_coordinators_that_are_attached() {
    let mut sim = Sim::new(settings(4, 1, 2));
    sim.attach(0);
    assert_eq!(sim.credits(), [(0, 5, 100)]);
    sim.attach(1);
    assert_eq!(sim.credits(), [(0, 3, 60), (1, 2, 40)]);
    sim.down(1);
    assert_eq!(sim.credits(), [(0, 5, 100)]);
}

#[test]
fn every_coordinator_may_give_at_least_one_lease() {
    let mut sim = Sim::new(settings(1, 0, 2));
    sim.attach(0);
    sim.attach(1);
    assert_eq!(sim.credits(), [(0, 1, 100), (0, 1, 50), (1, 1, 50)]);
}

#[test]
fn the_window_follows_the_backlogs() {
    let mut sim = Sim::attached_to(2, 7);
    sim.frame(1, ack(30));
    assert_eq!(sim.credits(), [(0, 1, 11), (1, 8, 88)]);
    sim.frame(1, ack(29));
    assert_eq!(sim.credits(), [], "nothing changed for anybody");
    sim.frame(0, In::Grant(v1::Grant { backlog: 29, ..grant(1, v1::Phase::Stage) }));
    assert_eq!(sim.credits(), [(0, 4, 50), (1, 4, 50)]);
    sim.frame(1, ack(-5));
    assert_eq!(sim.credits(), [(0, 8, 88), (1, 1, 11)]);
}

#[test]
fn leases_of_one_coordinator_are_not_given_to_another_before_they_are_settled() {
    let mut sim = Sim::attached_to(2, 3);
    sim.frame(0, ack(10));
    assert_eq!(sim.credits(), [(0, 4, 80), (1, 1, 20)]);
    for counter in 1..=3 {
        sim.frame(0, In::Grant(v1::Grant { backlog: 10, ..grant(counter, v1::Phase::Stage) }));
    }
    sim.frame(0, ack(0));
    assert_eq!(sim.credits(), [(0, 2, 50), (1, 1, 25)]);
    sim.frame(1, ack(10));
    assert_eq!(sim.credits(), [(0, 1, 20), (1, 1, 20)], "link 1 gets no more while 3 are held of link 0");
    sim.finish(1);
    assert_eq!(sim.credits(), []);
    sim.ack_report(1, v1::report_ack::Result::Durable as i32);
    assert_eq!(sim.credits(), [(1, 2, 40)]);
}

#[test]
fn a_link_that_is_down_keeps_the_part_of_its_leases() {
    let mut sim = Sim::attached_to(2, 3);
    sim.grant(1, v1::Phase::Stage);
    sim.down(0);
    assert_eq!(sim.credits(), [(1, 3, 75)]);
}

#[test]
fn a_coordinator_that_leaves_gets_nothing_the_others_its_part() {
    let mut sim = Sim::attached_to(2, 3);
    sim.grant(1, v1::Phase::Stage);
    sim.frame(0, In::Drain(v1::Drain {}));
    assert_eq!(sim.credits(), [(0, 0, 0), (1, 3, 75)]);
}
