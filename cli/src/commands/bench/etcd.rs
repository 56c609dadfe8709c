//! An etcd of the bench's own.

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use super::process::Process;
use crate::error::{CliError, Result};

/// Starts one on free ports of loopback; returns it with its URL.
///
/// It isn't waited for: the coordinator does that, with a time limit.
pub(super) fn start(folder: &Path) -> Result<(Process, String)> {
    let program = find()?;
    let (client, peer) =
        (format!("http://127.0.0.1:{}", free_port()?), format!("http://127.0.0.1:{}", free_port()?));
    let args = [
        ("--name", "bench"),
        ("--data-dir", &folder.join("etcd").display().to_string()),
        ("--listen-client-urls", &client),
        ("--advertise-client-urls", &client),
        ("--listen-peer-urls", &peer),
        ("--initial-advertise-peer-urls", &peer),
        ("--initial-cluster", &format!("bench={peer}")),
        ("--log-level", "warn"),
    ];
    let args: Vec<String> =
        args.iter().flat_map(|(flag, value)| [(*flag).to_owned(), (*value).to_owned()]).collect();
    Ok((Process::start("etcd", &program, &args, folder)?, client))
}

/// The version that the binary tells, if it does.
pub(super) async fn version() -> Option<String> {
    let output = tokio::process::Command::new(find().ok()?).arg("--version").output().await.ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().find_map(|line| line.strip_prefix("etcd Version:")).map(|version| version.trim().to_owned())
}

/// TRANCHE_ETCD, `.tools/bin/etcd` here, beside this binary or in a folder above, or PATH.
fn find() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("TRANCHE_ETCD") {
        let path = PathBuf::from(path);
        let missing = || CliError::new(format!("TRANCHE_ETCD names {}, which is no file", path.display()));
        return if path.is_file() { Ok(path) } else { Err(missing()) };
    }
    // A bench may be started from anywhere: its own folder is looked at too.
    let (here, own) = (std::env::current_dir()?, std::env::current_exe()?);
    let tools = here.ancestors().chain(own.ancestors()).map(|folder| folder.join(".tools/bin/etcd"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join("etcd"));
    tools.chain(on_path).find(|path| path.is_file()).ok_or_else(|| {
        CliError::new(
            "no etcd found: neither TRANCHE_ETCD, nor .tools/bin/etcd here or above, nor PATH has one",
        )
        .hint("use one that runs with --etcd URL, or none with --store embedded")
    })
}

/// A port that was free a moment ago; etcd takes no listener from outside.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
