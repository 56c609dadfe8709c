//! A network of the run's own: a host for each member, a router between them that can drop packets.
//!
//! Every member lives in a network namespace with one interface; the run itself is in the router's. A
//! partition is a routing rule there that swallows what goes from one address to another, silently, as a
//! broken cable does; one direction at a time, so it can be one-sided.

use crate::etcd::free_port;
use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

/// Says that it is there, and stays until its standard input ends, which is when the run ends.
const HOLDER: &str = "echo .; read line";

/// The hosts.
#[derive(Debug)]
pub struct Network {
    /// What holds each host's namespace; empty: all are on loopback.
    holders: Vec<Child>,
    /// How many partitions cut the way from one host to another just now.
    cuts: Mutex<BTreeMap<(usize, usize), usize>>,
}

impl Network {
    /// So many hosts in namespaces of their own. The calling process must be in a network namespace of
    /// its own already; see [`crate::chaos::sandbox`].
    pub fn isolated(hosts: usize) -> Self {
        let mut holders = Vec::new();
        ip(&["link", "set", "lo", "up"]);
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("forwarding, which was tried before");
        for host in 0..hosts {
            let mut holder = Command::new("unshare")
                .args(["--net", "sh", "-c", HOLDER])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("unshare");
            let mut dot = [0];
            holder.stdout.take().expect("piped").read_exact(&mut dot).expect("a namespace, tried before");
            let (near, pid) = (format!("h{host}"), holder.id().to_string());
            let router = format!("10.77.{host}.1");
            ip(&["link", "add", &near, "type", "veth", "peer", "name", "eth0", "netns", &pid]);
            ip(&["addr", "add", &format!("{router}/24"), "dev", &near]);
            ip(&["link", "set", &near, "up"]);
            let inside = |arguments: &str| {
                let namespace = format!("--net=/proc/{pid}/ns/net");
                check(Command::new("nsenter").args([&namespace, "ip"]).args(arguments.split(' ')));
            };
            inside("link set lo up");
            inside(&format!("addr add 10.77.{host}.2/24 dev eth0"));
            inside("link set eth0 up");
            inside(&format!("route add default via {router}"));
            holders.push(holder);
        }
        Self { holders, cuts: Mutex::default() }
    }

    /// All hosts are this machine's loopback: nothing can be cut.
    pub fn loopback() -> Self {
        Self { holders: Vec::new(), cuts: Mutex::default() }
    }

    /// Whether there can be partitions.
    pub fn is_isolated(&self) -> bool {
        !self.holders.is_empty()
    }

    /// A host's address.
    pub fn address(&self, host: usize) -> String {
        if self.is_isolated() { format!("10.77.{host}.2") } else { "127.0.0.1".to_owned() }
    }

    /// A port to listen on: this one, or, where hosts share an address, one that is free.
    pub fn port(&self, wanted: u16) -> u16 {
        if self.is_isolated() { wanted } else { free_port() }
    }

    /// How to run a program on a host.
    pub fn on(&self, host: usize, program: &Path, arguments: Vec<String>) -> (PathBuf, Vec<String>) {
        let Some(holder) = self.holders.get(host) else { return (program.to_owned(), arguments) };
        let mut all = vec![format!("--net=/proc/{}/ns/net", holder.id()), "--".to_owned()];
        all.push(program.display().to_string());
        all.extend(arguments);
        (PathBuf::from("nsenter"), all)
    }

    /// Swallows what goes from one host to another.
    pub fn cut(&self, from: usize, to: usize) {
        let mut cuts = self.cuts.lock().expect("not poisoned");
        let count = cuts.entry((from, to)).or_default();
        *count += 1;
        if *count == 1 {
            self.rule("add", from, to);
        }
    }

    /// Ends what [`Network::cut`] began.
    pub fn mend(&self, from: usize, to: usize) {
        let mut cuts = self.cuts.lock().expect("not poisoned");
        let count = cuts.get_mut(&(from, to)).expect("it was cut");
        *count -= 1;
        if *count == 0 {
            cuts.remove(&(from, to));
            self.rule("del", from, to);
        }
    }

    fn rule(&self, verb: &str, from: usize, to: usize) {
        let (from, to) = (self.address(from), self.address(to));
        ip(&["rule", verb, "from", &from, "to", &to, "type", "blackhole", "pref", "100"]);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for mut holder in self.holders.drain(..) {
            drop(holder.stdin.take());
            let _ = holder.wait();
        }
    }
}

fn ip(arguments: &[&str]) {
    check(Command::new("ip").args(arguments));
}

fn check(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
