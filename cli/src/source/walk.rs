//! A folder's regular files, in the order of their paths.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio_stream::wrappers::ReceiverStream;
use tranche_client::v1::Task;
use walkdir::WalkDir;

use super::{Sink, SourceError};

/// What the walk left out. Clones count together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Skipped {
    symlinks: Arc<AtomicU64>,
    others: Arc<AtomicU64>,
}

impl Skipped {
    pub(crate) fn symlinks(&self) -> u64 {
        self.symlinks.load(Relaxed)
    }

    /// Sockets, pipes, devices.
    pub(crate) fn others(&self) -> u64 {
        self.others.load(Relaxed)
    }

    /// `skipped 2 symbolic links (they are not followed) and 1 special file`; None when there is nothing
    /// to say.
    pub(crate) fn describe(&self) -> Option<String> {
        let plural = |n: u64| if n == 1 { "" } else { "s" };
        let (links, others) = (self.symlinks(), self.others());
        let mut parts = Vec::new();
        if links > 0 {
            parts.push(format!("{links} symbolic link{} (never followed)", plural(links)));
        }
        if others > 0 {
            parts.push(format!("{others} special file{} (sockets, pipes, devices)", plural(others)));
        }
        (!parts.is_empty()).then(|| format!("skipped {}", parts.join(" and ")))
    }
}

/// One task for each regular file below `folder`; its key is the path from there, with `/`.
///
/// Each folder is sorted by name as it is met, so memory is bounded by the largest folder.
pub(crate) fn tasks(folder: PathBuf, skipped: Skipped) -> ReceiverStream<Result<Task, SourceError>> {
    super::stream(move |sink| walk(&folder, &skipped, sink))
}

fn walk(folder: &Path, skipped: &Skipped, sink: &Sink) -> Result<(), SourceError> {
    for entry in WalkDir::new(folder).min_depth(1).follow_links(false).sort_by_file_name() {
        let entry = entry.map_err(|error| {
            let what = error.path().unwrap_or(folder).display().to_string();
            let text = error.to_string();
            match error.into_io_error() {
                Some(source) => SourceError::Read { what, source },
                None => SourceError::Walk(text),
            }
        })?;
        let kind = entry.file_type();
        if kind.is_file() {
            let path = entry.path();
            let below = path.strip_prefix(folder).unwrap_or(path);
            let key = below.to_str().ok_or_else(|| SourceError::Name(below.to_owned()))?.to_owned();
            sink.task(Task { key, ..Default::default() })?;
        } else if kind.is_symlink() {
            skipped.symlinks.fetch_add(1, Relaxed);
        } else if !kind.is_dir() {
            skipped.others.fetch_add(1, Relaxed);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::symlink;

    use tokio_stream::StreamExt as _;

    use super::*;

    async fn keys(folder: &Path) -> (Vec<String>, Skipped) {
        let skipped = Skipped::default();
        let tasks: Vec<_> = tasks(folder.to_owned(), skipped.clone()).collect().await;
        let keys = tasks.into_iter().map(|t| {
            let task = t.unwrap();
            assert!(task.payload.is_empty());
            task.key
        });
        (keys.collect(), skipped)
    }

    #[tokio::test]
    async fn regular_files_in_the_order_of_their_paths() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path();
        fs::create_dir_all(path.join("b/deep")).unwrap();
        fs::create_dir(path.join("empty")).unwrap();
        for name in ["z.png", "a.png", "b/2.png", "b/10.png", "b/deep/x"] {
            fs::write(path.join(name), name).unwrap();
        }
        symlink(path.join("a.png"), path.join("link.png")).unwrap();
        symlink(path, path.join("b/loop")).unwrap();
        let socket = std::os::unix::net::UnixListener::bind(path.join("socket")).unwrap();
        let (keys, skipped) = keys(path).await;
        assert_eq!(keys, ["a.png", "b/10.png", "b/2.png", "b/deep/x", "z.png"]);
        assert_eq!(
            skipped.describe().unwrap(),
            "skipped 2 symbolic links (never followed) and 1 special file (sockets, pipes, devices)"
        );
        drop(socket);
    }

    #[tokio::test]
    async fn an_empty_folder_has_no_tasks() {
        let root = tempfile::tempdir().unwrap();
        let (keys, skipped) = keys(root.path()).await;
        assert!(keys.is_empty());
        assert_eq!(skipped.describe(), None);
    }

    #[tokio::test]
    async fn a_name_that_is_no_text_is_an_error_that_names_it() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join(std::ffi::OsStr::from_bytes(b"bad\xff.png")), "").unwrap();
        let mut tasks = tasks(root.path().to_owned(), Skipped::default());
        let error = tasks.next().await.unwrap().unwrap_err();
        assert_eq!(error.to_string(), "the name of \"bad\\xFF.png\" is not UTF-8; rename it");
    }
}
