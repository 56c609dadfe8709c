//! What the machine knows of one link.

use super::state::Now;
use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;
use tranche_proto::v1;

/// Where a link's stream is.
#[derive(Debug)]
pub(super) enum Phase {
    /// There is none.
    Down,
    /// Hello went out; Welcome is awaited.
    Greeting {
        /// When Hello went out.
        hello: Now,
        /// The batches of the leases that it named.
        named: BTreeSet<String>,
    },
    /// Leases travel.
    Attached(Attached),
}

/// An attached stream.
#[derive(Debug)]
pub(super) struct Attached {
    /// The batches of the leases that its Hello named: of these the coordinator said so if it owned one.
    pub(super) named: BTreeSet<String>,
    /// The time from heartbeat to heartbeat while leases of this link are held.
    pub(super) interval: Duration,
    /// The same while none is.
    pub(super) idle_interval: Duration,
    pub(super) next_heartbeat: Now,
    /// The number of the next heartbeat.
    pub(super) number: u64,
    /// Heartbeats that aren't acknowledged, with the time they were sent; the oldest first. Their
    /// number is bounded: a stream whose oldest is too old is closed.
    pub(super) unacked: VecDeque<(u64, Now)>,
    /// The coordinator is leaving: finish what it gave, then close.
    pub(super) draining: bool,
    /// How many leases it could give now, as it last said.
    pub(super) backlog: u64,
    /// The window that it was told last.
    pub(super) window: Option<v1::Credit>,
    /// Which coordinators there are, as it last said. At most
    /// [`MOST_REPLICAS`](super::links::MOST_REPLICAS).
    pub(super) replicas: Vec<v1::Replica>,
}

/// A way to a coordinator.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) url: String,
    /// It was given at the start, and stays for ever. Else a coordinator told of it.
    pub(super) configured: bool,
    /// Who is behind it: from its last Welcome, or from who told of it.
    pub(super) coordinator: Option<String>,
    /// Whether it was told to dial.
    pub(super) dials: bool,
    pub(super) phase: Phase,
    /// How long its leases live. Known from the last Welcome.
    pub(super) ttl: Duration,
}

impl Link {
    pub(super) fn configured(url: String) -> Self {
        let phase = Phase::Down;
        Self { url, configured: true, coordinator: None, dials: false, phase, ttl: DEFAULT_TTL }
    }

    pub(super) fn of_replica(replica: v1::Replica) -> Self {
        let coordinator = Some(replica.coordinator);
        Self { configured: false, coordinator, ..Self::configured(replica.endpoint) }
    }

    pub(super) fn is_down(&self) -> bool {
        matches!(self.phase, Phase::Down)
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
            Phase::Greeting { hello, .. } => Some(*hello + WELCOME_WITHIN),
            Phase::Attached(attached) => {
                // Also a link that was idle is found dead within a TTL of its last answer: as long as a coordinator that
                // was started anew waits for those who hold leases of its batches.
                let patience = silence(self.ttl).min(self.ttl.saturating_sub(attached.idle_interval));
                attached.unacked.front().map(|(_, sent)| *sent + patience)
            }
        }
    }

    /// Takes the Welcome's figures; odd ones are made safe.
    pub(super) fn attach(&mut self, welcome: &v1::Welcome, now: Now) {
        let duration = |d: Option<prost_types::Duration>| d.and_then(|d| Duration::try_from(d).ok());
        let ttl = duration(welcome.lease_ttl).filter(|ttl| !ttl.is_zero()).unwrap_or(DEFAULT_TTL);
        self.ttl = ttl.clamp(3 * LEAST_INTERVAL, MOST_TTL);
        let interval = duration(welcome.heartbeat_interval).filter(|i| !i.is_zero());
        // Three heartbeats fit into a TTL, so that one may be lost.
        let interval = interval.unwrap_or(self.ttl / 3).clamp(LEAST_INTERVAL, self.ttl / 3);
        // Coordinators end a stream that was silent for nine tenths of a TTL.
        let idle =
            duration(welcome.idle_heartbeat_interval).unwrap_or(interval).clamp(interval, self.ttl * 13 / 20);
        let named = match &mut self.phase {
            Phase::Greeting { named, .. } => std::mem::take(named),
            Phase::Down | Phase::Attached(_) => BTreeSet::new(),
        };
        self.coordinator = Some(welcome.coordinator.clone()).filter(|id| !id.is_empty());
        self.phase = Phase::Attached(Attached {
            named,
            interval,
            idle_interval: idle,
            next_heartbeat: now + idle,
            number: 1,
            unacked: VecDeque::new(),
            draining: false,
            backlog: 0,
            window: None,
            replicas: Vec::new(),
        });
    }
}

/// How long a stream may leave a heartbeat unanswered: well within the TTL, so that a new stream can
/// still save the leases.
pub(super) fn silence(ttl: Duration) -> Duration {
    ttl / 2
}

/// The TTL until a coordinator said its own.
const DEFAULT_TTL: Duration = Duration::from_secs(10);
/// Heartbeats that come faster do nothing but work.
const LEAST_INTERVAL: Duration = Duration::from_millis(10);
/// More than any coordinator takes for its setting, and little enough for every sum of times.
const MOST_TTL: Duration = Duration::from_hours(24);
/// How long a coordinator may take to answer Hello.
const WELCOME_WITHIN: Duration = Duration::from_secs(10);
