//! How a worker's window is split over its coordinators.

use super::link::Link;
use super::state::{LinkId, Machine};
use std::collections::BTreeMap;
use tranche_proto::v1;
use tranche_proto::v1::attach_request::Frame as Out;

/// What a worker takes, or a coordinator's share of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) leases: u64,
    pub(super) bytes: u64,
}

/// What counts for a coordinator's share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    /// How many leases it could give now.
    pub(super) backlog: u64,
    /// How many of its leases are held.
    pub(super) held: u64,
}

/// Splits the whole window, of which `elsewhere` leases are held of coordinators that give nothing now, by the
/// coordinators' backlogs; evenly if nobody has any. Each may give one lease at least, so that none ever waits
/// for another; one without work doesn't take that from the others. What others' leases take isn't given
/// again: all together stay within the whole, but for the one that each may give.
pub(super) fn split(whole: Window, elsewhere: u64, claims: &[Claim]) -> Vec<Window> {
    let free = whole.leases.saturating_sub(elsewhere);
    let idle = claims.iter().all(|claim| claim.backlog == 0);
    let weight = |claim: &Claim| u128::from(if idle { 1 } else { claim.backlog });
    let weights = claims.iter().map(weight).sum::<u128>().max(1);
    let sharing = claims.iter().filter(|claim| weight(claim) > 0).count() as u64;
    let rest = free.saturating_sub(sharing);
    // Rounded down; what that leaves over goes to the largest remainders, of equal ones to the first.
    let parts: Vec<u128> = claims.iter().map(|claim| u128::from(rest) * weight(claim)).collect();
    let whole_part = |part: &u128| u64::try_from(part / weights).unwrap_or(rest);
    let mut shares: Vec<u64> = parts.iter().map(|part| 1 + whole_part(part)).collect();
    let left = rest - parts.iter().map(whole_part).sum::<u64>();
    let mut order: Vec<usize> = (0..claims.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(parts[index] % weights));
    for index in order.into_iter().take(usize::try_from(left).unwrap_or(0)) {
        shares[index] += 1;
    }
    let held: u64 = claims.iter().map(|claim| claim.held).sum();
    let all = whole.leases.max(shares.iter().sum());
    let window = |(share, claim): (u64, &Claim)| {
        let leases = share.min(free.saturating_sub(held - claim.held)).max(1);
        let bytes = u128::from(whole.bytes) * u128::from(leases) / u128::from(all);
        Window { leases, bytes: u64::try_from(bytes).unwrap_or(whole.bytes) }
    };
    shares.into_iter().zip(claims).map(window).collect()
}

