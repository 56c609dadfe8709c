//! The protos keep buf's rules: STANDARD names, a comment on everything, no breaking change by accident.
//! Each test also shows that its check can fail.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{env, fs};

use tempfile::TempDir;

const BATCH: &str = "proto/tranche/v1/batch.proto";

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn buf() -> PathBuf {
    let path = env::var_os("TRANCHE_BUF").map_or_else(|| workspace().join(".tools/bin/buf"), PathBuf::from);
    let name = path.display();
    assert!(path.is_file(), "{name} is missing: run `make verify`, which fetches it, or set TRANCHE_BUF");
    path
}

/// Runs buf in a folder that has a `buf.yaml`; its cache stays in there too.
fn run_buf(folder: &Path, cache: &TempDir, arguments: &[&str]) -> Output {
    Command::new(buf())
        .args(arguments)
        .current_dir(folder)
        .env("BUF_CACHE_DIR", cache.path())
        .output()
        .expect("buf starts")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// `buf.yaml` and the protos, copied, with one text in `batch.proto` replaced.
fn copy_with(from: &str, to: &str) -> TempDir {
    let copy = tempfile::tempdir().expect("a temporary folder");
    fs::copy(workspace().join("buf.yaml"), copy.path().join("buf.yaml")).expect("buf.yaml is copied");
    let protos = copy.path().join("proto/tranche/v1");
    fs::create_dir_all(&protos).expect("a folder for the protos");
    for entry in fs::read_dir(workspace().join("proto/tranche/v1")).expect("the protos") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), protos.join(entry.file_name())).expect("a proto is copied");
    }
    let batch = copy.path().join(BATCH);
    let text = fs::read_to_string(&batch).expect("batch.proto");
    assert!(text.contains(from), "batch.proto has no {from:?} any more: change this test with it");
    fs::write(&batch, text.replacen(from, to, 1)).expect("batch.proto is written");
    copy
}

/// Lints a copy that was made bad, and expects the rule's name in what buf says.
fn lint_refuses(from: &str, to: &str, complaint: &str) {
    let cache = tempfile::tempdir().expect("a temporary folder");
    let output = run_buf(copy_with(from, to).path(), &cache, &["lint"]);
    let said = said(&output);
    assert!(!output.status.success(), "buf lint accepted {to:?}");
    assert!(said.contains(complaint), "buf lint refused {to:?}, but not with {complaint:?}: {said}");
}

#[test]
fn the_protos_pass_buf_lint() {
    let cache = tempfile::tempdir().expect("a temporary folder");
    let output = run_buf(&workspace(), &cache, &["lint"]);
    assert!(output.status.success(), "buf lint:\n{}", said(&output));
}

#[test]
fn a_name_against_the_convention_is_refused() {
    lint_refuses("string display_name = 4;", "string displayName = 4;", "lower_snake_case");
}

#[test]
fn a_field_without_a_comment_is_refused() {
    lint_refuses("  // The task's key.\n", "", "should have a non-empty comment");
}

#[test]
fn a_call_without_a_comment_is_refused() {
    lint_refuses("  // Reads one batch.\n", "", "should have a non-empty comment");
}

#[test]
fn a_changed_field_number_is_a_breaking_change() {
    let cache = tempfile::tempdir().expect("a temporary folder");
    let now = workspace().canonicalize().expect("the workspace");
    let against = now.to_str().expect("a path in UTF-8");

    // The protos as they are break nothing of themselves.
    let same = copy_with("message Task {", "message Task {");
    let output = run_buf(same.path(), &cache, &["breaking", "--against", against]);
    assert!(output.status.success(), "buf breaking:\n{}", said(&output));

    let moved = copy_with("bytes payload = 2;", "bytes payload = 7;");
    let output = run_buf(moved.path(), &cache, &["breaking", "--against", against]);
    assert!(!output.status.success(), "buf breaking accepted a moved field");
    assert!(said(&output).contains("payload"), "buf breaking: {}", said(&output));
}
