//! Backup leases: nothing is left to lease, and one worker is slow.

use crate::support::desk::Desk;
use crate::support::{ack, acks, but, done, error, grants, run, runs, settings, spec, the_grant, worker};
use std::time::Duration;
use tranche_engine::{
    Command, CommitMode, Event, Grant, Phase, RangePhase, Report, ReportResult, Settings, Spec, State,
    WorkerKey,
};

const AFTER: Duration = Duration::from_secs(3);
const MS: Duration = Duration::from_millis(1);
const REASON: &str = "another attempt at the same tasks was first";

fn desk_with(spec: Spec, total: u64) -> Desk {
    Desk::tuned(spec, Settings { backup_after: AFTER, ..settings() }).filled(total)
}

/// Held when all is accounted for, so that nothing but staging is leased.
fn manual() -> Spec {
    Spec { commit_mode: CommitMode::Manual, ..spec() }
}

/// `a` has all there is, for long enough; `b` got a backup.
fn doubled(spec: Spec) -> (Desk, Grant, Grant) {
    let mut desk = desk_with(spec, 10);
    let primary = desk.lease(&worker("a"));
    desk.wait(AFTER);
    let backup = desk.lease(&worker("b"));
    (desk, primary, backup)
}

fn tokens(desk: &Desk) -> (Option<tranche_engine::Token>, Option<tranche_engine::Token>) {
    let range = &desk.store.records.ranges[&1];
    (range.lease.as_ref().map(|lease| lease.token), range.backup.as_ref().map(|lease| lease.token))
}

#[test]
fn the_slowest_range_is_leased_again_and_its_record_is_written_first() {
    let mut desk = desk_with(spec(), 20);
    let (a, b, c) = (worker("a"), worker("b"), worker("c"));
    let slowest = desk.lease(&a);
    desk.wait_seconds(1);
    desk.lease(&b);
    desk.wait(AFTER);
    assert_eq!(desk.batch.appetite(desk.now()), 2);
    desk.ask(&c);
    assert_eq!(desk.step(), [], "nothing is sent yet");
    let write = desk.in_flight.clone().expect("a write");
    assert!(write.undecided && write.cutoff.is_some_and(|cutoff| cutoff.cutoff == 20));
    let [range] = &write.ranges[..] else { panic!("{write:?}") };
    let backup = range.backup.clone().expect("a backup");
    assert_eq!((range.run, range.phase, backup.worker.clone()), (slowest.run, RangePhase::Leased, c.clone()));
    assert_eq!(range.lease.as_ref().map(|lease| lease.token), Some(slowest.token), "it keeps its lease");
    let grant = the_grant(&desk.land());
    assert_eq!((grant.token, grant.phase, grant.worker), (backup.token, Phase::Stage, c));
    assert_eq!((grant.run, grant.runs, grant.attempt), (slowest.run, slowest.runs, slowest.attempt));
}

#[test]
fn a_lease_is_slow_when_it_is_out_for_backup_after_and_not_a_moment_before() {
    let mut desk = desk_with(spec(), 10);
    let (a, b) = (worker("a"), worker("b"));
    desk.lease(&a);
    let slow_at = desk.at + AFTER;
    assert_eq!(desk.batch.wake_at(desk.now()), Some(slow_at));
    desk.wait(AFTER.saturating_sub(MS));
    assert_eq!(desk.batch.appetite(desk.now()), 0);
    desk.ask(&b);
    assert_eq!(desk.settle(), [Command::Return { worker: b.clone(), keep: true }]);
    assert_eq!(desk.batch.wake_at(desk.now()), Some(slow_at));
    desk.wait(MS);
    assert_eq!(desk.batch.appetite(desk.now()), 1);
    assert_eq!(desk.lease(&b).run, run(1, 10));
}

