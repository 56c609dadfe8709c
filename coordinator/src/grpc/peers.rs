//! Calls about batches that another coordinator drives: passed on to it, with what they brought.
//!
//! A call that was passed on once is never passed on again: two coordinators that each take the other for the
//! owner would play with it.

use super::layers::{REQUEST_ID, asked_time};
use super::{status, validate};
use crate::error::Error;
use crate::identity::{Identity, Scope};
use crate::node::{Member, Node, Open, Place};
use crate::peers::{Carries, Peer, Peers};
use crate::store::StoreError;
use crate::store::keys::BatchKey;
use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::metadata::AsciiMetadataValue;
use tonic::{Code, ConnectError, Request, Response, Status};
use tonic_types::StatusExt;
use tranche_ops::{TRACEPARENT, trace};
use tranche_proto::MAX_FRAME_BYTES;
use tranche_proto::v1::admin_service_client::AdminServiceClient;
use tranche_proto::v1::batch_service_client::BatchServiceClient;
use tranche_tls::Authorized;

/// Metadata of a call that was passed on: the id of the coordinator that did.
pub(crate) const FORWARDED: &str = "tranche-forwarded";
/// Metadata of a call that was passed on, when coordinators ask who calls: its first caller's name, namespace
/// and roles.
pub(crate) const ON_BEHALF: [&str; 3] =
    ["tranche-behalf-name", "tranche-behalf-namespace", "tranche-behalf-roles"];
/// The client of an owner.
pub(crate) type Client = BatchServiceClient<Authorized>;

/// How long a call waits for a batch to have an owner that answers: as long as a new owner may take.
const OWNER_WAIT: Duration = Duration::from_secs(10);
/// Pause before an owner that wasn't there is looked for again.
const PAUSE: Duration = Duration::from_millis(100);
/// How often a call that waits for an owner's answer looks whether it is the owner still: one that hangs is
/// followed by another long before its connection is found dead.
const STILL_OWNER_EVERY: Duration = Duration::from_secs(1);

/// What a call brings beside its message.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// Another coordinator passed it on.
    pub(crate) forwarded: bool,
    /// When it is answered at the latest.
    until: Instant,
    request_id: Option<AsciiMetadataValue>,
    /// Who, if callers are asked.
    identity: Option<Arc<Identity>>,
}

impl Caller {
    /// The caller of this request, which may take `limit`.
    pub(crate) fn of<T>(request: &Request<T>, limit: Duration) -> Self {
        let metadata = request.metadata();
        let limit = limit.min(asked_time(metadata.as_ref()).unwrap_or(limit));
        Self {
            forwarded: metadata.contains_key(FORWARDED),
            until: Instant::now() + limit,
            request_id: metadata.get(REQUEST_ID).cloned(),
            identity: request.extensions().get().cloned(),
        }
    }

    /// The batch, if the caller sees its namespace. One that it doesn't see isn't there.
    pub(crate) fn sees(&self, mut batch: BatchKey) -> Result<BatchKey, Error> {
        if batch.namespace == validate::OWN_NAMESPACE {
            self.own_namespace().clone_into(&mut batch.namespace);
        }
        if self.scope().sees(&batch.namespace) { Ok(batch) } else { Err(Error::NotFound(batch)) }
    }

    /// The namespaces whose batches the caller sees.
    pub(crate) fn scope(&self) -> &Scope {
        self.identity.as_ref().map_or(&Scope::All, |identity| &identity.scope)
    }

    /// What is meant when no namespace is named.
    fn own_namespace(&self) -> &str {
        match self.scope() {
            Scope::Namespace(own) => own,
            Scope::All => validate::DEFAULT_NAMESPACE,
        }
    }

