//! The benches, run as tests: their counts, not their speed.

use serde_json::Value;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_bench_prints_a_table_and_writes_json() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("figures.json");
    let json = format!("--json={}", file.display());
    let dir = folder.path().to_str().expect("UTF-8");
    let words = ["bench", "append", "--tasks", "20000", "--runs", "2", "--dir", dir, &json];
    let ran = run(&program("tranche"), &words, "").await.exits(0);
    let table: Vec<&str> = ran.stdout.lines().collect();
    let at = table.iter().position(|line| line.starts_with("append --tasks 20000 --runs 2"));
    let headline = at.and_then(|at| table.get(at + 1)).expect("a headline below the command line");
    assert!(headline.starts_with("  durable and sealed "), "{}", ran.stdout);

    let report: Value = serde_json::from_slice(&std::fs::read(&file).expect("the file")).expect("JSON");
    let figures = report["figures"].as_array().expect("figures");
    for figure in figures {
        let [min, median, max] = ["min", "median", "max"].map(|key| figure[key].as_f64().expect("a number"));
        assert!(min <= median && median <= max, "{figure}");
        assert_eq!(figure["values"].as_array().map(Vec::len), Some(2), "{figure}");
        assert_eq!(figure["met"], Value::Null, "no target is about 20,000 tasks: {figure}");
    }
    let transactions = figures.iter().find(|figure| figure["name"] == "etcd transactions").expect("a count");
    assert!(
        transactions["max"].as_f64().expect("a number") < 100.0,
        "per segment, not per task: {transactions}"
    );
    assert_eq!(report["machine"]["release_build"], cfg!(not(debug_assertions)), "{report}");
    let left: Vec<_> = std::fs::read_dir(folder.path()).expect("the folder").collect();
    assert_eq!(left.len(), 1, "nothing but the figures is left: {left:?}");
}

/// Its times are for a quiet machine; that the attacker attacks and no call of others fails is for any.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_is_measured_and_fails_no_call() {
    let words = [
        "bench", "flood", "--attack", "reset", "--turns", "1", "--store", "embedded", "--runs", "1", "--json",
    ];
    let report = run(&program("tranche"), &words, "").await.exits(0).json();
    let beside = report["flood"].as_array().expect("what was measured");
    let kinds: Vec<_> = beside.iter().map(|one| one["beside"].as_str().expect("a name")).collect();
    assert_eq!(kinds, ["quiet", "spin", "calls", "reset"], "{report}");
    for one in beside {
        assert!(one["calls"].as_u64().expect("a count") > 20, "{one}");
    }
    assert!(beside[3]["frames_per_s"].as_f64().expect("a rate") > 0.0, "{report}");
}
