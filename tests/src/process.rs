//! One of Tranche's programs as a process of its own.

use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::Duration;
use tokio::sync::mpsc;

/// How long a program may take until it says that it is there.
const START_LIMIT: Duration = Duration::from_mins(1);
/// Lines that a program may print before somebody reads them; each prints one.
const LINES: usize = 64;
/// How much of a log is shown when a test fails.
const SHOWN: u64 = 48 * 1024;
/// Kills the process when the test process is gone, however it ended; a line tells it to leave.
const WATCHDOG: &str = r#"read line || kill -9 "$1""#;

/// The path of one of the workspace's programs.
///
/// # Panics
/// When it wasn't built: a test's own build doesn't build the programs of other crates.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    // target/debug/deps/system-0123456789abcdef
    let mut folders = test.ancestors().skip(1).take(2).map(Path::to_owned).collect::<Vec<_>>();
    if let Some(target) = std::env::var_os("CARGO_TARGET_DIR") {
        folders.push(Path::new(&target).join("debug"));
    }
    let found = folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{name} isn't in {folders:?}: run `cargo build --workspace` first"))
}

/// A running program, killed when dropped. What it logs is shown when the test fails.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    watchdog: Child,
    leash: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts the program; its log is appended to `{folder}/{name}.log`.
    pub fn spawn(name: &str, program: &Path, arguments: &[String], folder: &Path) -> Self {
        Self::spawn_with(name, program, arguments, &[], folder)
    }

    /// Starts the program with more environment variables.
    pub fn spawn_with(
        name: &str,
        program: &Path,
        arguments: &[String],
        env: &[(String, String)],
        folder: &Path,
    ) -> Self {
        let log = folder.join(format!("{name}.log"));
        let mut file = File::options().create(true).append(true).open(&log).expect("a log file");
        writeln!(file, "---- {} {}", program.display(), arguments.join(" ")).expect("a line in the log");
        let mut command = Command::new(program);
        command.args(arguments).envs(env.iter().cloned());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let mut watchdog = Command::new("sh")
            .args(["-c", WATCHDOG, "watchdog", &child.id().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("a shell");
        let (sender, lines) = mpsc::channel(LINES);
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        // Ends with the process's output.
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                // More than anybody reads is dropped, so that the program never waits.
                let _ = sender.try_send(line);
            }
        });
        let leash = watchdog.stdin.take();
        Self { name: name.to_owned(), child, watchdog, leash, lines, log, ended: None }
    }

    /// Waits for the line on stdout that begins so, and returns the rest of it.
    ///
    /// # Errors
    /// The program ended before (with its log), or took too long.
    pub async fn said(&mut self, beginning: &str) -> Result<String, String> {
        loop {
            match tokio::time::timeout(START_LIMIT, self.lines.recv()).await {
                Ok(Some(line)) => {
                    if let Some(rest) = line.strip_prefix(beginning) {
                        return Ok(rest.trim().to_owned());
                    }
                }
                Ok(None) => {
                    return Err(format!("{} ended before `{beginning}`:\n{}", self.name, self.log()));
                }
                Err(_) => return Err(format!("{} didn't say `{beginning}`:\n{}", self.name, self.log())),
            }
        }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills it (SIGKILL), and waits until it is gone.
    pub fn kill9(&mut self) {
        if self.ended.is_none() {
            self.child.kill().expect("a signal to our own process");
            self.reap();
        }
    }

    /// Asks it to end (SIGTERM).
    pub fn sigterm(&self) {
        self.signal(Signal::TERM);
    }

    /// Stops it where it stands (SIGSTOP): its connections stay open, and it says nothing.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on after [`Process::stop`].
    pub fn cont(&self) {
        self.signal(Signal::CONT);
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        assert!(self.ended.is_none(), "{} is gone", self.name);
        let pid = Pid::from_raw(self.child.id().cast_signed()).expect("a process id");
        kill_process(pid, signal).expect("a signal to our own process");
    }

    /// Waits until it ends by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        crate::eventually(&what, async || self.has_ended()).await
    }

    /// How it ended, if it did.
    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none()
            && let Some(status) = self.child.try_wait().expect("our own process")
        {
            self.ended = Some(status);
            self.dismiss();
        }
        self.ended
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The most memory that it ever had, in bytes; `None` once it ended.
    pub fn peak_memory(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
    }

    fn reap(&mut self) {
        // First: until it is waited for, its id belongs to no other process.
        self.dismiss();
        self.ended = Some(self.child.wait().expect("our own process"));
    }

    fn dismiss(&mut self) {
        if let Some(mut leash) = self.leash.take() {
            let _ = leash.write_all(b"leave\n");
        }
        let _ = self.watchdog.wait();
    }

    fn show_log(&self) {
        let Ok(mut file) = File::open(&self.log) else { return };
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        let _ = file.seek(SeekFrom::Start(length.saturating_sub(SHOWN)));
        let mut tail = Vec::new();
        let _ = file.read_to_end(&mut tail);
        eprintln!("==== log of {} (its end) ====\n{}", self.name, String::from_utf8_lossy(&tail));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_log();
        }
        if self.ended.is_none() {
            let _ = self.child.kill();
            self.dismiss();
            let _ = self.child.wait();
        }
    }
}
