//! Hosts: each has a runtime of its own with a clock that is wound by hand.
//!
//! A host that isn't wound stands still, as a process that was sent SIGSTOP: when it is wound again its clock
//! jumps. One whose runtime is dropped is lost, with everything in its memory. Clocks may run at different
//! speeds. What hosts do to each other passes through the [`World`](crate::world::World), where it takes time.

use crate::world::At;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tranche_coordinator::node::Node;

/// Which host.
pub(crate) type HostId = usize;
/// Which of a host's lives: it counts its starts.
pub(crate) type Life = u32;

/// What runs on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A coordinator.
    Coordinator,
    /// A worker.
    Worker,
    /// All clients.
    Clients,
}

/// A host as others see it.
pub(crate) struct Seen {
    /// What runs on it.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// Which life it is in; 0: it never started.
    pub life: Life,
    /// How much its clock on the wall is ahead, in milliseconds.
    pub skew_ms: Arc<AtomicI64>,
    /// It runs, or stands still.
    pub up: bool,
    /// Something came for it.
    pub dirty: bool,
    /// Its process asked to be taken for ended.
    pub ended: bool,
    /// To start tasks on it.
    pub handle: Option<Handle>,
    /// A coordinator that serves.
    pub node: Option<(Arc<Node>, CancellationToken)>,
}

/// All hosts as others see them.
#[derive(Default)]
pub(crate) struct Hosts(Vec<Seen>);

impl Hosts {
    /// Adds a host.
    pub(crate) fn add(&mut self, kind: Kind, name: String, skew_ms: i64) -> HostId {
        self.0.push(Seen {
            kind,
            name,
            life: 0,
            skew_ms: Arc::new(AtomicI64::new(skew_ms)),
            up: false,
            dirty: false,
            ended: false,
            handle: None,
            node: None,
        });
        self.0.len() - 1
    }

    /// One of them.
    pub(crate) fn of(&self, host: HostId) -> &Seen {
        &self.0[host]
    }

    /// One of them.
    pub(crate) fn of_mut(&mut self, host: HostId) -> &mut Seen {
        &mut self.0[host]
    }

    /// Whether a host is still in this life.
    pub(crate) fn lives(&self, host: HostId, life: Life) -> bool {
        self.0[host].up && self.0[host].life == life
    }

    /// Something came for it.
    pub(crate) fn touch(&mut self, host: HostId) {
        self.0[host].dirty = true;
    }

    /// The hosts of a kind.
    pub(crate) fn all(&self, kind: Kind) -> Vec<HostId> {
        (0..self.0.len()).filter(|host| self.0[*host].kind == kind).collect()
    }

    /// By name.
    pub(crate) fn named(&self, name: &str) -> Option<HostId> {
        self.0.iter().position(|seen| seen.name == name)
    }
}

/// A host's clock on the wall, in milliseconds since 1970, given the world's.
pub(crate) fn wall(seen: &Seen, clock: &Arc<AtomicU64>) -> impl Fn() -> i64 + Send + Sync + use<> {
    /// Some day in 2026.
    const DAY: i64 = 1_770_000_000_000;
    let (clock, skew) = (clock.clone(), seen.skew_ms.clone());
    move || DAY + skew.load(Ordering::Relaxed) + clock.load(Ordering::Relaxed).cast_signed()
}

/// A host's runtime and clock.
pub(crate) struct Host {
    /// What runs on it.
    pub kind: Kind,
    /// How fast its clock runs.
    rate: f64,
    running: Option<Running>,
    /// It stands still until then.
    pub paused: Option<At>,
    /// It starts then.
    pub start_at: Option<At>,
    /// It starts so long after its process ended.
    pub restart: Duration,
    /// Asks its process to end.
    pub stop: CancellationToken,
}

struct Running {
    runtime: Runtime,
    base: Instant,
    booted: At,
    wound: At,
}

impl Host {
    /// A host that starts at once.
    pub(crate) fn new(kind: Kind, rate: f64) -> Self {
        let stop = CancellationToken::new();
        let start_at = Some(At::ZERO);
        Self { kind, rate, running: None, paused: None, start_at, restart: Duration::ZERO, stop }
    }

    /// Starts its runtime.
    pub(crate) fn boot(&mut self, now: At) -> Handle {
        let runtime = Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime needs nothing");
        let base = runtime.block_on(async { Instant::now() });
        let handle = runtime.handle().clone();
        self.running = Some(Running { runtime, base, booted: now, wound: now });
        self.start_at = None;
        self.paused = None;
        self.stop = CancellationToken::new();
        handle
    }

    /// Whether it has a runtime.
    pub(crate) fn up(&self) -> bool {
        self.running.is_some()
    }

    /// How long ago it was wound.
    pub(crate) fn behind(&self, now: At) -> Duration {
        self.running.as_ref().map_or(Duration::ZERO, |running| now.saturating_sub(running.wound))
    }

    /// Winds its clock up to now: everything that it has to do until then is done. `jump`: it stood still, and
    /// its clock goes on at once.
    pub(crate) fn wind(&mut self, now: At, jump: bool) {
        let Some(running) = &mut self.running else { return };
        let target = running.base + now.saturating_sub(running.booted).mul_f64(self.rate);
        running.wound = now;
        running.runtime.block_on(async {
            if jump {
                tokio::time::advance(target.saturating_duration_since(Instant::now())).await;
            }
            tokio::time::sleep_until(target).await;
        });
    }

    /// Everything in its memory is gone.
    pub(crate) fn lose(&mut self) {
        self.running = None;
        self.paused = None;
    }
}
