//! A network and a mount namespace of the run's own, so that partitions and full disks hurt nobody else.
//!
//! The program starts itself again under `unshare`. All that the run makes there (interfaces, rules, mounts)
//! is the namespaces' and vanishes with the last process in them, however the run ends: there is nothing
//! to clean up, and runs side by side don't see each other.

use std::fmt;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Tells the program that it was started again, and how.
const INSIDE: &str = "TRANCHE_CHAOS_INSIDE";
/// All that a run needs there, tried before it is counted on.
const TRIAL: &str = "
ip link set lo up
echo 1 > /proc/sys/net/ipv4/ip_forward
ip link add tried0 type veth peer name tried1
ip rule add from 10.77.1.2 to 10.77.2.2 type blackhole pref 100
unshare --net true
mount -t tmpfs -o size=64k tmpfs /mnt
";
/// As root, and as anybody where users may have namespaces.
const WAYS: [&[&str]; 2] = [&["--net", "--mount"], &["--user", "--map-root-user", "--net", "--mount"]];

/// Where the run is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sandbox {
    /// In namespaces of its own: partitions and small disks can be made.
    Own,
    /// Among everybody else, for this reason: no partitions, no full disks.
    Shared(String),
}

impl Sandbox {
    /// Starts the program again inside, with the same arguments, when that is possible: then this doesn't
    /// return. Says where the run is otherwise.
    pub fn enter() -> Self {
        if std::env::var_os(INSIDE).is_some() {
            return Self::Own;
        }
        let mut reasons = Vec::new();
        for flags in WAYS {
            match trial(flags) {
                Ok(()) => {
                    let program = std::env::current_exe().expect("the program's own path");
                    let error = Command::new("unshare")
                        .args(flags)
                        .arg(program)
                        .args(std::env::args_os().skip(1))
                        .env(INSIDE, "yes")
                        .exec();
                    reasons.push(format!("unshare {}: {error}", flags.join(" ")));
                }
                Err(reason) => reasons.push(format!("unshare {}: {reason}", flags.join(" "))),
            }
        }
        Self::Shared(reasons.join("; "))
    }

    /// Whether the run has namespaces of its own.
    pub fn is_own(&self) -> bool {
        *self == Self::Own
    }
}

impl fmt::Display for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own => write!(f, "network and mount namespaces of its own"),
            Self::Shared(reason) => write!(
                f,
                "NO NAMESPACES HERE: NO PARTITIONS, NO FULL DISKS IN THIS RUN (it needs root or user \
                 namespaces, `unshare`, `nsenter` and `ip`; {reason})"
            ),
        }
    }
}

fn trial(flags: &[&str]) -> Result<(), String> {
    let output = Command::new("unshare")
        .args(flags)
        .args(["sh", "-ec", TRIAL])
        .output()
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().replace('\n', ", "))
    }
}