#[test]
fn a_lease_is_slow_when_it_takes_twice_as_long_as_the_batchs_leases_and_not_a_moment_before() {
    let mut desk = desk_with(spec(), 30);
    let (a, b) = (worker("a"), worker("b"));
    let straggler = desk.lease(&a);
    // 2 s and 6 s: 4 s on the average.
    for seconds in [2, 6] {
        let grant = desk.lease(&b);
        desk.report(Report { elapsed: Duration::from_secs(seconds), ..done(&grant) });
        desk.settle();
    }
    desk.wait(Duration::from_secs(8).saturating_sub(MS));
    assert_eq!(desk.batch.appetite(desk.now()), 0);
    desk.wait(MS);
    assert_eq!(desk.batch.appetite(desk.now()), 1);
    assert_eq!(desk.lease(&b).run, straggler.run);
}

#[test]
fn there_is_no_backup_while_anything_else_can_be_leased() {
    let mut desk = desk_with(spec(), 30);
    let (a, b) = (worker("a"), worker("b"));
    let slow = desk.lease(&a);
    let failing = desk.lease(&b);
    desk.wait(AFTER);
    assert_eq!(desk.lease(&b).run, run(21, 30), "what was never leased comes first");
    desk.report(error(&failing, "disk full"));
    desk.settle();
    // What waits for its pause can't be leased now.
    assert_eq!(desk.batch.appetite(desk.now()), 1);
    desk.wait_seconds(1);
    assert_eq!(desk.lease(&b).run, failing.run, "what came back comes first");
    assert_eq!(desk.lease(&b).run, slow.run);
}

#[test]
fn a_batch_that_is_not_sealed_gets_backups_too() {
    let mut desk = Desk::tuned(spec(), Settings { backup_after: AFTER, ..settings() });
    desk.append(1, 10);
    desk.settle();
    desk.wait_seconds(1);
    let slow = desk.lease(&worker("a"));
    desk.wait(AFTER);
    assert_eq!(desk.lease(&worker("b")).run, slow.run);
}

#[test]
fn a_range_gets_one_backup() {
    let (mut desk, ..) = doubled(spec());
    desk.wait(Duration::from_secs(6));
    assert_eq!(desk.batch.appetite(desk.now()), 0);
    desk.ask(&worker("c"));
    assert_eq!(desk.settle(), [Command::Return { worker: worker("c"), keep: true }]);
}

#[test]
fn a_worker_does_not_back_itself_up_and_makes_room_for_others_without_a_busy_loop() {
    let mut desk = desk_with(spec(), 10);
    let (a, b) = (worker("a"), worker("b"));
    desk.lease(&a);
    desk.wait(AFTER);
    // Another life of it is the same worker.
    for own in [a.clone(), WorkerKey::new("a", "2")] {
        desk.ask(&own);
        assert_eq!(desk.settle(), [Command::Return { worker: own, keep: false }]);
        assert_eq!(desk.batch.appetite(desk.now()), 0, "not at once again");
        let again = desk.at + Duration::from_millis(250);
        assert_eq!(desk.batch.wake_at(desk.now()), Some(again));
        desk.wait(Duration::from_millis(249));
        assert_eq!(desk.batch.appetite(desk.now()), 0);
        desk.wait(MS);
        assert_eq!(desk.batch.appetite(desk.now()), 1);
    }
    desk.ask(&a);
    desk.ask(&b);
    assert_eq!(grants(&desk.settle()).len(), 1, "who is there beside it is served");
}

#[test]
fn when_the_backup_is_first_it_counts_and_the_slow_worker_is_told_to_stop() {
    let (mut desk, primary, backup) = doubled(manual());
    let (a, b) = (worker("a"), worker("b"));
    desk.report(done(&backup));
    let commands = desk.settle();
    assert!(commands.contains(&Command::Revoke { worker: a.clone(), token: primary.token, reason: REASON }));
    assert!(commands.contains(&ack(&b, backup.token, ReportResult::Durable)), "{commands:?}");
    let range = &desk.store.records.ranges[&1];
    assert_eq!(
        (range.phase, range.losers.clone(), range.losses),
        (RangePhase::Staged, vec![primary.token], 0)
    );
    assert_eq!(range.winners[0].token, backup.token);
    assert_eq!((tokens(&desk), desk.store.records.state.staged), ((None, None), 10));
    desk.report(done(&primary));
    assert_eq!(desk.settle(), [ack(&a, primary.token, ReportResult::Stale)]);
    assert_eq!((desk.state(), desk.store.records.state.staged), (State::Held, 10));
}

