//! A histogram of latencies that costs one atomic addition a sample.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets a power of two: steps of an eighth, so a figure is at most 12.5 % too high.
const STEPS: usize = 8;
/// Powers of two of microseconds: up to 2^32 us, over an hour.
const POWERS: usize = 32;

/// Latencies by size.
#[derive(Debug)]
pub struct Latency {
    buckets: [AtomicU64; STEPS * POWERS],
}

impl Default for Latency {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

fn bucket(us: u64) -> usize {
    if us < STEPS as u64 {
        return us as usize;
    }
    let power = us.ilog2() as usize;
    let step = ((us >> (power - 3)) & 7) as usize;
    ((power - 2) * STEPS + step).min(STEPS * POWERS - 1)
}

fn upper(bucket: usize) -> u64 {
    if bucket < STEPS {
        return bucket as u64;
    }
    let (power, step) = (bucket / STEPS + 2, (bucket % STEPS) as u64);
    ((8 + step + 1) << (power - 3)) - 1
}

impl Latency {
    /// One sample.
    pub fn add(&self, latency: Duration) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.buckets[bucket(us)].fetch_add(1, Ordering::Relaxed);
    }

    /// The latency in microseconds that this share of the samples stays at or below; 0 without samples.
    pub fn quantile_us(&self, share: f64) -> u64 {
        let counts: Vec<u64> = self.buckets.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let all: u64 = counts.iter().sum();
        let wanted = (all as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in counts.iter().enumerate() {
            seen += count;
            if *count > 0 && seen >= wanted {
                return upper(bucket);
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_at_most_an_eighth_too_high() {
        for us in (0..5000).chain([65_535, 65_536, 1_000_000, 3_600_000_000]) {
            let said = upper(bucket(us));
            assert!(said >= us && said as f64 <= us as f64 * 1.125 + 1.0, "{us} us became {said}");
        }
    }

    #[test]
    fn quantiles_of_known_samples() {
        let latency = Latency::default();
        assert_eq!(latency.quantile_us(0.5), 0);
        for us in 1..=100 {
            latency.add(Duration::from_micros(us));
        }
        assert!((50..=56).contains(&latency.quantile_us(0.5)));
        assert!((99..=112).contains(&latency.quantile_us(0.99)));
    }
}
