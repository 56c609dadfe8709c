//! AdminService: what all coordinators know together.
//!
//! Whoever is asked asks all the others for the same page, and merges: a page of the whole has nothing that isn't
//! in the same page of one of them. Those that don't answer in time are left out, with a line in the log.

use super::peers::{Caller, Owners};
use super::{page, validate};
use crate::node::Member;
use futures::future::join_all;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use tranche_proto::v1;
use tranche_proto::v1::admin_service_client::AdminServiceClient;
use tranche_proto::v1::admin_service_server::AdminService;
use tranche_tls::Authorized;

const DEFAULT_PAGE: usize = 100;
/// How long another coordinator may take to answer.
const ANSWER_WAIT: Duration = Duration::from_secs(1);

/// What operators call.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) owners: Owners,
    /// The longest that a call takes.
    pub(crate) limit: Duration,
}

type Client = AdminServiceClient<Authorized>;

impl Admin {
    /// The other coordinators, unless one of them asks.
    async fn others(&self, caller: &Caller) -> Vec<Member> {
        if caller.forwarded {
            return Vec::new();
        }
        let all = match self.owners.node.coordinators(caller.scope()).await {
            Ok(all) => all,
            Err(error) => {
                tracing::warn!(%error, "who else is there can't be read, only this coordinator is listed");
                return Vec::new();
            }
        };
        let all = all.into_iter().map(|one| Member { id: one.coordinator, endpoint: one.endpoint });
        all.filter(|one| one.id != self.owners.node.shared().id).collect()
    }

    /// What these coordinators answer, with their ids.
    async fn ask<M, T, F>(
        &self,
        caller: &Caller,
        members: &[Member],
        message: M,
        call: impl Fn(Client, Request<M>) -> F,
    ) -> Vec<(String, T)>
    where
        M: Clone,
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let until = Instant::now() + ANSWER_WAIT;
        let call = &call;
        let asked = members.iter().map(|member| {
            let there = |client, extras: Request<()>| call(client, extras.map(|()| message.clone()));
            async move { (member, self.owners.ask_admin(caller, member, until, there).await) }
        });
        let answers = join_all(asked).await.into_iter();
        let answers = answers.filter_map(|(member, answer)| match answer {
            Ok(answer) => Some((member.id.clone(), answer)),
            Err(error) => {
                let Member { id, endpoint } = member;
                tracing::warn!(coordinator = id, endpoint, %error, "coordinator doesn't answer");
                None
            }
        });
        answers.collect()
    }
}

/// The size of a page, as others are to be asked for it.
fn asked(size: usize) -> i32 {
    i32::try_from(size).unwrap_or(i32::MAX)
}

#[tonic::async_trait]
impl AdminService for Admin {
    async fn list_workers(
        &self,
        request: Request<v1::ListWorkersRequest>,
    ) -> Result<Response<v1::ListWorkersResponse>, Status> {
        let caller = Caller::of(&request, self.limit);
        let mut request = request.into_inner();
        let size = page::size(request.page_size, DEFAULT_PAGE)?;
        request.page_size = asked(size);
        let query = page::Query::new(["workers"]);
        query.cursor(&request.page_token)?;
        let others = self.others(&caller).await;
        let ask = async |mut client: Client, request| client.list_workers(request).await;
        let answers = self.ask(&caller, &others, request.clone(), ask).await;
        let mut all = self.owners.node.workers(caller.scope());
        let mut more = false;
        for (_, answer) in answers {
            all.extend(answer.workers);
            more |= !answer.next_page_token.is_empty();
        }
        let key = |worker: &v1::Worker| worker.worker.clone();
        let (workers, mut next_page_token) = page::cut(query, merged(all), key, size, &request.page_token)?;
        if let Some(last) = workers.last().filter(|_| more && next_page_token.is_empty()) {
            next_page_token = query.token(&key(last));
        }
        Ok(Response::new(v1::ListWorkersResponse { workers, next_page_token }))
    }

    async fn list_coordinators(
        &self,
        request: Request<v1::ListCoordinatorsRequest>,
    ) -> Result<Response<v1::ListCoordinatorsResponse>, Status> {
        let caller = Caller::of(&request, self.limit);
        let mut request = request.into_inner();
        let size = page::size(request.page_size, DEFAULT_PAGE)?;
        request.page_size = asked(size);
        let query = page::Query::new(["coordinators"]);
        let key = |coordinator: &v1::Coordinator| coordinator.coordinator.clone();
        let all = self.owners.node.coordinators(caller.scope()).await?;
        let (mut coordinators, next_page_token) = page::cut(query, all, key, size, &request.page_token)?;
        // Of the page alone: the others are on the same page as what they say of themselves.
        let mut others = self.others(&caller).await;
        others.retain(|other| coordinators.iter().any(|one| one.coordinator == other.id));
        let ask = async |mut client: Client, request| client.list_coordinators(request).await;
        for (id, answer) in self.ask(&caller, &others, request, ask).await {
            let itself = answer.coordinators.into_iter().find(|one| one.coordinator == id);
            let listed = coordinators.iter_mut().find(|one| one.coordinator == id);
            if let (Some(itself), Some(listed)) = (itself, listed) {
                *listed = itself;
            }
        }
        Ok(Response::new(v1::ListCoordinatorsResponse { coordinators, next_page_token }))
    }

