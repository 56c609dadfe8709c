//! What is told on the way: nothing is said before it is durable or true, and nobody does what he was told is
//! over.

use super::{TokenKey, token_key};
use crate::host::{HostId, Life};
use crate::net::{Item, StreamId};
use crate::plan::{Leaves, Setup};
use crate::stats::Count;
use crate::world::{At, Inner};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tranche_proto::v1;
use tranche_proto::v1::attach_request::Frame as Up;
use tranche_proto::v1::attach_response::Frame as Down;
use tranche_proto::v1::batch::State;
use tranche_worker::{StageLease, Token};

/// How long a call may take where nothing fails that it needs.
const ANSWER_WITHIN: Duration = Duration::from_millis(700);

type Worker = (HostId, Life);

/// What was told, and who is at what.
#[derive(Default)]
pub(super) struct Frames {
    rules: Option<(Leaves, Duration)>,
    /// Leases that failed as a whole, as their workers said.
    failed: BTreeSet<TokenKey>,
    /// Leases that were reported. What else is acknowledged, the coordinator reported to itself.
    reported: BTreeSet<TokenKey>,
    /// Batches whose rollback was told on a stream.
    told: BTreeSet<(StreamId, String)>,
    /// Calls that stage now, with their batches.
    staging: BTreeMap<(Worker, TokenKey), String>,
    /// Leases that a living worker ever began.
    begun: BTreeMap<TokenKey, Worker>,
    /// The same, while their owner was the batch's.
    current: BTreeMap<TokenKey, Worker>,
    /// The newest owner of each batch that each worker follows.
    owners: BTreeMap<(Worker, String), u64>,
    /// Leases that came to a worker from an owner which it knew to be replaced.
    outdated: BTreeSet<(Worker, TokenKey)>,
    /// When each worker last heard anything, or woke up.
    heard: BTreeMap<HostId, At>,
}

impl super::Checker {
    /// What may be asked of this run.
    pub(crate) fn rules(&mut self, setup: &Setup) {
        self.frames.rules = Some((setup.leaves, setup.lease_ttl));
    }
}

impl Inner {
    /// A frame leaves its host.
    pub(crate) fn sent(&mut self, stream: StreamId, worker: Worker, item: &Item) {
        match item {
            Item::Request(request) => self.said(worker, request),
            Item::Response(Ok(response)) => self.told(stream, response),
            Item::Response(Err(_)) | Item::Taken | Item::End => {}
        }
    }

    fn said(&mut self, worker: Worker, request: &v1::AttachRequest) {
        match &request.frame {
            Some(Up::Report(report)) if !report.error.is_empty() => {
                self.check.frames.failed.insert(token_key(report.token.as_ref()));
            }
            Some(Up::Report(report)) => {
                self.check.frames.reported.insert(token_key(report.token.as_ref()));
            }
            Some(Up::PhaseAck(ack)) if ack.phase == i32::from(v1::Phase::Rollback) => {
                let of_it =
                    |((by, _), batch): &(&(Worker, TokenKey), &String)| *by == worker && **batch == ack.batch;
                let still = self.check.frames.staging.iter().find(of_it).map(|((_, token), _)| *token);
                if let Some(token) = still {
                    self.violated(format!(
                        "I4 host {} says that it stopped {}, and stages {token:?}",
                        worker.0, ack.batch
                    ));
                }
            }
            Some(Up::Holding(holding)) => {
                let newest = self.check.frames.owners.entry((worker, holding.batch.clone())).or_default();
                let before = *newest;
                *newest = holding.epoch.max(before);
                if before > holding.epoch {
                    self.violated(format!(
                        "I6 host {} follows the owner {} of {} after {before}",
                        worker.0, holding.epoch, holding.batch
                    ));
                }
            }
            _ => {}
        }
    }

