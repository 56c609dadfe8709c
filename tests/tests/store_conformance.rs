//! One suite for both stores: what it asks holds in the embedded store and in a real etcd.

#[path = "store/embedded.rs"]
mod embedded_only;
#[path = "store/etcd.rs"]
mod etcd_only;
#[path = "store/sessions.rs"]
mod sessions;
#[path = "store/transactions.rs"]
mod transactions;
#[path = "store/util.rs"]
mod util;
#[path = "store/watches.rs"]
mod watches;

/// Runs tests over `Arc<dyn Store>` on both stores.
macro_rules! conformance {
    ($($module:ident :: $name:ident,)*) => {
        mod embedded {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    let dir = tempfile::tempdir().unwrap();
                    crate::$module::$name(crate::util::embedded(dir.path()).await).await;
                }
            )*
        }
        mod etcd {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    let server = tranche_tests::etcd::shared().await;
                    let prefix = concat!("/", stringify!($name), "/");
                    crate::$module::$name(server.store(prefix).await).await;
                }
            )*
        }
    };
}

conformance! {
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
