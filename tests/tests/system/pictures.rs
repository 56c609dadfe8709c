//! Real pictures, some of them broken.

use tranche_client::v1;
use tranche_client::v1::batch::{CommitMode, State};
use tranche_tests::cluster::batch_into;
use tranche_tests::{Cluster, Library};

/// What `examples/make_pictures.py` breaks on purpose.
const BROKEN: [&str; 4] = [
    "faces/bruno-recovered.jpg",
    "faces/unnamed.jpg",
    "places/city-noon-copy.png",
    "things/read-me-first.png",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_pictures_are_listed_and_the_manifest_appears_last() {
    let mut cluster = Cluster::start().await;
    let library = Library::with_pictures(&cluster.data(), "library");
    cluster.workers(2, 2).await;
    let batch = v1::Batch {
        commit_mode: CommitMode::Manual.into(),
        ..batch_into(library.target_with(&[("check", "image")]))
    };
    let batch = cluster.submit(batch, library.tasks()).await;
    let held = cluster.wait_state(&batch, State::Held).await;
    let failed: Vec<_> = cluster.failures(&batch).await.into_iter().map(|f| (f.key, f.code)).collect();
    assert_eq!(failed, BROKEN.map(|key| (key.to_owned(), "NOT_A_PICTURE".to_owned())));
    assert_eq!(held.counters.unwrap().failed, 4);
    library.assert_untouched();
    assert!(library.manifest(&batch).is_none());

    cluster.client().commit(&batch, "the editor").await.unwrap();
    let done = cluster.wait_state(&batch, State::Committed).await;
    let good: Vec<_> = library.keys().into_iter().filter(|key| !BROKEN.contains(&key.as_str())).collect();
    library.assert_exactly(&good);
    let manifest = library.manifest(&batch).expect("there once the batch is committed");
    assert_eq!(manifest["batch"], batch);
    assert_eq!(manifest["count"], good.len());
    let objects = manifest["objects"].as_array().unwrap();
    let mut listed: Vec<_> =
        objects.iter().map(|object| object["key"].as_str().unwrap().to_owned()).collect();
    listed.sort();
    assert_eq!(listed, good);
    let sums = tranche_tests::snapshot(&library.library);
    assert!(objects.iter().all(|object| object["blake3"] == sums[object["key"].as_str().unwrap()]));

    // The completion report is where the batch says.
    let report = std::fs::read_to_string(&done.report_uri).expect("the report's path");
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    assert_eq!(report["failed"].as_i64().or(report["counters"]["failed"].as_i64()), Some(4), "{report:#}");
    cluster.wait_swept(&batch).await;
    library.assert_no_staging_left();
    cluster.assert_invariants(&batch).await;
}
