//! The tasks that the benches append, and the way through the system that they take.

use std::time::Instant;

use tonic::codegen::Bytes;
use tranche_client::v1;

/// Payloads are cut from blocks of about so many bytes, so that not each is an allocation of its own.
const BLOCK_BYTES: i64 = 64 * 1024;

/// Tasks that are made to learn what making one costs: several times so many, of which the quickest
/// counts, since others may have had the processor meanwhile.
const PROBE: i64 = 20_000;
const PROBES: u32 = 8;

/// `count` tasks. The key is the task's sequence number in decimal. The payload starts with the same
/// number (8 bytes, little endian; fewer if it is shorter), pseudo-random bytes follow: no two payloads
/// are alike, and nothing on the way gains by compressing them.
pub(super) fn tasks(count: i64, payload: u32) -> impl Iterator<Item = v1::Task> + Send {
    let size = payload as usize;
    let each = (BLOCK_BYTES / i64::from(payload).max(1)).max(1);
    let mut key = Decimal::default();
    let mut block = Bytes::new();
    (1..=count).map(move |n| {
        let place = (n - 1) % each;
        if place == 0 {
            block = payloads(n, each.min(count - n + 1), size);
        }
        let at = place as usize * size;
        v1::Task { key: key.next(), payload: block.slice(at..at + size) }
    })
}

/// The payloads of `count` tasks from `first` on, one after the other.
fn payloads(first: i64, count: i64, size: usize) -> Bytes {
    let mut block = Vec::with_capacity(count as usize * size + 8);
    for n in first..first + count {
        let end = block.len() + size;
        let mut state = n.cast_unsigned();
        let mut word = state;
        while block.len() < end {
            block.extend_from_slice(&word.to_le_bytes());
            word = random(&mut state);
        }
        block.truncate(end);
    }
    block.into()
}

/// `SplitMix64`: a few instructions for eight bytes.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Counts in decimal without a division.
#[derive(Debug, Default)]
struct Decimal {
    digits: Vec<u8>,
}

impl Decimal {
    fn next(&mut self) -> String {
        let last = self.digits.iter().rposition(|digit| *digit != b'9');
        let nines = last.map_or(0, |last| last + 1);
        self.digits[nines..].fill(b'0');
        match last {
            Some(last) => self.digits[last] += 1,
            None => self.digits.insert(0, b'1'),
        }
        self.digits.iter().map(|digit| char::from(*digit)).collect()
    }
}

/// Seconds that making one task takes here, on this thread: a part of the client's processor time that
/// is the bench's own.
pub(super) fn making_one(payload: u32) -> f64 {
    let probe = || {
        let start = Instant::now();
        for task in tasks(PROBE, payload) {
            std::hint::black_box(task);
        }
        start.elapsed().as_secs_f64() / PROBE as f64
    };
    (0..PROBES).map(|_| probe()).fold(f64::INFINITY, f64::min)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn keys_count_and_payloads_differ() {
        for size in [1_000, 100, 12, 8] {
            let made: Vec<v1::Task> = tasks(1_200, size).collect();
            assert_eq!(made.len(), 1_200);
            for (n, task) in (1_u64..).zip(&made) {
                assert_eq!((task.key.as_str(), task.payload.len()), (n.to_string().as_str(), size as usize));
                assert_eq!(task.payload[..8], n.to_le_bytes());
            }
            assert_eq!(made.iter().map(|task| &task.payload).collect::<HashSet<_>>().len(), 1_200);
        }
        assert!(tasks(3, 0).all(|task| task.payload.is_empty()));
        assert_eq!(tasks(3, 2).last().map(|task| task.payload.to_vec()), Some(vec![3, 0]));
        assert_eq!(tasks(2, 200_000).map(|task| task.payload.len()).collect::<Vec<_>>(), [200_000; 2]);
    }

    #[test]
    fn payloads_are_not_filler() {
        let bytes: Vec<u8> = tasks(1_000, 100).flat_map(|task| task.payload[8..].to_vec()).collect();
        let mut seen = [0_usize; 256];
        for byte in &bytes {
            seen[usize::from(*byte)] += 1;
        }
        let mean = bytes.len() / 256;
        assert!(seen.iter().all(|n| (mean / 2..mean * 2).contains(n)), "{seen:?}");
    }
}
