//! The owner: what it writes, by what it saw. Nothing here changes the store; a write is only put on its way.
//!
//! A coordinator's view of the records isn't kept: it is what the store holds, or it is outdated. An outdated
//! view can't reach the store but through a write, so writes carry what they put; and an owner whose view is
//! outdated can only find that out.

use crate::model::Batch;
use crate::state::{
    Coordinator, Data, Decision, Kind, Mask, Outcome, Phase, RANGES, RangePhase, RangeRecord, Side, State,
    StateRecord, WORKERS, Write,
};
use tranche_guards::Guard;

impl Batch {
    /// The coordinator drives the batch, its view isn't outdated, and no write is in flight.
    fn drives(state: &State, c: usize) -> bool {
        let coordinator = &state.coordinators[c];
        coordinator.owner && coordinator.epoch_holds && coordinator.write.is_none()
    }

    fn undecided(state: &State, c: usize) -> bool {
        Self::drives(state, c) && !state.coordinators[c].heard && state.record.phase == Phase::Importing
    }

    /// A write that changes nothing yet.
    fn write(state: &State, c: usize, kind: Kind) -> Write {
        Write {
            kind,
            epoch_holds: true,
            records_hold: true,
            undecided: !state.coordinators[c].heard,
            state: state.record,
            decision: None,
            cutoff: None,
            range: RANGES as u8,
            record: RangeRecord::default(),
            attempt: 0,
        }
    }

    fn write_range(state: &State, c: usize, kind: Kind, r: usize) -> Write {
        Write { range: r as u8, record: state.ranges[r].record, ..Self::write(state, c, kind) }
    }

    fn put(mut state: State, c: usize, write: Write) -> State {
        state.coordinators[c].write = Some(write);
        state
    }

    pub(crate) fn take_over(self, state: &State, c: usize) -> Option<State> {
        let taker = &state.coordinators[c];
        if state.locked || state.record.swept || taker.owner || taker.write.is_some() {
            return None;
        }
        let mut next = *state;
        next.locked = true;
        for other in next.coordinators.iter_mut().filter(|other| other.owner) {
            other.overtaken = true;
        }
        for attempt in next.ranges.iter_mut().flat_map(|range| &mut range.attempts) {
            attempt.awaited &= self.stopping_kept;
        }
        next.coordinators[c] = Coordinator {
            owner: true,
            epoch_holds: true,
            overtaken: false,
            heard: state.decision.is_some(),
            write: None,
        };
        Some(next)
    }

    pub(crate) fn notice_loss(state: &State, c: usize) -> Option<State> {
        let coordinator = &state.coordinators[c];
        if !coordinator.owner || coordinator.epoch_holds || coordinator.write.is_some() {
            return None;
        }
        let mut next = *state;
        next.coordinators[c] = Coordinator::default();
        Self::abort_deliveries(&mut next, c);
        Some(next)
    }

    /// What a driver that stops was about to send is never sent. `driver/mod.rs`: `run`.
    pub(crate) fn abort_deliveries(state: &mut State, c: usize) {
        for attempt in state.ranges.iter_mut().flat_map(|range| &mut range.attempts) {
            if attempt.side == Side::sending(c) {
                attempt.side = Side::Over;
            }
        }
    }

    pub(crate) fn hear(state: &State, c: usize) -> Option<State> {
        let coordinator = &state.coordinators[c];
        if !coordinator.owner || coordinator.heard || coordinator.write.is_some() || state.decision.is_none()
        {
            return None;
        }
        let mut next = *state;
        next.coordinators[c].heard = true;
        Some(next)
    }

    pub(crate) fn grant(self, state: &State, c: usize, r: usize) -> Option<State> {
        if !Self::undecided(state, c) {
            return None;
        }
        let range = &state.ranges[r];
        let again = |record: &RangeRecord| record.phase == RangePhase::Leased && record.lease == 0;
        let fresh = |record: &RangeRecord| record.phase == RangePhase::Undealt;
        // First what came back, then what follows the cut-off.
        let next_one = match state.ranges.iter().position(|range| again(&range.record)) {
            Some(_) => again(&range.record),
            None => {
                state.cutoff < self.ranges && state.ranges.iter().position(|r| fresh(&r.record)) == Some(r)
            }
        };
        if !next_one {
            return None;
        }
        self.lease_range(state, c, r, u8::from(fresh(&range.record)))
    }

    pub(crate) fn back_up(self, state: &State, c: usize, r: usize) -> Option<State> {
        let all_dealt = state.cutoff == self.ranges
            && !state.ranges.iter().any(|r| r.record.phase == RangePhase::Leased && r.record.lease == 0);
        let out = |a: &usize| state.ranges[r].record.lease & 1 << a != 0;
        let mut leased = (0..usize::from(state.ranges[r].len)).filter(out);
        let straggler =
            leased.next().is_some_and(|a| !matches!(state[(r, a)].side, Side::SendingA | Side::SendingB));
        if !self.backup || !Self::undecided(state, c) || !all_dealt || !straggler || leased.next().is_some() {
            return None;
        }
        self.lease_range(state, c, r, 0)
    }