    /// The namespace that a request's `parent` means: without one the caller's own.
    pub(crate) fn namespace(&self, field: &str, parent: &str) -> Result<String, Status> {
        let Some(named) = validate::namespace(field, parent)? else {
            return Ok(self.own_namespace().to_owned());
        };
        match &self.identity {
            Some(identity) if !identity.sees(&named) => Err(status::namespace_denied(&named, identity)),
            _ => Ok(named),
        }
    }

    /// Takes an open stream out of a namespace's share. One that was passed on is counted where its client is.
    pub(crate) fn takes(&self, stream: &Open, namespace: &str) -> Result<(), Error> {
        if self.forwarded { Ok(()) } else { stream.belongs(format!("namespaces/{namespace}")) }
    }

    /// Who is noted as the author of a decision: what they call themselves, and who they are.
    pub(crate) fn actor(&self, given: &str) -> String {
        match &self.identity {
            None => given.to_owned(),
            Some(identity) if given.is_empty() => identity.name.to_string(),
            Some(identity) => format!("{given} ({})", identity.name),
        }
    }

    /// The same with a new limit: of a stream, whose owner is looked for again.
    pub(crate) fn renewed(&self, limit: Duration) -> Self {
        Self { until: Instant::now() + limit, ..self.clone() }
    }

    /// When a call that waits for an owner gives up.
    pub(crate) fn patience(&self) -> Instant {
        self.until.min(Instant::now() + OWNER_WAIT)
    }
}

/// When a call may be made a second time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// Whenever the first got no answer: twice is the same as once.
    Always,
    /// Only when the first was surely not done.
    IfNotDone,
}

/// What became of a call that another coordinator didn't answer as asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// It wasn't done there: nobody was reached, or it isn't the owner.
    NotDone,
    /// The connection broke: perhaps it was done.
    Unknown,
    /// It was answered, and that is the answer.
    Answered,
}

impl Trouble {
    pub(crate) fn of(status: &Status) -> Self {
        let mut cause = status.source();
        while let Some(error) = cause {
            if error.is::<ConnectError>() {
                return Self::NotDone;
            }
            cause = error.source();
        }
        let reason = status.get_details_error_info().map(|info| info.reason);
        if matches!(reason.as_deref(), Some("NO_OWNER" | "SHUTTING_DOWN")) {
            return Self::NotDone;
        }
        // What broke on this side has a cause; what the peer said has none.
        if status.source().is_some() { Self::Unknown } else { Self::Answered }
    }
}

/// Finds the owners of batches, and speaks to them.
#[derive(Clone)]
pub(crate) struct Owners {
    pub(crate) node: Arc<Node>,
    peers: Arc<Peers>,
    /// Bytes of tasks on their way to owners elsewhere, of all append streams; a permit is one byte. Not those of
    /// the appends into our own batches: two coordinators that pass on to each other would wait for each other.
    pub(crate) relayed: Arc<Semaphore>,
    /// The most of them.
    pub(crate) most_relayed: usize,
}

impl Owners {
    pub(crate) fn new(node: Arc<Node>, peers: Arc<Peers>, most_relayed: usize) -> Self {
        Self { node, peers, relayed: Arc::new(Semaphore::new(most_relayed)), most_relayed }
    }

