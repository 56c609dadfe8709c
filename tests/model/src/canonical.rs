//! One state for all that differ in names alone.
//!
//! Ranges, workers, coordinators and tokens are interchangeable: nothing but their relations counts. So each
//! state is renamed into a fixed order, and a step leads from one such state to another. That is symmetry
//! reduction done in the model, where also a breadth-first search and the paths it shows can use it.
//!
//! A write that can't be carried out any more (a compare that failed once fails for ever, since revisions
//! aren't used twice) is forgotten as well: its owner will only learn that it was refused.

use crate::model::Batch;
use crate::state::{ATTEMPTS, Attempt, Cancel, Coordinator, Data, Mask, RANGES, Range, Side, State, Write};
use tranche_guards::Guard;

impl Batch {
    /// The state under its first name.
    pub(crate) fn canonical(self, mut state: State) -> State {
        self.forget_doomed(&mut state);
        order_coordinators(&mut state);
        for range in 0..RANGES {
            order_attempts(&mut state, range);
        }
        order_ranges(&mut state);
        state
    }

    /// Whether a compare of the write doesn't hold; then it never will again. `driver/ledger.rs`: `transaction`.
    pub(crate) fn doomed(self, write: &Write, state: &State) -> bool {
        let once = if write.decision.is_some() { Guard::DecisionOnce } else { Guard::UndecidedCompare };
        (self.on(Guard::EpochCompare) && !write.epoch_holds)
            || (self.on(Guard::RecordCompare) && !write.records_hold)
            || (self.on(once) && write.undecided && state.decision.is_some())
    }

    fn forget_doomed(self, state: &mut State) {
        if state.stray.is_some_and(|write| self.doomed(&write, state)) {
            state.stray = None;
        }
        for c in 0..state.coordinators.len() {
            if state.coordinators[c].write.is_some_and(|write| self.doomed(&write, state)) {
                state.coordinators[c].write = None;
            }
            let coordinator = state.coordinators[c];
            let sends =
                |state: &State| state.attempts().any(|(_, _, attempt)| attempt.side == Side::sending(c));
            // An owner of old that has nothing on its way can do no more than notice that it is none.
            if !coordinator.epoch_holds && coordinator.write.is_none() && !sends(state) {
                state.coordinators[c] = Coordinator::default();
            }
        }
        match state.cancel {
            // It reads the decision, and is told.
            Cancel::Open | Cancel::Sent { .. }
                if self.on(Guard::DecisionOnce) && state.decision.is_some() =>
            {
                state.cancel = Cancel::Over;
            }
            // It reads again.
            Cancel::Sent { cutoff_holds: false, .. } if self.on(Guard::CutoffFrozen) => {
                state.cancel = Cancel::Open;
            }
            Cancel::Open | Cancel::Sent { .. } | Cancel::Over => {}
        }
    }
}

fn order_coordinators(state: &mut State) {
    let key =
        |c: &Coordinator| (c.owner, c.epoch_holds, c.overtaken, c.heard, c.write.map(|w| (w.kind, w.state)));
    if key(&state.coordinators[0]) >= key(&state.coordinators[1]) {
        return;
    }
    state.coordinators.swap(0, 1);
    for attempt in state.ranges.iter_mut().flat_map(|range| &mut range.attempts) {
        attempt.side = match attempt.side {
            Side::SendingA => Side::SendingB,
            Side::SendingB => Side::SendingA,
            side => side,
        };
    }
}

/// The tokens of a range in order.
fn order_attempts(state: &mut State, r: usize) {
    let len = usize::from(state.ranges[r].len);
    for attempt in &mut state.ranges[r].attempts[..len] {
        if attempt.side == Side::LateOver && attempt.data == Data::None {
            attempt.side = Side::Over;
        }
    }
    let lease = state.ranges[r].record.lease;
    for (a, attempt) in state.ranges[r].attempts[..len].iter_mut().enumerate() {
        attempt.awaited &= attempt.side.staging() && lease & 1 << a == 0;
    }
    if len == 0 {
        return;
    }
    let key = |state: &State, a: usize| {
        let range = &state.ranges[r];
        let has = |mask: Mask| u32::from(mask >> a & 1);
        let Attempt { side, data, awaited } = range.attempts[a];
        let mut key = (side as u32) << 3 | (data as u32) << 1 | u32::from(awaited);
        key = key << 2 | has(range.record.lease) << 1 | has(range.record.winners);
        for write in state.coordinators.iter().map(|c| &c.write).chain([&state.stray]) {
            key <<= 3;
            if let Some(write) = write
                && usize::from(write.range) == r
            {
                key |= has(write.record.lease) << 2 | has(write.record.winners) << 1 | has(write.attempt);
            }
        }
        key
    };
    // As few as they are: by swaps of neighbours.
    for _ in 1..len {
        for a in 1..len {
            if key(state, a - 1) < key(state, a) {
                swap_attempts(state, r, a - 1, a);
            }
        }
    }
    // What is over, and left nothing, and is named nowhere, is as if it hadn't been.
    while state.ranges[r].len > 0 && key(state, usize::from(state.ranges[r].len) - 1) == 0 {
        state.ranges[r].len -= 1;
    }
}

fn swap_attempts(state: &mut State, r: usize, a: usize, b: usize) {
    let swap = |mask: &mut Mask| {
        if (*mask >> a ^ *mask >> b) & 1 == 1 {
            *mask ^= 1 << a | 1 << b;
        }
    };
    state.ranges[r].attempts.swap(a, b);
    swap(&mut state.ranges[r].record.lease);
    swap(&mut state.ranges[r].record.winners);
    for write in state.writes_mut().flatten().filter(|write| usize::from(write.range) == r) {
        swap(&mut write.record.lease);
        swap(&mut write.record.winners);
        swap(&mut write.attempt);
    }
}

/// All that belongs to a range, as one number.
fn range_key(state: &State, r: usize) -> u128 {
    let range: &Range = &state.ranges[r];
    let mut key = u128::from(range.len);
    let record = |record: &crate::state::RangeRecord| {
        u128::from(record.phase as u8) << 7
            | u128::from(record.failed) << 6
            | u128::from(record.lease) << 3
            | u128::from(record.winners)
    };
    key = key << 10 | record(&range.record);
    for attempt in &range.attempts[..ATTEMPTS] {
        let side = u128::from(attempt.side as u8);
        key = key << 7 | side << 3 | u128::from(attempt.data as u8) << 1 | u128::from(attempt.awaited);
    }
    for write in state.coordinators.iter().map(|c| &c.write).chain([&state.stray]) {
        key <<= 14;
        if let Some(write) = write
            && usize::from(write.range) == r
        {
            key |= 1 << 13 | record(&write.record) << 3 | u128::from(write.attempt);
        }
    }
    key
}

fn order_ranges(state: &mut State) {
    let keys: [u128; RANGES] = std::array::from_fn(|r| range_key(state, r));
    let mut order: [u8; RANGES] = std::array::from_fn(|r| r as u8);
    order.sort_by_key(|r| std::cmp::Reverse(keys[usize::from(*r)]));
    if order.is_sorted() {
        return;
    }
    let mut place = [0u8; RANGES];
    for (new, old) in order.iter().enumerate() {
        place[usize::from(*old)] = new as u8;
    }
    state.ranges = order.map(|old| state.ranges[usize::from(old)]);
    for write in state.writes_mut().flatten() {
        if usize::from(write.range) < RANGES {
            write.range = place[usize::from(write.range)];
        }
    }
}
