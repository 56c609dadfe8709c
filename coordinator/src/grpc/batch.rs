//! BatchService.

use super::elsewhere::updates;
use super::peers::{Caller, Client, Owners, Repeat};
use super::{append, page, validate, watch};
use crate::config::Config;
use crate::error::Error;
use crate::identity::Scope;
use crate::node::{ListFilter, Node};
use futures::StreamExt;
use futures::stream::BoxStream;
use prost::Message;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};
use tranche_proto::v1;
use tranche_proto::v1::batch_service_server::BatchService;

const DEFAULT_BATCHES: usize = 50;
const DEFAULT_FAILURES: usize = 100;
/// Bytes of batches in a page, after which it is cut short: specs may be large, and clients by default
/// refuse messages of more than 4 MiB.
const MAX_PAGE_BYTES: usize = 3 * 1024 * 1024;

/// What clients call.
#[derive(Clone)]
pub(crate) struct Batches {
    pub(super) node: Arc<Node>,
    pub(super) owners: Owners,
    /// The longest that a call takes.
    limit: Duration,
    append_idle: Duration,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

impl Batches {
    pub(crate) fn new(
        owners: Owners,
        config: &Config,
        shutdown: CancellationToken,
        tasks: TaskTracker,
    ) -> Self {
        Self {
            node: owners.node.clone(),
            owners,
            limit: config.request_timeout,
            append_idle: config.append_idle_timeout,
            shutdown,
            tasks,
        }
    }
}

#[tonic::async_trait]
impl BatchService for Batches {
    async fn create_batch(
        &self,
        request: Request<v1::CreateBatchRequest>,
    ) -> Result<Response<v1::Batch>, Status> {
        let caller = Caller::of(&request, self.limit);
        let elsewhere = self.node.shared().less_loaded();
        Ok(Response::new(self.create(&caller, request.into_inner(), elsewhere).await?))
    }

    type AppendTasksStream = BoxStream<'static, Result<v1::AppendTasksResponse, Status>>;

    async fn append_tasks(
        &self,
        request: Request<Streaming<v1::AppendTasksRequest>>,
    ) -> Result<Response<Self::AppendTasksStream>, Status> {
        let (owners, caller) = (self.owners.clone(), Caller::of(&request, self.limit));
        let place = Arc::new(self.node.shared().appenders.enter()?);
        if let Scope::Namespace(namespace) = caller.scope() {
            // Before it says what it wants, which it may take its time to.
            caller.takes(&place, namespace)?;
        }
        let tasks = self.tasks.clone();
        let context = append::Context {
            shutdown: self.shutdown.clone(),
            tasks: tasks.clone(),
            idle: self.append_idle,
            place: Some(place.clone()),
        };
        let open = move |batch| async move {
            let batch = caller.sees(batch)?;
            caller.takes(&place, &batch.namespace)?;
            append::relay::open(owners, caller, batch, tasks).await
        };
        Ok(Response::new(append::responses(request.into_inner(), open, context).boxed()))
    }

    async fn seal_batch(
        &self,
        request: Request<v1::SealBatchRequest>,
    ) -> Result<Response<v1::Batch>, Status> {
        let caller = Caller::of(&request, self.limit);
        let mut request = request.into_inner();
        let batch = caller.sees(validate::seal(&request)?)?;
        request.name = batch.to_string();
        let here = || async { Ok(self.node.seal(&batch, request.total).await?.to_proto()) };
        let there = |mut client: Client, extras: Request<()>| {
            let request = extras.map(|()| request.clone());
            async move { client.seal_batch(request).await }
        };
        self.owners.call(&caller, &batch, Repeat::Always, here, there).await
    }

    async fn get_batch(&self, request: Request<v1::GetBatchRequest>) -> Result<Response<v1::Batch>, Status> {
        let caller = Caller::of(&request, self.limit);
        let batch = caller.sees(validate::batch_name("name", &request.into_inner().name)?)?;
        Ok(Response::new(self.get(&caller, &batch).await?))
    }