    /// Makes a unary call where its batch is driven. `here` makes it here, and answers `NotOwned` only when it
    /// did nothing; `there` makes it with a client of the owner, and with metadata to go with it.
    pub(crate) async fn call<T, H, HF, P, PF>(
        &self,
        caller: &Caller,
        batch: &BatchKey,
        repeat: Repeat,
        here: H,
        there: P,
    ) -> Result<Response<T>, Status>
    where
        H: Fn() -> HF,
        HF: Future<Output = Result<T, Error>>,
        P: Fn(Client, Request<()>) -> PF,
        PF: Future<Output = Result<Response<T>, Status>>,
    {
        if caller.forwarded {
            return Ok(Response::new(here().await?));
        }
        let until = caller.patience();
        loop {
            match self.node.placed(batch, until).await? {
                Place::Here => match here().await {
                    Err(error @ Error::NotOwned { .. }) => self.pause(until, error).await?,
                    done => return Ok(Response::new(done?)),
                },
                Place::There(owner) => {
                    let call = self.ask(caller, &owner, &there);
                    let answer = tokio::select! {
                        biased;
                        answer = call => answer,
                        () = self.moved(batch, &owner), if repeat == Repeat::Always => continue,
                    };
                    let Err(status) = answer else { return answer };
                    match (Trouble::of(&status), repeat) {
                        (Trouble::Answered, _) => return Err(status),
                        (Trouble::Unknown, Repeat::IfNotDone) => {
                            let message =
                                format!("the owner of {batch}, {}, didn't answer: {status}", owner.endpoint);
                            return Err(Error::Store(StoreError::Unknown(message)).into());
                        }
                        (Trouble::NotDone, _) | (Trouble::Unknown, Repeat::Always) => {
                            absent(batch, &owner, &status);
                            self.pause(until, Error::NotOwned { batch: batch.clone() }).await?;
                        }
                    }
                }
            }
        }
    }

    /// Makes a call at one other coordinator, once.
    pub(crate) async fn ask<T, P, PF>(
        &self,
        caller: &Caller,
        member: &Member,
        there: P,
    ) -> Result<Response<T>, Status>
    where
        P: Fn(Client, Request<()>) -> PF,
        PF: Future<Output = Result<Response<T>, Status>>,
    {
        let peer = self.peer(member, Carries::Calls)?;
        let request = self.request(caller, caller.until);
        let answer = timeout_at(caller.until, there(batches(&peer), request)).await;
        // Its metadata is that of another connection.
        answer.unwrap_or_else(|_| Err(late())).map(|answer| Response::new(answer.into_inner()))
    }

    /// Asks another coordinator's operators' service, within `until`.
    pub(crate) async fn ask_admin<T, P, PF>(
        &self,
        caller: &Caller,
        member: &Member,
        until: Instant,
        there: P,
    ) -> Result<T, Status>
    where
        P: Fn(AdminServiceClient<Authorized>, Request<()>) -> PF,
        PF: Future<Output = Result<Response<T>, Status>>,
    {
        let peer = self.peer(member, Carries::Calls)?;
        let until = until.min(caller.until);
        let client = AdminServiceClient::new(peer.channel()).max_decoding_message_size(MAX_FRAME_BYTES);
        let answer = timeout_at(until, there(client, self.request(caller, until))).await;
        answer.unwrap_or_else(|_| Err(late())).map(Response::into_inner)
    }

    /// A connection to another coordinator. One whose URL is none isn't reached, as if it were gone.
    pub(crate) fn peer(&self, member: &Member, carries: Carries) -> Result<Peer, Status> {
        self.peers.get(&member.endpoint, carries).map_err(|error| {
            tracing::warn!(coordinator = member.id, endpoint = member.endpoint, %error, "endpoint is no URL");
            Status::from_error(Box::new(ConnectError(Box::new(error))))
        })
    }

    /// What goes with a call that is passed on.
    pub(crate) fn request(&self, caller: &Caller, until: Instant) -> Request<()> {
        let mut request = self.stream_request(caller);
        request.set_timeout(until.saturating_duration_since(Instant::now()));
        request
    }

    /// The same, for a stream, which has no end in time.
    pub(crate) fn stream_request(&self, caller: &Caller) -> Request<()> {
        let mut request = Request::new(());
        let id = self.node.shared().id.parse().unwrap_or(AsciiMetadataValue::from_static("unknown"));
        request.metadata_mut().insert(FORWARDED, id);
        if let Some(id) = &caller.request_id {
            request.metadata_mut().insert(REQUEST_ID, id.clone());
        }
        if let Ok(traceparent) = AsciiMetadataValue::try_from(trace::current())
            && !traceparent.is_empty()
        {
            request.metadata_mut().insert(TRACEPARENT, traceparent);
        }
        if let Some(identity) = &caller.identity {
            let values = [identity.name.to_string(), identity.scope.to_string(), identity.roles.to_string()];
            for (name, value) in ON_BEHALF.into_iter().zip(values) {
                request.metadata_mut().insert(name, value.parse().expect("names and roles are ASCII"));
            }
        }
        request
    }

