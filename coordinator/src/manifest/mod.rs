//! What is too large for the store: task segments, failure details, completion reports.
//!
//! All of it is in object storage, under `batches/{namespace}/{batch}/`. An object is written once and
//! never changed (but the report, which is written again when the coordinator died before it could say
//! that it wrote it), so that whoever holds a record that names it can rely on its bytes; size and
//! CRC-32C are checked at every read from storage.

mod cache;
mod pack;

use crate::error::Error;
use crate::store::keys::BatchKey;
use cache::Cache;
use futures::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutPayload};
use pack::{Aligned, Pack};
use prost::Message;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tranche_proto::{TaskList, v1};
use uuid::Uuid;

/// How many bytes of segments stay in memory, so that tasks which were just appended are leased without
/// a read. 64 MiB: sixteen full segments, far more than a fleet has open at once, and well below the
/// memory that a coordinator may use. What was leased doesn't stay.
pub const CACHE_BYTES: usize = 64 * 1024 * 1024;

/// Object storage. A clone is one more handle on the same.
#[derive(Clone, Debug)]
pub struct Objects {
    store: Arc<dyn ObjectStore>,
    /// The directory, when the storage is one.
    dir: Option<PathBuf>,
    cache: Arc<Mutex<Cache>>,
}

impl Objects {
    /// Object storage in a local directory, which is created if missing. Writes are synced to disk before
    /// they are done.
    ///
    /// # Errors
    /// When the directory can't be created or read.
    pub fn local(dir: &Path) -> Result<Self, Error> {
        Self::local_with_cache(dir, CACHE_BYTES)
    }

    fn local_with_cache(dir: &Path, cache_bytes: usize) -> Result<Self, Error> {
        let failed = |error: &dyn std::fmt::Display| Error::Objects(format!("{}: {error}", dir.display()));
        std::fs::create_dir_all(dir).map_err(|error| failed(&error))?;
        let dir = dir.canonicalize().map_err(|error| failed(&error))?;
        let store = LocalFileSystem::new_with_prefix(&dir).map_err(|error| failed(&error))?.with_fsync(true);
        Ok(Self {
            store: Arc::new(store),
            dir: Some(dir),
            cache: Arc::new(Mutex::new(Cache::new(cache_bytes))),
        })
    }

    /// Object storage of any kind, for instance in memory. Several may share one, each with a cache of its own.
    pub fn over(store: Arc<dyn ObjectStore>) -> Self {
        Self { store, dir: None, cache: Arc::new(Mutex::new(Cache::new(CACHE_BYTES))) }
    }

    /// Where an object is, for people: its file's path, or its path in the storage.
    pub fn uri(&self, path: &str) -> String {
        self.dir.as_ref().map_or_else(|| path.to_owned(), |dir| dir.join(path).display().to_string())
    }

    /// Where one stream's segments go.
    pub fn segments(&self, batch: &BatchKey) -> Segments {
        // A new name each time: what an owner that lost the batch still writes can't be where a record of the new
        // owner says that its tasks are.
        let name = format!("{}tasks-{}", folder(batch), Uuid::new_v4().simple());
        let pack = self.dir.as_ref().map(|dir| Arc::new(Pack::new(dir.join(&name))));
        Segments { objects: self.clone(), name, pack }
    }

    /// Reads the tasks of `runs`, in their order, from consecutive segments that hold them all. They come in
    /// pieces, each a slice of the segment that holds it: nothing is copied, and nothing is decoded.
    ///
    /// # Errors
    /// [`Error::Damaged`], which names the object, when it is missing or isn't what was written, or when no
    /// segment holds a task; [`Error::Objects`] when storage doesn't answer.
    pub async fn read_tasks(
        &self,
        segments: &[v1::SegmentRecord],
        runs: &[(u64, u64)],
    ) -> Result<Vec<TaskList>, Error> {
        let mut pieces = Vec::new();
        let mut open: Option<(usize, Arc<TaskList>)> = None;
        for &(first, last) in runs {
            let mut next = first;
            while next <= last {
                let index = segments.partition_point(|s| s.last.cast_unsigned() < next);
                let Some(record) = segments.get(index).filter(|s| s.first.cast_unsigned() <= next) else {
                    return Err(Error::Damaged {
                        what: segments.first().map_or_else(|| "manifest".to_owned(), |s| s.object.clone()),
                        message: format!("no segment from here on holds task {next}"),
                    });
                };
                let end = last.min(record.last.cast_unsigned());
                let base = record.first.cast_unsigned();
                let tasks = (end + 1 - next) as usize;
                let segment = match &open {
                    Some((at, segment)) if *at == index => {
                        self.cache().take(&record.into(), tasks);
                        segment.clone()
                    }
                    _ => self.segment(record, tasks).await?,
                };
                pieces.push(segment.slice((next - base) as usize..(end + 1 - base) as usize));
                open = Some((index, segment));
                next = end + 1;
            }
        }
        Ok(pieces)
    }