#[test]
fn when_the_slow_worker_is_first_after_all_it_counts() {
    let (mut desk, primary, backup) = doubled(manual());
    desk.report(but(&primary, runs(&[(3, 3)])));
    let commands = desk.settle();
    assert!(commands.contains(&Command::Revoke { worker: worker("b"), token: backup.token, reason: REASON }));
    let range = &desk.store.records.ranges[&1];
    assert_eq!((range.winners[0].token, range.losers.clone()), (primary.token, vec![backup.token]));
    assert_eq!((range.failed(), desk.store.records.state.staged), (1, 9));
}

#[test]
fn a_backup_that_was_not_sent_when_the_slow_worker_reports_is_never_sent() {
    let mut desk = desk_with(manual(), 10);
    let (a, b) = (worker("a"), worker("b"));
    let primary = desk.lease(&a);
    desk.wait(AFTER);
    desk.ask(&b);
    desk.report(done(&primary));
    let commands = desk.settle();
    assert_eq!(grants(&commands), []);
    assert!(commands.contains(&Command::Return { worker: b, keep: true }), "{commands:?}");
    assert!(!commands.iter().any(|command| matches!(command, Command::Revoke { .. })), "{commands:?}");
}

#[test]
fn a_backup_takes_the_place_of_a_lost_lease_and_the_loss_counts() {
    let (mut desk, primary, backup) = doubled(manual());
    desk.gone(&worker("a"));
    assert_eq!(desk.settle(), [Command::Freed { worker: worker("a"), token: primary.token }]);
    let range = desk.store.records.ranges[&1].clone();
    assert_eq!((range.losses, range.losers), (1, vec![primary.token]));
    assert_eq!(tokens(&desk), (Some(backup.token), None));
    assert_eq!(desk.batch.appetite(desk.now()), 0, "it isn't leased again while a lease of it is out");
    desk.report(done(&backup));
    desk.settle();
    assert_eq!((desk.state(), desk.store.records.state.staged), (State::Held, 10));
}

#[test]
fn a_lost_backup_leaves_the_lease_alone_and_the_wait_begins_again() {
    let (mut desk, primary, backup) = doubled(manual());
    desk.gone(&worker("b"));
    desk.settle();
    let range = desk.store.records.ranges[&1].clone();
    assert_eq!((range.losses, range.losers), (1, vec![backup.token]));
    assert_eq!(tokens(&desk), (Some(primary.token), None));
    desk.batch.seen(&worker("a"), desk.at);
    desk.wait(AFTER.saturating_sub(MS));
    assert_eq!(desk.batch.appetite(desk.now()), 0);
    desk.wait(MS);
    assert_eq!(desk.lease(&worker("c")).run, primary.run);
}

#[test]
fn a_range_is_split_only_when_no_lease_of_it_is_out() {
    let (mut desk, _, backup) = doubled(Spec { max_attempts: 1, ..manual() });
    desk.gone(&worker("a"));
    desk.settle();
    assert_eq!(desk.store.records.ranges.len(), 1);
    desk.gone(&worker("b"));
    desk.settle();
    let halves: Vec<_> = desk.store.records.ranges.values().collect();
    assert_eq!(halves.iter().map(|half| half.run).collect::<Vec<_>>(), [run(1, 5), run(6, 10)]);
    assert!(halves.iter().all(|half| half.losers.contains(&backup.token) && half.losers.len() == 2));
}

#[test]
fn an_error_of_one_waits_for_the_other() {
    let (mut desk, primary, backup) = doubled(Spec { max_attempts: 2, ..manual() });
    desk.report(error(&backup, "disk full"));
    assert_eq!(acks(&desk.settle()), [ReportResult::Durable]);
    let range = desk.store.records.ranges[&1].clone();
    assert_eq!((range.errors, range.losers), (1, vec![backup.token]));
    assert_eq!((tokens(&desk), desk.batch.appetite(desk.now())), ((Some(primary.token), None), 0));
    desk.report(error(&primary, "disk full"));
    desk.settle();
    assert_eq!(
        (desk.state(), desk.store.records.state.failed),
        (State::Held, 10),
        "that was the last attempt"
    );
}

