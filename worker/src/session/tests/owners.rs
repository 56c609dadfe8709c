//! Batches that change their owner.

use super::*;
use v1::report_ack::Result;

fn holding(frames: &[Out]) -> Option<(u64, Vec<u64>)> {
    let holding =
        frames.iter().find_map(|f| if let Out::Holding(holding) = f { Some(holding) } else { None })?;
    Some((holding.epoch, holding.tokens.iter().map(|token| token.counter).collect()))
}

/// A lease granted by the owner of an epoch.
fn grant_of(epoch: u64, counter: u64) -> In {
    In::Grant(v1::Grant { token: Some(v1::Token { epoch, counter }), ..grant(counter, v1::Phase::Stage) })
}

#[test]
pub(super) fn hello_names_the_leases_of_all_links_but_not_what_is_being_stopped() {
    let mut sim = Sim::attached_to(2, 4);
    sim.grant(1, v1::Phase::Stage);
    sim.frame(1, In::Grant(grant(2, v1::Phase::Stage)));
    sim.grant(3, v1::Phase::Stage);
    sim.finish(3);
    sim.grant(4, v1::Phase::Stage);
    sim.revoke(0, 4);
    sim.down(1);
    sim.sent.clear();
    sim.event(Event::Opened(1));
    assert_eq!(hello(&sim.take_sent()[0]), [1, 2, 3]);
}

#[test]
pub(super) fn a_new_owner_hears_what_is_held_and_then_the_reports() {
    let mut sim = Sim::attached_to(2, 2);
    for counter in 1..=3 {
        sim.grant(counter, v1::Phase::Stage);
    }
    let mut other = grant(4, v1::Phase::Stage);
    other.batch = "other".into();
    sim.frame(0, In::Grant(other));
    sim.finish(2);
    sim.sent.clear();
    sim.owner(1, 7);
    let sent = sim.sent_on(1);
    assert_eq!(holding(&sent), Some((7, vec![1, 2, 3])));
    assert!(matches!(sent[0], Out::Holding(_)) && matches!(sent[1], Out::Report(_)));
    // From here on they are the new owner's: its heartbeats name them, reports go to it.
    sim.sent.clear();
    sim.pass(INTERVAL);
    let named = |sim: &Sim, link| {
        sim.sent_on(link).iter().find_map(|frame| match frame {
            Out::Heartbeat(beat) => {
                Some(beat.leases.iter().map(|l| l.token.unwrap().counter).collect::<Vec<_>>())
            }
            _ => None,
        })
    };
    assert_eq!((named(&sim, 0), named(&sim, 1)), (Some(vec![4]), Some(vec![1, 2, 3])));
    sim.finish(1);
    assert_eq!(sim.reported(), [(1, 1)]);
}

#[test]
pub(super) fn an_owner_of_what_isnt_here_hears_that_nothing_is() {
    let mut sim = Sim::attached(1);
    sim.owner(0, 7);
    assert_eq!(holding(&sim.take_sent()), Some((7, vec![])));
}

#[test]
pub(super) fn a_lease_lives_a_whole_ttl_from_when_it_was_taken_up() {
    let mut sim = Sim::attached_to(2, 1);
    sim.grant(1, v1::Phase::Stage);
    sim.down(0);
    sim.pass(TTL - Duration::from_secs(1));
    sim.ack_heartbeat_on(1, 1);
    sim.attach(1);
    sim.owner(1, 7);
    let taken_up = sim.now;
    // Its heartbeats from before didn't name it.
    sim.pass(Duration::from_secs(2));
    sim.down(1);
    sim.pass(taken_up + TTL - sim.now - Duration::from_millis(1));
    assert!(sim.cancelled.is_empty());
    sim.pass(Duration::from_millis(1));
    assert_eq!(sim.cancelled, [1]);
}