    fn told(&mut self, stream: StreamId, response: &v1::AttachResponse) {
        match &response.frame {
            Some(Down::Grant(grant)) if grant.phase() == v1::Phase::Stage => {
                let token = token_key(grant.token.as_ref());
                let mirror = self.check.batches.get(&grant.batch);
                if !mirror.is_some_and(|mirror| mirror.leased.contains_key(&token)) {
                    self.violated(format!("I6 lease {token:?} of {} is sent before its record", grant.batch));
                }
                if self.check.frames.told.contains(&(stream, grant.batch.clone())) {
                    self.violated(format!(
                        "I4 lease {token:?} of {} is sent after its rollback",
                        grant.batch
                    ));
                }
            }
            Some(Down::Grant(grant)) if grant.phase() == v1::Phase::Rollback => self.rolls_back(grant),
            Some(Down::PhaseChanged(change)) if change.phase() == v1::Phase::Rollback => {
                self.check.frames.told.insert((stream, change.batch.clone()));
            }
            Some(Down::Ack(ack)) => {
                for report in ack.reports.iter().filter(|r| r.result() == v1::report_ack::Result::Durable) {
                    let token = token_key(report.token.as_ref());
                    if !self.is_counted(token) {
                        self.violated(format!(
                            "I7 the report of {token:?} is acknowledged, and isn't durable"
                        ));
                    }
                }
            }
            _ => {}
        }
    }

    /// A coordinator answered a call that it got at a time. Where neither store nor coordinators fail, none waits
    /// long.
    pub(crate) fn answered(&mut self, begun: At) {
        let took = self.now.saturating_sub(begun);
        if matches!(self.check.frames.rules, Some((Leaves::Coordinators, _))) && took > ANSWER_WITHIN {
            self.violated(format!(
                "a call was answered after {took:?}, while neither store nor coordinator failed"
            ));
        }
    }

    /// A frame reached its worker.
    pub(crate) fn heard(&mut self, worker: Worker, response: &v1::AttachResponse) {
        let now = self.now;
        let frames = &mut self.check.frames;
        frames.heard.insert(worker.0, now);
        match &response.frame {
            Some(Down::Grant(grant)) if grant.phase() == v1::Phase::Stage => {
                let token = token_key(grant.token.as_ref());
                let newest = frames.owners.get(&(worker, grant.batch.clone()));
                if newest.is_some_and(|newest| *newest > token.0) && !frames.begun.contains_key(&token) {
                    frames.outdated.insert((worker, token));
                }
            }
            _ => {}
        }
    }

    /// A host that stood still goes on.
    pub(crate) fn woke(&mut self, host: HostId) {
        let now = self.now;
        self.check.frames.heard.insert(host, now);
    }

    /// Whether a staging lease's report counts. One that failed as a whole has nothing to count. Leases for other
    /// phases have no records: they count when they were never out for staging.
    fn is_counted(&self, token: TokenKey) -> bool {
        if self.check.frames.failed.contains(&token) || !self.check.frames.reported.contains(&token) {
            return true;
        }
        let mut all = self.check.batches.values();
        all.all(|mirror| mirror.counted.contains(&token) || !mirror.leased.contains_key(&token))
    }

    /// A worker begins to stage.
    pub(crate) fn staging(&mut self, by: Worker, lease: &StageLease) {
        let token = (lease.token.epoch, lease.token.counter);
        let known = self.check.batches.get(&lease.batch.name).is_some_and(|m| m.leased.contains_key(&token));
        if !known {
            self.violated(format!("I6 host {} stages {token:?}, which was never leased", by.0));
        }
        if self.check.frames.outdated.contains(&(by, token)) {
            self.violated(format!("I6 host {} stages {token:?} of an owner that was replaced", by.0));
        }
        // One of an owner that was replaced meanwhile came too late to be held by anybody.
        let lock = self.check.batches.get(&lease.batch.name).and_then(|mirror| mirror.lock.as_ref());
        if lock.is_some_and(|(_, epoch)| *epoch == token.0) {
            self.check.frames.current.insert(token, by);
        }
        self.check.frames.begun.insert(token, by);
        if self.check.frames.staging.insert((by, token), lease.batch.name.clone()).is_some() {
            self.violated(format!("I6 host {} stages {token:?} twice at once", by.0));
        }
    }

