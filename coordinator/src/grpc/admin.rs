//! AdminService.

use super::{page, validate};
use crate::node::Node;
use std::sync::Arc;
use tonic::{Request, Response, Status};
use tranche_proto::v1;
use tranche_proto::v1::admin_service_server::AdminService;

const DEFAULT_PAGE: usize = 100;

/// What operators call.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) node: Arc<Node>,
}

#[tonic::async_trait]
impl AdminService for Admin {
    async fn list_workers(
        &self,
        request: Request<v1::ListWorkersRequest>,
    ) -> Result<Response<v1::ListWorkersResponse>, Status> {
        let request = request.into_inner();
        let size = page::size(request.page_size, DEFAULT_PAGE)?;
        let query = page::Query::new(["workers"]);
        let key = |worker: &v1::Worker| worker.worker.clone();
        let (workers, next_page_token) =
            page::cut(query, self.node.workers(), key, size, &request.page_token)?;
        Ok(Response::new(v1::ListWorkersResponse { workers, next_page_token }))
    }

    async fn list_coordinators(
        &self,
        request: Request<v1::ListCoordinatorsRequest>,
    ) -> Result<Response<v1::ListCoordinatorsResponse>, Status> {
        let request = request.into_inner();
        let size = page::size(request.page_size, DEFAULT_PAGE)?;
        let query = page::Query::new(["coordinators"]);
        let key = |coordinator: &v1::Coordinator| coordinator.coordinator.clone();
        let all = self.node.coordinators().await?;
        let (coordinators, next_page_token) = page::cut(query, all, key, size, &request.page_token)?;
        Ok(Response::new(v1::ListCoordinatorsResponse { coordinators, next_page_token }))
    }

    async fn list_leases(
        &self,
        request: Request<v1::ListLeasesRequest>,
    ) -> Result<Response<v1::ListLeasesResponse>, Status> {
        let request = request.into_inner();
        let batch = match request.parent.as_str() {
            "" => None,
            parent => Some(validate::batch_name("parent", parent)?),
        };
        let size = page::size(request.page_size, DEFAULT_PAGE)?;
        let query = page::Query::new(["leases", &request.parent]);
        let all = self.node.leases(batch.as_ref()).await?;
        let (leases, next_page_token) = page::cut(query, all, lease_key, size, &request.page_token)?;
        Ok(Response::new(v1::ListLeasesResponse { leases, next_page_token }))
    }
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