    /// Waits until the batch's owner is another, or nobody.
    pub(crate) async fn moved(&self, batch: &BatchKey, owner: &Member) {
        loop {
            sleep(STILL_OWNER_EVERY).await;
            if let Ok(now) = self.node.shared().owner_of(batch).await
                && now.as_ref() != Some(owner)
            {
                tracing::debug!(batch.id = %batch, coordinator = owner.id, "it isn't the owner any more");
                return;
            }
        }
    }

    /// Pauses before an owner is looked for again; the error when there is no time left.
    pub(crate) async fn pause(&self, until: Instant, error: Error) -> Result<(), Error> {
        if Instant::now() + PAUSE >= until {
            return Err(error);
        }
        tokio::select! {
            biased;
            () = self.node.shared().stop.cancelled() => Err(Error::ShuttingDown),
            () = sleep(PAUSE) => Ok(()),
        }
    }
}

/// Says that an owner isn't there.
pub(crate) fn absent(batch: &BatchKey, owner: &Member, status: &Status) {
    tracing::debug!(
        batch.id = %batch,
        coordinator = owner.id,
        endpoint = owner.endpoint,
        error = %status,
        "owner doesn't answer, looked for again"
    );
}

/// The client of an owner.
pub(crate) fn batches(peer: &Peer) -> Client {
    BatchServiceClient::new(peer.channel()).max_decoding_message_size(MAX_FRAME_BYTES)
}

/// The peer took longer than the call has: what became of it isn't known.
fn late() -> Status {
    Status::from_error(Box::new(std::io::Error::from(std::io::ErrorKind::TimedOut)))
}

/// Whether the same call may be answered later.
pub(crate) fn passing(status: &Status) -> bool {
    match Trouble::of(status) {
        Trouble::NotDone | Trouble::Unknown => true,
        Trouble::Answered => matches!(
            status.code(),
            Code::Unavailable
                | Code::ResourceExhausted
                | Code::DeadlineExceeded
                | Code::Cancelled
                | Code::Aborted
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::metadata::MetadataMap;

    #[test]
    fn the_caller_s_time_is_read_as_grpc_writes_it() {
        let of = |text: &'static str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", AsciiMetadataValue::from_static(text));
            asked_time(metadata.as_ref())
        };
        for (text, ms) in
            [("1H", 3_600_000), ("2M", 120_000), ("3S", 3000), ("4m", 4), ("5000u", 5), ("6000000n", 6)]
        {
            assert_eq!(of(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "1", "S", "1x", "-1S", "123456789S", "1.5S"] {
            assert_eq!(of(text), None, "{text}");
        }
    }

    #[tokio::test]
    async fn what_was_surely_not_done_is_told_from_what_may_have_been() {
        let gone =
            tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound").local_addr().expect("bound");
        let peer = Peers::default().get(&format!("http://{gone}"), Carries::Calls).expect("a URL");
        let refused = batches(&peer).get_batch(tranche_proto::v1::GetBatchRequest::default()).await;
        assert_eq!(Trouble::of(&refused.expect_err("nobody is there")), Trouble::NotDone);

        let batch = BatchKey::new("n", "b");
        assert_eq!(Trouble::of(&Error::NotOwned { batch: batch.clone() }.into()), Trouble::NotDone);
        assert_eq!(Trouble::of(&Error::ShuttingDown.into()), Trouble::NotDone);
        assert_eq!(Trouble::of(&Error::NotFound(batch).into()), Trouble::Answered);
        assert_eq!(Trouble::of(&late()), Trouble::Unknown);
    }
}
