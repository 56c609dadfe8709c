//! The machine by literal events, under a clock that the test owns.
#![allow(clippy::unchecked_time_subtraction)]

use super::state::{Command, Event, Machine, Now, Settings};
use super::{Job, Outcome};
use crate::lease::Token;
use bytes::Bytes;
use std::collections::BTreeSet;
use std::time::Duration;
use tranche_proto::v1;
use tranche_proto::v1::attach_request::Frame as Out;
use tranche_proto::v1::attach_response::Frame as In;

const TTL: Now = Duration::from_secs(9);
const INTERVAL: Now = Duration::from_secs(3);

struct Sim {
    machine: Machine,
    now: Now,
    sent: Vec<(usize, Out)>,
    run: Vec<Job>,
    cancelled: Vec<u64>,
    closed: Vec<usize>,
    left: Vec<String>,
    exited: bool,
}

fn settings(slots: usize, prefetch: usize, links: usize) -> Settings {
    Settings {
        worker: "w".into(),
        incarnation: "i".into(),
        handlers: BTreeSet::from(["noop".to_owned()]),
        slots,
        prefetch,
        window_bytes: 100,
        links,
        labels: Default::default(),
        drain_timeout: Duration::from_secs(10),
    }
}

fn token(counter: u64) -> v1::Token {
    v1::Token { epoch: 1, counter }
}

fn grant(counter: u64, phase: v1::Phase) -> v1::Grant {
    let stage = phase == v1::Phase::Stage;
    let range = v1::Range { first: 1, last: 1 };
    v1::Grant {
        batch: "b".into(),
        handler: "noop".into(),
        token: Some(token(counter)),
        phase: phase as i32,
        range: Some(range),
        runs: if stage { vec![range] } else { Vec::new() },
        tasks: if stage { vec![v1::Task::default()] } else { Vec::new() },
        ..Default::default()
    }
}

impl Sim {
    fn new(settings: Settings) -> Self {
        Self {
            machine: Machine::new(settings),
            now: Duration::from_secs(1),
            sent: Vec::new(),
            run: Vec::new(),
            cancelled: Vec::new(),
            closed: Vec::new(),
            left: Vec::new(),
            exited: false,
        }
    }

    /// One coordinator, attached; what was sent until then is dropped.
    fn attached(slots: usize) -> Self {
        let mut sim = Self::new(settings(slots, 1, 1));
        sim.attach(0);
        sim.sent.clear();
        sim
    }

    fn event(&mut self, event: Event) {
        for command in self.machine.handle(self.now, event) {
            match command {
                Command::Send(link, frame) => self.sent.push((link, frame.frame.unwrap())),
                Command::Close(link, _) => self.closed.push(link),
                Command::Attached(_) => {}
                Command::Run(job) => self.run.push(*job),
                Command::Cancel(token) => self.cancelled.push(token.counter),
                Command::Leave(batch) => self.left.push(batch),
                Command::Exit => self.exited = true,
            }
        }
    }

    fn frame(&mut self, link: usize, frame: In) {
        self.event(Event::Frame(link, v1::AttachResponse { frame: Some(frame) }));
    }

    fn attach(&mut self, link: usize) {
        self.event(Event::Opened(link));
        let duration = |d: Duration| prost_types::Duration::try_from(d).ok();
        self.frame(
            link,
            In::Welcome(v1::Welcome {
                coordinator: "c".into(),
                protocol_version: 1,
                lease_ttl: duration(TTL),
                heartbeat_interval: duration(INTERVAL),
            }),
        );
    }

    fn grant(&mut self, counter: u64, phase: v1::Phase) {
        self.frame(0, In::Grant(grant(counter, phase)));
    }

    fn finish(&mut self, counter: u64) {
        let outcome = Outcome::Staged { done: 1, failures: Vec::new(), receipt: Bytes::new() };
        self.event(Event::Finished(Token { epoch: 1, counter }, outcome));
    }

    fn ack_heartbeat(&mut self, number: u64) {
        self.frame(0, In::Ack(v1::Ack { heartbeat: number, reports: Vec::new(), backlog: 0 }));
    }

    fn ack_report(&mut self, counter: u64, result: i32) {
        let report = v1::ReportAck { token: Some(token(counter)), result, message: String::new() };
        self.frame(0, In::Ack(v1::Ack { heartbeat: 0, reports: vec![report], backlog: 0 }));
    }

    fn rollback(&mut self) {
        let change = v1::PhaseChanged { batch: "b".into(), phase: v1::Phase::Rollback as i32 };
        self.frame(0, In::PhaseChanged(change));
    }