#[test]
pub(super) fn a_heartbeat_from_before_doesnt_keep_what_a_link_took_up() {
    let mut sim = Sim::attached_to(2, 1);
    sim.grant(1, v1::Phase::Stage);
    sim.pass(INTERVAL);
    sim.pass(Duration::from_secs(1));
    sim.owner(1, 7);
    let taken_up = sim.now;
    sim.ack_heartbeat_on(1, 1);
    sim.down(1);
    sim.down(0);
    sim.pass(taken_up + TTL - sim.now);
    assert_eq!(sim.cancelled, [1]);
}

#[test]
pub(super) fn an_owner_that_was_replaced_is_passed_over() {
    let mut sim = Sim::attached_to(3, 2);
    sim.grant(1, v1::Phase::Stage);
    sim.owner(1, 7);
    sim.sent.clear();
    sim.owner(2, 6);
    assert_eq!(sim.take_sent(), []);
    sim.finish(1);
    assert_eq!(sim.reported(), [(1, 1)]);
    // The same one again: it attached anew.
    sim.owner(1, 7);
    assert_eq!(holding(&sim.take_sent()), Some((7, vec![1])));
}

#[test]
pub(super) fn a_grant_of_an_owner_that_was_replaced_comes_back() {
    let mut sim = Sim::attached_to(2, 2);
    // Nothing of the batch is held, and it is remembered all the same.
    sim.owner(1, 7);
    sim.sent.clear();
    let In::Grant(mut first) = grant_of(6, 1) else { unreachable!() };
    first.more = true;
    sim.frame(0, In::Grant(first.clone()));
    first.more = false;
    sim.frame(0, In::Grant(first));
    let release = v1::Release { batch: "b".into(), token: Some(v1::Token { epoch: 6, counter: 1 }) };
    assert_eq!(sim.take_sent(), [Out::Release(release)]);
    sim.frame(1, grant_of(7, 2));
    sim.frame(1, grant_of(8, 3));
    assert_eq!(sim.running(), [2, 3]);
    // The owner's epoch is known from its grants too.
    sim.sent.clear();
    sim.owner(0, 7);
    assert_eq!(sim.take_sent(), []);
}

#[test]
pub(super) fn parts_that_another_sent_are_dropped_with_a_new_owner() {
    let mut sim = Sim::attached_to(2, 2);
    let mut part = grant(1, v1::Phase::Stage);
    part.more = true;
    sim.frame(0, In::Grant(part.clone()));
    let mut of_new = part.clone();
    of_new.token = Some(token(2));
    sim.frame(1, In::Grant(of_new));
    sim.sent.clear();
    sim.owner(1, 7);
    assert_eq!(holding(&sim.take_sent()), Some((7, vec![2])));
    (part.more, part.tasks) = (false, Bytes::new());
    sim.frame(0, In::Grant(part));
    assert!(sim.run.is_empty());
    assert!(matches!(sim.take_sent()[..], [Out::Release(_)]));
}

#[test]
pub(super) fn only_the_owner_may_take_a_lease_away() {
    let mut sim = Sim::attached_to(2, 2);
    sim.grant(1, v1::Phase::Stage);
    sim.grant(2, v1::Phase::Stage);
    sim.finish(2);
    sim.owner(1, 7);
    // The older owner doesn't know yet that it was replaced.
    sim.revoke(0, 1);
    sim.ack_report_on(0, 2, Result::Stale as i32);
    assert!(sim.cancelled.is_empty() && sim.removals.is_empty());
    sim.revoke(1, 1);
    assert_eq!(sim.cancelled, [1]);
    // While the owner is away others are heard: the batch may be over.
    sim.down(1);
    sim.ack_report_on(0, 2, Result::UnknownBatch as i32);
    assert_eq!(sim.removing(), [2]);
}

