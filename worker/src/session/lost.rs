//! Attempts that don't count: what they staged is removed here.
//!
//! A rollback names every attempt that there was, and the sweep finds the rest, but both come once: a worker
//! that was paused may stage after them, and nobody else would ever look. So whoever staged something under
//! a token that can't count any more removes it. That can't take away what counts:
//!
//! - A lease that was stopped (lapsed, revoked, rolled back, cancelled) is never reported, and nothing counts
//!   without a report.
//! - A report that was answered STALE, DECIDED or INVALID by the batch's owner doesn't count and never will:
//!   the owner looks for the token among those that count, and answers once what it saw is durable. One that was
//!   replaced and doesn't know it yet has never seen the tokens of its successor, so nobody but the owner is
//!   listened to, also while that one is away (see `Machine::report_settled`).
//! - UNKNOWN_BATCH comes when the batch has ended and was swept: what counted is in the library, out of the
//!   reach of a handler's rollback, or was rolled back itself.
//!
//! The handler is called for this one token, so other attempts at the same tasks stay as they are, also when
//! they count.

use super::held::Stage;
use super::state::{Command, Machine};
use crate::lease::Token;
use tranche_guards::Guard;

impl Machine {
    /// A lease is over and doesn't count. Its handler isn't at work on it any more.
    pub(super) fn lost(&mut self, token: Token) {
        let Some(held) = self.held.get_mut(&token) else { return };
        // None: nothing was ever begun, or it wasn't staging.
        match held.removal.take().filter(|_| Guard::LostAttemptRemoved.on()) {
            Some(mut removal) => {
                if let Stage::Reported { report, .. } = std::mem::replace(&mut held.stage, Stage::Removing) {
                    removal.receipt(report.receipt);
                }
                self.commands.push(Command::Remove(removal));
            }
            None => drop(self.held.remove(&token)),
        }
    }

    pub(super) fn removed(&mut self, token: Token) {
        if self.held.get(&token).is_some_and(|held| matches!(held.stage, Stage::Removing)) {
            self.held.remove(&token);
        }
    }
}
