//! The model can fail: without a guard the checker finds how the batch breaks.

use stateright::{Checker, HasDiscoveries, Model};
use tranche_guards::Guard;
use tranche_model::Batch;

/// Small, so that the shortest way to what breaks is found at once.
fn batch(ranges: u8, faults: u8, off: Guard) -> Batch {
    Batch { ranges, attempts: 2, cancel: true, deadline: false, faults, off: Some(off) }
}

/// Without the guard these properties fail, and no others.
fn breaks(model: Batch, expected: &[&str]) {
    let off = model.off.expect("a guard").name();
    let checker = model.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let mut failed = 0;
    for (name, path) in checker.discoveries() {
        if checker.model().property(name).expectation.discovery_is_failure() {
            let steps: Vec<_> = path.into_actions();
            println!("without {off}: {name}, after {} steps: {steps:?}", steps.len());
            assert!(expected.contains(&name), "without {off} another property failed first: {name}");
            failed += 1;
        }
    }
    assert!(failed > 0, "without {off} nothing fails in {} states", checker.unique_state_count());
}

macro_rules! planted {
    ($($test:ident: $guard:ident, $ranges:literal, $faults:literal, [$($property:literal),+];)+) => {
        $(#[test]
        fn $test() {
            breaks(batch($ranges, $faults, Guard::$guard), &[$($property),+]);
        })+
    };
}

planted! {
    epoch_compare: EpochCompare, 1, 2, ["I6"];
    record_compare: RecordCompare, 2, 1, ["I5"];
    undecided_compare: UndecidedCompare, 1, 0, ["x"];
    decision_once: DecisionOnce, 1, 0, ["x"];
    cutoff_frozen: CutoffFrozen, 1, 0, ["x"];
    grant_after_durable: GrantAfterDurable, 1, 1, ["x"];
    ack_after_durable: AckAfterDurable, 1, 1, ["x"];
    token_check: TokenCheck, 1, 2, ["x"];
    rollback_waits: RollbackWaits, 1, 0, ["x"];
    sweep_until_clean: SweepUntilClean, 1, 1, ["x"];
    winners_only: WinnersOnly, 1, 2, ["x"];
    rollback_all: RollbackAll, 1, 1, ["x"];
    revoked_batch: RevokedBatch, 1, 0, ["x"];
    ack_when_stopped: AckWhenStopped, 1, 0, ["x"];
    newest_owner: NewestOwner, 1, 1, ["x"];
    hello_names_all: HelloNamesAll, 1, 2, ["x"];
    lost_attempt_removed: LostAttemptRemoved, 1, 1, ["x"];
    late_sweep: LateSweep, 1, 2, ["x"];
    lease_lapses: LeaseLapses, 1, 1, ["x"];
}
