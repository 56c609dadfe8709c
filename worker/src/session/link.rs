//! What the machine knows of one stream.

use super::state::{Now, Settings};
use std::collections::VecDeque;
use std::time::Duration;
use tranche_proto::v1;

/// Where a stream is.
#[derive(Debug)]
pub(super) enum Phase {
    /// There is none.
    Down,
    /// Hello went out; Welcome is awaited.
    Greeting {
        /// When Hello went out.
        hello: Now,
    },
    /// Leases travel.
    Attached(Attached),
}

/// An attached stream.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) interval: Duration,
    pub(super) next_heartbeat: Now,
    /// The number of the next heartbeat.
    pub(super) number: u64,
    /// Heartbeats that aren't acknowledged, with the time they were sent; the oldest first. Their
    /// number is bounded: a stream whose oldest is too old is closed.
    pub(super) unacked: VecDeque<(u64, Now)>,
    /// The coordinator is leaving: finish what it gave, then close.
    pub(super) draining: bool,
}

/// One coordinator.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) phase: Phase,
    /// How long its leases live. Known from the last Welcome.
    pub(super) ttl: Duration,
}

impl Link {
    pub(super) fn new() -> Self {
        Self { phase: Phase::Down, ttl: DEFAULT_TTL }
    }

    pub(super) fn attached(&self) -> Option<&Attached> {
        match &self.phase {
            Phase::Attached(attached) => Some(attached),
            Phase::Down | Phase::Greeting { .. } => None,
        }
    }

    pub(super) fn attached_mut(&mut self) -> Option<&mut Attached> {
        match &mut self.phase {
            Phase::Attached(attached) => Some(attached),
            Phase::Down | Phase::Greeting { .. } => None,
        }
    }

    /// When the stream counts as dead unless the coordinator answers.
    pub(super) fn dead_at(&self) -> Option<Now> {
        match &self.phase {
            Phase::Down => None,
            Phase::Greeting { hello } => Some(*hello + WELCOME_WITHIN),
            Phase::Attached(attached) => attached.unacked.front().map(|(_, sent)| *sent + silence(self.ttl)),
        }
    }

    /// Takes the Welcome's figures; odd ones are made safe.
    pub(super) fn attach(&mut self, welcome: &v1::Welcome, now: Now) {
        let duration = |d: Option<prost_types::Duration>| d.and_then(|d| Duration::try_from(d).ok());
        self.ttl = duration(welcome.lease_ttl).filter(|ttl| !ttl.is_zero()).unwrap_or(DEFAULT_TTL);
        let interval = duration(welcome.heartbeat_interval).filter(|i| !i.is_zero());
        // Three heartbeats fit into a TTL, so that one may be lost.
        let interval = interval.map_or(self.ttl / 3, |interval| interval.min(self.ttl / 3));
        self.phase = Phase::Attached(Attached {
            interval,
            next_heartbeat: now + interval,
            number: 1,
            unacked: VecDeque::new(),
            draining: false,
        });
    }
}

/// How long a stream may leave a heartbeat unanswered: well within the TTL, so that a new stream can
/// still save the leases.
pub(super) fn silence(ttl: Duration) -> Duration {
    ttl / 2
}

/// The share of one link in the worker's window.
pub(super) fn credit(settings: &Settings, link: usize) -> v1::Credit {
    let links = settings.links.max(1);
    let total = settings.slots + settings.prefetch;
    let extra = usize::from(link < total % links);
    let leases = (total / links + extra).max(1);
    v1::Credit {
        leases: i32::try_from(leases).unwrap_or(i32::MAX),
        bytes: i64::try_from(settings.window_bytes / links as u64).unwrap_or(i64::MAX),
    }
}

/// The TTL until a coordinator said its own.
const DEFAULT_TTL: Duration = Duration::from_secs(10);
/// How long a coordinator may take to answer Hello.
const WELCOME_WITHIN: Duration = Duration::from_secs(10);
