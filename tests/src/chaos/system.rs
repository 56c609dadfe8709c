//! The members' processes: started, killed, stopped, asked to leave, and started again.

use super::disk::Disk;
use super::journal::Journal;
use super::network::Network;
use super::plan::{COORDINATORS, ETCDS, Who};
use crate::etcd::nodes::EtcdNodes;
use crate::process::{Process, program};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, MutexGuard, OwnedMutexGuard};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Prefix of all keys.
pub const PREFIX: &str = "/chaos/";
/// Size of the disk with the library and what is staged, in MiB.
const LIBRARY_MIB: usize = 64;
/// Size of the objects' disk, in MiB.
const OBJECTS_MIB: usize = 48;
/// How often it is looked whether somebody ended by itself.
const LOOK: Duration = Duration::from_millis(200);
/// Somebody who does something to a member for longer than this is at a fault.
const BUSY: Duration = Duration::from_millis(50);
/// How long a member that was asked to leave may take: twice what it is told (see [`FLAGS`]), and as much
/// again on a busy machine.
const LEAVING: Duration = Duration::from_secs(30);
/// SIGTERM ends a member that was only just started, and doesn't listen for signals yet.
const TERMINATED: i32 = 15;
/// The coordinators' flags.
const FLAGS: [(&str, &str); 8] = [
    ("prefix", PREFIX),
    ("session-ttl", "2s"),
    ("lease-ttl", "3s"),
    ("call-timeout", "2s"),
    ("retry-pause", "100ms"),
    ("late-sweep-after", "2s"),
    ("shutdown-grace", "8s"),
    ("log", "info,tranche_coordinator=debug,tranche_coordinator::grpc::layers=info"),
];

/// A member's process, if it runs.
#[derive(Debug)]
pub struct Member {
    /// Which.
    pub who: Who,
    /// Its number in the network, its program, its arguments.
    start: (PathBuf, Vec<String>),
    logs: PathBuf,
    process: Option<Process>,
    /// It said that it serves, or attached.
    served: bool,
}

impl Member {
    /// Starts it; doesn't wait until it serves.
    pub fn start(&mut self) {
        let (program, arguments) = &self.start;
        self.process = Some(Process::spawn(&self.who.to_string(), program, arguments, &self.logs));
        self.served = false;
    }

    /// Its process.
    pub fn process(&mut self) -> Option<&mut Process> {
        self.process.as_mut().and_then(|process| process.has_ended().is_none().then_some(process))
    }

    /// Kills it. False: it isn't there.
    pub fn kill(&mut self) -> bool {
        if self.process().is_none() {
            // If it ended by itself, that is for whoever supervises it to see.
            return false;
        }
        if let Some(mut process) = self.process.take() {
            process.kill9();
        }
        true
    }

    /// Waits until it says that it is ready; etcd nodes say nothing.
    ///
    /// # Errors
    /// Why it isn't.
    pub async fn ready(&mut self) -> Result<(), String> {
        let beginning = match self.who {
            Who::Etcd(_) => return Ok(()),
            Who::Coordinator(_) => "listening on",
            Who::Worker(_) => "attached to",
        };
        if !self.served {
            let process = self.process.as_mut().ok_or_else(|| format!("{} isn't started", self.who))?;
            process.said(beginning).await?;
            self.served = true;
        }
        Ok(())
    }

    /// Asks it to leave, and waits until it has.
    ///
    /// # Errors
    /// How it ended otherwise than well, or that it doesn't.
    pub async fn leave(&mut self) -> Result<(), String> {
        let Some(process) = self.process() else { return Ok(()) };
        process.sigterm();
        let deadline = Instant::now() + LEAVING;
        let status = loop {
            if let Some(status) = process.has_ended() {
                break status;
            }
            if Instant::now() > deadline {
                self.kill();
                return Err(format!("{} doesn't end within {LEAVING:?} of SIGTERM", self.who));
            }
            sleep(Duration::from_millis(20)).await;
        };
        self.process = None;
        if status.success() || signal(status) == Some(TERMINATED) {
            Ok(())
        } else {
            Err(format!("{} ended after SIGTERM with {status}", self.who))
        }
    }

    /// How it ended by itself, if it did.
    fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.process.as_mut()?.has_ended()?;
        self.process = None;
        Some(status)
    }
}

fn signal(status: ExitStatus) -> Option<i32> {
    std::os::unix::process::ExitStatusExt::signal(&status)
}

/// All members, where they are, and their disks.
#[derive(Debug)]
pub struct System {
    /// The network.
    pub network: Network,
    /// The etcd nodes.
    pub etcd: EtcdNodes,
    /// With one library and what is staged for it.
    pub library_disk: Disk,
    /// With the coordinators' objects.
    pub objects_disk: Disk,
    /// The machine's own disk: the other library, the sources.
    pub plain: PathBuf,
    /// Where the logs are.
    pub logs: PathBuf,
    members: Vec<Arc<Mutex<Member>>>,
    urls: Vec<String>,
}

