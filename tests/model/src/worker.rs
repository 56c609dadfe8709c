//! Workers: each has one lease at most, and is known by the attempt that it works on.

use crate::model::Batch;
use crate::state::{Data, Kind, Side, State};
use tranche_guards::Guard;

impl Batch {
    pub(crate) fn deliver(self, state: &State, r: usize, a: usize) -> Option<State> {
        let c = match state[(r, a)].side {
            Side::SendingA => 0,
            Side::SendingB => 1,
            _ => return None,
        };
        let sender = &state.coordinators[c];
        let revoked = sender.heard && self.on(Guard::RevokedBatch);
        let refused = sender.overtaken && self.on(Guard::NewestOwner);
        let mut next = *state;
        next[(r, a)].side = if revoked || refused { Side::Over } else { Side::Held };
        Some(next)
    }

    pub(crate) fn stage(state: &State, r: usize, a: usize) -> Option<State> {
        let side = match state[(r, a)].side {
            Side::Held => Side::Done,
            Side::Late => Side::LateDone,
            _ => return None,
        };
        let mut next = *state;
        next[(r, a)].side = side;
        next[(r, a)].data = Data::Staged;
        Some(next)
    }

    pub(crate) fn attach(state: &State, r: usize, a: usize) -> Option<State> {
        let attempt = state[(r, a)];
        let record = &state.ranges[r].record;
        let lost = (record.lease | record.winners) & 1 << a == 0;
        let driven = state.coordinators.iter().any(|c| c.owner && c.epoch_holds);
        if attempt.side != Side::Held || !lost || attempt.awaited || !driven || state.ended() {
            return None;
        }
        let mut next = *state;
        next[(r, a)].awaited = true;
        Some(next)
    }

    pub(crate) fn stop(state: &State, r: usize, a: usize) -> Option<State> {
        if !matches!(state[(r, a)].side, Side::Held | Side::Late) || !state.lost(r, a) {
            return None;
        }
        let mut next = *state;
        next[(r, a)].side = Side::Over;
        Some(next)
    }

    pub(crate) fn settle(self, state: &State, r: usize, a: usize) -> Option<State> {
        if !matches!(state[(r, a)].side, Side::Done | Side::LateDone) {
            return None;
        }
        let record = &state.ranges[r].record;
        let (out, counts) = (record.lease & 1 << a != 0, record.winners & 1 << a != 0);
        let answered = state.record.swept
            || state.coordinators.iter().any(|c| c.owner && c.epoch_holds && (!out || c.heard));
        if !answered {
            return None;
        }
        let mut next = *state;
        let attempt = &mut next[(r, a)];
        if counts && !state.record.swept {
            attempt.side = Side::Counted;
            return Some(next);
        }
        attempt.side = Side::Over;
        if attempt.data == Data::Staged && self.on(Guard::LostAttemptRemoved) {
            attempt.data = Data::None;
        }
        Some(next)
    }

    pub(crate) fn wake(state: &State, r: usize, a: usize) -> Option<State> {
        if state[(r, a)].side != Side::Dozing {
            return None;
        }
        let mut next = *state;
        next[(r, a)].side = Side::Late;
        Some(next)
    }

    pub(crate) fn pause(self, state: &State, r: usize, a: usize) -> Option<State> {
        if state[(r, a)].side != Side::Held {
            return None;
        }
        let mut next = self.fault(state)?;
        next[(r, a)].side = Side::Dozing;
        Some(next)
    }

    pub(crate) fn lapse(self, state: &State, r: usize, a: usize) -> Option<State> {
        if state[(r, a)].side != Side::Held || state.lost(r, a) {
            return None;
        }
        let mut next = self.fault(state)?;
        next[(r, a)].side = Side::Over;
        Some(next)
    }

    /// A worker that was paused doesn't also die between its late work and the removal of it once the last
    /// sweep began: what is left then nobody can find.
    pub(crate) fn crash_worker(self, state: &State, r: usize, a: usize) -> Option<State> {
        let attempt = state[(r, a)];
        let folding = state.record.swept || state.writes().any(|write| write.kind == Kind::Fold);
        let side = match attempt.side {
            Side::LateDone if folding => return None,
            Side::LateDone => Side::LateOver,
            Side::Held | Side::Done | Side::Dozing | Side::Late => Side::Over,
            _ => return None,
        };
        let mut next = self.fault(state)?;
        next[(r, a)].side = side;
        Some(next)
    }
}
