//! What the figures were measured on: no figure means anything without it.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use super::etcd;
use super::figure::{Unit, percentile};
use crate::error::{CliError, Result};

/// Small appends and large ones that are measured, at most, and for how long, at most: some slow disk
/// shouldn't hold up the bench.
const SMALL: (usize, usize) = (200, 128);
const LARGE: (usize, usize) = (64, 1 << 20);
const AT_MOST: Duration = Duration::from_secs(3);

#[derive(Clone, Debug)]
pub(super) struct Machine {
    date: String,
    cores: usize,
    cpu: String,
    kernel: String,
    memory_bytes: u64,
    etcd_version: Option<String>,
    disk: Disk,
}

/// The folder that all of it writes to.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Disk {
    file_system: String,
    /// A small append with fdatasync, in seconds.
    sync_p50: f64,
    sync_p99: f64,
    /// Appends of 1 MiB, each with fdatasync, in bytes a second.
    append_rate: f64,
}

impl Machine {
    /// Looks at the machine and measures the disk under `folder`.
    pub(super) async fn describe(folder: &Path) -> Result<Self> {
        let at = folder.to_owned();
        let disk = tokio::task::spawn_blocking(move || Disk::measure(&at)).await.map_err(io::Error::other)?;
        let disk = disk.map_err(|e| CliError::caused(format!("cannot measure {}", folder.display()), &e))?;
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Ok(Self {
            date: prost_types::Timestamp { nanos: 0, ..SystemTime::now().into() }.to_string(),
            cores: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            cpu: cpu_model(&read("/proc/cpuinfo")),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            memory_bytes: memory(&read("/proc/meminfo")),
            etcd_version: etcd::version().await,
            disk,
        })
    }

    /// Whether the targets say something about this build on this disk.
    pub(super) fn is_judged(&self) -> bool {
        !cfg!(debug_assertions) && !self.in_memory()
    }

    pub(super) fn in_memory(&self) -> bool {
        is_in_memory(&self.disk.file_system)
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "date": self.date,
            "cores": self.cores,
            "cpu": self.cpu,
            "kernel": self.kernel,
            "memory_bytes": self.memory_bytes,
            "etcd_version": self.etcd_version,
            "release_build": !cfg!(debug_assertions),
            "file_system": self.disk.file_system,
            "fsync_p50_s": self.disk.sync_p50,
            "fsync_p99_s": self.disk.sync_p99,
            "append_1mib_bytes_per_s": self.disk.append_rate,
        })
    }

    /// Two lines for people, and the warnings.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines = vec![
            format!(
                "{}: {} cores ({}), {} memory, Linux {}, etcd {}",
                self.date,
                self.cores,
                self.cpu,
                Unit::Bytes.show(self.memory_bytes as f64),
                self.kernel,
                self.etcd_version.as_deref().unwrap_or("unknown"),
            ),
            format!(
                "disk: {}; small append + fdatasync p50 {}, p99 {}; 1 MiB appends with fdatasync {}/s",
                self.disk.file_system,
                Unit::Seconds.show(self.disk.sync_p50),
                Unit::Seconds.show(self.disk.sync_p99),
                Unit::Bytes.show(self.disk.append_rate),
            ),
        ];
        lines.extend(self.warnings());
        lines
    }

    /// A line for each thing that makes the figures worth less.
    pub(super) fn warnings(&self) -> Vec<String> {
        let debug = "a debug build, ten times slower than a release build: no target is judged";
        let memory = "the folder is in memory, where nothing is durable: no target is judged (--dir FOLDER)";
        let warnings = [(cfg!(debug_assertions), debug), (self.in_memory(), memory)];
        warnings.iter().filter(|(is_so, _)| *is_so).map(|(_, text)| (*text).to_owned()).collect()
    }
}