    /// Writes the failures of one lease. The same failures under the same token are the same object.
    ///
    /// # Errors
    /// [`Error::Objects`] when storage doesn't take it.
    pub async fn write_failures(
        &self,
        batch: &BatchKey,
        first: u64,
        token: (u64, u64),
        failures: Vec<v1::TaskFailure>,
    ) -> Result<String, Error> {
        let bytes = v1::FailureList { failures }.encode_to_vec();
        // Range records hold only the path, so the checksum is part of it.
        let object = format!(
            "{}failures/{first:020}-{}-{}-{:08x}",
            folder(batch),
            token.0,
            token.1,
            crc32c::crc32c(&bytes)
        );
        self.put(&object, bytes.into()).await?;
        Ok(object)
    }

    /// Reads what [`Self::write_failures`] wrote.
    ///
    /// # Errors
    /// [`Error::Damaged`] when the object is missing or isn't what was written; [`Error::Objects`] when
    /// storage doesn't answer.
    pub async fn read_failures(&self, object: &str) -> Result<Vec<v1::TaskFailure>, Error> {
        let bytes = self.get(object, None).await?;
        let sum = object.rsplit_once('-').and_then(|(_, sum)| u32::from_str_radix(sum, 16).ok());
        if sum != Some(crc32c::crc32c(&bytes)) {
            return Err(damaged(object, "its checksum is not the one in its name".to_owned()));
        }
        let list = v1::FailureList::decode(bytes).map_err(|error| damaged(object, error.to_string()))?;
        Ok(list.failures)
    }

    /// Writes a batch's completion report and says where it is.
    ///
    /// # Errors
    /// [`Error::Objects`] when storage doesn't take it.
    pub async fn write_report(&self, batch: &BatchKey, report: &serde_json::Value) -> Result<String, Error> {
        let object = format!("{}report.json", folder(batch));
        self.put(&object, format!("{report:#}\n").into()).await?;
        Ok(self.uri(&object))
    }

