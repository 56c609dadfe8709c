//! How many calls each caller makes: one that makes too many is told when to come again, and takes nothing from
//! others.
//!
//! Each has a bucket that holds [`Rate::burst`] calls and is filled at a steady rate. It is kept as one moment, that at
//! which it is full again (the generic cell rate algorithm, ITU-T I.371), so a full one needs no keeping: that bounds
//! the memory. A crate would bring its own stores, which are bounded by nothing, for these few lines.
//!
//! Behind [`super::auth`]: a bucket is an identity's, and where nobody is asked who they are, an address's. Streams
//! count as one call. What another coordinator passes on was counted there. Workers attach from a bucket of their own,
//! as deep as a fleet is large: when a coordinator is started again all come at once, and their leases don't wait.

use super::peers::FORWARDED;
use super::status;
use crate::config::Rate;
use crate::identity::Identity;
use futures::future::{Either, Ready, ready};
use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::transport::server::TcpConnectInfo;
use tower::{Layer, Service};

type Request = http::Request<Body>;
type Response = http::Response<Body>;

/// The most buckets that aren't full. Callers beyond them share one: there are as many addresses, and names in
/// JWTs, as somebody likes to make.
const MAX_BUCKETS: usize = 8192;
/// How often those that are full are dropped, at most: it looks at all of them.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// What is a call of ours.
const OURS: &str = "/tranche.v1.";
/// What workers call.
const WORKERS: &str = "/tranche.v1.WorkerService/";

/// Counts calls.
#[derive(Clone, Default)]
pub struct RateLayer(Option<Arc<Buckets>>);

impl fmt::Debug for RateLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RateLayer").field(&self.0.as_ref().map(|buckets| buckets.rate)).finish()
    }
}

impl RateLayer {
    /// `None`: everybody may make any number.
    pub fn new(rate: Option<Rate>) -> Self {
        Self(rate.map(|rate| Arc::new(Buckets::new(rate, Instant::now()))))
    }
}

impl<S> Layer<S> for RateLayer {
    type Service = Rated<S>;
    fn layer(&self, inner: S) -> Self::Service {
        Rated { inner, layer: self.clone() }
    }
}

/// The wrapped services.
#[derive(Clone, Debug)]
pub struct Rated<S> {
    inner: S,
    layer: RateLayer,
}

impl<S> Service<Request> for Rated<S>
where
    S: Service<Request, Response = Response>,
{
    type Response = Response;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Response, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let kind = Kind::of(request.uri().path());
        // Who isn't a coordinator and says so was refused before, if anybody is asked who they are.
        let passed_on = kind == Kind::Call && request.headers().contains_key(FORWARDED);
        if let Some(buckets) = self.layer.0.as_ref().filter(|_| !passed_on) {
            let caller = Caller::of(&request);
            if let Err(wait) = buckets.take(caller.clone(), kind, Instant::now()) {
                tracing::debug!(%caller, ?wait, "too many calls");
                let refused = status::rate_limited(&caller.to_string(), buckets.rate, wait);
                return Either::Right(ready(Ok(refused.into_http())));
            }
        }
        Either::Left(self.inner.call(request))
    }
}

/// What it is that a caller has a bucket of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Call,
    Attach,
    /// As health: a probe must be answered when whoever shares its address makes too many calls.
    NotOurs,
}

impl Kind {
    fn of(path: &str) -> Self {
        if path.starts_with(WORKERS) {
            Self::Attach
        } else if path.starts_with(OURS) {
            Self::Call
        } else {
            Self::NotOurs
        }
    }
}

/// Whose bucket it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Caller {
    Identity(Arc<str>),
    Address(IpAddr),
    /// Those beyond [`MAX_BUCKETS`], and those whose address isn't known.
    Others,
}

impl Caller {
    fn of(request: &Request) -> Self {
        let extensions = request.extensions();
        if let Some(identity) = extensions.get::<Arc<Identity>>() {
            return Self::Identity(identity.name.clone());
        }
        let peer = extensions.get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr);
        peer.map_or(Self::Others, |peer| Self::Address(network(peer.ip())))
    }
}

/// A machine has a whole network of addresses in IPv6.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity(name) => f.write_str(name),
            Self::Address(address) => address.fmt(f),
            Self::Others => f.write_str("others"),
        }
    }
}

struct Buckets {
    rate: Rate,
    /// In this time one call comes into a bucket.
    every: Duration,
    kept: Mutex<Kept>,
}

struct Kept {
    /// When each is full again, of those that may not be.
    full_at: HashMap<(Caller, Kind), Instant>,
    swept: Instant,
}

impl Buckets {
    fn new(rate: Rate, now: Instant) -> Self {
        let every = Duration::from_secs(1) / calls(rate.per_second).max(1);
        let kept = Kept { full_at: HashMap::new(), swept: now };
        Self { rate, every, kept: Mutex::new(kept) }
    }

    /// That long before it is full, a bucket has one call.
    fn depth(&self, kind: Kind) -> Duration {
        let burst = match kind {
            Kind::Attach => self.rate.fleet.max(self.rate.burst),
            Kind::Call | Kind::NotOurs => self.rate.burst,
        };
        self.every * calls(burst).saturating_sub(1)
    }

    /// Takes a call out of a bucket.
    ///
    /// # Errors
    /// It is empty; how long until it isn't.
    fn take(&self, caller: Caller, kind: Kind, now: Instant) -> Result<(), Duration> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bucket = (caller, kind);
        if kept.full_at.len() >= MAX_BUCKETS && !kept.full_at.contains_key(&bucket) {
            if now >= kept.swept + SWEEP_EVERY {
                kept.swept = now;
                kept.full_at.retain(|_, full_at| *full_at > now);
            }
            if kept.full_at.len() >= MAX_BUCKETS {
                bucket.0 = Caller::Others;
            }
        }
        let full_at = kept.full_at.entry(bucket).or_insert(now);
        let wait = full_at.saturating_duration_since(now + self.depth(kind));
        if wait.is_zero() {
            *full_at = now.max(*full_at) + self.every;
            Ok(())
        } else {
            Err(wait)
        }
    }
}

fn calls(calls: usize) -> u32 {
    u32::try_from(calls).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