    /// A call that staged is over.
    pub(crate) fn staged_no_more(&mut self, by: Worker, token: Token) {
        self.check.frames.staging.remove(&(by, (token.epoch, token.counter)));
    }

    /// A worker is about to write: it must have heard of a coordinator in its lease's time.
    pub(crate) fn stages_on(&mut self, by: Worker, token: Token) {
        let Some((_, ttl)) = self.check.frames.rules else { return };
        let heard = self.check.frames.heard.get(&by.0).copied().unwrap_or(self.now);
        let silence = self.now.saturating_sub(heard);
        if silence > ttl.mul_f64(1.1) + Duration::from_millis(200) {
            self.violated(format!(
                "I6 host {} stages {token} on, {silence:?} after it last heard anything",
                by.0
            ));
        }
    }

    /// A range is to be rolled back: every attempt must be named.
    fn rolls_back(&mut self, lease: &v1::Grant) {
        let Some(mirror) = self.check.batches.get(&lease.batch) else { return };
        let named: BTreeSet<TokenKey> = lease.attempts.iter().map(|a| token_key(a.token.as_ref())).collect();
        let Some(range) = lease.range else { return };
        let about = |(first, last): (u64, u64)| {
            first <= range.last.cast_unsigned() && range.first.cast_unsigned() <= last
        };
        let missing: Vec<TokenKey> = mirror
            .leased
            .iter()
            .filter(|(token, range)| about(**range) && !named.contains(*token))
            // One that came back unstarted left nothing.
            .filter(|(token, _)| self.check.frames.begun.contains_key(*token))
            .map(|(token, _)| *token)
            .collect();
        if !missing.is_empty() {
            self.violated(format!("I4 rollback of {range:?} in {} doesn't name {missing:?}", lease.batch));
        }
    }

    /// A lease was taken away: not from a worker that lives and works on it, where only coordinators fail.
    pub(super) fn lost_by_living(&self, token: TokenKey) -> Option<String> {
        let frames = &self.check.frames;
        if !matches!(frames.rules, Some((Leaves::Workers, _))) || frames.failed.contains(&token) {
            return None;
        }
        let (host, life) = *frames.current.get(&token)?;
        self.hosts.lives(host, life).then(|| {
            format!("the lease {token:?} is taken from host {host}, which works on it and never failed")
        })
    }

    /// Something was written into a batch's staging.
    pub(crate) fn wrote(&mut self, batch: &str, token: Token) {
        if self.check.batches.get(batch).is_some_and(|mirror| mirror.ended.is_some()) {
            self.count(Count::LateWrite);
            self.say(|| format!("written after the end of {batch}, under {token}"));
        }
    }

    /// A task became visible.
    pub(crate) fn became_visible(&mut self, batch: &str, sequence: u64, token: Token) {
        let Some(mirror) = self.check.batches.get(batch) else { return };
        let decision = mirror.decision.as_ref().map(v1::DecisionRecord::outcome);
        let counts = mirror.ranges.range(..=sequence).next_back().is_some_and(|(_, range)| {
            super::ranges::won(range).any(|won| won == (sequence, (token.epoch, token.counter)))
        });
        let state = mirror.at();
        if decision != Some(v1::decision::Outcome::Commit) {
            self.violated(format!("I4 {batch}: task {sequence} is visible, the decision is {decision:?}"));
        } else if !counts {
            self.violated(format!(
                "I4 {batch}: task {sequence} is visible under {token}, which doesn't count"
            ));
        } else if state == State::Committed {
            self.violated(format!("I4 {batch}: task {sequence} becomes visible after COMMITTED"));
        }
    }
}
