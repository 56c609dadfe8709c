//! Tests on real files.

mod ceiling;
mod checks;
mod claims;
mod disk;
mod durable;
mod end;
mod lost;
mod paths;
mod random;
mod restored;
mod stage;

use super::Object;
use crate::handler::{Handler as _, HandlerError, Progress, Staged};
use crate::lease::{Attempt, BatchInfo, CommitLease, Range, RollbackLease, StageLease, Token};
use crate::tasks::StageTask;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tokio_util::sync::CancellationToken;

/// A folder with a source, room for a library, and the handler.
pub(super) struct World {
    pub(super) dir: tempfile::TempDir,
    pub(super) object: Object,
    pub(super) params: BTreeMap<String, String>,
}

/// A path and its content; none for a folder.
pub(super) type Tree = BTreeMap<String, Option<Vec<u8>>>;

impl World {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("source")).unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let params =
            BTreeMap::from([("source".to_owned(), path("source")), ("library".to_owned(), path("library"))]);
        let object = Object::new([dir.path().to_owned()]);
        Self { dir, object, params }
    }

    pub(super) fn param(mut self, name: &str, value: &str) -> Self {
        self.params.insert(name.to_owned(), value.to_owned());
        self
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    /// Writes sources.
    pub(super) fn sources(&self, sources: &[(&str, &str)]) {
        for (path, content) in sources {
            self.write(&format!("source/{path}"), content);
        }
    }

    pub(super) fn batch(&self) -> BatchInfo {
        BatchInfo {
            name: "namespaces/default/batches/b1".into(),
            params: self.params.clone(),
            create_time_ms: 1_700_000_000_123,
            staged: 0,
        }
    }

    pub(super) fn lease(&self, counter: u64, first: u64, tasks: &[(&str, &str)]) -> StageLease {
        let range = Range { first, last: first + tasks.len() as u64 - 1 };
        StageLease {
            batch: self.batch(),
            token: Token { epoch: 5, counter },
            range,
            runs: vec![range],
            tasks: (first..)
                .zip(tasks)
                .map(|(sequence, (key, payload))| StageTask { sequence, key, payload: payload.as_bytes() })
                .collect(),
            attempt: 0,
        }
    }

    pub(super) async fn stage(&self, lease: &StageLease) -> Result<Staged, HandlerError> {
        self.object.stage(lease, &CancellationToken::new(), &Progress::default()).await
    }

    /// Stages and returns the failures' sequence numbers and codes.
    pub(super) async fn failures(&self, tasks: &[(&str, &str)]) -> Vec<(u64, String)> {
        let staged = self.stage(&self.lease(1, 1, tasks)).await.unwrap();
        staged.failures.into_iter().map(|failure| (failure.sequence, failure.code)).collect()
    }

    /// The only task's failure: its code and message.
    pub(super) async fn failure(&self, key: &str, payload: &str) -> (String, String) {
        let staged = self.stage(&self.lease(1, 1, &[(key, payload)])).await.unwrap();
        assert_eq!(staged.failures.len(), 1, "{key} was staged");
        let failure = staged.failures.into_iter().next().unwrap();
        (failure.code, failure.message)
    }

    pub(super) fn commit_lease(&self, attempts: Vec<Attempt>) -> CommitLease {
        CommitLease {
            batch: self.batch(),
            token: Token { epoch: 5, counter: 900 },
            range: Range { first: 1, last: 1000 },
            attempts,
            attempt: 0,
        }
    }

    pub(super) async fn rollback(&self, counters: &[u64]) -> Result<u64, HandlerError> {
        let attempt = |counter: &u64| Attempt {
            token: Token { epoch: 5, counter: *counter },
            runs: Vec::new(),
            receipt: Bytes::new(),
        };
        let lease = RollbackLease {
            batch: self.batch(),
            token: Token { epoch: 5, counter: 901 },
            range: Range { first: 1, last: 1000 },
            attempts: counters.iter().map(attempt).collect(),
            attempt: 0,
        };
        self.object.rollback(&lease).await
    }

    pub(super) fn library(&self) -> Tree {
        tree(&self.path("library"))
    }

    /// Everything but the source.
    pub(super) fn all(&self) -> Tree {
        let mut all = tree(self.dir.path());
        all.retain(|path, _| !path.starts_with("source"));
        all
    }

    pub(super) fn staging(&self) -> PathBuf {
        self.path(".library.tranche/staging")
    }
}

/// The attempt that a staged lease made: it won all that didn't fail.
pub(super) fn won(lease: &StageLease, staged: &Staged) -> Attempt {
    let failed = |sequence| staged.failures.iter().any(|failure| failure.sequence == sequence);
    let sequences = lease.tasks.iter().map(|task| task.sequence).filter(|sequence| !failed(*sequence));
    let runs = sequences.map(|sequence| Range { first: sequence, last: sequence }).collect();
    Attempt { token: lease.token, runs, receipt: staged.receipt.clone() }
}

/// All files and folders below a path; links as what they say.
pub(super) fn tree(root: &Path) -> Tree {
    let mut found = Tree::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            let meta = path.symlink_metadata().unwrap();
            if meta.is_dir() {
                found.insert(name, None);
                folders.push(path);
            } else if meta.is_symlink() {
                let link = std::fs::read_link(&path).unwrap();
                found.insert(name, Some(format!("-> {}", link.display()).into_bytes()));
            } else {
                found.insert(name, Some(std::fs::read(&path).unwrap()));
            }
        }
    }
    found
}

/// The files of a tree, as text.
pub(super) fn files(tree: &Tree) -> Vec<(&str, String)> {
    let text = |content: &Vec<u8>| String::from_utf8_lossy(content).into_owned();
    tree.iter().filter_map(|(path, content)| content.as_ref().map(|c| (path.as_str(), text(c)))).collect()
}
