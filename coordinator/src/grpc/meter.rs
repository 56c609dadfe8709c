//! Rates over a sliding window.

use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

/// What "the last seconds" are.
const WINDOW: Duration = Duration::from_secs(5);
/// Samples nearer than this to the one before are not kept: the window never has more than 51 or so.
const APART: Duration = Duration::from_millis(100);

/// Counts a second of a counter that is looked at now and then, whenever it changed at the latest.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    /// From the newest that is older than the window on, or from the first.
    samples: VecDeque<(Instant, i64)>,
}

impl Meter {
    /// The rate as of now, with the counter at `done`. Zero until there is a time to divide by, and
    /// after a counter that went back (failed tasks are retried), which begins anew.
    pub(crate) fn rate(&mut self, now: Instant, done: i64) -> f64 {
        if self.samples.back().is_some_and(|&(_, last)| done < last) {
            self.samples.clear();
        }
        if self.samples.back().is_none_or(|&(at, _)| now - at >= APART) {
            self.samples.push_back((now, done));
        }
        while self.samples.get(1).is_some_and(|&(at, _)| now - at >= WINDOW) {
            self.samples.pop_front();
        }
        let &(at, first) = self.samples.front().expect("one was pushed");
        // A counter that rested since its last sample moved inside the window only.
        let elapsed = (now - at).min(WINDOW);
        if elapsed < APART { 0.0 } else { (done - first) as f64 / elapsed.as_secs_f64() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(rate: f64, wanted: f64) {
        assert!((rate - wanted).abs() < 1e-6, "{rate} is not {wanted}");
    }

    #[test]
    fn a_rate_is_that_of_the_last_seconds() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut meter = Meter::default();
        close(meter.rate(at(0), 0), 0.0);
        close(meter.rate(at(99), 50), 0.0);
        close(meter.rate(at(100), 50), 500.0);
        for tenth in 2..=100 {
            close(meter.rate(at(tenth * 100), tenth.cast_signed() * 50), 500.0);
            assert!(meter.samples.len() <= 52);
        }
        // Half a window without progress halves it, a whole one ends it.
        close(meter.rate(at(12_500), 5000), 250.0);
        close(meter.rate(at(15_000), 5000), 0.0);
        // After a rest only the window counts.
        close(meter.rate(at(60_000), 5100), 20.0);
    }

    #[test]
    fn a_counter_that_goes_back_begins_anew() {
        let start = Instant::now();
        let mut meter = Meter::default();
        meter.rate(start, 0);
        meter.rate(start + Duration::from_secs(1), 100);
        close(meter.rate(start + Duration::from_secs(2), 40), 0.0);
        close(meter.rate(start + Duration::from_secs(3), 50), 10.0);
    }

    #[test]
    fn samples_are_bounded_however_often_it_is_asked() {
        let start = Instant::now();
        let mut meter = Meter::default();
        for ms in 0..20_000_u32 {
            meter.rate(start + Duration::from_millis(ms.into()), ms.into());
        }
        assert!(meter.samples.len() <= 52, "{}", meter.samples.len());
    }
}
