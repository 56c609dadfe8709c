//! Leases that come, and whose they are.

use super::held::{Held, Job, Outcome, Stage};
use super::state::{LinkId, Machine, Now};
use crate::handler::Progress;
use crate::lease::{Token, Work};
use std::time::Duration;
use tracing::{debug, info, warn};
use tranche_guards::Guard;
use tranche_proto::v1;
use tranche_proto::v1::attach_request::Frame as Out;

impl Machine {
    pub(super) fn grant(&mut self, now: Now, link: LinkId, mut grant: v1::Grant) {
        self.backlog(link, grant.backlog);
        let Some(token) = grant.token.map(Token::from) else {
            return warn!(link, batch.id = grant.batch, "a grant without a token was refused");
        };
        let stage = grant.phase == v1::Phase::Stage as i32;
        if stage && self.batches.is_rolled_back(&grant.batch) {
            return debug!(batch.id = grant.batch, %token, "the batch is rolled back: grant dropped");
        }
        // Its successor has heard what is held of the batch: this isn't part of it, and leased again.
        let old = token.epoch < self.batches.epoch(&grant.batch) && Guard::NewestOwner.on();
        let more = grant.more;
        match self.held.get_mut(&token) {
            None if old || self.shutdown.is_some() => {
                if !more {
                    self.send(link, Out::Release(v1::Release { batch: grant.batch, token: grant.token }));
                }
                return;
            }
            None => {
                // The first that is heard of a new owner: it was greeted before the older leases came, and so
                // didn't say that it is.
                let newer = token.epoch > self.batches.epoch(&grant.batch);
                if newer && self.held.values().any(|held| held.batch == grant.batch && held.link != link) {
                    self.owner(now, link, v1::Owner { batch: grant.batch.clone(), epoch: token.epoch });
                }
                self.hold(now, link, token, grant);
            }
            Some(held) => match &mut held.stage {
                Stage::Assembling { pieces, .. } => pieces.push(std::mem::take(&mut grant.tasks)),
                Stage::Reported { .. } => {
                    return self.send_reports(now, |reported, _| (*reported == token).then_some(link));
                }
                // It was sent twice.
                Stage::Waiting(_) | Stage::Running { .. } | Stage::Stopping | Stage::Removing => return,
            },
        }
        if !more {
            self.assembled(now, token);
        }
    }

    fn hold(&mut self, now: Now, link: LinkId, token: Token, mut grant: v1::Grant) {
        let Some(there) = self.links.get(&link) else { return };
        let held = Held {
            batch: grant.batch.clone(),
            phase: grant.phase,
            alone: grant.alone,
            link,
            alive: now,
            ttl: there.ttl,
            counts_from: there.attached().map_or(1, |attached| attached.number),
            progress: Progress::default(),
            removal: None,
            stage: Stage::Assembling {
                pieces: vec![std::mem::take(&mut grant.tasks)],
                grant: Box::new(grant),
            },
        };
        self.heard_of_owner(&held.batch, token.epoch);
        self.held.insert(token, held);
        self.heartbeat_soon(now, link);
    }

    fn heard_of_owner(&mut self, batch: &str, epoch: u64) {
        let held = &self.held;
        self.batches.owned(batch, epoch, |batch| held.values().any(|held| held.batch == batch));
    }

    fn assembled(&mut self, now: Now, token: Token) {
        let Some(held) = self.held.get_mut(&token) else { return };
        let Stage::Assembling { grant, pieces } = &mut held.stage else { return };
        let (mut grant, pieces) = (std::mem::take(&mut **grant), std::mem::take(pieces));
        let (handler, publish) = (grant.handler.clone(), grant.publish);
        let traceparent = std::mem::take(&mut grant.traceparent);
        let work = if self.settings.handlers.contains(&handler) {
            Work::from_grant(grant, pieces)
        } else {
            Err(format!("handler `{handler}` is not known to this worker"))
        };
        match work {
            Ok(work) => {
                let progress = held.progress.clone();
                held.stage =
                    Stage::Waiting(Box::new(Job { token, handler, work, publish, traceparent, progress }));
                self.queue.push_back(token);
            }
            Err(error) => {
                warn!(batch.id = held.batch, %token, error, "lease refused");
                self.settle(now, token, Outcome::Error(error), Duration::ZERO);
            }
        }
    }

    /// A coordinator owns a batch now: the leases of it are that one's from here on.
    pub(super) fn owner(&mut self, now: Now, link: LinkId, owner: v1::Owner) {
        let newest = self.batches.epoch(&owner.batch);
        if owner.epoch < newest && Guard::NewestOwner.on() {
            return info!(
                link,
                batch.id = owner.batch,
                owner.epoch,
                newest,
                "an owner that was replaced is passed over"
            );
        }
        self.heard_of_owner(&owner.batch, owner.epoch);
        let Some(there) = self.links.get(&link) else { return };
        let (ttl, number) = (there.ttl, there.attached().map_or(1, |attached| attached.number));
        // The rest of a grant that another began comes on its stream, if at all: the new owner doesn't wait
        // for it, it leases the tasks again.
        self.held.retain(|_, held| {
            held.batch != owner.batch || held.link == link || !matches!(held.stage, Stage::Assembling { .. })
        });
        let mut tokens = Vec::new();
        for (token, held) in self.held.iter_mut().filter(|(_, held)| held.batch == owner.batch) {
            if held.is_ours() {
                tokens.push((*token).into());
            }
            (held.link, held.ttl, held.counts_from, held.alive) = (link, ttl, number, now);
        }
        self.heartbeat_soon(now, link);
        debug!(link, batch.id = owner.batch, owner.epoch, leases = tokens.len(), "a batch has a new owner");
        self.send(link, Out::Holding(v1::Holding { batch: owner.batch.clone(), epoch: owner.epoch, tokens }));
        self.send_reports(now, |_, held| (held.batch == owner.batch).then_some(link));
    }
}