impl Machine {
    /// Tells each coordinator its window if that isn't what it was told last.
    pub(super) fn send_credits(&mut self) {
        let shutdown = self.shutdown.is_some();
        let gives = |link: &Link| link.attached().is_some_and(|attached| !shutdown && !attached.draining);
        let givers: Vec<LinkId> =
            self.links.iter().filter(|(_, link)| gives(link)).map(|(id, _)| *id).collect();
        let held = |id| self.held.values().filter(|held| held.link == id).count() as u64;
        let claim =
            |id: &LinkId| Claim { backlog: self.attached(*id).map_or(0, |a| a.backlog), held: held(*id) };
        let claims: Vec<Claim> = givers.iter().map(claim).collect();
        let elsewhere = self.held.len() as u64 - claims.iter().map(|claim| claim.held).sum::<u64>();
        let leases = (self.settings.slots + self.settings.prefetch) as u64;
        let whole = Window { leases, bytes: self.settings.window_bytes };
        let windows: BTreeMap<LinkId, Window> =
            givers.into_iter().zip(split(whole, elsewhere, &claims)).collect();
        for id in self.link_ids() {
            let window = windows.get(&id).copied().unwrap_or(Window { leases: 0, bytes: 0 });
            let credit = v1::Credit {
                leases: i32::try_from(window.leases).unwrap_or(i32::MAX),
                bytes: i64::try_from(window.bytes).unwrap_or(i64::MAX),
            };
            let Some(attached) = self.links.get_mut(&id).and_then(Link::attached_mut) else { continue };
            if attached.window != Some(credit) {
                attached.window = Some(credit);
                self.send(id, Out::Credit(credit));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whole leases, those held elsewhere, (backlog, held) of each link; the leases of each window.
    type Case = (u64, u64, &'static [(u64, u64)], &'static [u64]);

    fn windows(whole: u64, elsewhere: u64, claims: &[(u64, u64)]) -> Vec<Window> {
        let claims: Vec<Claim> = claims.iter().map(|&(backlog, held)| Claim { backlog, held }).collect();
        split(Window { leases: whole, bytes: 100 * whole }, elsewhere, &claims)
    }

    #[test]
    fn shares_follow_the_backlogs() {
        let cases: &[Case] = &[
            (5, 0, &[], &[]),
            // One link has the whole window, whatever its backlog and its leases.
            (5, 0, &[(0, 0)], &[5]),
            (5, 0, &[(7, 5)], &[5]),
            // Without backlogs: evenly, what is left over to the first.
            (5, 0, &[(0, 0), (0, 0)], &[3, 2]),
            (8, 0, &[(0, 0), (0, 0), (0, 0)], &[3, 3, 2]),
            // One without work may give one lease, and takes it from nobody.
            (8, 0, &[(9, 0), (0, 0)], &[8, 1]),
            (8, 0, &[(0, 0), (9, 0), (0, 0)], &[1, 8, 1]),
            // By backlog, one at least.
            (8, 0, &[(20, 0), (10, 0)], &[5, 3]),
            (9, 0, &[(1, 0), (1, 0), (4, 0)], &[2, 2, 5]),
            // The largest remainder gets what rounding left over.
            (4, 0, &[(1, 0), (2, 0)], &[2, 2]),
            (5, 0, &[(1, 0), (3, 0)], &[2, 3]),
            // More coordinators than leases: one each.
            (2, 0, &[(5, 0), (4, 0), (3, 0)], &[1, 1, 1]),
            // What others hold isn't given again, but for one.
            (8, 0, &[(0, 7), (9, 0)], &[1, 1]),
            (8, 0, &[(0, 5), (9, 0)], &[1, 3]),
            (8, 0, &[(0, 8), (9, 3)], &[1, 1]),
            // Leases of links that are down or leaving take their part.
            (5, 2, &[(0, 0)], &[3]),
            (5, 5, &[(0, 0)], &[1]),
            (8, 2, &[(1, 0), (1, 0)], &[3, 3]),
            // Backlogs beyond all bounds.
            (8, 0, &[(u64::MAX, 0), (u64::MAX, 0)], &[4, 4]),
            (8, 0, &[(u64::MAX, 0), (1, 0)], &[7, 1]),
        ];
        for (whole, elsewhere, claims, expected) in cases {
            let leases: Vec<u64> = windows(*whole, *elsewhere, claims).iter().map(|w| w.leases).collect();
            assert_eq!(leases, *expected, "{whole} {elsewhere} {claims:?}");
        }
    }

    #[test]
    fn bytes_go_with_the_leases() {
        let bytes = |windows: Vec<Window>| windows.iter().map(|w| w.bytes).collect::<Vec<_>>();
        assert_eq!(bytes(windows(5, 0, &[(0, 0)])), [500]);
        assert_eq!(bytes(windows(5, 0, &[(0, 0), (0, 0)])), [300, 200]);
        assert_eq!(bytes(windows(1, 0, &[(0, 0), (0, 0)])), [50, 50], "together never more than the whole");
    }

    #[test]
    fn shares_fill_the_whole_and_no_more() {
        for whole in 1..40 {
            for (a, b, c) in [(0, 0, 0), (1, 2, 3), (1000, 1, 1), (7, 7, 6), (0, 0, 1)] {
                let windows = windows(whole, 0, &[(a, 0), (b, 0), (c, 0)]);
                let idle =
                    if a + b + c == 0 { 0 } else { [a, b, c].iter().filter(|one| **one == 0).count() as u64 };
                let all = windows.iter().map(|w| w.leases).sum::<u64>();
                assert_eq!(all, whole.max(3 - idle) + idle, "{whole} {a} {b} {c}");
                assert!(windows.iter().map(|w| w.bytes).sum::<u64>() <= whole * 100);
            }
        }
    }
}
