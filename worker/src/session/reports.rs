//! Reports: kept until somebody settles them.

use super::frames::reported;
use super::held::{Held, Outcome, Stage};
use super::report::report;
use super::state::{LinkId, Machine, Now};
use crate::lease::Token;
use std::time::Duration;
use tracing::warn;
use tranche_guards::Guard;
use tranche_proto::v1;
use tranche_proto::v1::attach_request::Frame as Out;

impl Machine {
    /// Keeps the report of a lease until it is acknowledged, and sends it.
    pub(super) fn settle(&mut self, now: Now, token: Token, outcome: Outcome, elapsed: Duration) {
        let Some(held) = self.held.get_mut(&token) else { return };
        let report = Box::new(report(&held.batch, token, held.phase, outcome, elapsed));
        held.stage = Stage::Reported { report, sent: now };
        let link = held.link;
        if self.attached(link).is_some() {
            self.send_reports(now, |reported, _| (*reported == token).then_some(link));
        }
    }

    /// Sends the reports for which `to` names a link.
    pub(super) fn send_reports(&mut self, now: Now, to: impl Fn(&Token, &Held) -> Option<LinkId>) {
        let mut reports = Vec::new();
        for (token, held) in &mut self.held {
            let Some(link) = to(token, held) else { continue };
            if let Stage::Reported { report, sent } = &mut held.stage {
                *sent = now;
                reports.push((*token, link, (**report).clone()));
            }
        }
        for (token, link, report) in reports {
            self.send(link, Out::Report(report));
            if !Guard::ReportKept.on() {
                self.held.remove(&token);
            }
        }
    }

    /// With every heartbeat of one link go the reports whose own link is down: whoever owns their batch, or
    /// knows that it has ended, answers. A coordinator that doesn't own a batch passes a report of it over
    /// in silence, so one that wasn't answered for long is sent again on its own link, too.
    pub(super) fn send_overdue_reports(&mut self, now: Now, link: LinkId) {
        let attached: Vec<LinkId> =
            self.link_ids().into_iter().filter(|id| self.attached(*id).is_some()).collect();
        let first = attached.first() == Some(&link);
        self.send_reports(now, |_, held| {
            let Stage::Reported { sent, .. } = &held.stage else { return None };
            let mine = held.link == link && now >= *sent + held.ttl;
            let orphan = first && !attached.contains(&held.link);
            (mine || orphan).then_some(link)
        });
    }

    pub(super) fn report_settled(&mut self, link: LinkId, ack: v1::ReportAck) {
        use v1::report_ack::Result;
        let Some(token) = ack.token.map(Token::from) else { return };
        let Some(held) = self.held.get(&token).filter(|held| reported(held).is_some()) else { return };
        match Result::try_from(ack.result) {
            Ok(Result::Durable) => drop(self.held.remove(&token)),
            Ok(Result::Stale | Result::Decided | Result::UnknownBatch | Result::Invalid) => {
                let ended = ack.result() == Result::UnknownBatch;
                if !self.may_refuse(link, held) || (held.link != link && !ended) {
                    return self.refused_by_another(link, token);
                }
                let result = ack.result().as_str_name();
                warn!(batch.id = held.batch, %token, result, message = ack.message, "report doesn't count");
                self.lost(token);
            }
            // Not taken for settled: the report stays until an answer comes that is understood.
            Ok(Result::Unspecified) | Err(_) => {
                warn!(batch.id = held.batch, %token, result = ack.result, "answer to a report not known");
            }
        }
    }

    /// Only the owner knows whether a report counts, and who else answers may be one that was replaced and
    /// doesn't know it yet: to that one a lease of its successor's, that may have counted, is as good as none.
    /// Or it is the owner now, and didn't know that it had to say so: the lease came when its Hello was gone. So
    /// it is greeted once more, with all that is held.
    fn refused_by_another(&mut self, link: LinkId, token: Token) {
        let Some(held) = self.held.get(&token).filter(|held| self.attached(held.link).is_none()) else {
            return;
        };
        if self.attached(link).is_some_and(|attached| !attached.named.contains(&held.batch)) {
            self.close(link, "it refused a report, and didn't say that it owns the batch");
        }
    }

    pub(super) fn finished(&mut self, now: Now, token: Token, outcome: Outcome) {
        match self.held.get_mut(&token) {
            Some(Held { stage: Stage::Running { since }, .. }) => {
                let elapsed = now.saturating_sub(*since);
                self.settle(now, token, outcome, elapsed);
            }
            Some(Held { stage: Stage::Stopping, removal, .. }) => {
                if let (Some(removal), Outcome::Staged { receipt, .. }) = (removal, outcome) {
                    removal.receipt(receipt);
                }
                self.lost(token);
            }
            Some(_) | None => warn!(%token, "a lease ended that wasn't running"),
        }
    }
}