#[test]
fn a_backup_that_is_given_back_is_no_attempt() {
    let (mut desk, primary, backup) = doubled(manual());
    desk.push(Event::Release { worker: worker("b"), token: backup.token });
    assert_eq!(desk.settle(), [Command::Freed { worker: worker("b"), token: backup.token }]);
    let range = &desk.store.records.ranges[&1];
    assert_eq!((range.losses, range.losers.len()), (0, 0));
    assert_eq!(tokens(&desk), (Some(primary.token), None));
}

#[test]
fn both_leases_survive_a_take_over_and_the_first_report_counts() {
    let (mut desk, primary, backup) = doubled(manual());
    let (a, b) = (worker("a"), worker("b"));
    desk.take_over();
    assert_eq!(desk.batch.leases().count(), 2);
    desk.attach(&a, &[primary.token]);
    desk.attach(&b, &[backup.token]);
    assert_eq!(desk.settle(), []);
    desk.wait(AFTER);
    assert_eq!(desk.batch.appetite(desk.now()), 0, "it has a backup");
    desk.report(done(&backup));
    let commands = desk.settle();
    assert!(commands.contains(&Command::Revoke { worker: a, token: primary.token, reason: REASON }));
    assert!(commands.contains(&ack(&b, backup.token, ReportResult::Durable)), "{commands:?}");
}

#[test]
fn after_a_take_over_a_lease_is_as_old_as_the_ownership() {
    let mut desk = desk_with(spec(), 10);
    desk.lease(&worker("a"));
    desk.wait(AFTER.saturating_sub(MS));
    desk.take_over();
    desk.wait(AFTER.saturating_sub(MS));
    assert_eq!(desk.batch.appetite(desk.now()), 0);
    desk.wait(MS);
    assert_eq!(desk.lease(&worker("b")).run, run(1, 10));
}

#[test]
fn a_refused_write_makes_no_lease_younger() {
    let mut desk = desk_with(spec(), 10);
    desk.lease(&worker("a"));
    desk.wait(AFTER.saturating_sub(MS));
    desk.reload();
    desk.settle();
    assert_eq!(desk.batch.appetite(desk.now()), 0);
    desk.wait(MS);
    assert_eq!(desk.batch.appetite(desk.now()), 1);
}

#[test]
fn a_backup_of_a_refused_write_is_asked_for_again() {
    let mut desk = desk_with(spec(), 10);
    let primary = desk.lease(&worker("a"));
    desk.wait(AFTER);
    desk.ask(&worker("b"));
    desk.step();
    desk.doubt();
    desk.settle();
    desk.apply_late();
    desk.report(done(&primary));
    // The write that counts it is refused: it doesn't know of the backup that was applied late.
    let commands = desk.settle();
    assert!(commands.contains(&ack(&worker("a"), primary.token, ReportResult::Durable)), "{commands:?}");
    assert!(!commands.iter().any(|command| matches!(command, Command::Revoke { .. })), "{commands:?}");
}

#[test]
fn a_worker_is_told_to_stop_also_when_the_answer_of_that_write_was_lost() {
    let (mut desk, primary, backup) = doubled(manual());
    desk.report(done(&backup));
    desk.step();
    desk.apply_unheard();
    desk.reload();
    let commands = desk.settle();
    let revoke = Command::Revoke { worker: worker("a"), token: primary.token, reason: REASON };
    assert_eq!(commands.iter().filter(|command| **command == revoke).count(), 1, "{commands:?}");
    assert_eq!(acks(&commands), [ReportResult::Durable]);
}

#[test]
fn a_rollback_waits_for_both_and_names_both() {
    let (mut desk, primary, backup) = doubled(spec());
    let (a, b) = (worker("a"), worker("b"));
    desk.cancel();
    desk.settle();
    assert_eq!(desk.batch.appetite(desk.now()), 0);
    desk.push(Event::PhaseAck { worker: a.clone() });
    assert_eq!(desk.settle(), [Command::Freed { worker: a.clone(), token: primary.token }]);
    assert_eq!(desk.batch.appetite(desk.now()), 0, "the other may be staging yet");
    desk.push(Event::PhaseAck { worker: b });
    desk.settle();
    let rollback = desk.lease(&a);
    let named: Vec<_> = rollback.attempts.iter().map(|attempt| attempt.token).collect();
    assert_eq!((rollback.phase, named), (Phase::Rollback, vec![primary.token, backup.token]));
}

