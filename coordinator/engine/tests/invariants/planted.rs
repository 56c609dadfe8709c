//! Each of the engine's guards is switched off: the rules must be seen to break.

use super::lives;
use tranche_guards::{Guard, without};

const ENGINE: [Guard; 11] = [
    Guard::GrantAfterDurable,
    Guard::AckAfterDurable,
    Guard::AppendAfterDurable,
    Guard::TokenCheck,
    Guard::EventsKept,
    Guard::RollbackWaits,
    Guard::SweepUntilClean,
    Guard::WinnersOnly,
    Guard::RollbackAll,
    Guard::AppendOnce,
    Guard::LateSweep,
];

#[test]
fn a_guard_that_is_off_is_noticed() {
    let unnoticed: Vec<Guard> = ENGINE
        .into_iter()
        .filter(|&guard| {
            // Most break within a few lives; nothing is shrunk.
            let found = without(Some(guard), || lives(3000, 50..250, 3, false, 0).err());
            println!("{guard:?}: {}", found.as_deref().unwrap_or("nothing"));
            found.is_none()
        })
        .collect();
    assert_eq!(unnoticed, []);
}
