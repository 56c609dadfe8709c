//! How the connections of an address have ended.
//!
//! Whoever's connection is ended for a flood begins the next at once: the handshakes and the first frames of thousands of
//! them a second would cost more than the flood does. So an address whose connections again and again end for what
//! they sent, or without a call that was let in, is let in slowly: its new connections wait in a line before anything is
//! read of them. Those that are open aren't touched, and soon after the last of it all is as before. One that made calls
//! and then doesn't read, or answer a ping, hasn't sent anything bad: it may have been cut off from us.

use super::frames::Budget;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;
use tokio::time::Instant;

/// Connections of an address that may end badly, at once and a second.
pub(super) const BAD_ENDS: (u32, u32) = (20, 5);
/// After that its connections are let in so far apart.
pub(super) const APART: Duration = Duration::from_millis(20);
/// One that would have to wait longer is refused.
pub(super) const LONGEST: Duration = Duration::from_secs(5);
/// Addresses that are remembered. More than that is no matter of addresses.
const KNOWN: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Conduct(HashMap<IpAddr, Record>);

#[derive(Debug)]
struct Record {
    bad_ends: Budget,
    next: Instant,
}

impl Conduct {
    /// A connection of this address ended badly.
    pub(super) fn bad_end(&mut self, one: IpAddr) {
        let now = Instant::now();
        if self.0.len() >= KNOWN && !self.0.contains_key(&one) {
            self.0.retain(|_, record| !record.bad_ends.is_whole(now));
            if self.0.len() >= KNOWN {
                return;
            }
        }
        let new = || Record { bad_ends: Budget::new(BAD_ENDS, now), next: now };
        self.0.entry(one).or_insert_with(new).bad_ends.spend(|| now);
    }

    /// How long a new connection of this address has to wait. `Err`: for too long.
    pub(super) fn wait(&mut self, one: IpAddr) -> Result<Duration, Duration> {
        let Some(record) = self.0.get_mut(&one) else { return Ok(Duration::ZERO) };
        let now = Instant::now();
        if record.bad_ends.has(now) {
            return Ok(Duration::ZERO);
        }
        let wait = record.next.max(now) + APART - now;
        if wait > LONGEST {
            return Err(wait);
        }
        record.next = now + wait;
        Ok(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    #[tokio::test(start_paused = true)]
    async fn an_address_of_bad_conduct_is_let_in_slowly_and_no_other() {
        let mut conduct = Conduct::default();
        for _ in 0..BAD_ENDS.0 - 1 {
            conduct.bad_end(ONE);
        }
        assert_eq!(conduct.wait(ONE), Ok(Duration::ZERO), "the last one that may");
        conduct.bad_end(ONE);
        let line = LONGEST.as_millis() / APART.as_millis();
        for n in 1..=line as u32 {
            assert_eq!(conduct.wait(ONE), Ok(n * APART));
        }
        assert!(conduct.wait(ONE).is_err(), "the line is full");
        assert_eq!(conduct.wait(OTHER), Ok(Duration::ZERO));
        tokio::time::advance(APART).await;
        assert_eq!(conduct.wait(ONE), Ok(LONGEST));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(conduct.wait(ONE), Ok(Duration::ZERO), "a second without a bad end");
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_addresses_are_remembered() {
        let mut conduct = Conduct::default();
        let ip = |n: usize| IpAddr::V4(std::net::Ipv4Addr::from_bits(n as u32));
        for n in 0..KNOWN + 10 {
            conduct.bad_end(ip(n));
        }
        assert_eq!(conduct.0.len(), KNOWN);
        tokio::time::advance(Duration::from_secs(1)).await;
        conduct.bad_end(ONE);
        assert_eq!(conduct.0.len(), 1, "the others are as good as new");
    }
}
