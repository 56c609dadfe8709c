//! What holds in every state, and what must be possible at all.

use crate::model::Batch;
use crate::state::{Data, Outcome, Phase, RangePhase, Side, State};
use stateright::Property;

/// All of them. The names say which invariant of the design they stand for.
pub(crate) fn all() -> Vec<Property<Batch>> {
    vec![
        Property::<Batch>::always("I3 a decision is written once", |_, s| !s.broken.decided_twice),
        Property::<Batch>::always("I3 a state leaves along the table", |_, s| !s.broken.state_order),
        Property::<Batch>::always("I3 the state follows the decision", |_, s| state_follows(s)),
        Property::<Batch>::always("I1 every range counts once", |m, s| counted_once(*m, s)),
        Property::<Batch>::always("I2 the cut-off never goes back", |_, s| !s.broken.cutoff_back),
        Property::<Batch>::always("the decision's cut-off is the cut-off", |_, s| {
            s.decision.is_none_or(|decision| decision.cutoff == s.cutoff)
        }),
        Property::<Batch>::always("I4 nothing is in the library before COMMIT", |_, s| {
            s.outcome() == Some(Outcome::Commit) || !s.attempts().any(|(_, _, a)| a.data == Data::Public)
        }),
        Property::<Batch>::always("I4 only winners are in the library", |_, s| only_winners(s)),
        Property::<Batch>::always("I4 a winner is there until it is made final", |_, s| {
            !s.broken.winner_lost
        }),
        Property::<Batch>::always("I4 COMMITTED is said when all winners are final", |_, s| all_final(s)),
        Property::<Batch>::always("I4 after ROLLED_BACK only a paused worker leaves something", |_, s| {
            nothing_left(s)
        }),
        Property::<Batch>::always("I4 ROLLED_BACK is said after a sweep that found nothing", |_, s| {
            !s.broken.unclean_end
        }),
        Property::<Batch>::always("I4 at the very end nothing is left", |_, s| !is_end(s) || !staged(s)),
        Property::<Batch>::always("I5 the counters are the sum of the records", |_, s| counters(s)),
        Property::<Batch>::always("I6 no write of an overtaken owner is carried out", |_, s| !s.broken.fence),
        Property::<Batch>::always("I6 no report counts under an old token", |_, s| !s.broken.stale_report),
        Property::<Batch>::always("I7 a report that was acknowledged counts", |_, s| acknowledged(s)),
        Property::<Batch>::always("I9 what can't go on is at its end", |m, s| at_its_end(*m, s)),
        Property::<Batch>::sometimes("a batch ends COMMITTED", |_, s| {
            s.record.swept && s.record.phase == Phase::Committed
        }),
        Property::<Batch>::sometimes("a batch ends ROLLED_BACK", |_, s| {
            s.record.swept && s.record.phase == Phase::RolledBack
        }),
    ]
}

fn state_follows(s: &State) -> bool {
    match s.record.phase {
        Phase::Importing => true,
        Phase::Committing | Phase::Committed => s.outcome() == Some(Outcome::Commit),
        Phase::RollingBack | Phase::RolledBack => s.outcome() == Some(Outcome::Rollback),
    }
}

fn counted_once(model: Batch, s: &State) -> bool {
    let counts = |r: &crate::state::Range| r.record.winners.count_ones() as u8 + u8::from(r.record.failed);
    let each = s.ranges.iter().all(|range| counts(range) <= 1);
    let sum: u8 = s.ranges.iter().map(counts).sum();
    each && (s.outcome() != Some(Outcome::Commit) || sum == model.ranges)
}

fn only_winners(s: &State) -> bool {
    s.attempts()
        .all(|(r, a, attempt)| attempt.data != Data::Public || s.ranges[r].record.winners & 1 << a != 0)
}

fn all_final(s: &State) -> bool {
    s.record.phase != Phase::Committed
        || s.attempts()
            .all(|(r, a, attempt)| s.ranges[r].record.winners & 1 << a == 0 || attempt.data == Data::Public)
}

fn nothing_left(s: &State) -> bool {
    s.record.phase != Phase::RolledBack
        || s.attempts().all(|(_, _, attempt)| match attempt.data {
            Data::None => true,
            Data::Staged => matches!(attempt.side, Side::LateDone | Side::LateOver),
            Data::Public => false,
        })
}

fn counters(s: &State) -> bool {
    let sum = |count: fn(&crate::state::RangeRecord) -> u32| -> u8 {
        s.ranges.iter().map(|range| count(&range.record) as u8).sum()
    };
    sum(|record| record.winners.count_ones()) == s.record.staged
        && sum(|record| u32::from(record.failed)) == s.record.failed
        && sum(|record| u32::from(record.phase == RangePhase::Committed)) == s.record.committed
        && sum(|record| u32::from(record.phase == RangePhase::RolledBack)) == s.record.rolled_back
}

fn acknowledged(s: &State) -> bool {
    s.attempts().all(|(r, a, attempt)| {
        attempt.side != Side::Counted
            || s.ranges[r].record.winners & 1 << a != 0
            // Without its guard an acknowledgement may run before its write: that is seen once the write is gone.
            || s.writes().any(|write| usize::from(write.range) == r && write.attempt & 1 << a != 0)
    })
}

/// The batch is over for everybody.
pub(crate) fn is_end(s: &State) -> bool {
    s.record.swept
        && !s.locked
        && s.coordinators.iter().all(|c| !c.owner)
        && !s.attempts().any(|(_, _, attempt)| attempt.side.busy())
}

fn staged(s: &State) -> bool {
    s.attempts().any(|(_, _, attempt)| attempt.data == Data::Staged)
}

fn at_its_end(model: Batch, s: &State) -> bool {
    if is_end(s) {
        return true;
    }
    let mut actions = Vec::new();
    Batch::progress(&mut actions);
    actions.into_iter().any(|action| model.step(s, action).is_some())
}