impl System {
    /// Lays out a system in this folder; nothing runs yet. `own`: the process is in namespaces of its own.
    pub fn new(folder: &Path, own: bool) -> Self {
        let all: Vec<Who> = Who::all().collect();
        let network = if own { Network::isolated(all.len()) } else { Network::loopback() };
        let library_disk = Disk::new(folder.join("small"), LIBRARY_MIB, own);
        let objects_disk = Disk::new(folder.join("objects"), OBJECTS_MIB, own);
        let (plain, logs, bin) = (folder.join("plain"), folder.join("logs"), folder.join("bin"));
        for folder in [&plain, &logs, &bin] {
            std::fs::create_dir_all(folder).expect("a folder");
        }
        let at = |who: Who, port| format!("{}:{}", network.address(who.number()), network.port(port));
        let etcd = EtcdNodes::new((0..ETCDS).map(|i| (at(Who::Etcd(i), 2379), at(Who::Etcd(i), 2380))));
        let addresses: Vec<String> = (0..COORDINATORS).map(|i| at(Who::Coordinator(i), 7070)).collect();
        let urls: Vec<String> = addresses.iter().map(|address| format!("http://{address}")).collect();
        // Copies: whoever builds meanwhile doesn't change what runs here.
        let copy = |name: &str| {
            let to = bin.join(name);
            std::fs::copy(program(name), &to).expect("a copy of the program");
            to
        };
        let (coordinator, worker) = (copy("tranche-coordinator"), copy("tranche-worker"));
        let argument = |name: &str, value: String| [format!("--{name}"), value];
        let member = |who: Who| {
            let (program, arguments) = match who {
                Who::Etcd(index) => {
                    let data = folder.join(format!("etcd-{index}"));
                    (EtcdNodes::program(), etcd.arguments(index, &data))
                }
                Who::Coordinator(index) => {
                    let own = [
                        argument("listen", addresses[index].clone()),
                        argument("store", format!("etcd:{}", etcd.endpoints().join(","))),
                        argument("objects", objects_disk.path().join("objects").display().to_string()),
                    ];
                    // The network is the run's own.
                    let insecure = "--insecure".to_owned();
                    let flags = FLAGS.map(|(name, value)| argument(name, value.to_owned()));
                    (coordinator.clone(), own.into_iter().chain(flags).flatten().chain([insecure]).collect())
                }
                Who::Worker(_) => {
                    let coordinators = urls.iter().map(|url| argument("coordinator", url.clone()));
                    let roots = [library_disk.path(), &plain];
                    let roots = roots.map(|root| argument("allow-root", root.display().to_string()));
                    let own = [
                        argument("id", who.to_string()),
                        argument("slots", "2".into()),
                        argument("drain-timeout", "3s".into()),
                        argument("log", "info,tranche_worker=debug".into()),
                    ];
                    (worker.clone(), coordinators.chain(roots).chain(own).flatten().collect())
                }
            };
            let start = network.on(who.number(), &program, arguments);
            let member = Member { who, start, logs: logs.clone(), process: None, served: false };
            Arc::new(Mutex::new(member))
        };
        let members = all.into_iter().map(member).collect();
        Self { network, etcd, library_disk, objects_disk, plain, logs, members, urls }
    }

    /// The coordinators' URLs.
    pub fn urls(&self) -> &[String] {
        &self.urls
    }

    /// Which coordinator has this URL.
    pub fn coordinator_at(&self, url: &str) -> Option<usize> {
        self.urls.iter().position(|known| known == url)
    }

    /// A member, once nobody else does something to it.
    pub async fn member(&self, who: Who) -> MutexGuard<'_, Member> {
        self.members[who.number()].lock().await
    }

    /// A member, if nobody does something to it just now.
    pub async fn try_member(&self, who: Who) -> Option<OwnedMutexGuard<Member>> {
        timeout(BUSY, self.members[who.number()].clone().lock_owned()).await.ok()
    }

    /// Starts everybody.
    pub async fn start(&self) {
        for who in Who::all() {
            self.member(who).await.start();
        }
    }

    /// Waits until everybody serves.
    ///
    /// # Errors
    /// Who doesn't, and why.
    pub async fn all_ready(&self) -> Result<(), String> {
        for who in Who::all() {
            self.member(who).await.ready().await?;
        }
        Ok(())
    }

    /// Starts again whoever ended by itself, until told to stop. That is a violation: also while etcd is away,
    /// a coordinator waits.
    pub async fn supervise(&self, journal: &Journal, stop: CancellationToken) {
        while !stop.is_cancelled() {
            for who in Who::all() {
                let Some(mut member) = self.try_member(who).await else { continue };
                if let Some(status) = member.ended() {
                    journal.violation(format!("{who} ended by itself: {status}"));
                    member.start();
                }
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = sleep(LOOK) => {}
            }
        }
    }

    /// Asks everybody to leave, the workers first, and kills etcd.
    pub async fn stop(&self, journal: &Journal) {
        let (etcds, ours): (Vec<Who>, Vec<Who>) = Who::all().partition(|who| matches!(who, Who::Etcd(_)));
        for who in ours.into_iter().rev() {
            if let Err(error) = self.member(who).await.leave().await {
                journal.violation(error);
            }
        }
        for who in etcds {
            self.member(who).await.kill();
        }
    }
}