    /// Deletes everything of a batch. One that has nothing is no error.
    ///
    /// # Errors
    /// [`Error::Objects`] when storage doesn't do it; it can be called again.
    pub async fn delete_batch(&self, batch: &BatchKey) -> Result<(), Error> {
        let folder = folder(batch);
        self.cache().remove_folder(&folder);
        let prefix = object_path(&folder)?;
        let listed = self.store.list(Some(&prefix)).map_ok(|object| object.location).boxed();
        let mut deleted = self.store.delete_stream(listed);
        while let Some(result) = deleted.next().await {
            match result {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(failed(&folder, &error)),
            }
        }
        let Some(dir) = &self.dir else { return Ok(()) };
        // A local write that a crash cut off leaves a temporary file that listings don't show; it and the
        // empty directories go too.
        let dir = dir.join(&folder);
        let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(dir)).await;
        match removed.map_err(|error| Error::Objects(error.to_string()))? {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(&folder, &error)),
            _ => Ok(()),
        }
    }

    /// The segment, of which so many tasks are taken.
    async fn segment(&self, record: &v1::SegmentRecord, tasks: usize) -> Result<Arc<TaskList>, Error> {
        if let Some(segment) = self.cache().take(&record.into(), tasks) {
            return Ok(segment);
        }
        let object = &record.object;
        let begin = record.offset.cast_unsigned();
        let bytes = self.get(object, Some(begin..begin + record.size.cast_unsigned())).await?;
        if crc32c::crc32c(&bytes) != record.crc32c {
            return Err(damaged(object, "its checksum is not the recorded one".to_owned()));
        }
        let segment = TaskList::decode(bytes).map_err(|error| damaged(object, error.to_string()))?;
        let wanted = record.last + 1 - record.first;
        if segment.len() as u64 != wanted.cast_unsigned() {
            return Err(damaged(object, format!("it holds {} tasks instead of {wanted}", segment.len())));
        }
        let segment = Arc::new(segment);
        let mut cache = self.cache();
        cache.insert(record.into(), segment.clone());
        cache.take(&record.into(), tasks);
        Ok(segment)
    }

    async fn put(&self, object: &str, payload: PutPayload) -> Result<(), Error> {
        self.store.put(&object_path(object)?, payload).await.map_err(|error| failed(object, &error))?;
        Ok(())
    }

    /// Reads an object, or a part of it.
    async fn get(&self, object: &str, part: Option<std::ops::Range<u64>>) -> Result<bytes::Bytes, Error> {
        let path = object_path(object)?;
        let options = GetOptions { range: part.clone().map(GetRange::Bounded), ..Default::default() };
        let found = self.store.get_opts(&path, options).await;
        let size = match &found {
            Ok(found) => found.meta.size,
            Err(object_store::Error::NotFound { .. }) => {
                return Err(damaged(object, "it is missing".to_owned()));
            }
            // What begins behind its end is an error of no kind of its own.
            Err(error) => self.store.head(&path).await.map_err(|_| failed(object, error))?.size,
        };
        if let Some(part) = part.filter(|part| part.end > size) {
            return Err(damaged(object, format!("it has {size} bytes, the tasks end at {}", part.end)));
        }
        let found = found.map_err(|error| failed(object, &error))?;
        found.bytes().await.map_err(|error| failed(object, &error))
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        // Nothing panics while it is held; if it did, a cache is right at every step.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes one stream's segments: into one file, where storage is a directory, or into an object each.
#[derive(Clone, Debug)]
pub struct Segments {
    objects: Objects,
    name: String,
    pack: Option<Arc<Pack>>,
}

impl Segments {
    /// Writes consecutive tasks, durably; the record is what later finds and checks them. Several may be written at a
    /// time: the first counts from when it is done, another from when those before it are done, too.
    ///
    /// # Errors
    /// [`Error::Objects`] when storage doesn't take it; nothing counts then.
    pub async fn write(&self, first: u64, lists: Vec<TaskList>) -> Result<v1::SegmentRecord, Error> {
        let count: usize = lists.iter().map(TaskList::len).sum();
        let mut record = v1::SegmentRecord {
            first: first.cast_signed(),
            last: (first + count as u64).cast_signed() - 1,
            object: self.name.clone(),
            ..Default::default()
        };
        let tasks = if let Some(pack) = self.pack.clone() {
            let write = move || {
                let (aligned, tasks, sum) = join(&lists);
                drop(lists);
                pack.write(&aligned).map(|offset| (tasks, sum, offset))
            };
            let written = tokio::task::spawn_blocking(write).await;
            let written = written.map_err(|error| Error::Objects(error.to_string()))?;
            let (tasks, sum, offset) = written.map_err(|error| failed(&self.name, &error))?;
            (record.crc32c, record.offset) = (sum, offset.cast_signed());
            tasks
        } else {
            let tasks = TaskList::concat(&lists);
            record.object = format!("{}-{first:020}", self.name);
            record.crc32c = crc32c::crc32c(tasks.bytes());
            self.objects.put(&record.object, tasks.bytes().clone().into()).await?;
            tasks
        };
        record.size = (tasks.bytes().len() as u64).cast_signed();
        self.objects.cache().insert((&record).into(), Arc::new(tasks));
        Ok(record)
    }
}

/// Makes a segment of lists, with its checksum.
pub(crate) fn join(lists: &[TaskList]) -> (Aligned, TaskList, u32) {
    let (aligned, tasks) = Aligned::concat(lists);
    let sum = crc32c::crc32c(tasks.bytes());
    (aligned, tasks, sum)
}

/// Everything of a batch is under this. Namespace and id are words of `a-z0-9-` ([`BatchKey::parse`]).
fn folder(batch: &BatchKey) -> String {
    format!("batches/{}/{}/", batch.namespace, batch.id)
}

/// Refuses what isn't a plain path below the storage's root (`..`, empty components).
fn object_path(object: &str) -> Result<ObjectPath, Error> {
    ObjectPath::parse(object).map_err(|error| damaged(object, error.to_string()))
}

fn damaged(object: &str, message: String) -> Error {
    Error::Damaged { what: format!("object {object}"), message }
}

/// The error with its causes: "no space left" is usually the innermost.
fn failed(object: &str, error: &dyn std::error::Error) -> Error {
    let mut text = format!("{object}: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    Error::Objects(text)
}

#[cfg(test)]
mod tests;
