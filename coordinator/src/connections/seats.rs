//! How many connections there are, in all and of each address.
//!
//! A connection on which a call was let in is a guest's; before that it is a stranger's. When there is no seat left the
//! stranger that came first has to go for the next one: so whoever opens connections and says nothing keeps nobody out,
//! and takes nothing from those that work. Only when all seats are guests' is a new connection refused.

use super::conduct::Conduct;
use super::frames::Sparingly;
use super::{SAID, Why};
use crate::metrics::ConnectionMetrics;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;
use tranche_tls::TlsConnection;

/// All seats.
#[derive(Debug)]
pub(super) struct Seats {
    most: usize,
    most_of_one: usize,
    metrics: ConnectionMetrics,
    taken: Mutex<Taken>,
}

#[derive(Debug)]
struct Taken {
    count: usize,
    next: u64,
    of_one: HashMap<IpAddr, usize>,
    /// In the order in which they came.
    strangers: BTreeMap<u64, Weak<Visit>>,
    conduct: Conduct,
    refusals: Sparingly,
}

impl Seats {
    pub(super) fn new(most: usize, most_of_one: usize, metrics: ConnectionMetrics) -> Arc<Self> {
        metrics.limit.set(i64::try_from(most).unwrap_or(i64::MAX));
        let taken = Taken {
            count: 0,
            next: 0,
            of_one: HashMap::new(),
            strangers: BTreeMap::new(),
            conduct: Conduct::default(),
            refusals: Sparingly::new(SAID),
        };
        Arc::new(Self { most, most_of_one, metrics, taken: Mutex::new(taken) })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A seat, if there is one or can be made, and for how long nothing is read there.
    pub(super) fn take(
        self: &Arc<Self>,
        peer: impl Into<Option<SocketAddr>>,
    ) -> Option<(Arc<Visit>, Duration)> {
        let peer = peer.into();
        let one = peer.map(|peer| network(peer.ip()));
        let mut taken = self.taken();
        if let Some(one) = one
            && taken.of_one.get(&one).copied().unwrap_or(0) >= self.most_of_one
        {
            self.refuse(&mut taken, peer, "peer", "max_peer_connections", self.most_of_one);
            return None;
        }
        let wait = match one.map_or(Ok(Duration::ZERO), |one| taken.conduct.wait(one)) {
            Ok(wait) => wait,
            Err(wait) => {
                self.metrics.refused("conduct");
                if let Some(unsaid) = taken.refusals.say() {
                    tracing::warn!(
                        ?peer,
                        unsaid,
                        ?wait,
                        "connection refused: too many of its address ended badly"
                    );
                }
                return None;
            }
        };
        if taken.count >= self.most {
            let Some(first) = taken.displace() else {
                self.refuse(&mut taken, peer, "all", "max_connections", self.most);
                return None;
            };
            // It frees its seat here and now, however long it takes to go.
            self.leave(&mut taken, &first);
            drop(taken);
            first.end(Why::Displaced);
            first.leave.cancel();
            // Not under the lock: it may be the last one to hold it.
            drop(first);
            taken = self.taken();
        }
        taken.count += 1;
        taken.next += 1;
        if let Some(one) = one {
            *taken.of_one.entry(one).or_default() += 1;
        }
        let visit = Arc::new(Visit {
            id: taken.next,
            peer,
            seats: self.clone(),
            guest: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            leave: CancellationToken::new(),
            why: OnceLock::new(),
        });
        taken.strangers.insert(visit.id, Arc::downgrade(&visit));
        self.metrics.open.inc();
        if !wait.is_zero() {
            self.metrics.held.inc();
        }
        Some((visit, wait))
    }

    fn refuse(
        &self,
        taken: &mut Taken,
        peer: Option<SocketAddr>,
        limit: &'static str,
        field: &str,
        most: usize,
    ) {
        self.metrics.refused(limit);
        if let Some(unsaid) = taken.refusals.say() {
            tracing::warn!(?peer, unsaid, "connection refused: {field} = {most}");
        }
    }

    fn leave(&self, taken: &mut Taken, visit: &Visit) {
        if visit.gone.swap(true, Ordering::Relaxed) {
            return;
        }
        taken.count -= 1;
        taken.strangers.remove(&visit.id);
        if let Some(one) = visit.peer.map(|peer| network(peer.ip()))
            && let Some(left) = taken.of_one.get_mut(&one)
        {
            *left -= 1;
            if *left == 0 {
                taken.of_one.remove(&one);
            }
            if visit.why().is_some_and(Why::is_attack) || !visit.guest.load(Ordering::Relaxed) {
                taken.conduct.bad_end(one);
            }
        }
        self.metrics.open.dec();
    }
}

impl Taken {
    fn displace(&mut self) -> Option<Arc<Visit>> {
        while let Some((_, first)) = self.strangers.pop_first() {
            if let Some(first) = first.upgrade() {
                return Some(first);
            }
        }
        None
    }
}

/// One address, as far as its owner can't have as many as they like: a /64 of IPv6.
fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64)),
        ip @ IpAddr::V4(_) => ip,
    }
}

/// One connection, from its being accepted to its end.
#[derive(Debug)]
pub(crate) struct Visit {
    id: u64,
    pub(super) peer: Option<SocketAddr>,
    seats: Arc<Seats>,
    guest: AtomicBool,
    gone: AtomicBool,
    leave: CancellationToken,
    why: OnceLock<Why>,
}

