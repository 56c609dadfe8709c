//! The file: opening, reading, and what to do when the disk fails.

use super::tables::{ENTRIES, FORMAT_VERSION, META, REVISION, Tables, entry};
use crate::store::check::prefix_range;
use crate::store::{Entry, Page, RangeOptions, Revision, StoreError};
use redb::{Database, DatabaseError, ReadableDatabase};
use std::fs::File;
use std::io::ErrorKind;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

/// Pages of the file kept in memory: the records of thousands of ranges.
const CACHE_BYTES: usize = 64 * 1024 * 1024;

/// The open file.
#[derive(Debug)]
pub(super) struct StoreFile {
    path: PathBuf,
    /// `Err`: why it is closed.
    database: RwLock<Result<Database, String>>,
}

impl StoreFile {
    /// Opens the file in the directory, making both if need be, and ends the sessions of the process
    /// that had it before. Returns the store's revision too.
    pub(super) fn open(dir: &Path) -> Result<(Self, Revision), StoreError> {
        let failed = |error: std::io::Error| {
            StoreError::Unavailable(format!("can't open the store in {}: {error}", dir.display()))
        };
        std::fs::create_dir_all(dir).map_err(failed)?;
        let path = dir.join("store.redb");
        let database = open_database(&path)?;
        let revision = prepare(&database, dir)?;
        // The file's name must be as durable as what is acknowledged in it.
        for made in [Some(dir), dir.parent()].into_iter().flatten().filter(|dir| *dir != Path::new("")) {
            File::open(made).and_then(|dir| dir.sync_all()).map_err(failed)?;
        }
        Ok((Self { path, database: RwLock::new(Ok(database)) }, revision))
    }

    /// Works with the open file.
    pub(super) fn with<T>(&self, work: impl FnOnce(&Database) -> T) -> Result<T, StoreError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        match &*database {
            Ok(database) => Ok(work(database)),
            Err(why) => Err(StoreError::Unavailable(why.clone())),
        }
    }

    /// Closes the file once all work with it is done, and so releases its lock.
    pub(super) fn close(&self, why: &str) {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        if database.is_ok() {
            *database = Err(format!("{}: {why}", self.path.display()));
        }
    }

    /// Recovers from a full disk: redb refuses everything after a failed write until the file is
    /// opened anew. Returns the revision found then.
    pub(super) fn reopen(&self) -> Result<Revision, StoreError> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        // The lock is released first.
        *database = Err(format!("{}: closed after a failed write", self.path.display()));
        let opened = open_database(&self.path)?;
        let revision = read_revision(&opened).map_err(|error| unavailable(&error))?;
        *database = Ok(opened);
        Ok(revision)
    }

    pub(super) fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.with(|database| {
            let read = || -> Result<_, redb::Error> {
                let entries = database.begin_read()?.open_table(ENTRIES)?;
                Ok(entries.get(key.as_bytes())?.map(|stored| entry(key.as_bytes(), stored.value())))
            };
            read().map_err(|error| unavailable(&error))?.transpose()
        })?
    }

    pub(super) fn range(&self, prefix: &str, options: &RangeOptions) -> Result<Page, StoreError> {
        self.with(|database| read_range(database, prefix, options).map_err(|error| unavailable(&error))?)?
    }
}

fn read_range(
    database: &Database,
    prefix: &str,
    options: &RangeOptions,
) -> Result<Result<Page, StoreError>, redb::Error> {
    let read = database.begin_read()?;
    let revision = read.open_table(META)?.get(REVISION)?.map_or(0, |revision| revision.value());
    let mut page = Page { entries: Vec::new(), more: false, revision };
    let (start, end) = prefix_range(prefix.as_bytes());
    let mut lower = Bound::Included(start.as_slice());
    let mut upper = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
    if let Some(after) = options.after.as_deref().map(str::as_bytes) {
        if options.descending {
            if after <= start.as_slice() {
                return Ok(Ok(page));
            }
            if end.as_deref().is_none_or(|end| after < end) {
                upper = Bound::Excluded(after);
            }
        } else if end.as_deref().is_some_and(|end| after >= end) {
            return Ok(Ok(page));
        } else if after >= start.as_slice() {
            lower = Bound::Excluded(after);
        }
    }
    let table = read.open_table(ENTRIES)?;
    let mut rows = table.range::<&[u8]>((lower, upper))?;
    loop {
        let row = if options.descending { rows.next_back() } else { rows.next() };
        let Some(row) = row else { break };
        if options.limit > 0 && page.entries.len() == options.limit {
            page.more = true;
            break;
        }
        let (key, stored) = row?;
        match entry(key.value(), stored.value()) {
            Ok(entry) => page.entries.push(entry),
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(page))
}

fn open_database(path: &Path) -> Result<Database, StoreError> {
    redb::Builder::new().set_cache_size(CACHE_BYTES).create(path).map_err(|error| {
        let dir = path.parent().unwrap_or(path).display();
        match error {
            DatabaseError::DatabaseAlreadyOpen => {
                StoreError::Unavailable(format!("the store in {dir} is in use by another process"))
            }
            error => StoreError::Unavailable(format!("can't open the store in {dir}: {error}")),
        }
    })
}

/// Makes the tables, checks the layout and deletes the keys of earlier sessions: their process is dead,
/// or it would hold the file's lock.
fn prepare(database: &Database, dir: &Path) -> Result<Revision, StoreError> {
    let work = || -> Result<Result<Revision, u64>, redb::Error> {
        let write = database.begin_write()?;
        let mut tables = Tables::open(&write)?;
        let format = tables.format()?;
        if format != FORMAT_VERSION {
            return Ok(Err(format));
        }
        tables.end_all_sessions()?;
        let revision = tables.revision;
        tables.finish()?;
        write.commit()?;
        Ok(Ok(revision))
    };
    work().map_err(|error| failure(&error))?.map_err(|format| {
        StoreError::Rejected(format!(
            "the store in {} has layout {format}; this version knows only {FORMAT_VERSION}",
            dir.display()
        ))
    })
}

fn read_revision(database: &Database) -> Result<Revision, redb::Error> {
    let meta = database.begin_read()?.open_table(META)?;
    Ok(meta.get(REVISION)?.map_or(0, |revision| revision.value()))
}

/// Whether the disk is full: nothing but that is a failed write after which the file can be trusted.
/// (After a failed fsync the kernel may show pages that are not on the disk.)
pub(super) fn disk_full(error: &redb::Error) -> bool {
    let redb::Error::Io(error) = error else { return false };
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge)
}

/// A failure before anything was changed.
pub(super) fn failure(error: &redb::Error) -> StoreError {
    if disk_full(error) { StoreError::Full(error.to_string()) } else { unavailable(error) }
}

fn unavailable(error: &redb::Error) -> StoreError {
    StoreError::Unavailable(error.to_string())
}