#[test]
fn a_rollback_waits_for_a_worker_that_was_told_to_stop() {
    let (mut desk, primary, backup) = doubled(manual());
    desk.report(done(&backup));
    desk.settle();
    desk.cancel();
    desk.settle();
    assert_eq!(desk.batch.appetite(desk.now()), 0);
    assert!(desk.batch.holders().contains(&worker("a")));
    desk.push(Event::PhaseAck { worker: worker("a") });
    desk.settle();
    let rollback = desk.lease(&worker("b"));
    let named: Vec<_> = rollback.attempts.iter().map(|attempt| attempt.token).collect();
    assert_eq!(named, [backup.token, primary.token]);
}

#[test]
fn another_worker_can_not_say_that_it_has_stopped() {
    let (mut desk, primary, backup) = doubled(manual());
    desk.report(done(&backup));
    desk.settle();
    desk.cancel();
    desk.settle();
    let (a, token) = (worker("a"), primary.token);
    for other in [worker("b"), worker("c")] {
        desk.push(Event::Attached { worker: other.clone(), held: vec![token] });
        desk.push(Event::Release { worker: other.clone(), token });
        desk.push(Event::Report(Report { worker: other.clone(), ..done(&primary) }));
        desk.push(Event::PhaseAck { worker: other });
        desk.settle();
        assert_eq!(desk.batch.appetite(desk.now()), 0, "a may be staging yet");
    }
    desk.push(Event::Release { worker: a, token });
    desk.settle();
    assert_eq!(desk.lease(&worker("b")).phase, Phase::Rollback);
}

#[test]
fn a_commit_does_not_wait_but_its_end_does_and_a_silent_worker_makes_it_sweep_late() {
    let (mut desk, _, backup) = doubled(spec());
    let b = worker("b");
    desk.report(done(&backup));
    desk.settle();
    let told = desk.at;
    for phase in [Phase::Commit, Phase::Publish, Phase::Sweep] {
        let grant = desk.lease(&b);
        assert_eq!(grant.phase, phase);
        desk.report(done(&grant));
        desk.settle();
    }
    assert_eq!((desk.state(), desk.ended), (State::Committed, false));
    assert_eq!(desk.batch.wake_at(desk.now()), Some(told + crate::support::TTL));
    desk.wait(crate::support::TTL);
    desk.settle();
    assert!(desk.store.records.state.late_sweep);
    desk.does(&b);
    assert!(desk.ended && !desk.store.records.state.late_sweep);
}

#[test]
fn a_commit_ends_at_once_when_the_worker_that_was_told_to_stop_answers() {
    let (mut desk, _, backup) = doubled(spec());
    desk.report(done(&backup));
    desk.settle();
    desk.push(Event::PhaseAck { worker: worker("a") });
    for _ in 0..3 {
        desk.does(&worker("b"));
    }
    assert!(desk.ended && !desk.store.records.state.late_sweep);
}

#[test]
fn only_the_winner_is_committed() {
    let (mut desk, _, backup) = doubled(spec());
    desk.report(done(&backup));
    desk.settle();
    let commit = desk.lease(&worker("a"));
    let named: Vec<_> = commit.attempts.iter().map(|attempt| attempt.token).collect();
    assert_eq!((commit.phase, named), (Phase::Commit, vec![backup.token]));
}

#[test]
fn a_worker_that_dies_after_the_sweep_before_it_stopped_makes_it_sweep_late() {
    let (mut desk, _, backup) = doubled(spec());
    desk.report(done(&backup));
    desk.settle();
    for _ in 0..3 {
        desk.does(&worker("b"));
    }
    desk.gone(&worker("a"));
    desk.settle();
    assert!(desk.store.records.state.late_sweep && !desk.ended);
    desk.does(&worker("b"));
    assert!(desk.ended);
}
