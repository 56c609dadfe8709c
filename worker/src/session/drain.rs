//! The end of a worker.

use super::held::{Held, Stage};
use super::state::{Command, Machine, Now};
use crate::lease::Token;
use std::time::Duration;
use tranche_proto::v1;
use tranche_proto::v1::attach_request::Frame as Out;

/// How long leases that were cancelled when the time to drain was over may take to stop, and to remove what
/// they staged.
const STOP_WITHIN: Duration = Duration::from_secs(2);

impl Machine {
    /// Gives back what wasn't started. What runs goes on, reports are kept and sent, owners are answered.
    pub(super) fn shut_down(&mut self, now: Now) {
        if self.shutdown.is_some() {
            return;
        }
        self.shutdown = Some(now + self.settings.drain_timeout);
        // First, or what is given back would come again.
        self.send_credits();
        let unstarted =
            |_: &Token, held: &mut Held| matches!(held.stage, Stage::Assembling { .. } | Stage::Waiting(_));
        let unstarted: Vec<_> = self.held.extract_if(.., unstarted).collect();
        for (token, held) in unstarted {
            if self.attached(held.link).is_some() {
                let release = v1::Release { batch: held.batch, token: Some(token.into()) };
                self.send(held.link, Out::Release(release));
            }
        }
    }

    pub(super) fn drain_wakes_at(&self) -> Option<Now> {
        let deadline = self.shutdown.filter(|_| !self.exited)?;
        Some(if self.cancelled { deadline + STOP_WITHIN } else { deadline })
    }

    pub(super) fn exit_if_done(&mut self, now: Now) {
        let Some(deadline) = self.shutdown.filter(|_| !self.exited) else { return };
        if now >= deadline && !self.cancelled {
            self.cancelled = true;
            let running = self.held.iter().filter(|(_, held)| matches!(held.stage, Stage::Running { .. }));
            let running: Vec<Token> = running.map(|(token, _)| *token).collect();
            for token in running {
                self.stop(token, "the time to drain is over");
            }
        }
        let stopped = self.cancelled && !self.held.values().any(Held::takes_slot);
        if self.held.is_empty() || stopped || now >= deadline + STOP_WITHIN {
            self.exited = true;
            self.commands.push(Command::Exit);
        }
    }
}
