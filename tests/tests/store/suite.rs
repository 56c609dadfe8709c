//! The one list of what every store must pass.

/// Gives the list, as `module::test,`, to a macro that makes tests of it.
macro_rules! suite {
    ($conformance:ident) => {
        $conformance! {
            transactions::reads_and_prefixes,
            transactions::pages,
            transactions::pages_of_many,
            transactions::revisions,
            transactions::compares,
            transactions::all_or_nothing,
            transactions::limits,
            transactions::values_are_bytes,
            transactions::no_update_is_lost,
            transactions::one_decision_wins,
            transactions::commits_are_counted,
            watches::order_and_replay,
            watches::many_watches,
            watches::slow_readers_are_told,
            sessions::closing_deletes_the_keys,
            sessions::keys_move_between_sessions,
            sessions::a_closed_session_holds_nothing,
            sessions::only_the_dropped_one_ends,
        }
    };
}
