//! What the machine makes of a coordinator's frames.

use super::held::{Held, Stage};
use super::link::{Link, Phase};
use super::state::{Command, LinkId, Machine, Now};
use crate::lease::Token;
use tracing::{info, warn};
use tranche_proto::v1::attach_response::Frame as In;
use tranche_proto::{PROTOCOL_VERSION, v1};

impl Machine {
    pub(super) fn frame(&mut self, now: Now, link: LinkId, frame: Option<In>) {
        let Some(there) = self.links.get(&link) else { return };
        match (&there.phase, frame) {
            // What an ended stream still brought.
            (Phase::Down, _) => {}
            (Phase::Greeting { hello, .. }, Some(In::Welcome(welcome))) => {
                let hello = *hello;
                self.welcome(now, link, hello, &welcome);
            }
            (Phase::Greeting { .. }, _) => self.close(link, "the first frame wasn't Welcome"),
            (Phase::Attached(_), None) => warn!(link, "a frame of an unknown kind was refused"),
            (Phase::Attached(_), Some(frame)) => match frame {
                In::Welcome(_) => self.close(link, "a second Welcome came"),
                In::Grant(grant) => self.grant(now, link, grant),
                In::Ack(ack) => self.ack(link, ack),
                In::PhaseChanged(change) => self.phase_changed(link, change),
                In::Revoke(revoke) => self.revoked(link, &revoke),
                In::Replicas(replicas) => self.replicas(link, replicas.replicas),
                In::Owner(owner) => self.owner(now, link, owner),
                In::Drain(_) => self.drain(link),
                In::Leave(leave) => self.commands.push(Command::Leave(leave.batch)),
            },
        }
    }

    fn welcome(&mut self, now: Now, link: LinkId, hello: Now, welcome: &v1::Welcome) {
        if welcome.protocol_version != PROTOCOL_VERSION {
            warn!(
                link,
                version = welcome.protocol_version,
                "the coordinator chose an unknown protocol version"
            );
            return self.close(link, "the coordinator chose an unknown protocol version");
        }
        let Some(there) = self.links.get_mut(&link) else { return };
        there.attach(welcome, now);
        let ttl = there.ttl;
        self.links_changed = true;
        self.commands.push(Command::Attached(link));
        info!(link, coordinator.id = welcome.coordinator, ?ttl, "attached");
        self.leave_others_of(link);
        for held in self.held.values_mut().filter(|held| held.link == link) {
            held.counts_from = 1;
            held.alive = held.alive.max(hello);
            held.ttl = ttl;
        }
        self.heartbeat_soon(now, link);
        self.send_reports(now, |_, held| (held.link == link).then_some(link));
    }

    fn ack(&mut self, link: LinkId, ack: v1::Ack) {
        self.backlog(link, ack.backlog);
        if let Some(attached) = self.links.get_mut(&link).and_then(Link::attached_mut) {
            let mut sent = None;
            while let Some((_, at)) = attached.unacked.pop_front_if(|(number, _)| *number <= ack.heartbeat) {
                sent = Some(at);
            }
            for held in self.held.values_mut().filter(|held| held.link == link) {
                if let Some(sent) = sent.filter(|_| held.counts_from <= ack.heartbeat) {
                    held.alive = held.alive.max(sent);
                }
            }
        }
        for settled in ack.reports {
            self.report_settled(link, settled);
        }
    }

    pub(super) fn backlog(&mut self, link: LinkId, backlog: i32) {
        if let Some(attached) = self.links.get_mut(&link).and_then(Link::attached_mut) {
            attached.backlog = u64::try_from(backlog).unwrap_or(0);
        }
    }

    /// Whether a coordinator may say that a lease is over: the one to which it belongs. Another may only
    /// while that one is away. An owner that was replaced, and doesn't know it yet, still speaks of leases that
    /// its successor lets live.
    pub(super) fn may_refuse(&self, link: LinkId, held: &Held) -> bool {
        held.link == link || self.attached(held.link).is_none()
    }

    fn revoked(&mut self, link: LinkId, revoke: &v1::Revoke) {
        let Some(token) = revoke.token.map(Token::from) else { return };
        if self.held.get(&token).is_some_and(|held| self.may_refuse(link, held)) {
            info!(batch.id = revoke.batch, %token, reason = revoke.reason, "lease revoked");
            self.stop(token, "revoked");
        }
    }

    fn phase_changed(&mut self, link: LinkId, change: v1::PhaseChanged) {
        match v1::Phase::try_from(change.phase) {
            Ok(v1::Phase::Commit) => {
                // An attempt that lost against another may still be stopping.
                self.acks.entry(change.batch).or_default().insert((link, change.phase));
            }
            Ok(v1::Phase::Rollback) => {
                let staging = |(_, held): &(&Token, &Held)| held.batch == change.batch && held.stages();
                let tokens: Vec<Token> = self.held.iter().filter(staging).map(|(token, _)| *token).collect();
                for token in tokens {
                    self.stop(token, "the batch is rolled back");
                }
                let held = &self.held;
                self.batches
                    .rolled_back(&change.batch, |batch| held.values().any(|held| held.batch == batch));
                self.acks.entry(change.batch).or_default().insert((link, change.phase));
            }
            Ok(v1::Phase::Unspecified | v1::Phase::Stage | v1::Phase::Publish | v1::Phase::Sweep)
            | Err(_) => {
                warn!(batch.id = change.batch, phase = change.phase, "a change to this phase is not known");
            }
        }
    }

    fn drain(&mut self, link: LinkId) {
        if let Some(attached) = self.links.get_mut(&link).and_then(Link::attached_mut) {
            attached.draining = true;
        }
    }

    pub(super) fn end_drained_links(&mut self) {
        for link in self.link_ids() {
            let draining = self.attached(link).is_some_and(|attached| attached.draining);
            if draining && !self.held.values().any(|held| held.link == link) {
                self.close(link, "the coordinator is leaving");
            }
        }
    }
}

/// The unacknowledged report of a lease, if it is done.
pub(super) fn reported(held: &Held) -> Option<&v1::Report> {
    match &held.stage {
        Stage::Reported { report, .. } => Some(report),
        Stage::Assembling { .. }
        | Stage::Waiting(_)
        | Stage::Running { .. }
        | Stage::Stopping
        | Stage::Removing => None,
    }
}