    /// Lets time pass, waking the machine whenever it wants.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.machine.wake_at().filter(|at| *at <= end) {
            assert!(at >= self.now, "it must not want to be woken in the past");
            self.now = at;
            self.event(Event::Tick);
            assert!(self.machine.wake_at() != Some(at), "it must not want to be woken again and again");
        }
        self.now = end;
    }

    fn running(&self) -> Vec<u64> {
        self.run.iter().map(|job| job.token.counter).collect()
    }

    fn take_sent(&mut self) -> Vec<Out> {
        std::mem::take(&mut self.sent).into_iter().map(|(_, frame)| frame).collect()
    }

    fn reports(&mut self) -> Vec<v1::Report> {
        let reports = self.take_sent().into_iter();
        reports.filter_map(|f| if let Out::Report(report) = f { Some(report) } else { None }).collect()
    }

    fn phase_acks(&mut self) -> usize {
        self.take_sent().iter().filter(|frame| matches!(frame, Out::PhaseAck(_))).count()
    }
}

fn hello(frame: &Out) -> Vec<u64> {
    let Out::Hello(hello) = frame else { panic!("{frame:?}") };
    hello.held.iter().map(|held| held.token.unwrap().counter).collect()
}

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
fn the_window_is_split_evenly_over_coordinators() {
    let mut sim = Sim::new(settings(4, 1, 2));
    sim.attach(0);
    sim.attach(1);
    let credits: Vec<_> = sim.take_sent().into_iter().filter(|f| matches!(f, Out::Credit(_))).collect();
    assert_eq!(
        credits,
        [Out::Credit(v1::Credit { leases: 3, bytes: 50 }), Out::Credit(v1::Credit { leases: 2, bytes: 50 })]
    );
}

