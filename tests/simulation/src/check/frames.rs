//! What is told on the way: nothing is said before it is durable, nobody holds more than he asked for.

use super::{TokenKey, token_key};
use crate::host::{HostId, Life};
use crate::net::Item;
use crate::world::Inner;
use tranche_proto::v1;
use tranche_proto::v1::attach_request::Frame as Up;
use tranche_proto::v1::attach_response::Frame;
use tranche_proto::v1::batch::State;
use tranche_worker::{StageLease, Token};

impl Inner {
    /// A frame leaves its host.
    pub(crate) fn sent(&mut self, _worker: (HostId, Life), _coordinator: (HostId, Life), item: &Item) {
        let response = match item {
            Item::Response(Ok(response)) => response,
            Item::Request(v1::AttachRequest { frame: Some(Up::Report(report)) }) if !report.error.is_empty() => {
                self.check.failed.insert(token_key(report.token.as_ref()));
                return;
            }
            Item::Request(_) | Item::Response(Err(_)) | Item::Taken | Item::End => return,
        };
        match &response.frame {
            Some(Frame::Grant(grant)) if grant.phase() == v1::Phase::Stage => {
                let token = token_key(grant.token.as_ref());
                let durable =
                    self.check.batches.get(&grant.batch).is_some_and(|mirror| mirror.leased.contains(&token));
                if !durable {
                    self.violated(format!("I6 lease {token:?} of {} is sent before its record", grant.batch));
                }
            }
            Some(Frame::Ack(ack)) => {
                for report in ack.reports.iter().filter(|r| r.result() == v1::report_ack::Result::Durable) {
                    let token = token_key(report.token.as_ref());
                    if !self.is_counted(token) {
                        self.violated(format!("I7 the report of {token:?} is acknowledged, and isn't durable"));
                    }
                }
            }
            _ => {}
        }
    }

    /// Whether a staging lease's report counts. One that failed as a whole has nothing to count. Leases for other phases have no records: they count when they
    /// were never out for staging.
    fn is_counted(&self, token: TokenKey) -> bool {
        if self.check.failed.contains(&token) {
            return true;
        }
        let mut all = self.check.batches.values();
        all.all(|mirror| mirror.counted.contains(&token) || !mirror.leased.contains(&token))
    }

    /// A worker begins to stage.
    pub(crate) fn staging(&mut self, by: (HostId, Life), lease: &StageLease) {
        let token = (lease.token.epoch, lease.token.counter);
        let known = self.check.batches.get(&lease.batch.name).is_some_and(|m| m.leased.contains(&token));
        if !known {
            self.violated(format!("I6 host {} stages {token:?}, which was never leased", by.0));
        }
    }

    /// Something was written into a batch's staging.
    pub(crate) fn wrote(&mut self, batch: &str, token: Token) {
        if let Some(mirror) = self.check.batches.get_mut(batch)
            && mirror.ended.is_some()
        {
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
            self.violated(format!("I4 {batch}: task {sequence} is visible under {token}, which doesn't count"));
        } else if state == State::Committed {
            self.violated(format!("I4 {batch}: task {sequence} becomes visible after COMMITTED"));
        }
    }
}
