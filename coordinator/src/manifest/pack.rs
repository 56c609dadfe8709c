//! Segments on a local disk: a file a stream, each segment one write behind the one before, one sync.
//!
//! A new file for every segment would cost a journal commit for its name each time, which is most of the time of a
//! small write and a third of a large one. And bytes that go past the page cache (`O_DIRECT`) cost the processor
//! nothing: they are in memory here anyway, for the leases that come next. A file system that can't do that is
//! written to as usual.

use bytes::{Bytes, BytesMut};
use rustix::fs::OFlags;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tranche_proto::TaskList;

/// What segments begin at and are padded to: more than any disk of today asks of direct writes.
const ALIGN: usize = 4096;

/// A file of segments, written by one stream.
#[derive(Debug)]
pub(super) struct Pack {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    file: Option<Arc<File>>,
    /// Whose entries lead to it, and aren't known to be durable.
    folders: Vec<PathBuf>,
    /// Where the next segment goes.
    end: u64,
    /// Something in it is durable.
    used: bool,
}

impl Pack {
    /// A file that is made with its first segment.
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, state: Mutex::default() }
    }

    /// Writes a segment, durably: its bytes, and before the first is done the file's name and the folders that lead to
    /// it. Returns where it is. Several may be written at a time.
    pub(super) fn write(&self, segment: &Aligned) -> io::Result<u64> {
        let (file, offset) = {
            let mut state = self.state();
            let file = if let Some(file) = &state.file {
                file.clone()
            } else {
                let file = Arc::new(create(&self.path, &mut state.folders)?);
                state.file = Some(file.clone());
                file
            };
            let offset = state.end;
            state.end += segment.padded.len() as u64;
            (file, offset)
        };
        file.write_all_at(&segment.padded, offset)?;
        file.sync_data()?;
        // After the data, whose commit has taken the names along where the file system has a journal. Each of the first
        // writes does it: none may be done before the name is durable.
        let folders = self.state().folders.clone();
        for folder in folders {
            File::open(folder)?.sync_all()?;
        }
        let mut state = self.state();
        state.folders.clear();
        state.used = true;
        Ok(offset)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic can't leave it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pack {
    fn drop(&mut self) {
        let state = self.state();
        if state.file.is_some() && !state.used {
            // What is left of a write that failed counts for nothing. If it stays, it goes with its batch.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Creates the file, and the folders that it needs: `folders` gets those that must be synced then.
fn create(path: &Path, folders: &mut Vec<PathBuf>) -> io::Result<File> {
    let folder = path.parent().ok_or(ErrorKind::InvalidInput)?;
    let file = match create_new(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let there = folder.ancestors().skip(1).find(|above| above.is_dir());
            fs::create_dir_all(folder)?;
            // Those between may be another writer's, who hasn't synced them yet.
            folders.extend(
                folder.ancestors().skip(1).take_while(|above| Some(*above) != there).map(Path::to_owned),
            );
            folders.extend(there.map(Path::to_owned));
            create_new(path)?
        }
        file => file?,
    };
    folders.insert(0, folder.to_owned());
    Ok(file)
}

fn create_new(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    let direct = i32::try_from(OFlags::DIRECT.bits()).map_err(io::Error::other)?;
    match options.clone().custom_flags(direct).open(path) {
        Err(error) if error.kind() == ErrorKind::InvalidInput => {
            // It may be there already: the flag is looked at after the name is made.
            let _ = fs::remove_file(path);
            options.open(path)
        }
        file => file,
    }
}

/// A segment's bytes in memory as a direct write wants them.
pub(crate) struct Aligned {
    /// Begins and ends at a multiple of [`ALIGN`]; zeros behind the tasks.
    padded: Bytes,
}

impl Aligned {
    /// Joins lists: one copy of their bytes. The list that comes with it shares them.
    pub(super) fn concat(lists: &[TaskList]) -> (Self, TaskList) {
        let len: usize = lists.iter().map(|list| list.bytes().len()).sum();
        let padded = len.next_multiple_of(ALIGN);
        let mut buffer = BytesMut::zeroed(padded + ALIGN);
        let begin = buffer.as_ptr().align_offset(ALIGN).min(ALIGN);
        let mut at = begin;
        for list in lists {
            buffer[at..at + list.bytes().len()].copy_from_slice(list.bytes());
            at += list.bytes().len();
        }
        let buffer = buffer.freeze();
        let tasks = TaskList::moved(lists, buffer.slice(begin..at));
        (Self { padded: buffer.slice(begin..begin + padded) }, tasks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tranche_proto::v1::Task;

    fn list(payload: usize) -> TaskList {
        [Task { key: "k".into(), payload: vec![7; payload].into() }].into_iter().collect()
    }

    #[test]
    fn segments_lie_one_behind_the_other_on_whole_blocks() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("a/b/c/pack");
        let pack = Pack::new(path.clone());
        let mut end = 0;
        for sizes in [vec![1], vec![4089], vec![4090], vec![4091, 10, 10_000], vec![0]] {
            let lists: Vec<_> = sizes.into_iter().map(list).collect();
            let (aligned, joined) = Aligned::concat(&lists);
            assert_eq!(joined, TaskList::concat(&lists));
            assert_eq!(aligned.padded.as_ptr().align_offset(ALIGN), 0);
            assert_eq!(pack.write(&aligned).expect("written"), end);
            let file = fs::read(&path).expect("there");
            let at = end as usize;
            assert_eq!(&file[at..at + joined.bytes().len()], joined.bytes());
            assert!(file[at + joined.bytes().len()..].iter().all(|byte| *byte == 0));
            end += joined.bytes().len().next_multiple_of(ALIGN) as u64;
            assert_eq!(file.len() as u64, end);
        }
        drop(pack);
        assert!(path.exists());
    }

    #[test]
    fn a_file_in_which_nothing_counts_is_removed_and_one_that_is_there_is_not_touched() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("pack");
        let pack = Pack::new(path.clone());
        pack.state().file = Some(create_new(&path).expect("made").into());
        drop(pack);
        assert!(!path.exists());
        fs::write(&path, "another's").expect("written");
        let error = Pack::new(path.clone()).write(&Aligned::concat(&[list(1)]).0).expect_err("it is there");
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).expect("read"), b"another's");
    }
}
