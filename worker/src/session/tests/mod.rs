//! The machine by literal events, under a clock that the test owns.
#![allow(clippy::unchecked_time_subtraction)]

mod credit;
mod drain;
mod heartbeats;
mod leases;
mod links;
mod lost;
mod owners;
#[cfg(feature = "planted")]
mod planted;
mod reports;
mod rollback;

use super::state::{Command, Event, Machine, Now, Settings};
use super::{Job, LinkId, Outcome, Removal};
use crate::lease::Token;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
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
    removals: Vec<Removal>,
    /// The links that dial or have a stream.
    dialling: BTreeMap<LinkId, String>,
    hung_up: Vec<LinkId>,
    closed: Vec<usize>,
    left: Vec<String>,
    exited: bool,
}

/// The URL of a configured link.
fn url(link: LinkId) -> String {
    format!("http://c{link}:7070")
}

fn settings(slots: usize, prefetch: usize, links: usize) -> Settings {
    Settings {
        worker: "w".into(),
        incarnation: "i".into(),
        handlers: BTreeSet::from(["noop".to_owned()]),
        slots,
        prefetch,
        window_bytes: 100,
        coordinators: (0..links).map(url).collect(),
        labels: Default::default(),
        drain_timeout: Duration::from_secs(10),
    }
}

fn token(counter: u64) -> v1::Token {
    v1::Token { epoch: 1, counter }
}

/// Tasks with these keys, as a lease carries them.
fn tasks(keys: &[&str]) -> Bytes {
    let task = |key: &&str| v1::Task { key: (*key).into(), ..Default::default() };
    keys.iter().map(task).collect::<tranche_proto::TaskList>().bytes().clone()
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
        tasks: if stage { tasks(&[""]) } else { Bytes::new() },
        ..Default::default()
    }
}

impl Sim {
    fn new(settings: Settings) -> Self {
        let mut sim = Self {
            machine: Machine::new(settings),
            now: Duration::from_secs(1),
            sent: Vec::new(),
            run: Vec::new(),
            cancelled: Vec::new(),
            removals: Vec::new(),
            dialling: BTreeMap::new(),
            hung_up: Vec::new(),
            closed: Vec::new(),
            left: Vec::new(),
            exited: false,
        };
        sim.event(Event::Tick);
        sim
    }

    /// One coordinator, attached; what was sent until then is dropped.
    fn attached(slots: usize) -> Self {
        Self::attached_to(1, slots)
    }

    /// So many coordinators, all attached.
    fn attached_to(links: usize, slots: usize) -> Self {
        let mut sim = Self::new(settings(slots, 1, links));
        (0..links).for_each(|link| sim.attach(link));
        sim.sent.clear();
        sim
    }

    fn event(&mut self, event: Event) {
        for command in self.machine.handle(self.now, event) {
            match command {
                Command::Dial { link, url } => drop(self.dialling.insert(link, url)),
                Command::Rest(link) => drop(self.dialling.remove(&link).expect("it dialled")),
                Command::HangUp(link) => {
                    self.dialling.remove(&link);
                    self.hung_up.push(link);
                }
                Command::Remove(removal) => self.removals.push(*removal),
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

    /// A link gets to the coordinator of its number.
    fn attach(&mut self, link: usize) {
        self.attach_as(link, &format!("c{link}"));
    }

    fn attach_as(&mut self, link: usize, coordinator: &str) {
        self.event(Event::Opened(link));
        let duration = |d: Duration| prost_types::Duration::try_from(d).ok();
        self.frame(
            link,
            In::Welcome(v1::Welcome {
                coordinator: coordinator.into(),
                protocol_version: 1,
                lease_ttl: duration(TTL),
                heartbeat_interval: duration(INTERVAL),
                idle_heartbeat_interval: None,
            }),
        );
    }

    fn down(&mut self, link: LinkId) {
        self.event(Event::Closed(link));
    }

    /// Coordinators, each with its id and its endpoint.
    fn replicas(&mut self, link: LinkId, replicas: &[(&str, &str)]) {
        let replica = |(coordinator, endpoint): &(&str, &str)| v1::Replica {
            coordinator: (*coordinator).into(),
            endpoint: (*endpoint).into(),
        };
        let replicas = replicas.iter().map(replica).collect();
        self.frame(link, In::Replicas(v1::Replicas { replicas }));
    }

    fn owner(&mut self, link: LinkId, epoch: u64) {
        self.frame(link, In::Owner(v1::Owner { batch: "b".into(), epoch }));
    }

    fn revoke(&mut self, link: LinkId, counter: u64) {
        let revoke = v1::Revoke { batch: "b".into(), token: Some(token(counter)), reason: String::new() };
        self.frame(link, In::Revoke(revoke));
    }

    fn removed(&mut self, counter: u64) {
        self.event(Event::Removed(Token { epoch: 1, counter }));
    }

    /// The attempts whose removal was asked for.
    fn removing(&self) -> Vec<u64> {
        self.removals.iter().map(|removal| removal.lease.token.counter).collect()
    }

    fn grant(&mut self, counter: u64, phase: v1::Phase) {
        self.frame(0, In::Grant(grant(counter, phase)));
    }

    fn finish(&mut self, counter: u64) {
        let outcome = Outcome::Staged { done: 1, failures: Vec::new(), receipt: Bytes::new() };
        self.event(Event::Finished(Token { epoch: 1, counter }, outcome));
    }

    fn ack_heartbeat(&mut self, number: u64) {
        self.ack_heartbeat_on(0, number);
    }

    fn ack_heartbeat_on(&mut self, link: LinkId, number: u64) {
        self.frame(link, In::Ack(v1::Ack { heartbeat: number, reports: Vec::new(), backlog: 0 }));
    }

    fn ack_report(&mut self, counter: u64, result: i32) {
        self.ack_report_on(0, counter, result);
    }

    fn ack_report_on(&mut self, link: LinkId, counter: u64, result: i32) {
        let report = v1::ReportAck { token: Some(token(counter)), result, message: String::new() };
        self.frame(link, In::Ack(v1::Ack { heartbeat: 0, reports: vec![report], backlog: 0 }));
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

    /// What was sent on one link since the last look at all.
    fn sent_on(&self, link: LinkId) -> Vec<Out> {
        self.sent.iter().filter(|(to, _)| *to == link).map(|(_, frame)| frame.clone()).collect()
    }

    /// The reports that were sent since the last look, by link and counter.
    fn reported(&mut self) -> Vec<(LinkId, u64)> {
        let counter = |report: &v1::Report| report.token.unwrap().counter;
        let sent = std::mem::take(&mut self.sent);
        let sent = sent.iter();
        sent.filter_map(|(to, f)| if let Out::Report(r) = f { Some((*to, counter(r))) } else { None })
            .collect()
    }

    /// The windows that were told since the last look, by link.
    fn credits(&mut self) -> Vec<(LinkId, i32, i64)> {
        let credit = |(to, frame): (LinkId, Out)| match frame {
            Out::Credit(credit) => Some((to, credit.leases, credit.bytes)),
            _ => None,
        };
        std::mem::take(&mut self.sent).into_iter().filter_map(credit).collect()
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
