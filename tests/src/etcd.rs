//! A real etcd for tests: started, killed, stopped and started again.
//!
//! Each server runs under a small shell that kills it when its standard input closes, so that none
//! outlives the test process, however that ends.

pub mod nodes;

use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep};
use tranche_coordinator::store::etcd::{Etcd, EtcdConfig};

/// How long a server may take until it answers: several start at once on a busy machine.
const START_LIMIT: Duration = Duration::from_mins(1);
/// How often a start is tried: another process may take a port between the choice and the start.
const START_ATTEMPTS: usize = 5;
/// Starts the server, tells its process id, and kills it when the input ends.
const GUARD: &str = r#"
"$@" & server=$!
echo $server
cat >/dev/null
kill -9 $server
wait $server
if [ -n "$REMOVE" ]; then rm -rf "$REMOVE"; fi
"#;

/// One etcd server with its own data.
#[derive(Debug)]
pub struct EtcdServer {
    /// Removed when dropped; `None` for the shared one, whose guard removes it.
    _dir: Option<TempDir>,
    data: PathBuf,
    client_port: u16,
    peer_port: u16,
    shared: bool,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    guard: Child,
    pid: Pid,
}

impl Drop for Running {
    fn drop(&mut self) {
        // The guard kills the server, and ends after it.
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

/// The server that the tests of one process share, each under its own prefix.
pub async fn shared() -> &'static EtcdServer {
    static SHARED: OnceCell<EtcdServer> = OnceCell::const_new();
    SHARED.get_or_init(|| EtcdServer::start_as(true)).await
}

impl EtcdServer {
    /// Starts a server, and waits until it answers.
    pub async fn start() -> Self {
        Self::start_as(false).await
    }

    async fn start_as(shared: bool) -> Self {
        // Before there is anything to clear away.
        let (_, _) = (tool("etcd"), tool("etcdctl"));
        let dir = tempfile::tempdir().expect("a directory for etcd's data");
        let data = dir.path().to_owned();
        let dir = if shared {
            let _ = dir.keep();
            None
        } else {
            Some(dir)
        };
        let mut server = Self { _dir: dir, data, client_port: 0, peer_port: 0, shared, running: None };
        for _ in 0..START_ATTEMPTS {
            (server.client_port, server.peer_port) = (free_port(), free_port());
            server.running = Some(server.spawn());
            if server.answers().await {
                return server;
            }
            server.kill();
            std::fs::remove_dir_all(server.data.join("data")).ok();
        }
        panic!("etcd doesn't start:\n{}", server.log());
    }

    /// The URL for clients.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.client_port)
    }

    /// A configuration for this server, with a prefix and a short time limit.
    pub fn config(&self, prefix: &str) -> EtcdConfig {
        EtcdConfig { prefix: prefix.into(), ..EtcdConfig::new([self.endpoint()]) }
    }

    /// A store on this server.
    pub async fn store(&self, prefix: &str) -> Arc<Etcd> {
        Etcd::connect(self.config(prefix)).await.expect("a store on a running etcd")
    }

    /// Kills the server (SIGKILL), and waits until it is gone.
    pub fn kill(&mut self) {
        self.running = None;
    }

    /// Starts a killed server again, on its data and ports, and waits until it answers.
    pub async fn restart(&mut self) {
        self.kill();
        self.running = Some(self.spawn());
        assert!(self.answers().await, "etcd doesn't start again:\n{}", self.log());
    }

    /// Stops the server where it stands (SIGSTOP): its connections stay open, and nothing answers.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets a stopped server go on.
    pub fn cont(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let running = self.running.as_ref().expect("a running etcd");
        kill_process(running.pid, signal).expect("a signal to our own etcd");
    }

    /// Runs `etcdctl` on this server, and returns what it prints.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let output = Command::new(tool("etcdctl"))
            .args(["--endpoints", &self.endpoint()])
            .args(arguments)
            .output()
            .expect("etcdctl runs");
        assert!(output.status.success(), "etcdctl {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).expect("etcdctl prints text")
    }

    fn spawn(&self) -> Running {
        let (client, peer) = (self.endpoint(), format!("http://127.0.0.1:{}", self.peer_port));
        let mut command = Command::new("sh");
        command.args(["-c", GUARD, "sh"]).arg(tool("etcd"));
        command.arg("--data-dir").arg(self.data.join("data"));
        command.arg("--log-outputs").arg(self.data.join("log"));
        command.args(["--log-level", "warn", "--initial-cluster", &format!("default={peer}")]);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        if self.shared {
            command.env("REMOVE", &self.data);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut guard = command.spawn().expect("a shell for etcd");
        let mut line = String::new();
        BufReader::new(guard.stdout.take().expect("piped")).read_line(&mut line).expect("etcd's process id");
        let pid = line.trim().parse().ok().and_then(Pid::from_raw).expect("etcd's process id");
        Running { guard, pid }
    }

    async fn answers(&self) -> bool {
        let deadline = Instant::now() + START_LIMIT;
        while Instant::now() < deadline {
            if Etcd::connect(self.config("/harness/")).await.is_ok() {
                return true;
            }
            let pid = self.running.as_ref().expect("spawned").pid;
            if rustix::process::test_kill_process(pid).is_err() {
                return false;
            }
            sleep(Duration::from_millis(50)).await;
        }
        false
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.data.join("log")).unwrap_or_default()
    }
}

/// A port that nobody listens on, outside of those that the kernel gives to clients.
pub fn free_port() -> u16 {
    loop {
        let port = rand::random_range(20_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// One of etcd's programs: beside `TRANCHE_ETCD`, or in the workspace's `.tools/bin`.
pub fn tool(name: &str) -> PathBuf {
    let bin = std::env::var_os("TRANCHE_ETCD").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/bin"),
        |etcd| Path::new(&etcd).parent().map(Path::to_owned).unwrap_or_default(),
    );
    let path = match std::env::var_os("TRANCHE_ETCD") {
        Some(etcd) if name == "etcd" => PathBuf::from(etcd),
        _ => bin.join(name),
    };
    assert!(
        path.is_file(),
        "{} is missing: run `make verify`, which fetches it, or name etcd's binary in TRANCHE_ETCD",
        path.display()
    );
    path
}
