//! A million tasks through one coordinator.

use tranche_tests::process::program;
use tranche_tests::run;

#[tokio::test(flavor = "multi_thread")]
async fn i10_a_million_tasks_go_through_in_bounded_memory() {
    let words = ["bench", "noop", "--tasks", "1000000", "--workers", "4", "--runs", "1", "--json"];
    let report = run(&program("tranche"), &words, "").await.exits(0).json();
    for counter in ["tasks", "staged", "committed"] {
        assert_eq!(report[counter], 1_000_000, "{report}");
    }
    assert_eq!((&report["failed"], &report["state"]), (&0.into(), &"COMMITTED".into()), "{report}");
    let rates = ["append_tasks_per_s", "stage_tasks_per_s", "commit_tasks_per_s", "whole_tasks_per_s"];
    for key in rates.iter().chain(&["grant_latency_p50_us", "grant_latency_p99_us"]) {
        assert!(report[key].as_f64().is_some_and(|figure| figure > 0.0), "{key}: {report}");
    }
    let memory = report["coordinator_peak_memory_bytes"].as_u64().expect("bytes");
    assert!(memory < 200_000_000, "{memory} bytes for a million tasks");
    let transactions = report["etcd_transactions"].as_u64().expect("a count");
    assert!((1..500).contains(&transactions), "{transactions}: etcd is written per range, not per task");
    eprintln!("{report}");
}
