//! While `tranche import` runs, its port answers as any coordinator's.

use super::{BATCHES, Rpc};
use serde_json::json;
use tranche_tests::{Library, Session, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn an_import_answers_while_it_runs() {
    let dir = tempfile::tempdir().unwrap();
    let library = Library::with_files(dir.path(), "library", 20);
    let (source, into) = (library.source.display().to_string(), library.library.display().to_string());
    // It waits for an answer on its standard input once all is staged.
    let mut import = Session::start("tranche", &["import", &source, "--into", &into, "--approve"]);
    let line = import.said("coordinator listening on ").await;
    let rpc = Rpc(line.split_whitespace().next().unwrap().to_owned());
    assert!(line.contains(&format!("grpcurl -plaintext {} list", rpc.0)), "{line}");
    let listed = rpc.grpcurl(&["list"], "").await.exits(0).stdout;
    assert!(listed.contains(BATCHES), "{listed}");
    let held = eventually("all is staged", async || {
        let batches = rpc.unary("ListBatches", json!({"states": ["STATE_HELD"]})).await;
        Some(batches["batches"][0].clone()).filter(serde_json::Value::is_object)
    });
    let held = held.await;
    assert_eq!(held["counters"]["staged"], "20", "{held}");
    library.assert_untouched();
    import.type_line("y").await;
    import.ended().await.exits(0);
    library.assert_exactly(library.keys());
    assert!(!library.staging().join("staging").exists(), "only the records are left beside the library");
}
