//! Reports, kept until somebody settles them.

use super::*;

#[test]
pub(super) fn a_report_is_kept_and_sent_again_until_it_is_acknowledged() {
    let mut sim = Sim::attached(1);
    sim.grant(1, v1::Phase::Stage);
    sim.pass(Duration::from_secs(2));
    sim.finish(1);
    let first = sim.reports().remove(0);
    assert_eq!(first.elapsed, prost_types::Duration::try_from(Duration::from_secs(2)).ok());
    sim.event(Event::Closed(0));
    // Longer than the TTL: the coordinator says whether it still counts.
    sim.pass(TTL * 3);
    sim.event(Event::Opened(0));
    assert_eq!(hello(&sim.take_sent()[0]), [1]);
    sim.event(Event::Closed(0));
    sim.attach(0);
    assert_eq!(sim.reports(), [first]);
    sim.ack_report(1, v1::report_ack::Result::Durable as i32);
    sim.event(Event::Closed(0));
    sim.attach(0);
    assert!(sim.reports().is_empty());
}

#[test]
pub(super) fn a_refused_report_is_dropped_and_an_answer_that_isnt_understood_settles_nothing() {
    use v1::report_ack::Result;
    for result in [Result::Stale, Result::Decided, Result::UnknownBatch, Result::Invalid] {
        let mut sim = Sim::attached(1);
        sim.grant(1, v1::Phase::Stage);
        sim.finish(1);
        sim.ack_report(1, 0);
        sim.ack_report(1, 99);
        sim.event(Event::Opened(0));
        assert_eq!(sim.take_sent().last().map(hello), Some(vec![1]));
        sim.attach(0);
        sim.ack_report(1, result as i32);
        sim.event(Event::Opened(0));
        assert_eq!(sim.take_sent().last().map(hello), Some(vec![]));
    }
}

#[test]
pub(super) fn a_report_whose_coordinator_is_away_goes_with_every_heartbeat_of_another() {
    let mut sim = Sim::attached_to(3, 2);
    sim.frame(2, In::Grant(grant(1, v1::Phase::Stage)));
    sim.grant(2, v1::Phase::Stage);
    sim.down(2);
    sim.finish(1);
    sim.finish(2);
    assert_eq!(sim.reported(), [(0, 2)]);
    sim.pass(INTERVAL);
    assert_eq!(sim.reported(), [(0, 1)], "of the links that are attached the first");
    for link in [0, 1] {
        sim.ack_heartbeat_on(link, 1);
    }
    sim.down(0);
    sim.pass(INTERVAL);
    // The report of the link that just went down, too.
    assert_eq!(sim.reported(), [(1, 1), (1, 2)]);
    sim.ack_report_on(1, 1, v1::report_ack::Result::Durable as i32);
    sim.ack_heartbeat_on(1, 2);
    sim.attach(2);
    sim.sent.clear();
    sim.pass(INTERVAL);
    assert_eq!(sim.reported(), [(1, 2)]);
}

#[test]
pub(super) fn a_report_that_isnt_answered_is_sent_again_after_a_ttl() {
    let mut sim = Sim::attached(1);
    sim.grant(1, v1::Phase::Stage);
    sim.finish(1);
    assert_eq!(sim.reported(), [(0, 1)]);
    for beat in 1..=2 {
        sim.pass(INTERVAL);
        sim.ack_heartbeat(beat);
    }
    assert_eq!(sim.reported(), []);
    sim.pass(INTERVAL);
    sim.ack_heartbeat(3);
    assert_eq!(sim.reported(), [(0, 1)]);
    sim.pass(INTERVAL);
    assert_eq!(sim.reported(), []);
}
