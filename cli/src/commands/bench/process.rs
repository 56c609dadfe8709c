//! Child processes that never outlive the bench, and whose logs are shown if one fails.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::error::{CliError, Result};

/// How long a child may take to say its first line: etcd and a coordinator start within a second or
/// two; a machine that is busy gets more.
const READY_WITHIN: Duration = Duration::from_mins(1);

/// Bytes of a log that are shown.
const LOG_TAIL: usize = 4_000;

/// A child; killed by its own id when dropped.
#[derive(Debug)]
pub(super) struct Process {
    name: String,
    child: Child,
    output: Lines<BufReader<ChildStdout>>,
    log: PathBuf,
}

impl Process {
    /// Starts `program`; its standard error goes to `{folder}/{name}.log`.
    pub(super) fn start(name: &str, program: &Path, args: &[String], folder: &Path) -> Result<Self> {
        let failed = |e: &std::io::Error| CliError::caused(format!("cannot start {}", program.display()), e);
        let log = folder.join(format!("{name}.log"));
        let file = File::create(&log).map_err(|e| failed(&e))?;
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(file)
            // Ctrl-C is for the bench, which then ends its children in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| failed(&e))?;
        let Some(output) = child.stdout.take() else {
            return Err(CliError::new(format!("{name} has no standard output")));
        };
        Ok(Self { name: name.to_owned(), child, output: BufReader::new(output).lines(), log })
    }

    /// Waits for the line that starts with `prefix`, and returns the rest of it.
    pub(super) async fn ready(&mut self, prefix: &str) -> Result<String> {
        let line = async {
            while let Ok(Some(line)) = self.output.next_line().await {
                if let Some(rest) = line.strip_prefix(prefix) {
                    return Some(rest.to_owned());
                }
            }
            None
        };
        match tokio::time::timeout(READY_WITHIN, line).await {
            Ok(Some(rest)) => Ok(rest),
            Ok(None) => Err(self.failure("ended before it was ready")),
            Err(_) => Err(self.failure(&format!("was not ready within {READY_WITHIN:?}"))),
        }
    }

    /// The rest of the newest line that starts with `prefix` and was printed by now.
    pub(super) fn latest(&mut self, prefix: &str) -> String {
        let mut latest = String::new();
        let lines = std::iter::from_fn(|| self.output.next_line().now_or_never()?.ok()?);
        for line in lines {
            if let Some(rest) = line.strip_prefix(prefix) {
                rest.clone_into(&mut latest);
            }
        }
        latest
    }

    /// Waits until the child ends, which none should before it is stopped.
    pub(super) async fn ended(&mut self) -> CliError {
        // Its output is drained, so that a full pipe can't stop it.
        while let Ok(Some(_)) = self.output.next_line().await {}
        let how = self.child.wait().await.map_or_else(|e| e.to_string(), |status| status.to_string());
        self.failure(&format!("ended: {how}"))
    }

    /// An error about this child, with the end of its log.
    pub(super) fn failure(&self, what: &str) -> CliError {
        let mut error = CliError::new(format!("{} {what}", self.name));
        let log = std::fs::read(&self.log).unwrap_or_default();
        let tail = String::from_utf8_lossy(&log[log.len().saturating_sub(LOG_TAIL)..]).into_owned();
        error.details = tail.lines().map(str::to_owned).collect();
        error
    }

    /// What it was started as: `coordinator`, `worker-2`, `etcd`.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// None once it has ended.
    pub(super) fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Ends the child, by force.
    pub(super) async fn stop(mut self) {
        let _ = self.child.kill().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_child_says_that_it_is_ready_and_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let args = ["-c", "echo starting; echo listening on 1.2.3.4:5; exec sleep 1000"].map(str::to_owned);
        let mut child = Process::start("sh", Path::new("/bin/sh"), &args, folder.path()).unwrap();
        assert_eq!(child.ready("listening on ").await.unwrap(), "1.2.3.4:5");
        let id = child.child.id().unwrap();
        child.stop().await;
        assert!(!Path::new(&format!("/proc/{id}")).exists());
    }

    #[tokio::test]
    async fn a_child_that_fails_shows_its_log() {
        let folder = tempfile::tempdir().unwrap();
        let args = ["-c", "echo wrong flag >&2; exit 2"].map(str::to_owned);
        let mut child = Process::start("sh", Path::new("/bin/sh"), &args, folder.path()).unwrap();
        let error = child.ready("listening on ").await.unwrap_err();
        assert_eq!(
            (error.message.as_str(), error.details),
            ("sh ended before it was ready", vec!["wrong flag".to_owned()])
        );
        assert!(child.ended().await.message.contains("exit status: 2"));
    }
}
