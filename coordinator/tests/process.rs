//! The binary as its users see it: the line on stdout, exit codes, signals.
#![cfg(feature = "etcd")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

fn coordinator(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tranche-coordinator"));
    command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn ended(args: &[&str], env: Option<(&str, &str)>) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = coordinator(args).envs(env).output().expect("started");
    (status.code(), String::from_utf8_lossy(&stderr).into_owned())
}

/// Starts one and waits for its line.
fn serving(dir: &std::path::Path) -> Child {
    let store = format!("embedded:{}", dir.display());
    let mut child = coordinator(&["--listen", "127.0.0.1:0", "--store", &store]).spawn().expect("started");
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().expect("piped")).read_line(&mut line).expect("a line");
    let address = line.trim().strip_prefix("listening on ").expect("the line");
    std::net::TcpStream::connect(address).expect("it listens");
    child
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([name, &child.id().to_string()]).status().expect("kill is there");
    assert!(sent.success());
}

#[test]
fn a_wrong_configuration_exits_with_2_and_names_the_field() {
    for (args, env, text) in [
        (vec!["--lease-tll", "3s"], None, "--lease-tll"),
        (vec!["--lease-ttl", "1ms"], None, "lease_ttl = \"1ms\""),
        (vec!["--listen", "10.0.0.1:1"], None, "listen = \"10.0.0.1:1\""),
        (vec!["--config", "/nonexistent.toml"], None, "/nonexistent.toml"),
        (
            vec![],
            Some(("TRANCHE_COORDINATOR_LEASETTL", "3s")),
            "TRANCHE_COORDINATOR_LEASETTL = \"3s\": is unknown",
        ),
    ] {
        let (code, stderr) = ended(&args, env);
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains(text), "{stderr}");
    }
}

#[test]
fn a_store_that_is_away_exits_with_1_after_the_configured_time() {
    let dir = tempfile::tempdir().expect("a directory");
    let objects = dir.path().join("o").display().to_string();
    // Nothing listens on port 1 (tcpmux).
    let store = "etcd:http://127.0.0.1:1";
    let args =
        ["--store", store, "--objects", &objects, "--start-timeout", "500ms", "--listen", "127.0.0.1:0"];
    let (code, stderr) = ended(&args, None);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("trying again") && stderr.contains("start_timeout"), "{stderr}");
}

#[test]
fn the_first_signal_ends_it_well() {
    for name in ["-TERM", "-INT"] {
        let dir = tempfile::tempdir().expect("a directory");
        for _ in 0..2 {
            let mut child = serving(dir.path());
            signal(&child, name);
            assert_eq!(child.wait().expect("ended").code(), Some(0), "and the store can be opened again");
        }
    }
}
