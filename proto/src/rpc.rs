//! The names of all RPCs, generated from the protos.

include!(concat!(env!("OUT_DIR"), "/rpc.rs"));

impl Rpc {
    /// The RPC of a request's path; `None`: it is none of ours.
    pub fn of(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|rpc| rpc.path() == path)
    }

    /// Its service and name: `BatchService.GetBatch`.
    pub fn name(self) -> String {
        self.path().trim_start_matches("/tranche.v1.").replace('/', ".")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_path_is_found_exactly() {
        assert_eq!(Rpc::GetBatch.path(), "/tranche.v1.BatchService/GetBatch");
        assert_eq!(Rpc::GetBatch.name(), "BatchService.GetBatch");
        for rpc in Rpc::ALL {
            assert_eq!(Rpc::of(rpc.path()), Some(rpc));
        }
        for path in [
            "",
            "/",
            "/tranche.v1.BatchService/",
            "/tranche.v1.BatchService/getbatch",
            "/tranche.v1.BatchService/GetBatch/",
        ] {
            assert_eq!(Rpc::of(path), None, "{path}");
        }
        assert!(Rpc::Attach.streams() && Rpc::AppendTasks.streams() && Rpc::WatchBatch.streams());
        assert!(!Rpc::GetBatch.streams());
    }
}