    fn lease_range(self, state: &State, c: usize, r: usize, fresh: u8) -> Option<State> {
        let range = &state.ranges[r];
        let busy = state.attempts().filter(|(_, _, attempt)| attempt.side.busy()).count();
        if busy >= WORKERS || range.len >= self.attempts {
            return None;
        }
        let mut write = Self::write_range(state, c, Kind::Grant, r);
        // The record of the cut-off holds the counter of tokens, too: it is put with each grant.
        write.cutoff = Some(state.cutoff + fresh);
        write.record.phase = RangePhase::Leased;
        let mut next = *state;
        if !self.on(Guard::GrantAfterDurable) {
            let a = usize::from(range.len);
            next.ranges[r].len += 1;
            next[(r, a)].side = Side::Held;
            write.attempt = 1 << a;
            write.record.lease |= write.attempt;
        }
        Some(Self::put(next, c, write))
    }

    pub(crate) fn count(self, state: &State, c: usize, r: usize, a: usize) -> Option<State> {
        let (range, bit): (_, Mask) = (&state.ranges[r], 1 << a);
        let reports = matches!(range.attempts[a].side, Side::Done | Side::LateDone);
        let out = range.record.lease & bit != 0;
        let stale = !self.on(Guard::TokenCheck) && range.record.winners & bit == 0;
        if !reports || !Self::undecided(state, c) || !(out || stale) {
            return None;
        }
        let mut write = Self::write_range(state, c, Kind::Count, r);
        write.attempt = bit;
        // What else is leased of it is revoked.
        write.record.lease = if out { 0 } else { range.record.lease };
        write.record.winners |= bit;
        write.record.phase = RangePhase::Staged;
        write.state.staged += 1;
        self.decide_if_complete(&mut write, state.cutoff);
        let mut next = *state;
        if !self.on(Guard::AckAfterDurable) {
            next[(r, a)].side = Side::Counted;
        }
        Some(Self::put(next, c, write))
    }

    /// The last report decides, in its own write.
    fn decide_if_complete(self, write: &mut Write, cutoff: u8) {
        if write.state.staged + write.state.failed >= self.ranges {
            write.decision = Some(Decision { outcome: Outcome::Commit, cutoff });
            write.state.phase = Phase::Committing;
        }
    }

    pub(crate) fn lose(self, state: &State, c: usize, r: usize, a: usize) -> Option<State> {
        let side = state[(r, a)].side;
        match side {
            // Nobody stages it: its worker died, stopped by itself, or says that it never got it, or forgot it.
            Side::Over | Side::LateOver | Side::Counted => self.lose_lease(state, c, r, a, false),
            Side::SendingA | Side::SendingB if side != Side::sending(c) => {
                self.lose_lease(state, c, r, a, false)
            }
            // Its worker is silent.
            Side::Dozing | Side::Late => self.lose_lease(state, c, r, a, true),
            Side::SendingA | Side::SendingB | Side::Held | Side::Done | Side::LateDone => None,
        }
    }

    pub(crate) fn lose_unheard(self, state: &State, c: usize, r: usize, a: usize) -> Option<State> {
        let late = match state[(r, a)].side {
            // Staged, and its report doesn't come through.
            Side::Done => false,
            // It goes on beyond its time.
            Side::Held if !self.on(Guard::LeaseLapses) => true,
            // It attaches to a new owner, and doesn't name it.
            Side::Held if !self.on(Guard::HelloNamesAll) => false,
            _ => return None,
        };
        self.lose_lease(&self.fault(state)?, c, r, a, late)
    }

    fn lose_lease(self, state: &State, c: usize, r: usize, a: usize, late: bool) -> Option<State> {
        if !Self::undecided(state, c) || state.ranges[r].record.lease & 1 << a == 0 {
            return None;
        }
        let mut write = Self::write_range(state, c, Kind::Lose, r);
        write.attempt = 1 << a;
        write.record.lease &= !write.attempt;
        write.state.late_sweep |= late;
        // The other of two goes on alone.
        if write.record.lease == 0 && state.ranges[r].len >= self.attempts {
            write.record.phase = RangePhase::Staged;
            write.record.failed = true;
            write.state.failed += 1;
            self.decide_if_complete(&mut write, state.cutoff);
        }
        Some(Self::put(*state, c, write))
    }

    pub(crate) fn pass_deadline(self, state: &State, c: usize) -> Option<State> {
        if !self.deadline || !Self::undecided(state, c) {
            return None;
        }
        let mut write = Self::write(state, c, Kind::Enter);
        write.decision = Some(Decision { outcome: Outcome::Rollback, cutoff: state.cutoff });
        write.state.phase = Phase::RollingBack;
        Some(Self::put(*state, c, write))
    }

    pub(crate) fn enter(state: &State, c: usize) -> Option<State> {
        if !Self::drives(state, c) || !state.coordinators[c].heard || state.record.phase != Phase::Importing {
            return None;
        }
        let mut write = Self::write(state, c, Kind::Enter);
        write.state.phase = match state.outcome()? {
            Outcome::Commit => Phase::Committing,
            Outcome::Rollback => Phase::RollingBack,
        };
        Some(Self::put(*state, c, write))
    }

