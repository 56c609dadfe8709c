//! What takes more than one coordinator: batches that are made elsewhere, read and watched with their owners.

use super::batch::Batches;
use super::peers::{Caller, Client, Owners, Trouble, absent, batches};
use super::validate;
use super::watch::{self, Updates};
use crate::error::Error;
use crate::node::{Member, Place};
use crate::peers::Carries;
use crate::store::keys::BatchKey;
use futures::StreamExt;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Request, Response, Status};
use tranche_proto::v1;
use tranche_proto::v1::batch::State;

/// How long a read waits for what only the owner knows, before it goes without.
const LIVE_WAIT: Duration = Duration::from_secs(1);
/// How long another coordinator may take to make a batch, before it is made here.
const CREATE_WAIT: Duration = Duration::from_secs(3);

impl Batches {
    /// Makes a batch at another coordinator, if that is to have the next one; otherwise, or when it doesn't,
    /// here. The request id makes it one batch, whatever became of the first attempt.
    pub(super) async fn create(
        &self,
        caller: &Caller,
        mut request: v1::CreateBatchRequest,
        elsewhere: Option<Member>,
    ) -> Result<v1::Batch, Status> {
        let namespace = match caller.namespace("parent", &request.parent) {
            Ok(namespace) => namespace,
            // It is told with what else is wrong.
            Err(status) if status.code() == Code::InvalidArgument => String::new(),
            Err(status) => return Err(status),
        };
        if !namespace.is_empty() {
            // The owner elsewhere gets it spelt out, too.
            request.parent = format!("namespaces/{namespace}");
        }
        let known = self.node.known_handlers(&namespace);
        let mut create = validate::create(request.clone(), &known)?;
        if let Some(member) = elsewhere.filter(|_| !caller.forwarded) {
            if request.request_id.is_empty() {
                request.request_id = self.node.shared().host.new_id();
                create.request_id.clone_from(&request.request_id);
            }
            match self.create_at(caller, &member, &request).await {
                Ok(batch) => return Ok(batch),
                // Whoever has the request id, it isn't free here either.
                Err(status) if status.code() == Code::AlreadyExists => return Err(status),
                Err(status) => tracing::info!(
                    coordinator = member.id,
                    endpoint = member.endpoint,
                    error = %status,
                    "batch not made there, made here"
                ),
            }
        }
        let view = self.node.create(&create.namespace, create.spec, &create.request_id).await?;
        Ok(view.to_proto())
    }

    async fn create_at(
        &self,
        caller: &Caller,
        member: &Member,
        request: &v1::CreateBatchRequest,
    ) -> Result<v1::Batch, Status> {
        let there = |mut client: Client, extras: Request<()>| {
            let request = extras.map(|()| request.clone());
            async move { client.create_batch(request).await }
        };
        let answer = timeout_at(Instant::now() + CREATE_WAIT, self.owners.ask(caller, member, there)).await;
        let late = |_| Err(Status::deadline_exceeded(format!("no answer within {CREATE_WAIT:?}")));
        answer.unwrap_or_else(late).map(Response::into_inner)
    }

    /// A batch as the store has it, with what only its owner knows, if that answers soon.
    pub(super) async fn get(&self, caller: &Caller, batch: &BatchKey) -> Result<v1::Batch, Status> {
        let mut read = self.node.get(batch).await?.to_proto();
        let active = matches!(read.state(), State::Committing | State::RollingBack);
        if caller.forwarded || !active || self.node.shared().handle(batch).is_some() {
            return Ok(read);
        }
        let asking = async {
            let Some(Place::There(owner)) = self.node.place(batch).await? else { return Ok(None) };
            let there = |mut client: Client, extras: Request<()>| {
                let request = extras.map(|()| v1::GetBatchRequest { name: batch.to_string() });
                async move { client.get_batch(request).await }
            };
            self.owners.ask(caller, &owner, there).await.map(|answer| Some(answer.into_inner()))
        };
        match timeout_at(Instant::now() + LIVE_WAIT, asking).await {
            // The counters are those of the store: the owner may not have heard yet of what was just decided.
            Ok(Ok(Some(live))) => read.status_message = live.status_message,
            Ok(Ok(None)) => {}
            Ok(Err(status)) => tracing::debug!(batch.id = %batch, error = %status, "owner doesn't answer"),
            Err(_) => tracing::debug!(batch.id = %batch, "owner doesn't answer in time"),
        }
        Ok(read)
    }
}

/// What the batch's owner tells of it. When it is `again`, or another coordinator's, not from one that
/// may have been overtaken: then what it shows may be older than what was told before.
pub(super) async fn updates(
    owners: Owners,
    caller: Caller,
    batch: BatchKey,
    again: bool,
) -> Result<Updates, Status> {
    let node = &owners.node;
    let until = caller.patience();
    loop {
        let place = if caller.forwarded { Place::Here } else { node.placed(&batch, until).await? };
        let owner = match place {
            Place::There(owner) => owner,
            Place::Here => {
                let updates = match node.watch(&batch).await {
                    Err(error @ Error::NotOwned { .. }) if !caller.forwarded => {
                        owners.pause(until, error).await?;
                        continue;
                    }
                    updates => updates?,
                };
                if (again || caller.forwarded) && node.cut_off(&batch).await? {
                    return Err(Error::NotOwned { batch }.into());
                }
                return Ok(watch::responses_of(batch, updates));
            }
        };
        match updates_of(&owners, &caller, &batch, &owner, until).await {
            Err(status) if Trouble::of(&status) != Trouble::Answered => {
                absent(&batch, &owner, &status);
                owners.pause(until, Error::NotOwned { batch: batch.clone() }).await?;
            }
            updates => return updates,
        }
    }
}

async fn updates_of(
    owners: &Owners,
    caller: &Caller,
    batch: &BatchKey,
    owner: &Member,
    until: Instant,
) -> Result<Updates, Status> {
    let gone = || Status::from(Error::NotOwned { batch: batch.clone() });
    let peer = owners.peer(owner, Carries::Watches)?;
    let request = owners.stream_request(caller).map(|()| v1::WatchBatchRequest { name: batch.to_string() });
    let mut client = batches(&peer);
    let stream = tokio::select! {
        biased;
        opened = timeout_at(until, client.watch_batch(request)) => opened.unwrap_or_else(|_| Err(gone()))?,
        () = owners.moved(batch, owner) => return Err(gone()),
    };
    let state = (stream.into_inner(), peer, owners.clone(), batch.clone(), owner.clone());
    let updates = futures::stream::unfold(state, |mut state| async move {
        let (stream, _, owners, batch, owner) = &mut state;
        let message = tokio::select! {
            biased;
            message = stream.message() => message.transpose()?,
            () = owners.moved(batch, owner) => return None,
        };
        Some((message, state))
    });
    Ok(updates.boxed())
}
