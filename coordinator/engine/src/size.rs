//! How many tasks the next lease gets.
//!
//! About one second of work at the worker's measured speed, within the spec's bounds; towards the end
//! of a sealed batch smaller, so that no worker is left alone with a long tail (guided
//! self-scheduling, Polychronopoulos and Kuck 1987: the remaining work divided by the workers). The
//! shrinking stops at a twentieth of a second of work, where dealing would cost more than it evens out.

use std::time::Duration;

/// The most payload bytes that a lease should carry, as estimated from its segments.
pub const LEASE_BYTES: u64 = 4 * 1024 * 1024;

/// Tasks of a worker's first lease, before its speed is known.
const FIRST: f64 = 64.0;
/// The most that a lease grows over the one before, so that one odd measurement can't give a worker
/// hours of work.
const GROWTH: f64 = 8.0;
/// Seconds of work that a lease aims at.
const AIM: f64 = 1.0;
/// Seconds of work under which a lease isn't made smaller.
const LEAST: f64 = 0.05;

/// A worker's measured speed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pace {
    /// Tasks a second; 0: not known.
    rate: f64,
    /// The largest lease it finished.
    largest: f64,
}

impl Pace {
    /// It finished so many tasks in that time.
    pub fn finished(&mut self, tasks: u64, elapsed: Duration) {
        let rate = tasks as f64 / elapsed.as_secs_f64().max(1e-6);
        self.rate = if self.rate == 0.0 { rate } else { self.rate * 0.5 + rate * 0.5 };
        self.largest = self.largest.max(tasks as f64);
    }

    /// Tasks for its next lease: `available` are left now, shared by `slots`; `sealed` says that no
    /// more come.
    pub fn next(&self, available: u64, slots: u64, sealed: bool, min: u64, max: u64) -> u64 {
        let aimed =
            if self.rate == 0.0 { FIRST } else { (self.rate * AIM).min(self.largest.max(FIRST) * GROWTH) };
        let guided = if sealed {
            (available as f64 / (2 * slots.max(1)) as f64).max(self.rate * LEAST)
        } else {
            aimed
        };
        let size = aimed.min(guided).ceil() as u64;
        size.clamp(min, max.max(min)).min(available)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_worker_starts_small_and_grows_step_by_step() {
        let mut pace = Pace::default();
        assert_eq!(pace.next(1_000_000, 1, true, 1, 100_000), 64);
        pace.finished(64, Duration::from_micros(10));
        assert_eq!(pace.next(1_000_000, 1, true, 1, 100_000), 512);
        pace.finished(512, Duration::from_micros(100));
        assert_eq!(pace.next(1_000_000, 1, true, 1, 100_000), 4096);
    }

    #[test]
    fn a_lease_is_about_one_second_of_work() {
        let mut pace = Pace::default();
        for _ in 0..20 {
            pace.finished(300, Duration::from_secs(1));
        }
        assert_eq!(pace.next(1_000_000, 4, true, 1, 16_384), 300);
        assert_eq!(pace.next(1_000_000, 4, true, 400, 16_384), 400, "the spec's lower bound");
        assert_eq!(pace.next(1_000_000, 4, true, 1, 200), 200, "the spec's upper bound");
    }

    #[test]
    fn the_tail_is_shared_but_not_ground_to_dust() {
        let mut pace = Pace::default();
        for _ in 0..20 {
            pace.finished(1000, Duration::from_secs(1));
        }
        assert_eq!(pace.next(800, 4, true, 1, 16_384), 100, "800 tasks for 4 slots");
        assert_eq!(pace.next(100, 4, true, 1, 16_384), 50, "a twentieth of a second of work");
        assert_eq!(pace.next(20, 4, true, 1, 16_384), 20, "what is left");
        assert_eq!(pace.next(800, 4, false, 1, 16_384), 800, "not sealed: more will come");
    }
}
