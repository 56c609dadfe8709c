//! Who makes each call, and whether they may: once a call, before anything is read of it.
//!
//! What isn't known is refused: a path that is no RPC of ours, health or reflection never reaches a service. Without
//! `identities` in the configuration nothing is asked, and nothing of this costs anything.
//!
//! A stream ends when its credential does: when its time is over, and when the file of identities changes so that
//! it names nobody, or somebody else.

use super::ending::{Ending, Side};
use super::peers::{FORWARDED, ON_BEHALF};
use super::status;
use crate::config::OpenService;
use crate::connections::Visit;
use crate::identity::{Book, Credential, Granted, Identity, Refused, Role, Roles, rights};
use futures::future::{BoxFuture, Either, Ready, ready};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};
use tranche_proto::Rpc;
use tranche_tls::{PeerCertificate, Reloading, TlsPeer};

type Request = http::Request<Body>;
type Response = http::Response<Body>;

/// Asks who calls.
#[derive(Clone, Default)]
pub struct AuthLayer {
    book: Option<Reloading<Book>>,
    open: Arc<[OpenService]>,
}

impl fmt::Debug for AuthLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthLayer").field("open", &self.open).finish_non_exhaustive()
    }
}

impl AuthLayer {
    /// Without a book everybody is let in, as nobody. These services answer to everybody.
    pub fn new(book: Option<Reloading<Book>>, open: &[OpenService]) -> Self {
        Self { book, open: open.into() }
    }
}

impl<S> Layer<S> for AuthLayer {
    type Service = Auth<S>;
    fn layer(&self, inner: S) -> Self::Service {
        Auth { inner, layer: self.clone() }
    }
}

/// The wrapped services.
#[derive(Clone, Debug)]
pub struct Auth<S> {
    inner: S,
    layer: AuthLayer,
}

impl<S> Service<Request> for Auth<S>
where
    S: Service<Request, Response = Response>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response;
    type Error = S::Error;
    type Future = Either<
        S::Future,
        Either<Ready<Result<Response, S::Error>>, BoxFuture<'static, Result<Response, S::Error>>>,
    >;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        if let Some(peer) = request.extensions().get::<TlsPeer>() {
            // Where tonic's own `remote_addr` looks.
            let tcp = peer.tcp.clone();
            request.extensions_mut().insert(tcp);
        }
        let welcome = |request: &Request| {
            if let Some(visit) = request.extensions().get::<Arc<Visit>>() {
                visit.welcome();
            }
        };
        let Some(book) = &self.layer.book else {
            welcome(&request);
            return Either::Left(self.inner.call(request));
        };
        let target = Target::of(request.uri().path());
        if self.layer.is_open(target) {
            return Either::Left(self.inner.call(request));
        }
        let admitted = match admit(book, target, &request) {
            Ok(admitted) => admitted,
            Err(status) => {
                let code = status.code();
                tracing::debug!(rpc.code = ?code, reason = status.message(), "refused");
                return Either::Right(Either::Left(ready(Ok(status.into_http()))));
            }
        };
        welcome(&request);
        tracing::Span::current().record("identity", &*admitted.identity.name);
        request.extensions_mut().insert(admitted.identity);
        // Unary calls are over soon.
        if !target.streams() {
            return Either::Left(self.inner.call(request));
        }
        let valid = admitted.valid;
        let request = request.map(|body| valid.clone().bounds(body, Side::Request));
        let answer = self.inner.call(request);
        let guarded = async move { Ok(answer.await?.map(|body| valid.bounds(body, Side::Response))) };
        Either::Right(Either::Right(Box::pin(guarded)))
    }
}

impl AuthLayer {
    fn is_open(&self, target: Target) -> bool {
        match target {
            Target::Health => self.open.contains(&OpenService::Health),
            Target::Reflection => self.open.contains(&OpenService::Reflection),
            Target::Ours(_) | Target::Unknown => false,
        }
    }
}

/// What is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Ours(Rpc),
    Health,
    Reflection,
    Unknown,
}

impl Target {
    fn of(path: &str) -> Self {
        match path {
            "/grpc.health.v1.Health/Check"
            | "/grpc.health.v1.Health/Watch"
            | "/grpc.health.v1.Health/List" => Self::Health,
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
            | "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo" => Self::Reflection,
            path => Rpc::of(path).map_or(Self::Unknown, Self::Ours),
        }
    }

    fn streams(self) -> bool {
        match self {
            Self::Ours(rpc) => rpc.streams(),
            Self::Health | Self::Reflection | Self::Unknown => true,
        }
    }
}

struct Admitted {
    /// In whose name: for what another coordinator passes on, the first caller's.
    identity: Arc<Identity>,
    valid: Valid,
}

fn admit(book: &Reloading<Book>, target: Target, request: &Request) -> Result<Admitted, Status> {
    let mut newest = book.watch();
    let known = newest.borrow_and_update().clone();
    let brought = Brought::by(request)?;
    let Granted { identity, expires } = brought.granted(&known)?;
    let until = expires.map(|at| Instant::now() + at.duration_since(SystemTime::now()).unwrap_or_default());
    let valid = Valid { brought, identity: identity.clone(), until, newest };
    let identity = match target {
        Target::Unknown => return Err(Status::unimplemented("there is no such RPC")),
        // Any identity may.
        Target::Health | Target::Reflection => identity,
        Target::Ours(rpc) => {
            let identity = match behalf(request.headers(), &identity, rpc)? {
                Some(first) => Arc::new(first),
                None => identity,
            };
            if !rights::allowed(identity.roles, rpc) {
                return Err(status::role_missing(rpc, &identity));
            }
            identity
        }
    };
    Ok(Admitted { identity, valid })
}

