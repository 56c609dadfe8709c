//! The model can fail: without a guard the checker finds how the batch breaks.

use stateright::{Checker, HasDiscoveries, Model};
use std::collections::BTreeSet;
use tranche_guards::Guard;
use tranche_model::Batch;

/// Small, so that the shortest way to what breaks is found at once.
fn batch(ranges: u8, faults: u8, off: Guard) -> Batch {
    Batch {
        ranges,
        attempts: 2,
        cancel: true,
        backup: false,
        stopping_kept: true,
        deadline: false,
        faults,
        off: Some(off),
    }
}

/// Without the guard this property fails.
fn breaks(model: Batch, property: &'static str) {
    let off = model.off.expect("a guard").name();
    let found = HasDiscoveries::AnyOf(BTreeSet::from([property]));
    let checker = model.checker().finish_when(found).spawn_bfs().join();
    let Some(path) = checker.discovery(property) else {
        panic!("without {off} nothing breaks \"{property}\" in {} states", checker.unique_state_count());
    };
    let steps = path.into_actions();
    println!("without {off}: not \"{property}\", after {} steps: {steps:?}", steps.len());
    // With it, the same steps don't lead there.
    let model = Batch { off: None, ..model };
    let checker = model.checker().spawn_dfs().join();
    checker.assert_no_discovery(property);
}

macro_rules! planted {
    ($($test:ident: $guard:ident, $ranges:literal, $faults:literal, $property:expr;)+) => {
        $(#[test]
        fn $test() {
            breaks(batch($ranges, $faults, Guard::$guard), $property);
        })+
    };
}

const LEFT: &str = "I4 after ROLLED_BACK only a paused worker leaves something";
const AT_THE_END: &str = "I4 at the very end nothing is left";

planted! {
    epoch_compare: EpochCompare, 1, 2, "I6 no write of an overtaken owner is carried out";
    record_compare: RecordCompare, 2, 1, "I5 the counters are the sum of the records";
    undecided_compare: UndecidedCompare, 1, 0, "the decision's cut-off is the cut-off";
    decision_once: DecisionOnce, 1, 0, "I3 a decision is written once";
    cutoff_frozen: CutoffFrozen, 1, 0, "the decision's cut-off is the cut-off";
    grant_after_durable: GrantAfterDurable, 1, 0, LEFT;
    ack_after_durable: AckAfterDurable, 1, 0, "I7 a report that was acknowledged counts";
    token_check: TokenCheck, 1, 1, "I6 no report counts under an old token";
    token_check_counts: TokenCheck, 2, 1, "I1 every range counts once";
    rollback_waits: RollbackWaits, 1, 0, LEFT;
    sweep_until_clean: SweepUntilClean, 1, 1, "I4 ROLLED_BACK is said after a sweep that found nothing";
    winners_only: WinnersOnly, 1, 1, "I4 only winners are in the library";
    rollback_all: RollbackAll, 1, 1, LEFT;
    revoked_batch: RevokedBatch, 1, 0, LEFT;
    ack_when_stopped: AckWhenStopped, 1, 0, LEFT;
    newest_owner: NewestOwner, 1, 1, LEFT;
    hello_names_all: HelloNamesAll, 1, 1, LEFT;
    lost_attempt_removed: LostAttemptRemoved, 1, 1, AT_THE_END;
    late_sweep: LateSweep, 1, 2, AT_THE_END;
    lease_lapses: LeaseLapses, 1, 1, LEFT;
}

/// Not a guard, but a rule of the design: see "Whom an owner awaits" in the crate's doc.
#[test]
fn whom_an_owner_awaits_is_known_to_the_next() {
    let model = Batch {
        ranges: 2,
        attempts: 3,
        cancel: true,
        backup: true,
        stopping_kept: false,
        deadline: false,
        faults: 1,
        off: None,
    };
    let checker =
        model.checker().finish_when(HasDiscoveries::AnyOf(BTreeSet::from([LEFT]))).spawn_bfs().join();
    println!("{:?}", checker.assert_any_discovery(LEFT).into_actions());
    let checker = Batch { stopping_kept: true, ..model }.checker().spawn_dfs().join();
    checker.assert_no_discovery(LEFT);
}
