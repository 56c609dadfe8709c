//! One suite for both stores: what it asks holds in the embedded store and in a real etcd.

#[path = "store/embedded.rs"]
mod embedded_only;
#[path = "store/etcd.rs"]
mod etcd_only;
#[path = "store/sessions.rs"]
mod sessions;
#[macro_use]
#[path = "store/suite.rs"]
mod suite;
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

suite!(conformance);