impl Disk {
    fn measure(folder: &Path) -> io::Result<Self> {
        let small = appends(folder, SMALL)?;
        let large = appends(folder, LARGE)?;
        let file_system = file_system(&fs::read_to_string("/proc/self/mountinfo")?, &folder.canonicalize()?);
        Ok(Self {
            file_system,
            sync_p50: percentile(&small, 0.5),
            sync_p99: percentile(&small, 0.99),
            append_rate: (large.len() * LARGE.1) as f64 / large.iter().sum::<f64>().max(1e-9),
        })
    }
}

/// Seconds of each append with its fdatasync.
fn appends(folder: &Path, (count, size): (usize, usize)) -> io::Result<Vec<f64>> {
    let path = folder.join("disk-probe");
    let mut file = File::create(&path)?;
    let block = vec![0x5a; size];
    let start = Instant::now();
    let mut times = Vec::with_capacity(count);
    while times.len() < count && (start.elapsed() < AT_MOST || times.is_empty()) {
        let one = Instant::now();
        file.write_all(&block)?;
        file.sync_data()?;
        times.push(one.elapsed().as_secs_f64());
    }
    fs::remove_file(path)?;
    Ok(times)
}

/// Whether `folder` is on a file system that forgets.
pub(super) fn is_memory_folder(folder: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    folder.canonicalize().is_ok_and(|folder| is_in_memory(&file_system(&mounts, &folder)))
}

fn is_in_memory(file_system: &str) -> bool {
    matches!(file_system, "tmpfs" | "ramfs")
}

/// The type of the file system that `folder` is on, from a `/proc/PID/mountinfo`.
fn file_system(mounts: &str, folder: &Path) -> String {
    let parse = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        // Spaces in it are written `\040`.
        let point = left.split(' ').nth(4)?.replace("\\040", " ");
        let depth = folder.starts_with(&point).then(|| Path::new(&point).components().count())?;
        Some((depth, right.split(' ').next()?.to_owned()))
    };
    // The last of those that are equally deep hides the others.
    mounts.lines().filter_map(parse).max_by_key(|(depth, _)| *depth).map_or("unknown".to_owned(), |(_, t)| t)
}

fn cpu_model(cpuinfo: &str) -> String {
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown processor", |(_, name)| name.trim());
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
    let is_virtual = flags.is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor"));
    if is_virtual { format!("{model}, virtual machine") } else { model.to_owned() }
}

fn memory(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kilobytes = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_mount_counts() {
        let mounts = "22 1 254:0 / / rw - ext4 /dev/vda rw\n\
                      23 22 0:5 / /tmp rw shared:1 - tmpfs tmpfs rw\n\
                      24 22 0:6 / /tmp/my\\040disk rw - xfs /dev/vdb rw\n";
        assert_eq!(file_system(mounts, Path::new("/home/a")), "ext4");
        assert_eq!(file_system(mounts, Path::new("/tmp/x")), "tmpfs");
        assert_eq!(file_system(mounts, Path::new("/tmp/my disk/x")), "xfs");
        assert_eq!(file_system(mounts, Path::new("/tmpx")), "ext4");
        assert_eq!(file_system("", Path::new("/")), "unknown");
    }

    #[test]
    fn the_processor_and_the_memory_are_read() {
        assert_eq!(
            cpu_model("processor\t: 0\nmodel name\t: Fast CPU\nflags\t\t: fpu hypervisor sse\n"),
            "Fast CPU, virtual machine"
        );
        assert_eq!(cpu_model("model name\t: Fast CPU\n"), "Fast CPU");
        assert_eq!(memory("MemTotal:       16384 kB\nMemFree: 1 kB\n"), 16_777_216);
    }

    #[tokio::test]
    async fn this_machine_can_be_described() {
        let folder = tempfile::tempdir().unwrap();
        let machine = Machine::describe(folder.path()).await.unwrap();
        assert!(machine.cores > 0 && machine.disk.sync_p50 > 0.0 && machine.disk.append_rate > 0.0);
        assert!(!machine.is_judged(), "tests are debug builds");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "the probe's file is gone");
    }
}
