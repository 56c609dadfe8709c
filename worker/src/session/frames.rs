//! What the machine makes of a coordinator's frames.

use super::held::{Held, Job, Outcome, Stage};
use super::link::{Phase, credit};
use super::state::{Command, LinkId, Machine, Now};
use crate::handler::Progress;
use crate::lease::{Token, Work};
use std::time::Duration;
use tracing::{debug, info, warn};
use tranche_proto::v1::attach_request::Frame as Out;
use tranche_proto::v1::attach_response::Frame as In;
use tranche_proto::{PROTOCOL_VERSION, v1};

/// How many rolled back batches are remembered if no Leave comes for them.
const ROLLED_BACK: usize = 1024;

impl Machine {
    pub(super) fn frame(&mut self, now: Now, link: LinkId, frame: Option<In>) {
        match (&self.links[link].phase, frame) {
            // What an ended stream still brought.
            (Phase::Down, _) => {}
            (Phase::Greeting { hello }, Some(In::Welcome(welcome))) => {
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
                In::Revoke(revoke) => {
                    if let Some(token) = revoke.token.map(Token::from) {
                        info!(batch.id = revoke.batch, %token, reason = revoke.reason, "lease revoked");
                        self.stop(token, "revoked");
                    }
                }
                In::Replicas(replicas) => debug!(link, replicas = ?replicas.replicas, "replicas"),
                In::Owner(owner) => debug!(link, batch.id = owner.batch, "owner"),
                In::Drain(_) => self.drain(link),
                In::Leave(leave) => {
                    self.rolled_back.retain(|batch| *batch != leave.batch);
                    self.commands.push(Command::Leave(leave.batch));
                }
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
        self.links[link].attach(welcome, now);
        self.commands.push(Command::Attached(link));
        info!(link, coordinator.id = welcome.coordinator, ttl = ?self.links[link].ttl, "attached");
        let mut reports = Vec::new();
        for held in self.held.values_mut().filter(|held| held.link == link) {
            held.counts_from = 1;
            held.alive = held.alive.max(hello);
            if let Stage::Reported(report) = &held.stage {
                reports.push((**report).clone());
            }
        }
        for report in reports {
            self.send(link, Out::Report(report));
        }
        let credit =
            if self.shutdown.is_some() { v1::Credit::default() } else { credit(&self.settings, link) };
        self.send(link, Out::Credit(credit));
    }

    fn grant(&mut self, now: Now, link: LinkId, mut grant: v1::Grant) {
        let Some(token) = grant.token.map(Token::from) else {
            return warn!(link, batch.id = grant.batch, "a grant without a token was refused");
        };
        let stage = grant.phase == v1::Phase::Stage as i32;
        if stage && self.rolled_back.contains(&grant.batch) {
            return debug!(batch.id = grant.batch, %token, "the batch is rolled back: grant dropped");
        }
        if self.shutdown.is_some() && !self.held.contains_key(&token) {
            return self.send(link, Out::Release(v1::Release { batch: grant.batch, token: grant.token }));
        }
        let more = grant.more;
        match self.held.get_mut(&token) {
            None => {
                let counts_from = self.links[link].attached().map_or(1, |attached| attached.number);
                let held = Held {
                    batch: grant.batch.clone(),
                    phase: grant.phase,
                    link,
                    alive: now,
                    counts_from,
                    progress: Progress::default(),
                    stage: Stage::Assembling(Box::new(grant)),
                };
                self.held.insert(token, held);
            }
            Some(held) => match &mut held.stage {
                Stage::Assembling(first) => first.tasks.append(&mut grant.tasks),
                Stage::Reported(report) => {
                    let report = (**report).clone();
                    return self.send(link, Out::Report(report));
                }
                // It was sent twice.
                Stage::Waiting(_) | Stage::Running { .. } | Stage::Stopping => return,
            },
        }
        if !more {
            self.assembled(token);
        }
    }

    fn assembled(&mut self, token: Token) {
        let Some(held) = self.held.get_mut(&token) else { return };
        let Stage::Assembling(grant) = &mut held.stage else { return };
        let grant = std::mem::take(&mut **grant);
        let handler = grant.handler.clone();
        let work = if self.settings.handlers.contains(&handler) {
            Work::from_grant(grant)
        } else {
            Err(format!("handler `{handler}` is not known to this worker"))
        };
        match work {
            Ok(work) => {
                let progress = held.progress.clone();
                held.stage = Stage::Waiting(Box::new(Job { token, handler, work, progress }));
                self.queue.push_back(token);
            }
            Err(error) => {
                warn!(batch.id = held.batch, %token, error, "lease refused");
                self.settle(token, Outcome::Error(error), Duration::ZERO);
            }
        }
    }

    fn ack(&mut self, link: LinkId, ack: v1::Ack) {
        if let Some(attached) = self.links[link].attached_mut() {
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
            self.report_settled(settled);
        }
    }

    fn report_settled(&mut self, ack: v1::ReportAck) {
        use v1::report_ack::Result;
        let Some(token) = ack.token.map(Token::from) else { return };
        let Some(held) = self.held.get(&token).filter(|held| matches!(held.stage, Stage::Reported(_))) else {
            return;
        };
        match Result::try_from(ack.result) {
            Ok(Result::Durable) => {}
            Ok(Result::Stale | Result::Decided | Result::UnknownBatch | Result::Invalid) => {
                let result = ack.result().as_str_name();
                warn!(batch.id = held.batch, %token, result, message = ack.message, "report doesn't count");
            }
            // Not taken for settled: the report stays until an answer comes that is understood.
            Ok(Result::Unspecified) | Err(_) => {
                return warn!(batch.id = held.batch, %token, result = ack.result, "answer to a report not known");
            }
        }
        self.held.remove(&token);
    }

    fn phase_changed(&mut self, link: LinkId, change: v1::PhaseChanged) {
        match v1::Phase::try_from(change.phase) {
            Ok(v1::Phase::Commit) => {
                let ack = v1::PhaseAck { batch: change.batch, phase: change.phase };
                self.send(link, Out::PhaseAck(ack));
            }
            Ok(v1::Phase::Rollback) => {
                let staging = |(_, held): &(&Token, &Held)| held.batch == change.batch && held.stages();
                let tokens: Vec<Token> = self.held.iter().filter(staging).map(|(token, _)| *token).collect();
                for token in tokens {
                    self.stop(token, "the batch is rolled back");
                }
                if !self.rolled_back.contains(&change.batch) {
                    self.rolled_back.push_back(change.batch.clone());
                    if self.rolled_back.len() > ROLLED_BACK {
                        self.rolled_back.pop_front();
                    }
                }
                self.acks.entry(change.batch).or_default().insert(link);
            }
            Ok(v1::Phase::Unspecified | v1::Phase::Stage | v1::Phase::Publish | v1::Phase::Sweep)
            | Err(_) => {
                warn!(batch.id = change.batch, phase = change.phase, "a change to this phase is not known");
            }
        }
    }

    fn drain(&mut self, link: LinkId) {
        if let Some(attached) = self.links[link].attached_mut() {
            attached.draining = true;
            self.send(link, Out::Credit(v1::Credit::default()));
        }
    }
}
