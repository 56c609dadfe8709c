//! Each guard of the session is caught by a test: without the guard the test fails.

use super::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tranche_guards::{Guard, without};

#[test]
fn every_guard_is_missed_by_a_test() {
    let caught: [(Guard, fn()); 7] = [
        (Guard::HelloNamesAll, owners::hello_names_the_leases_of_all_links_but_not_what_is_being_stopped),
        (Guard::NewestOwner, owners::an_owner_that_was_replaced_is_passed_over),
        (Guard::NewestOwner, owners::a_grant_of_an_owner_that_was_replaced_comes_back),
        (Guard::ReportKept, reports::a_report_is_kept_and_sent_again_until_it_is_acknowledged),
        (Guard::AckWhenStopped, rollback::rollback_stops_staging_and_is_acknowledged_when_it_has_stopped),
        (Guard::LostAttemptRemoved, lost::what_was_reported_and_doesnt_count_is_removed),
        (Guard::LeaseLapses, heartbeats::a_heartbeat_doesnt_keep_a_lease_that_came_after_it),
    ];
    for (guard, test) in caught {
        let result = catch_unwind(AssertUnwindSafe(|| without(Some(guard), test)));
        assert!(result.is_err(), "nothing fails without {}", guard.name());
        test();
    }
}