#[test]
pub(super) fn owners_are_answered_while_the_worker_drains() {
    let mut sim = Sim::attached_to(2, 1);
    sim.grant(1, v1::Phase::Stage);
    sim.event(Event::Shutdown);
    sim.down(0);
    sim.sent.clear();
    sim.owner(1, 7);
    assert_eq!(holding(&sim.take_sent()), Some((7, vec![1])));
    sim.finish(1);
    assert_eq!((sim.reported(), sim.exited), (vec![(1, 1)], false));
    sim.owner(1, 9);
    assert_eq!(sim.reported(), [(1, 1)]);
    sim.ack_report_on(1, 1, Result::Durable as i32);
    assert!(sim.exited);
}

fn refuse(sim: &mut Sim, link: LinkId, epoch: u64, counter: u64) {
    let report = v1::ReportAck {
        token: Some(v1::Token { epoch, counter }),
        result: Result::Stale as i32,
        message: String::new(),
    };
    sim.frame(link, In::Ack(v1::Ack { heartbeat: 0, reports: vec![report], backlog: 0 }));
}

/// The new owner may have counted the report, and its answer was lost with the stream. One that was replaced and
/// doesn't know it has never heard of the lease.
#[test]
pub(super) fn an_owner_that_was_replaced_takes_no_report_away_while_the_new_one_is_away() {
    let mut sim = Sim::attached_to(2, 2);
    sim.owner(0, 5);
    sim.owner(1, 7);
    sim.frame(1, grant_of(7, 1));
    let outcome = Outcome::Staged { done: 1, failures: Vec::new(), receipt: Bytes::new() };
    sim.event(Event::Finished(Token { epoch: 7, counter: 1 }, outcome));
    assert_eq!(sim.reported(), [(1, 1)]);
    sim.down(1);
    sim.pass(INTERVAL);
    assert_eq!(sim.reported(), [(0, 1)]);
    refuse(&mut sim, 0, 7, 1);
    assert!(sim.removals.is_empty(), "it may count");
    // Asked whose the batch is, since it wasn't when it was greeted.
    assert_eq!(sim.closed, [0]);
    sim.attach(0);
    sim.owner(0, 5);
    sim.ack_heartbeat(1);
    sim.pass(INTERVAL);
    assert_eq!(sim.reported(), [(0, 1)]);
    refuse(&mut sim, 0, 7, 1);
    assert_eq!((sim.removals.len(), sim.closed.len()), (0, 1));
    sim.attach(1);
    sim.owner(1, 7);
    assert_eq!(sim.reported(), [(1, 1), (1, 1)]);
    refuse(&mut sim, 1, 7, 1);
    assert_eq!(sim.removals.len(), 1);
}

/// The lease came just after the greeting, so its new owner didn't know that this worker must be told.
#[test]
pub(super) fn an_owner_that_refuses_what_it_was_not_greeted_with_is_greeted_anew() {
    let mut sim = Sim::attached_to(2, 2);
    sim.grant(1, v1::Phase::Stage);
    sim.finish(1);
    sim.down(0);
    sim.pass(INTERVAL);
    refuse(&mut sim, 1, 1, 1);
    assert_eq!((sim.removals.len(), sim.closed.clone()), (0, vec![1]));
    sim.sent.clear();
    sim.attach(1);
    assert_eq!(hello(&sim.sent_on(1)[0]), [1]);
    sim.owner(1, 7);
    refuse(&mut sim, 1, 1, 1);
    assert_eq!(sim.removing(), [1]);
    assert_eq!(sim.closed, [1]);
}

#[test]
pub(super) fn a_grant_of_a_new_owner_tells_of_it() {
    let mut sim = Sim::attached_to(2, 3);
    sim.grant(1, v1::Phase::Stage);
    sim.grant(2, v1::Phase::Stage);
    sim.finish(2);
    sim.sent.clear();
    sim.frame(1, grant_of(7, 3));
    assert_eq!(holding(&sim.sent_on(1)), Some((7, vec![1, 2])));
    assert_eq!((sim.reported(), sim.running()), (vec![(1, 2)], vec![1, 2, 3]));
    sim.frame(1, grant_of(8, 4));
    assert_eq!(holding(&sim.take_sent()), None, "all is on its link already");
}
