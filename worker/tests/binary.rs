//! The binary: configuration, signals, exit codes.

mod common;

use common::{Coordinator, LIMIT, stage, token};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tranche_proto::v1;
use tranche_proto::v1::attach_request::Frame as Said;

const TTL: Duration = Duration::from_mins(1);

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tranche-worker"));
    command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Runs it to its end: exit code and stderr.
async fn fails(mut command: Command) -> (Option<i32>, String) {
    let output = tokio::time::timeout(LIMIT, command.output()).await.expect("it ends").unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// A worker process attached to the coordinator.
async fn attached(coordinator: &mut Coordinator, args: &[&str]) -> (Child, common::Stream, v1::Hello) {
    let url = coordinator.url();
    let mut child = command(args).args(["--coordinator", &url]).stderr(Stdio::inherit()).spawn().unwrap();
    let (stream, hello) = coordinator.attached(TTL).await;
    let mut out: BufReader<ChildStdout> = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    tokio::time::timeout(LIMIT, out.read_line(&mut line)).await.expect("it says so").unwrap();
    assert_eq!(line, format!("attached to {url}\n"));
    child.stdout = Some(out.into_inner());
    (child, stream, hello)
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

async fn exit_code(child: &mut Child) -> Option<i32> {
    tokio::time::timeout(LIMIT, child.wait()).await.expect("it ends").unwrap().code()
}

#[tokio::test]
async fn a_wrong_configuration_ends_with_2_and_names_the_field() {
    let file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    let path = file.path().to_str().unwrap();
    for (text, says) in [
        ("colour = \"blue\"", "colour"),
        ("ops_listen = \"0.0.0.0:1\"", "ops_listen = \"0.0.0.0:1\": other machines could read"),
        ("ops_listen = \"here\"", "ops_listen"),
        ("slots = 0", "slots = \"0\""),
        ("slots = \"many\"", "slots"),
        ("coordinators = [\"ftp://x\"]", "coordinators = \"ftp://x\""),
        ("handlers = [\"teleport\"]", "teleport"),
        ("drain_timeout = \"soon\"", "drain_timeout"),
        ("log = \"a=b=c\"", "log = \"a=b=c\""),
        ("not toml", "toml"),
    ] {
        std::fs::write(path, text).unwrap();
        let (code, error) = fails(command(&["--config", path])).await;
        assert_eq!(code, Some(2), "{text}: {error}");
        assert!(error.contains(says), "{text}: {error}");
    }
    let (code, error) = fails(command(&["--config", "/does/not/exist.toml"])).await;
    assert!(code == Some(2) && error.contains("/does/not/exist.toml"), "{error}");
    assert_eq!(fails(command(&["--teleport"])).await.0, Some(2));
    let mut environment = command(&[]);
    environment.env("TRANCHE_WORKER_SLOTS", "many");
    assert_eq!(fails(environment).await.0, Some(2));
}

#[tokio::test]
async fn flags_come_before_environment_before_file() {
    let mut coordinator = Coordinator::start().await;
    let file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    std::fs::write(file.path(), "id = \"file\"\nslots = 7\n[labels]\nzone = \"a\"\n").unwrap();
    let mut child =
        command(&["--config", file.path().to_str().unwrap(), "--id", "flag", "--handlers", "noop"])
            .args(["--coordinator", &coordinator.url()])
            .env("TRANCHE_WORKER_ID", "environment")
            .spawn()
            .unwrap();
    let (_stream, hello) = coordinator.attached(TTL).await;
    assert_eq!((hello.worker.as_str(), hello.slots, hello.handlers), ("flag", 7, vec!["noop".to_owned()]));
    assert_eq!(hello.labels["zone"], "a");
    child.kill().await.unwrap();
}

#[tokio::test]
async fn a_signal_drains() {
    let mut coordinator = Coordinator::start().await;
    let (mut child, mut stream, _) = attached(&mut coordinator, &["--slots", "1"]).await;
    stream.credit().await;
    let mut grant = stage("noop", 1, 1);
    // Long enough to be running when the signal comes; ends by itself.
    grant.params.insert("delay_per_task".into(), "300ms".into());
    stream.grant(grant).await;
    // Answered at once, so what was granted before it is there.
    stream.grant(stage("teleport", 2, 1)).await;
    assert_eq!(stream.report().await.token, Some(token(2)));
    stream.ack(2).await;
    signal(&child, rustix::process::Signal::TERM);
    // The lease may end before the signal is seen.
    let (mut credit, mut done) = (None, None);
    while credit.is_none() || done.is_none() {
        match stream.next().await {
            Said::Credit(window) => credit = Some(window.leases),
            Said::Report(report) => done = Some(report.done),
            _ => {}
        }
    }
    assert_eq!((credit, done), (Some(0), Some(1)));
    stream.ack(1).await;
    assert!(stream.next_or_end().await.is_none());
    drop(stream);
    assert_eq!(exit_code(&mut child).await, Some(0));
    let mut rest = String::new();
    child.stdout.take().unwrap().read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "", "one line is all it says on stdout");
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let mut coordinator = Coordinator::start().await;
    let (mut child, mut stream, _) =
        attached(&mut coordinator, &["--drain-timeout", "10m", "--log-format", "json"]).await;
    let mut grant = stage("noop", 1, 1);
    grant.params.insert("delay_per_task".into(), "10000s".into());
    stream.grant(grant).await;
    stream.grant(stage("teleport", 2, 1)).await;
    stream.report().await;
    signal(&child, rustix::process::Signal::TERM);
    stream.find(|frame| matches!(frame, Said::Credit(credit) if credit.leases == 0).then_some(())).await;
    signal(&child, rustix::process::Signal::INT);
    assert_eq!(exit_code(&mut child).await, Some(1));
}
