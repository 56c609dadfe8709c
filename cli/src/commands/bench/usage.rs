//! What a process has used: counts of it say more on a busy machine than seconds on the clock do.

use std::fs;
use std::time::Instant;

use serde_json::{Value, json};

use super::figure::Figure;

/// `/proc` counts processor time in hundredths of a second on every Linux (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

/// One process, from its start up to now. Nothing is 0 unless it ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Usage {
    pub(super) name: String,
    /// Seconds of processor time in user mode and in the kernel.
    pub(super) user: f64,
    pub(super) system: f64,
    /// Bytes of resident memory at the highest.
    pub(super) peak_memory: i64,
}

impl Usage {
    pub(super) fn of(name: &str, pid: u32) -> Self {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let (user, system) = times(&read("stat")).unwrap_or_default();
        Self { name: name.to_owned(), user, system, peak_memory: peak_memory(&read("status")).unwrap_or(0) }
    }

    pub(super) fn cpu(&self) -> f64 {
        self.user + self.system
    }

    fn json(&self) -> Value {
        json!({"process": self.name, "user_s": self.user, "system_s": self.system,
            "peak_memory_bytes": self.peak_memory})
    }
}

/// The processor time of the whole machine, and that of the bench with all processes that it has started and
/// ended: a look before a run and one after it tell what others did meanwhile.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    at: Instant,
    all: f64,
    own: f64,
}

impl Load {
    pub(super) fn now() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let own = read("/proc/self/stat");
        Self {
            at: Instant::now(),
            all: busy(&read("/proc/stat")).unwrap_or(0.0),
            own: fields(&own, 4).map_or(0.0, |seconds| seconds.iter().sum()),
        }
    }

    /// How many cores others kept busy from `before` on, on average: other programs, the kernel's own
    /// threads, and what other virtual machines took.
    pub(super) fn others_since(self, before: Self) -> f64 {
        let span = (self.at - before.at).as_secs_f64().max(1e-3);
        ((self.all - before.all - (self.own - before.own)) / span).max(0.0)
    }
}

/// Seconds that all processors together were busy, from `/proc/stat`.
fn busy(stat: &str) -> Option<f64> {
    let numbers = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
    let ticks: Vec<f64> = numbers.map(str::parse).collect::<Result<_, _>>().ok()?;
    // user, nice, system; not idle, iowait; irq, softirq, steal. Guests are in user already.
    Some(
        ticks.iter().enumerate().filter(|(n, _)| !matches!(n, 3 | 4 | 8..)).map(|(_, t)| t).sum::<f64>()
            / TICKS_PER_SECOND,
    )
}

/// What each process used between two looks. Its peak of memory is that of its whole life.
pub(super) fn between(before: &[Usage], after: &[Usage]) -> Vec<Usage> {
    let spent = |after: &Usage| {
        let before = before.iter().find(|before| before.name == after.name).cloned().unwrap_or_default();
        Usage { user: after.user - before.user, system: after.system - before.system, ..after.clone() }
    };
    after.iter().map(spent).collect()
}

/// Processor seconds (of the workers together), and the peaks of memory. The JSON has each process.
pub(super) fn figures(spent: &[Usage]) -> Vec<Figure> {
    let of = |what: &'static str| spent.iter().filter(move |one| one.name.starts_with(what));
    let mut figures = Vec::new();
    for (what, name) in [
        ("client", "CPU client"),
        ("coordinator", "CPU coordinator"),
        ("worker", "CPU workers"),
        ("etcd", "CPU etcd"),
    ] {
        if of(what).next().is_some() {
            figures.push(Figure::seconds(name, of(what).map(Usage::cpu).sum()));
        }
    }
    figures.push(Figure::seconds("CPU of all", spent.iter().map(Usage::cpu).sum()));
    for (what, name) in [
        ("coordinator", "coordinator peak memory"),
        ("worker", "worker peak memory (largest)"),
        ("etcd", "etcd peak memory"),
        ("client", "client peak memory"),
    ] {
        figures.extend(of(what).map(|one| one.peak_memory).max().map(|bytes| Figure::bytes(name, bytes)));
    }
    figures
}

/// For the JSON: `processes`.
pub(super) fn json(spent: &[Usage]) -> Value {
    spent.iter().map(Usage::json).collect()
}

/// User and system time of a `/proc/PID/stat`, in seconds.
fn times(stat: &str) -> Option<(f64, f64)> {
    let times = fields(stat, 2)?;
    Some((*times.first()?, *times.get(1)?))
}

/// The first of user and system time, and those of the children that have ended, in seconds.
fn fields(stat: &str, count: usize) -> Option<Vec<f64>> {
    // The name before it may hold anything, also brackets and spaces.
    let (_, fields) = stat.rsplit_once(") ")?;
    let ticks = fields.split(' ').skip(11).take(count).map(str::parse::<f64>);
    let ticks: Vec<f64> = ticks.collect::<Result<_, _>>().ok()?;
    (ticks.len() == count).then(|| ticks.iter().map(|ticks| ticks / TICKS_PER_SECOND).collect())
}

/// `VmHWM` of a `/proc/PID/status`, in bytes.
fn peak_memory(status: &str) -> Option<i64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_kernels_numbers_are_read() {
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194560 100 0 0 0 250 75 0 0 20 0 9 0 1 2 3\n";
        assert_eq!(times(stat), Some((2.5, 0.75)));
        assert_eq!(times("42 (x) S 1"), None);
        assert_eq!(fields(stat, 4), Some(vec![2.5, 0.75, 0.0, 0.0]));
        assert_eq!(busy("cpu  100 10 50 9999 77 5 6 9 0 0\ncpu0 1 1\n"), Some(1.8));
        assert_eq!(busy(""), None);
        assert_eq!(peak_memory("VmPeak:\t 9 kB\nVmHWM:\t    1234 kB\nVmRSS:\t 7 kB\n"), Some(1234 * 1024));
        assert_eq!(peak_memory("VmRSS:\t 7 kB\n"), None);
        assert!(Usage::of("self", std::process::id()).peak_memory > 0);
    }

    #[test]
    fn what_others_did_is_what_is_left() {
        let at = Instant::now();
        let before = Load { at, all: 10.0, own: 1.0 };
        let after = Load { at: at + Duration::from_secs(2), all: 14.0, own: 4.0 };
        assert!((after.others_since(before) - 0.5).abs() < 1e-9);
        // Rounded ticks never make it negative.
        assert!(Load { own: 9.0, ..after }.others_since(before).abs() < 1e-9);
    }

    #[test]
    fn only_what_was_spent_between_counts() {
        let of =
            |name: &str, user, system, peak_memory| Usage { name: name.into(), user, system, peak_memory };
        let before = [of("client", 1.0, 1.0, 5), of("worker-1", 0.5, 0.0, 5)];
        let after = [of("client", 2.0, 1.5, 6), of("worker-1", 1.0, 0.0, 7), of("worker-2", 0.25, 0.0, 9)];
        let spent = between(&before, &after);
        assert_eq!(spent.iter().map(Usage::cpu).collect::<Vec<_>>(), [1.5, 0.5, 0.25]);
        let figures = figures(&spent);
        let value = |name: &str| figures.iter().find(|f| f.name == name).map(|f| f.value);
        assert_eq!(
            (value("CPU of all"), value("CPU workers"), value("CPU etcd")),
            (Some(2.25), Some(0.75), None)
        );
        assert_eq!(value("worker peak memory (largest)"), Some(9.0));
        assert_eq!(value("etcd peak memory"), None);
    }
}
