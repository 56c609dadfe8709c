//! What every process tells of itself, under the names that Prometheus' own clients use.

use crate::readings::{Reading, Readings};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use std::fs;

/// `/proc` counts processor time in hundredths of a second on every Linux (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;
const PAGE_STATUS: &str = "/proc/self/status";

/// One look at this process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Process {
    /// Seconds of processor time.
    pub cpu: f64,
    /// Bytes of resident memory.
    pub resident: f64,
    /// Bytes of address space.
    pub virtual_memory: f64,
    /// Threads.
    pub threads: f64,
    /// Open file descriptors.
    pub fds: f64,
    /// The most of them; none when there is no limit.
    pub max_fds: Option<f64>,
    /// When it started, in seconds since 1970.
    pub started: f64,
}

impl Process {
    /// Looks. What can't be read is 0.
    pub fn look() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let (stat, status) = (read("/proc/self/stat"), read(PAGE_STATUS));
        let (limits, machine) = (read("/proc/self/limits"), read("/proc/stat"));
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or(0.0)
        };
        // Behind the name, which may hold anything; the first field there is the third of the manual's.
        let fields: Vec<f64> = stat
            .rsplit_once(')')
            .map(|(_, rest)| rest.split_whitespace().map(|field| field.parse().unwrap_or(0.0)).collect())
            .unwrap_or_default();
        let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0.0);
        let boot = machine.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<f64>().ok());
        Self {
            cpu: (field(14) + field(15)) / TICKS_PER_SECOND,
            resident: kib("VmRSS:") * 1024.0,
            virtual_memory: kib("VmSize:") * 1024.0,
            threads: field(20),
            // One of them is that of the listing itself.
            fds: fs::read_dir("/proc/self/fd").map_or(0, Iterator::count).saturating_sub(1) as f64,
            max_fds: limits.lines().find_map(|line| {
                line.strip_prefix("Max open files")?.split_whitespace().next()?.parse().ok()
            }),
            started: boot.unwrap_or(0.0) + field(22) / TICKS_PER_SECOND,
        }
    }

    /// Tells of this process, at each scrape.
    fn register(registry: &mut Registry) {
        registry.register_collector(Box::new(Readings(|| {
            let process = Self::look();
            let gauge = |name, help, unit, value| Reading::gauge(name, help, unit).is(value);
            let cpu = Reading::counter(
                "process_cpu",
                "Processor time used, in user mode and in the kernel",
                Some(Unit::Seconds),
            );
            let mut all = vec![
                cpu.is(process.cpu),
                gauge("process_resident_memory", "Resident memory", Some(Unit::Bytes), process.resident),
                gauge("process_virtual_memory", "Address space", Some(Unit::Bytes), process.virtual_memory),
                gauge("process_threads", "Threads of the process", None, process.threads),
                gauge("process_open_fds", "Open file descriptors", None, process.fds),
                gauge(
                    "process_start_time",
                    "When the process started, since 1970",
                    Some(Unit::Seconds),
                    process.started,
                ),
            ];
            let most = process.max_fds.map(|most| {
                gauge("process_max_fds", "The most file descriptors that it may open", None, most)
            });
            all.extend(most);
            all
        })));
    }
}

/// A registry that tells of this process, and which of our programs it is.
pub fn registry(program: &'static str) -> Registry {
    let mut registry = Registry::default();
    Process::register(&mut registry);
    registry.sub_registry_with_prefix("tranche").register(
        "build",
        "What this process is",
        Info::new([("program", program), ("version", env!("CARGO_PKG_VERSION"))]),
    );
    registry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_sees_itself() {
        let first = Process::look();
        assert!(first.resident > 100.0 * 1024.0 && first.virtual_memory >= first.resident, "{first:?}");
        assert!(first.threads >= 1.0 && first.fds >= 3.0, "{first:?}");
        assert!(first.max_fds.is_none_or(|most| most >= first.fds), "{first:?}");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        // The boot time is in whole seconds.
        assert!((now.as_secs_f64() - first.started) > -2.0, "{first:?}");
        let held: Vec<fs::File> = (0..5).map(|_| fs::File::open(PAGE_STATUS).expect("opened")).collect();
        assert!(Process::look().fds >= 8.0);
        drop(held);
        while Process::look().cpu <= first.cpu {
            std::hint::black_box((0..100_000).sum::<u64>());
        }
    }
}