    async fn list_batches(
        &self,
        request: Request<v1::ListBatchesRequest>,
    ) -> Result<Response<v1::ListBatchesResponse>, Status> {
        let caller = Caller::of(&request, self.limit);
        let request = request.into_inner();
        let namespace = caller.namespace("parent", &request.parent)?;
        let query = batches_query(&namespace, &request);
        let filter = ListFilter {
            states: validate::states(&request.states)?,
            page_size: page::size(request.page_size, DEFAULT_BATCHES)?,
            after: query.cursor(&request.page_token)?,
            labels: request.labels,
        };
        let (views, after) = self.node.list(&namespace, filter).await?;
        let batches = views.iter().map(|view| (view.key.id.as_str(), view.to_proto()));
        let (batches, after) = fit(batches, after, MAX_PAGE_BYTES);
        let next_page_token = after.map_or_else(String::new, |after| query.token(&after));
        Ok(Response::new(v1::ListBatchesResponse { batches, next_page_token }))
    }

    type WatchBatchStream = BoxStream<'static, Result<v1::WatchBatchResponse, Status>>;

    async fn watch_batch(
        &self,
        request: Request<v1::WatchBatchRequest>,
    ) -> Result<Response<Self::WatchBatchStream>, Status> {
        let limit = self.limit;
        let caller = Caller::of(&request, limit);
        let batch = caller.sees(validate::batch_name("name", &request.into_inner().name)?)?;
        let place = self.node.shared().watchers.enter()?;
        caller.takes(&place, &batch.namespace)?;
        let first = updates(self.owners.clone(), caller.clone(), batch.clone(), false).await?;
        let owners = self.owners.clone();
        let next = (!caller.forwarded)
            .then_some(move || updates(owners.clone(), caller.renewed(limit), batch.clone(), true));
        Ok(Response::new(watch::follow(first, next, self.shutdown.clone(), Some(place))))
    }

    async fn commit_batch(
        &self,
        request: Request<v1::CommitBatchRequest>,
    ) -> Result<Response<v1::Batch>, Status> {
        let caller = Caller::of(&request, self.limit);
        let request = request.into_inner();
        let batch = caller.sees(validate::commit(&request)?)?;
        Ok(Response::new(self.node.commit(&batch, &caller.actor(&request.actor)).await?.to_proto()))
    }

    async fn cancel_batch(
        &self,
        request: Request<v1::CancelBatchRequest>,
    ) -> Result<Response<v1::Batch>, Status> {
        let caller = Caller::of(&request, self.limit);
        let request = request.into_inner();
        let batch = caller.sees(validate::cancel(&request)?)?;
        let actor = caller.actor(&request.actor);
        Ok(Response::new(self.node.cancel(&batch, &actor, &request.message).await?.to_proto()))
    }

    async fn retry_failed(
        &self,
        request: Request<v1::RetryFailedRequest>,
    ) -> Result<Response<v1::RetryFailedResponse>, Status> {
        let caller = Caller::of(&request, self.limit);
        let mut request = request.into_inner();
        let batch = caller.sees(validate::batch_name("name", &request.name)?)?;
        request.name = batch.to_string();
        let here = || async {
            let (view, retried) = self.node.retry_failed(&batch).await?;
            Ok(v1::RetryFailedResponse { batch: Some(view.to_proto()), retried: retried.cast_signed() })
        };
        let there = |mut client: Client, extras: Request<()>| {
            let request = extras.map(|()| request.clone());
            async move { client.retry_failed(request).await }
        };
        // Not twice: tasks that failed again meanwhile would be leased once more than was asked for, and the
        // number that is answered would be theirs.
        self.owners.call(&caller, &batch, Repeat::IfNotDone, here, there).await
    }

    async fn list_failures(
        &self,
        request: Request<v1::ListFailuresRequest>,
    ) -> Result<Response<v1::ListFailuresResponse>, Status> {
        let caller = Caller::of(&request, self.limit);
        let request = request.into_inner();
        let batch = caller.sees(validate::batch_name("parent", &request.parent)?)?;
        let size = page::size(request.page_size, DEFAULT_FAILURES)?;
        let query = page::Query::new(["failures", &request.parent]);
        let after = match query.cursor(&request.page_token)? {
            None => 0,
            Some(cursor) => cursor
                .parse()
                .map_err(|_| Status::from(validate::invalid("page_token", "is no page token")))?,
        };
        let (failures, after) = self.node.failures(&batch, after, size).await?;
        let next_page_token = after.map_or_else(String::new, |after| query.token(&after.to_string()));
        Ok(Response::new(v1::ListFailuresResponse { failures, next_page_token }))
    }