    pub(crate) fn finish(self, state: &State, c: usize, r: usize) -> Option<State> {
        if !Self::drives(state, c) || !state.coordinators[c].heard {
            return None;
        }
        match state.record.phase {
            Phase::Committing => self.commit(state, c, r),
            Phase::RollingBack => self.rollback(state, c, r),
            Phase::Importing | Phase::Committed | Phase::RolledBack => None,
        }
    }

    fn commit(self, state: &State, c: usize, r: usize) -> Option<State> {
        let record = state.ranges[r].record;
        if record.phase != RangePhase::Staged || record.winners == 0 {
            return None;
        }
        let mut next = *state;
        for (a, attempt) in next.ranges[r].attempts.iter_mut().enumerate() {
            let wins = record.winners & 1 << a != 0;
            next.broken.winner_lost |= wins && attempt.data == Data::None;
            if attempt.data == Data::Staged && (wins || !self.on(Guard::WinnersOnly)) {
                attempt.data = Data::Public;
            }
        }
        let mut write = Self::write_range(state, c, Kind::Finish, r);
        write.record.phase = RangePhase::Committed;
        write.state.committed += 1;
        Some(Self::put(next, c, write))
    }

    fn rollback(self, state: &State, c: usize, r: usize) -> Option<State> {
        let record = state.ranges[r].record;
        if !matches!(record.phase, RangePhase::Leased | RangePhase::Staged) {
            return None;
        }
        let mut silent = false;
        let mut staging = false;
        for (a, attempt) in state.ranges[r].attempts.iter().enumerate() {
            let known = record.lease & 1 << a != 0 || attempt.awaited;
            // Until its worker says that it stopped.
            staging |= known && attempt.side == Side::Held && self.on(Guard::AckWhenStopped);
            staging |= attempt.side == Side::sending(c) && self.on(Guard::RevokedBatch);
            silent |= known && matches!(attempt.side, Side::Dozing | Side::Late);
        }
        if staging && self.on(Guard::RollbackWaits) {
            return None;
        }
        let mut next = *state;
        for (a, attempt) in next.ranges[r].attempts.iter_mut().enumerate() {
            if self.on(Guard::RollbackAll) || record.winners & 1 << a != 0 {
                remove(&mut attempt.data);
            }
        }
        let mut write = Self::write_range(state, c, Kind::Finish, r);
        write.record.phase = RangePhase::RolledBack;
        write.state.rolled_back += 1;
        // The lease ended though its worker never said that it stopped.
        write.state.late_sweep |= silent;
        Some(Self::put(next, c, write))
    }

    pub(crate) fn publish(state: &State, c: usize) -> Option<State> {
        let left = |range: &crate::state::Range| {
            range.record.phase == RangePhase::Staged && range.record.winners != 0
        };
        if !Self::drives(state, c)
            || !state.coordinators[c].heard
            || state.record.phase != Phase::Committing
            || state.ranges.iter().any(left)
        {
            return None;
        }
        let mut write = Self::write(state, c, Kind::End);
        write.state.phase = Phase::Committed;
        Some(Self::put(*state, c, write))
    }

    pub(crate) fn sweep(self, state: &State, c: usize) -> Option<State> {
        if !Self::drives(state, c) || !state.coordinators[c].heard || state.record.swept {
            return None;
        }
        let (kind, record, sweeps) = match state.record.phase {
            Phase::RollingBack => {
                let left = |phase| matches!(phase, RangePhase::Leased | RangePhase::Staged);
                if state.ranges.iter().any(|range| left(range.record.phase)) {
                    return None;
                }
                (Kind::End, StateRecord { phase: Phase::RolledBack, ..state.record }, true)
            }
            Phase::Committed => (Kind::Fold, StateRecord { swept: true, ..state.record }, true),
            // Again, later, if a worker was lost: when is up to the clock.
            Phase::RolledBack => {
                let late = state.record.late_sweep && self.on(Guard::LateSweep);
                (Kind::Fold, StateRecord { swept: true, ..state.record }, late)
            }
            Phase::Importing | Phase::Committing => return None,
        };
        let stops = |side| side == Side::Held || side == Side::sending(c);
        let stopping = state.attempts().any(|(_, _, attempt)| attempt.awaited && stops(attempt.side));
        if kind == Kind::Fold && stopping {
            return None;
        }
        let sees = self.on(Guard::RollbackAll);
        let mut next = *state;
        let mut found = false;
        if sweeps && sees {
            for attempt in next.ranges.iter_mut().flat_map(|range| &mut range.attempts) {
                found |= remove(&mut attempt.data);
            }
        }
        if found && self.on(Guard::SweepUntilClean) {
            // What was found is gone; look again.
            return Some(next);
        }
        next.broken.unclean_end |= found && kind == Kind::End;
        Some(Self::put(next, c, Write { state: record, ..Self::write(state, c, kind) }))
    }
}

/// Removes what is staged: true if something was.
fn remove(data: &mut Data) -> bool {
    let staged = *data == Data::Staged;
    if staged {
        *data = Data::None;
    }
    staged
}
