//! Programs that are run to their end: `tranche` and `grpcurl`, as their users do it.

use crate::process::program;
use crate::wait::PATIENCE;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;

/// How a program ended, and what it printed.
#[derive(Clone, Debug)]
pub struct Ran {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Ran {
    /// Its exit code; `None` when a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Asserts the exit code, and returns the run for more.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code(), Some(code), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// Asserts that all these texts are on standard error.
    #[track_caller]
    pub fn says(self, texts: &[&str]) -> Self {
        for text in texts {
            assert!(self.stderr.contains(text), "{text:?} isn't said:\n{}", self.stderr);
        }
        self
    }

    /// Its standard output as one JSON document.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }

    /// Its standard output as JSON documents one after the other.
    #[track_caller]
    pub fn documents(&self) -> Vec<Value> {
        let documents = serde_json::Deserializer::from_str(&self.stdout).into_iter();
        documents.collect::<Result<_, _>>().unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }
}

/// Runs a program with this text on its standard input, and waits for its end.
///
/// # Panics
/// When it can't be started, or takes too long.
pub async fn run<S: AsRef<str>>(program: &Path, arguments: &[S], stdin: &str) -> Ran {
    let arguments: Vec<&str> = arguments.iter().map(AsRef::as_ref).collect();
    let mut command = Command::new(program);
    command.args(&arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child =
        command.kill_on_drop(true).spawn().unwrap_or_else(|e| panic!("{}: {e}", program.display()));
    let mut input = child.stdin.take().expect("piped");
    let text = stdin.to_owned();
    let write = async move {
        // A program that doesn't read to the end may do so.
        let _ = input.write_all(text.as_bytes()).await;
    };
    let both = async { tokio::join!(write, child.wait_with_output()).1 };
    let output = tokio::time::timeout(PATIENCE, both).await;
    let output = output.unwrap_or_else(|_| panic!("{} {arguments:?} doesn't end", program.display()));
    let output = output.expect("our own process");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("programs print UTF-8");
    Ran { status: output.status, stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Runs `tranche`.
pub async fn tranche<S: AsRef<str>>(arguments: &[S]) -> Ran {
    run(&program("tranche"), arguments, "").await
}

/// `grpcurl`: named by `TRANCHE_GRPCURL`, or in the workspace's `.tools/bin`.
///
/// # Panics
/// When it is missing.
pub fn grpcurl() -> PathBuf {
    let path = std::env::var_os("TRANCHE_GRPCURL")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/bin/grpcurl"), PathBuf::from);
    let name = path.display();
    assert!(path.is_file(), "{name} is missing: run `make verify`, which fetches it, or set TRANCHE_GRPCURL");
    path
}

/// A program that somebody sits in front of: its standard input stays open. Killed when dropped.
#[derive(Debug)]
pub struct Session {
    child: Child,
    input: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
    errors: Option<JoinHandle<String>>,
    printed: String,
}

impl Session {
    /// Starts one of the workspace's programs.
    pub fn start<S: AsRef<str>>(name: &str, arguments: &[S]) -> Self {
        let mut command = Command::new(program(name));
        command.args(arguments.iter().map(AsRef::as_ref)).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
        let input = child.stdin.take();
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut stderr = child.stderr.take().expect("piped");
        let errors = tokio::spawn(async move {
            let mut text = String::new();
            let _ = stderr.read_to_string(&mut text).await;
            text
        });
        Self { child, input, lines, errors: Some(errors), printed: String::new() }
    }

    /// Waits for the line on standard output that begins so, and returns the rest of it.
    pub async fn said(&mut self, beginning: &str) -> String {
        let wait = async {
            while let Some(line) = self.lines.next_line().await.expect("a readable pipe") {
                self.printed += &line;
                self.printed.push('\n');
                if let Some(rest) = line.strip_prefix(beginning) {
                    return Some(rest.to_owned());
                }
            }
            None
        };
        let said = tokio::time::timeout(PATIENCE, wait).await;
        match said.unwrap_or_else(|_| panic!("`{beginning}` isn't said")) {
            Some(rest) => rest,
            None => panic!("`{beginning}` isn't said before the end: {:?}", self.finish().await),
        }
    }

    /// Types a line.
    pub async fn type_line(&mut self, line: &str) {
        let input = self.input.as_mut().expect("still running");
        input.write_all(format!("{line}\n").as_bytes()).await.expect("a program that reads");
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// When it has ended.
    pub fn signal(&self, signal: Signal) {
        let id = self.child.id().expect("still running");
        let pid = Pid::from_raw(id.cast_signed()).expect("a process id");
        kill_process(pid, signal).expect("a signal to our own process");
    }

    /// Kills it (SIGKILL), and waits until it is gone. False: it had ended by itself before.
    pub async fn kill9(mut self) -> bool {
        if self.child.try_wait().expect("our own process").is_some() {
            return false;
        }
        self.child.kill().await.expect("our own process");
        true
    }

    /// Waits until it ends by itself.
    pub async fn ended(mut self) -> Ran {
        let finish = self.finish();
        tokio::time::timeout(PATIENCE, finish).await.unwrap_or_else(|_| panic!("it doesn't end"))
    }

    async fn finish(&mut self) -> Ran {
        while let Some(line) = self.lines.next_line().await.expect("a readable pipe") {
            self.printed += &line;
            self.printed.push('\n');
        }
        let status = self.child.wait().await.expect("our own process");
        let stderr = match self.errors.take() {
            Some(errors) => errors.await.unwrap_or_default(),
            None => String::new(),
        };
        Ran { status, stdout: std::mem::take(&mut self.printed), stderr }
    }
}