    async fn delete_batch(&self, request: Request<v1::DeleteBatchRequest>) -> Result<Response<()>, Status> {
        let caller = Caller::of(&request, self.limit);
        let batch = caller.sees(validate::batch_name("name", &request.into_inner().name)?)?;
        let deleted: Result<(), Error> = self.node.delete(&batch).await;
        Ok(Response::new(deleted?))
    }
}

/// What a ListBatches asks for, without its page.
fn batches_query(namespace: &str, request: &v1::ListBatchesRequest) -> page::Query {
    let mut states = request.states.clone();
    states.sort_unstable();
    states.dedup();
    let states: Vec<_> = states.iter().map(ToString::to_string).collect();
    let labels: BTreeMap<_, _> = request.labels.iter().collect();
    let labels = labels.into_iter().flat_map(|(key, value)| [key.as_str(), value.as_str()]);
    let states_end = [""];
    let words = ["batches", namespace].into_iter().chain(states.iter().map(String::as_str));
    page::Query::new(words.chain(states_end).chain(labels))
}

/// As many batches, with their ids, as fit into `most` bytes, one at least, and where the next page begins.
fn fit<'a>(
    batches: impl Iterator<Item = (&'a str, v1::Batch)>,
    after: Option<String>,
    most: usize,
) -> (Vec<v1::Batch>, Option<String>) {
    let (mut page, mut bytes, mut last) = (Vec::new(), 0, "");
    for (id, batch) in batches {
        bytes += batch.encoded_len();
        if bytes > most && !page.is_empty() {
            return (page, Some(last.to_owned()));
        }
        page.push(batch);
        last = id;
    }
    (page, after)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn named(name: &str) -> v1::Batch {
        v1::Batch { name: name.to_owned(), ..Default::default() }
    }

    #[test]
    fn a_page_is_cut_where_its_bytes_end() {
        let all = || ["c", "b", "a"].into_iter().map(|id| (id, named(id)));
        let one = named("a").encoded_len();
        let ids = |(page, after): (Vec<v1::Batch>, Option<String>)| {
            (page.into_iter().map(|batch| batch.name).collect::<String>(), after)
        };
        assert_eq!(ids(fit(all(), Some("z".into()), 3 * one)), ("cba".into(), Some("z".into())));
        assert_eq!(ids(fit(all(), None, 3 * one)), ("cba".into(), None));
        assert_eq!(ids(fit(all(), None, 3 * one - 1)), ("cb".into(), Some("b".into())));
        assert_eq!(ids(fit(all(), None, 0)), ("c".into(), Some("c".into())), "one at least");
        assert_eq!(ids(fit(std::iter::empty(), Some("z".into()), 0)), (String::new(), Some("z".into())));
    }

    #[test]
    fn a_token_belongs_to_its_filter_in_any_order() {
        let request = |states: &[i32], labels: &[(&str, &str)]| v1::ListBatchesRequest {
            states: states.to_vec(),
            labels: labels.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect::<HashMap<_, _>>(),
            ..Default::default()
        };
        let query = |states: &[i32], labels: &[(&str, &str)]| batches_query("ns", &request(states, labels));
        assert_eq!(query(&[1, 2], &[("a", "b"), ("c", "d")]), query(&[2, 1, 2], &[("c", "d"), ("a", "b")]));
        assert_ne!(query(&[1], &[]), query(&[2], &[]));
        assert_ne!(query(&[], &[("1", "2")]), query(&[1, 2], &[]));
        assert_ne!(query(&[], &[("a", "b")]), query(&[], &[("b", "a")]));
        assert_ne!(batches_query("a", &request(&[], &[])), batches_query("b", &request(&[], &[])));
    }
}