#[test]
fn every_coordinator_may_give_at_least_one_lease() {
    let mut sim = Sim::new(settings(1, 0, 2));
    sim.attach(1);
    assert!(sim.take_sent().contains(&Out::Credit(v1::Credit { leases: 1, bytes: 50 })));
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
fn a_grant_in_parts_starts_with_its_last_part() {
    let mut sim = Sim::attached(1);
    let mut first = grant(1, v1::Phase::Stage);
    first.runs = vec![v1::Range { first: 1, last: 3 }];
    first.more = true;
    sim.frame(0, In::Grant(first));
    let mut part =
        v1::Grant { token: Some(token(1)), batch: "b".into(), phase: 1, more: true, ..Default::default() };
    part.tasks = vec![v1::Task { key: "second".into(), ..Default::default() }];
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
fn heartbeats_are_numbered_and_name_every_lease_with_its_progress() {
    let mut sim = Sim::attached(1);
    sim.grant(1, v1::Phase::Stage);
    sim.grant(2, v1::Phase::Stage);
    sim.run[0].progress.add(7);
    sim.pass(INTERVAL);
    sim.ack_heartbeat(1);
    sim.pass(INTERVAL);
    let beats = sim.take_sent();
    let Out::Heartbeat(beat) = &beats[1] else { panic!("{beats:?}") };
    assert_eq!(beat.number, 2);
    assert_eq!(
        beat.leases.iter().map(|l| (l.token.unwrap().counter, l.done)).collect::<Vec<_>>(),
        [(1, 7), (2, 0)]
    );
}

#[test]
fn acknowledged_heartbeats_keep_leases() {
    let mut sim = Sim::attached(1);
    sim.grant(1, v1::Phase::Stage);
    for number in 1..=10 {
        sim.pass(INTERVAL);
        sim.ack_heartbeat(number);
    }
    assert!(sim.cancelled.is_empty() && sim.closed.is_empty());
}

#[test]
fn an_unanswered_heartbeat_ends_the_stream_before_the_lease_lapses() {
    let mut sim = Sim::attached(2);
    sim.grant(1, v1::Phase::Stage);
    sim.pass(INTERVAL);
    sim.ack_heartbeat(1);
    // The next heartbeat is never answered: half a TTL later the stream is given up. There is time left to
    // save the lease on a new one.
    sim.pass(INTERVAL + TTL / 2 - Duration::from_millis(1));
    assert!(sim.closed.is_empty());
    sim.pass(Duration::from_millis(1));
    assert_eq!((sim.closed.as_slice(), sim.cancelled.len()), ([0].as_slice(), 0));
    sim.attach(0);
    sim.pass(INTERVAL);
    sim.ack_heartbeat(1);
    sim.pass(INTERVAL);
    assert!(sim.cancelled.is_empty());
}

#[test]
fn a_lease_is_stopped_a_ttl_after_the_last_acknowledged_heartbeat_was_sent() {
    let mut sim = Sim::attached(1);
    sim.grant(1, v1::Phase::Stage);
    sim.grant(2, v1::Phase::Stage);
    sim.pass(INTERVAL);
    // The ack comes a second later; what counts is when the heartbeat was sent.
    sim.pass(Duration::from_secs(1));
    sim.ack_heartbeat(1);
    sim.event(Event::Closed(0));
    sim.pass(TTL - Duration::from_secs(1) - Duration::from_millis(1));
    assert!(sim.cancelled.is_empty());
    sim.pass(Duration::from_millis(1));
    assert_eq!(sim.cancelled, [1]);
    // The waiting one is gone, the running one keeps its slot until it has stopped; neither reports.
    sim.finish(1);
    assert_eq!(sim.running(), [1]);
    sim.attach(0);
    let sent = sim.take_sent();
    assert!(!sent.iter().any(|frame| matches!(frame, Out::Report(_))));
    let greeting = sent.iter().find(|frame| matches!(frame, Out::Hello(_))).unwrap();
    assert_eq!(hello(greeting), [0_u64; 0]);
}

#[test]
fn a_heartbeat_doesnt_keep_a_lease_that_came_after_it() {
    let mut sim = Sim::attached(1);
    sim.pass(INTERVAL);
    sim.pass(Duration::from_secs(1));
    sim.grant(1, v1::Phase::Stage);
    let granted = sim.now;
    sim.ack_heartbeat(1);
    sim.event(Event::Closed(0));
    sim.pass(granted + TTL - sim.now);
    assert_eq!(sim.cancelled, [1]);
}

#[test]
fn a_new_stream_keeps_leases_from_its_hello_on() {
    let mut sim = Sim::attached(1);
    sim.grant(1, v1::Phase::Stage);
    sim.pass(Duration::from_secs(2));
    sim.event(Event::Closed(0));
    sim.pass(Duration::from_secs(5));
    sim.sent.clear();
    sim.attach(0);
    assert_eq!(hello(&sim.take_sent()[0]), [1]);
    let hello_at = sim.now;
    sim.event(Event::Closed(0));
    sim.pass(TTL - Duration::from_millis(1));
    assert!(sim.cancelled.is_empty());
    sim.pass(hello_at + TTL - sim.now);
    assert_eq!(sim.cancelled, [1]);
}

#[test]
fn a_report_is_kept_and_sent_again_until_it_is_acknowledged() {
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
fn a_refused_report_is_dropped_and_an_answer_that_isnt_understood_settles_nothing() {
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
fn rollback_stops_staging_and_is_acknowledged_when_it_has_stopped() {
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
    assert_eq!(sim.phase_acks(), 0);
    sim.finish(2);
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
fn rollback_of_a_batch_that_isnt_here_is_acknowledged_at_once() {
    let mut sim = Sim::attached(2);
    let mut other = grant(1, v1::Phase::Stage);
    other.batch = "other".into();
    sim.frame(0, In::Grant(other));
    sim.rollback();
    assert_eq!((sim.phase_acks(), sim.cancelled.len()), (1, 0));
}

#[test]
fn commit_stops_nothing() {
    let mut sim = Sim::attached(1);
    sim.grant(1, v1::Phase::Stage);
    let change = |phase| v1::PhaseChanged { batch: "b".into(), phase };
    sim.frame(0, In::PhaseChanged(change(v1::Phase::Commit as i32)));
    assert_eq!((sim.phase_acks(), sim.cancelled.len()), (1, 0));
    sim.frame(0, In::PhaseChanged(change(42)));
    assert_eq!((sim.phase_acks(), sim.cancelled.len()), (0, 0));
}

#[test]
fn a_revoked_lease_is_stopped_and_not_reported() {
    let mut sim = Sim::attached(1);
    sim.grant(1, v1::Phase::Stage);
    sim.grant(2, v1::Phase::Stage);
    for counter in [1, 2] {
        let revoke = v1::Revoke { batch: "b".into(), token: Some(token(counter)), reason: String::new() };
        sim.frame(0, In::Revoke(revoke));
    }
    assert_eq!(sim.cancelled, [1]);
    // The slot is free when the lease has stopped, not before.
    sim.grant(3, v1::Phase::Stage);
    assert_eq!(sim.running(), [1]);
    sim.finish(1);
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
fn another_protocol_version_ends_the_stream() {
    let mut sim = Sim::new(settings(1, 1, 1));
    sim.event(Event::Opened(0));
    sim.frame(0, In::Welcome(v1::Welcome { protocol_version: 2, ..Default::default() }));
    assert_eq!(sim.closed, [0]);
    // What the dead stream still brings is nothing.
    sim.grant(1, v1::Phase::Stage);
    assert!(sim.run.is_empty());
}

#[test]
fn a_coordinator_that_never_says_welcome_is_left() {
    let mut sim = Sim::new(settings(1, 1, 1));
    sim.event(Event::Opened(0));
    sim.pass(Duration::from_secs(10));
    assert_eq!(sim.closed, [0]);
}

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
    assert!(!sim.exited);
    sim.pass(Duration::from_secs(1));
    assert!(sim.exited);
    assert_eq!(sim.cancelled, [1]);
}

#[test]
fn shutdown_with_nothing_to_do_ends_at_once() {
    let mut sim = Sim::new(settings(1, 1, 1));
    sim.event(Event::Shutdown);
    assert!(sim.exited);
}