impl Visit {
    /// A call was let in.
    pub(crate) fn welcome(&self) {
        if !self.guest.load(Ordering::Relaxed) && !self.guest.swap(true, Ordering::Relaxed) {
            self.seats.taken().strangers.remove(&self.id);
        }
    }

    /// Says why it is ended from here; the first reason counts.
    pub(super) fn end(&self, why: Why) -> io::Error {
        io::Error::other(self.why.get_or_init(|| why).to_string())
    }

    pub(super) fn why(&self) -> Option<Why> {
        self.why.get().copied()
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let seats = self.seats.clone();
        seats.leave(&mut seats.taken(), self);
    }
}

/// A connection that has a seat.
#[derive(Debug)]
pub(crate) struct Seated<S> {
    stream: S,
    visit: Arc<Visit>,
    leave: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Until anything is read or said.
    held: Option<Pin<Box<Sleep>>>,
}

impl<S> Seated<S> {
    pub(super) fn new(stream: S, (visit, wait): (Arc<Visit>, Duration)) -> Self {
        let leave = Box::pin(visit.leave.clone().cancelled_owned());
        let held = (!wait.is_zero()).then(|| Box::pin(sleep(wait)));
        Self { stream, visit, leave, held }
    }

    fn begin(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(held) = &mut self.held {
            ready!(held.as_mut().poll(cx));
            self.held = None;
        }
        Poll::Ready(())
    }
}

/// What has a seat, under whatever else.
pub(crate) trait Visiting {
    /// Its visit.
    fn visit(&self) -> &Arc<Visit>;
}

impl<S> Visiting for Seated<S> {
    fn visit(&self) -> &Arc<Visit> {
        &self.visit
    }
}

impl<S> Visiting for TlsConnection<Seated<S>> {
    fn visit(&self) -> &Arc<Visit> {
        &self.get_ref().visit
    }
}

impl<S: Connected> Connected for Seated<S> {
    type ConnectInfo = S::ConnectInfo;
    fn connect_info(&self) -> S::ConnectInfo {
        self.stream.connect_info()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Seated<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // A connection is always read from, so this is enough to end it.
        if self.leave.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(self.visit.end(Why::Displaced)));
        }
        ready!(self.begin(cx));
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Seated<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.begin(cx));
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.begin(cx));
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ip: &str) -> impl Into<Option<SocketAddr>> {
        SocketAddr::new(ip.parse().expect("an address"), 1)
    }

    #[tokio::test]
    async fn strangers_make_room_in_their_order_and_guests_stay() {
        let metrics = ConnectionMetrics::default();
        let seats = Seats::new(3, usize::MAX, metrics.clone());
        let [one, two, three] = [(); 3].map(|()| seats.take(at("10.0.0.1")).expect("a seat").0);
        one.welcome();
        let four = seats.take(at("10.0.0.2")).expect("the seat of two").0;
        assert_eq!((two.why(), three.why(), metrics.open.get()), (Some(Why::Displaced), None, 3));
        assert!(two.leave.is_cancelled());
        // It is counted off once.
        drop(two);
        assert_eq!(metrics.open.get(), 3);
        three.welcome();
        four.welcome();
        assert!(seats.take(at("10.0.0.3")).is_none(), "all are guests'");
        drop(one);
        let five = seats.take(at("10.0.0.3")).expect("there is one again").0;
        drop((three, four, five));
        assert_eq!((metrics.open.get(), seats.taken().of_one.len()), (0, 0));
    }

    #[tokio::test]
    async fn an_address_has_so_many_and_others_have_theirs() {
        let seats = Seats::new(100, 2, ConnectionMetrics::default());
        let both = [(); 2].map(|()| seats.take(at("10.0.0.1")).expect("a seat").0);
        assert!(seats.take(at("10.0.0.1")).is_none());
        assert!(seats.take(at("::ffff:10.0.0.1")).is_none(), "the same");
        let _other = seats.take(at("10.0.0.2")).expect("another address").0;
        let _unknown = [(); 5].map(|()| seats.take(None).expect("where there are no addresses").0);
        drop(both);
        let _v6 = ["2001:db8::1", "2001:db8::2:0:0:1"].map(|ip| seats.take(at(ip)).expect("a seat").0);
        assert!(seats.take(at("2001:db8::99")).is_none(), "a /64 is one");
        seats.take(at("2001:db8:0:1::1")).expect("another network");
    }

    /// A thousand workers behind one address, whose network was away for a while.
    #[tokio::test]
    async fn a_fleet_that_was_cut_off_comes_back_at_once_and_an_attacker_does_not() {
        for (why, made_calls, waits) in [
            (Some(Why::Dead), true, false),
            (Some(Why::Unread), true, false),
            (None, true, false),
            (None, false, true),
            (Some(Why::Silent), false, true),
            (Some(Why::Flood), true, true),
            (Some(Why::Pings), true, true),
        ] {
            let seats = Seats::new(2000, usize::MAX, ConnectionMetrics::default());
            let fleet: Vec<_> = (0..1000).map(|_| seats.take(at("10.0.0.1")).expect("a seat").0).collect();
            for visit in fleet {
                if made_calls {
                    visit.welcome();
                }
                if let Some(why) = why {
                    visit.end(why);
                }
            }
            let (_again, wait) = seats.take(at("10.0.0.1")).expect("a seat");
            assert_eq!(!wait.is_zero(), waits, "{why:?} {made_calls}");
        }
    }
}