/// For whom another coordinator passes this call on; `None`: it is the caller's own.
fn behalf(headers: &HeaderMap, identity: &Identity, rpc: Rpc) -> Result<Option<Identity>, Status> {
    let passed_on =
        headers.contains_key(FORWARDED) || ON_BEHALF.iter().any(|name| headers.contains_key(*name));
    if !passed_on {
        return Ok(None);
    }
    if !identity.roles.has(Role::Replica) || !rights::is_passed_on(rpc) {
        return Err(status::not_a_replica(identity));
    }
    let [name, namespace, roles] = ON_BEHALF.map(|name| {
        let mut all = headers.get_all(name).iter();
        let one = all.next().and_then(|value| value.to_str().ok());
        one.filter(|_| all.next().is_none())
    });
    let first = || {
        let roles: Roles = roles?.split(',').map(str::parse::<Role>).collect::<Result<_, _>>().ok()?;
        Identity::new(name?, namespace?.parse().ok()?, roles).ok()
    };
    // Whoever passes on calls of nobody has no identities configured; all coordinators of a cluster must.
    let first = first().ok_or_else(|| status::not_a_replica(identity))?;
    // What may only be passed on once isn't passed on in the name of a coordinator.
    if first.roles.has(Role::Replica) { Err(status::not_a_replica(identity)) } else { Ok(Some(first)) }
}

/// The credential of a call, kept for as long as it streams. Never printed.
#[derive(Clone)]
enum Brought {
    Token(Arc<str>),
    Certificate(Arc<PeerCertificate>),
}

impl Brought {
    /// A token says who calls, also over a connection with a certificate.
    fn by(request: &Request) -> Result<Self, Status> {
        let mut tokens = request.headers().get_all(AUTHORIZATION).iter();
        if let Some(value) = tokens.next() {
            let token = value.to_str().ok().and_then(|value| value.split_once(' '));
            let token = token
                .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
                .map(|(_, token)| token.trim());
            return match (token, tokens.next()) {
                (Some(token), None) if !token.is_empty() => Ok(Self::Token(token.into())),
                _ => Err(status::unauthenticated(
                    "CREDENTIAL_INVALID",
                    "the metadata `authorization` must be there once, as `Bearer TOKEN`",
                )),
            };
        }
        let certificate = request.extensions().get::<TlsPeer>().and_then(|peer| peer.certificate.clone());
        certificate.map(Self::Certificate).ok_or_else(|| {
            status::unauthenticated(
                "CREDENTIAL_MISSING",
                "who calls isn't said: a bearer token or a client certificate is needed",
            )
        })
    }

    fn granted(&self, book: &Book) -> Result<Granted, Status> {
        let credential = match self {
            Self::Token(token) => Credential::Token(token),
            Self::Certificate(certificate) => Credential::Certificate(certificate),
        };
        book.who(credential, SystemTime::now()).map_err(|refused| {
            let reason = match refused {
                Refused::UnknownToken | Refused::UnknownCertificate => "CREDENTIAL_UNKNOWN",
                Refused::Jwt(_) | Refused::Ambiguous => "CREDENTIAL_INVALID",
            };
            status::unauthenticated(reason, &refused.to_string())
        })
    }
}

/// For how long a stream may go on.
#[derive(Clone)]
struct Valid {
    brought: Brought,
    identity: Arc<Identity>,
    until: Option<Instant>,
    newest: watch::Receiver<Arc<Book>>,
}

impl Valid {
    /// Whether it still is. Without a change of the file it is a comparison or two.
    fn look(&mut self) -> Result<(), Status> {
        if self.until.is_some_and(|until| Instant::now() >= until) {
            return Err(expired());
        }
        match self.newest.has_changed() {
            Ok(true) => {
                let book = self.newest.borrow_and_update().clone();
                match self.brought.granted(&book) {
                    Ok(granted) if granted.identity == self.identity => Ok(()),
                    _ => Err(status::unauthenticated(
                        "CREDENTIAL_REVOKED",
                        "the credential of this stream isn't what it was any more",
                    )),
                }
            }
            Ok(false) | Err(_) => Ok(()),
        }
    }

    /// The body of a stream, which ends with its credential.
    fn bounds(mut self, body: Body, side: Side) -> Body {
        let over = self.clone().over();
        Ending::wrap(body, side, move || self.look().err(), over)
    }

    /// Waits until it isn't any more.
    async fn over(mut self) -> Status {
        loop {
            if let Err(status) = self.look() {
                return status;
            }
            let until = self.until;
            tokio::select! {
                () = async {
                    match until {
                        Some(until) => tokio::time::sleep_until(until).await,
                        None => std::future::pending().await,
                    }
                } => {}
                changed = self.newest.changed() => match changed {
                    Ok(()) => self.newest.mark_changed(),
                    // The process ends.
                    Err(_) => std::future::pending().await,
                },
            }
        }
    }
}

fn expired() -> Status {
    status::unauthenticated("CREDENTIAL_EXPIRED", "the token of this stream has expired")
}