    async fn list_leases(
        &self,
        request: Request<v1::ListLeasesRequest>,
    ) -> Result<Response<v1::ListLeasesResponse>, Status> {
        let caller = Caller::of(&request, self.limit);
        let mut request = request.into_inner();
        let batch = match request.parent.as_str() {
            "" => None,
            parent => Some(caller.sees(validate::batch_name("parent", parent)?)?),
        };
        let size = page::size(request.page_size, DEFAULT_PAGE)?;
        request.page_size = asked(size);
        let query = page::Query::new(["leases", &request.parent]);
        query.cursor(&request.page_token)?;
        let mut all = self.owners.node.leases(caller.scope(), batch.as_ref()).await?;
        let others = self.others(&caller).await;
        let ask = async |mut client: Client, request| client.list_leases(request).await;
        let mut more = false;
        for (_, answer) in self.ask(&caller, &others, request.clone(), ask).await {
            all.extend(answer.leases);
            more |= !answer.next_page_token.is_empty();
        }
        // A batch that is just taken over may be listed by both owners.
        all.sort_by_cached_key(lease_key);
        all.dedup_by_key(|lease| lease_key(lease));
        let (leases, mut next_page_token) = page::cut(query, all, lease_key, size, &request.page_token)?;
        if let Some(last) = leases.last().filter(|_| more && next_page_token.is_empty()) {
            next_page_token = query.token(&lease_key(last));
        }
        Ok(Response::new(v1::ListLeasesResponse { leases, next_page_token }))
    }
}

/// One entry for each worker, of all its streams: what admin.proto says of `Worker`.
fn merged(all: Vec<v1::Worker>) -> Vec<v1::Worker> {
    let mut workers: BTreeMap<String, v1::Worker> = BTreeMap::new();
    for worker in all {
        match workers.entry(worker.worker.clone()) {
            Entry::Vacant(entry) => drop(entry.insert(worker)),
            Entry::Occupied(mut entry) => {
                let known = entry.get_mut();
                let (older, mut newest) = if seen(&worker) > seen(known) {
                    (std::mem::take(known), worker)
                } else {
                    (worker, std::mem::take(known))
                };
                if older.incarnation == newest.incarnation {
                    newest.leases = newest.leases.saturating_add(older.leases);
                    newest.free_credit = newest.free_credit.saturating_add(older.free_credit);
                    let attached = [older.attach_time, newest.attach_time];
                    newest.attach_time =
                        attached.into_iter().flatten().min_by_key(|time| (time.seconds, time.nanos));
                }
                *known = newest;
            }
        }
    }
    workers.into_values().collect()
}

fn seen(worker: &v1::Worker) -> (i64, i32) {
    worker.last_seen_time.map_or((0, 0), |time| (time.seconds, time.nanos))
}

/// Sorts by batch, then range; the token tells two leases of one range apart.
fn lease_key(lease: &v1::Lease) -> String {
    let first = lease.range.map_or(0, |range| range.first);
    let token = lease.token.unwrap_or_default();
    format!("{}/{first:020}/{:020}/{:020}", lease.batch, token.epoch, token.counter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_with_several_streams_is_one_and_only_its_newest_life_counts() {
        let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let stream = |incarnation: &str, leases, attached, seen| v1::Worker {
            worker: "w".to_owned(),
            incarnation: incarnation.to_owned(),
            leases,
            free_credit: 1,
            attach_time: at(attached),
            last_seen_time: at(seen),
            peer: format!("peer {seen}"),
            ..Default::default()
        };
        let streams = [stream("new", 2, 10, 30), stream("old", 50, 1, 5), stream("new", 3, 12, 31)];
        // In whichever order they are answered.
        for turn in 0..3 {
            let mut streams = streams.to_vec();
            streams.rotate_left(turn);
            let [one] = &merged(streams)[..] else { panic!("one worker") };
            assert_eq!((one.incarnation.as_str(), one.leases, one.free_credit), ("new", 5, 2));
            assert_eq!((one.attach_time, one.last_seen_time), (at(10), at(31)));
            assert_eq!(one.peer, "peer 31");
        }
    }

    #[test]
    fn leases_sort_by_batch_then_range_then_token() {
        let lease = |batch: &str, first, epoch, counter| v1::Lease {
            batch: batch.to_owned(),
            range: Some(v1::Range { first, last: first }),
            token: Some(v1::Token { epoch, counter }),
            ..Default::default()
        };
        let sorted = [
            lease("a", 9, 1, 1),
            lease("a", 10, 1, 9),
            lease("a", 10, 1, 10),
            lease("a", 10, 2, 1),
            lease("b", 1, 1, 1),
        ];
        let keys: Vec<_> = sorted.iter().map(lease_key).collect();
        assert!(keys.is_sorted_by(|a, b| a < b), "{keys:?}");
    }
}
