//! The store: carries a write out when all its compares hold, else not at all.

use crate::model::Batch;
use crate::state::{
    ATTEMPTS, Cancel, Coordinator, Decision, Kind, Outcome, Phase, RANGES, RangePhase, Side, State, Write,
};
use tranche_guards::Guard;

impl Batch {
    /// The write of a driver, and its answer. An answer that is lost is no case of its own: the owner reads
    /// the write back, and goes on from there.
    pub(crate) fn apply(self, state: &State, c: usize, twice: bool) -> Option<State> {
        let write = state.coordinators[c].write?;
        if twice && state.stray.is_some() {
            return None;
        }
        let mut next = *state;
        next.coordinators[c].write = None;
        let Some(done) = self.carry_out(&mut next, write, Some(c)) else {
            if twice {
                return None;
            }
            // Refused: it reads the records, or finds that it isn't the owner.
            return Some(next);
        };
        if twice {
            next.stray = Some(Write { kind: Kind::Echo, records_hold: false, ..done });
        }
        let coordinator = &mut next.coordinators[c];
        coordinator.heard |= write.decision.is_some();
        match write.kind {
            Kind::Count => {
                let place = (usize::from(write.range), write.attempt.trailing_zeros() as usize);
                if matches!(next[place].side, Side::Done | Side::LateDone) {
                    next[place].side = Side::Counted;
                }
            }
            Kind::Fold => {
                next.coordinators[c] = Coordinator::default();
                Self::abort_deliveries(&mut next, c);
            }
            Kind::Grant | Kind::Lose | Kind::Enter | Kind::Finish | Kind::End | Kind::Echo => {}
        }
        Some(next)
    }

    pub(crate) fn apply_stray(self, state: &State) -> Option<State> {
        let mut next = *state;
        let write = next.stray.take()?;
        self.carry_out(&mut next, write, None)?;
        Some(next)
    }

    /// Carries out a write, and gives it back with the token that it was given. `None`: a compare doesn't hold.
    fn carry_out(self, state: &mut State, mut write: Write, writer: Option<usize>) -> Option<Write> {
        if self.doomed(&write, state) {
            return None;
        }
        let r = usize::from(write.range);
        if write.kind == Kind::Grant && write.attempt == 0 {
            let a = usize::from(state.ranges[r].len);
            if a == ATTEMPTS {
                return None;
            }
            state.ranges[r].len += 1;
            // One whose sender gave it up is never sent. Engine `Batch::reload`, `unsent`.
            state[(r, a)].side = writer.map_or(Side::Over, Side::sending);
            write.attempt = 1 << a;
            write.record.lease |= write.attempt;
        }
        Self::judge(state, &write);
        if write.kind == Kind::Count {
            // Who else stages it is told to stop; its record names them. Engine `stop_others`, `note_stopping`.
            let known = self.stopping_kept || state.coordinators.iter().any(|c| c.owner && c.epoch_holds);
            let others = state.ranges[r].record.lease & !write.record.lease & !write.attempt;
            for (a, attempt) in state.ranges[r].attempts.iter_mut().enumerate() {
                attempt.awaited |= known && others & 1 << a != 0;
            }
        }
        state.record = write.state;
        state.decision = write.decision.or(state.decision);
        if r < RANGES {
            state.ranges[r].record = write.record;
        }
        if let Some(cutoff) = write.cutoff {
            state.cutoff = cutoff;
            if let Cancel::Sent { cutoff_holds, .. } = &mut state.cancel {
                *cutoff_holds = false;
            }
        }
        for other in state.writes_mut().flatten() {
            other.records_hold = false;
        }
        if write.kind == Kind::Fold {
            Self::end_epoch(state);
        }
        Some(write)
    }

    /// The lock's key is deleted.
    fn end_epoch(state: &mut State) {
        state.locked = false;
        for coordinator in &mut state.coordinators {
            coordinator.epoch_holds = false;
        }
        for write in state.writes_mut().flatten() {
            write.epoch_holds = false;
        }
    }

    /// Notes what no write may do.
    fn judge(state: &mut State, write: &Write) {
        let follows = |from: Phase, to: Phase| {
            from == to
                || matches!(
                    (from, to),
                    (Phase::Importing, Phase::Committing | Phase::RollingBack)
                        | (Phase::Committing, Phase::Committed)
                        | (Phase::RollingBack, Phase::RolledBack)
                )
        };
        let range_follows = |from: RangePhase, to: RangePhase| {
            from == to
                || matches!(
                    (from, to),
                    (RangePhase::Undealt, RangePhase::Leased)
                        | (RangePhase::Leased, RangePhase::Staged | RangePhase::RolledBack)
                        | (RangePhase::Staged, RangePhase::Committed | RangePhase::RolledBack)
                )
        };
        let range = state.ranges.get(usize::from(write.range)).map(|range| range.record);
        let broken = &mut state.broken;
        broken.fence |= state.locked && !write.epoch_holds;
        broken.decided_twice |= write.decision.is_some() && state.decision.is_some();
        broken.cutoff_back |= write.cutoff.is_some_and(|cutoff| cutoff < state.cutoff);
        broken.state_order |= !follows(state.record.phase, write.state.phase);
        if let Some(range) = range {
            broken.state_order |= !range_follows(range.phase, write.record.phase);
            broken.stale_report |= write.kind == Kind::Count && range.lease & write.attempt == 0;
        }
    }

    pub(crate) fn expire_dead(state: &State) -> Option<State> {
        if !state.locked || state.coordinators.iter().any(|coordinator| coordinator.epoch_holds) {
            return None;
        }
        let mut next = *state;
        Self::end_epoch(&mut next);
        Some(next)
    }

    pub(crate) fn expire(self, state: &State) -> Option<State> {
        if !state.coordinators.iter().any(|coordinator| coordinator.epoch_holds) {
            return None;
        }
        let mut next = self.fault(state)?;
        Self::end_epoch(&mut next);
        Some(next)
    }

    pub(crate) fn crash(self, state: &State, c: usize, kept: bool) -> Option<State> {
        let coordinator = &state.coordinators[c];
        if !coordinator.owner || (kept && (coordinator.write.is_none() || state.stray.is_some())) {
            return None;
        }
        let mut next = self.fault(state)?;
        if kept {
            next.stray = coordinator.write;
        }
        next.coordinators[c] = Coordinator::default();
        Self::abort_deliveries(&mut next, c);
        Some(next)
    }

    pub(crate) fn stray(self, state: &State, c: usize) -> Option<State> {
        if state.coordinators[c].write.is_none() || state.stray.is_some() {
            return None;
        }
        let mut next = self.fault(state)?;
        next.stray = next.coordinators[c].write.take();
        // Its outcome is unknown: the records are read.
        Some(next)
    }

    pub(crate) fn send_cancel(self, state: &State) -> Option<State> {
        if !self.cancel || state.cancel != Cancel::Open || state.decision.is_some() {
            return None;
        }
        let mut next = *state;
        next.cancel = Cancel::Sent { cutoff: state.cutoff, cutoff_holds: true };
        Some(next)
    }

    pub(crate) fn apply_cancel(self, state: &State) -> Option<State> {
        let Cancel::Sent { cutoff, cutoff_holds } = state.cancel else { return None };
        if (self.on(Guard::DecisionOnce) && state.decision.is_some())
            || (self.on(Guard::CutoffFrozen) && !cutoff_holds)
        {
            return None;
        }
        let mut next = *state;
        next.broken.decided_twice |= state.decision.is_some();
        next.decision = Some(Decision { outcome: Outcome::Rollback, cutoff });
        next.cancel = Cancel::Over;
        Some(next)
    }
}
