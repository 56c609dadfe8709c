//! Makes staged files final: renames them into the library.

use super::attempt::{self, Receipt, TREE};
use super::fail::disk;
use super::index;
use super::manifest::{self, Manifest};
use super::places::{decided, open_inside, split};
use super::sync::Sync;
use super::target::Roots;
use crate::handler::HandlerError;
use crate::lease::{Attempt, CommitLease, contains, count};
use cap_std::ambient_authority;
use cap_std::fs::Dir;
use rustix::io::Errno;
use std::collections::HashMap;
use std::io;
use std::path::Path;
use tranche_guards::Guard;

/// Idempotent at every point: a file that isn't staged any more and is in the library was moved. Also after the batch's
/// end, when nothing is staged any more: a coordinator whose records come from a backup doesn't know of it.
pub(super) fn commit(lease: &CommitLease, roots: &Roots) -> Result<u64, HandlerError> {
    if lease.tasks() == 0 {
        return Ok(0);
    }
    let (located, batch_path) = decided(&lease.batch, roots)?;
    if published(lease, &located.library, &batch_path)? {
        return Ok(lease.tasks());
    }
    let batch = Dir::open_ambient_dir(&batch_path, ambient_authority())
        .map_err(disk("opening the staged batch", batch_path.display()))?;
    std::fs::create_dir_all(&located.library).map_err(disk("making", located.library.display()))?;
    let library = Dir::open_ambient_dir(&located.library, ambient_authority())
        .map_err(disk("opening", located.library.display()))?;
    let sync = Sync::open(&library, "the library")?;
    let mut moved = Vec::new();
    for won in lease.attempts.iter().filter(|attempt| !attempt.runs.is_empty()) {
        let name = won.token.to_string();
        let dir = batch.open_dir(&name).map_err(disk("opening the staged attempt", &name))?;
        if !attempt::is_committed(&dir, &won.runs) {
            // Before the first file leaves: publish needs it, and the sync below makes it durable too.
            attempt::write_winner(&dir, &won.runs)?;
            move_all(won, &name, &dir, &library)?;
            moved.push((dir, &won.runs));
        }
    }
    if !moved.is_empty() && Guard::SyncBeforeCommitted.on() {
        // Staging is on the library's file system, so this makes both ends of the renames durable.
        sync.file_system()?;
    }
    for (dir, runs) in &moved {
        attempt::mark_committed(dir, runs)?;
    }
    Ok(lease.tasks())
}

/// Whether the library says that the batch was published, with all that the lease would move. Then there is nothing
/// to do, and staging may be gone, wholly or in part: it isn't needed.
fn published(lease: &CommitLease, library: &Path, batch: &Path) -> Result<bool, HandlerError> {
    let library = match Dir::open_ambient_dir(library, ambient_authority()) {
        Ok(library) => library,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(disk("opening", library.display())(error)),
    };
    let Some(manifest) = Manifest::read(&library, &lease.batch)? else { return Ok(false) };
    for won in lease.attempts.iter().filter(|attempt| !attempt.runs.is_empty()) {
        let receipt = receipt(won)?;
        if manifest.has(won, receipt.as_ref()) {
            continue;
        }
        // Staged once more, since the records were restored. What readers have seen stays: it must be the same.
        let name = won.token.to_string();
        let dir = Dir::open_ambient_dir(batch.join(&name), ambient_authority())
            .map_err(disk("opening the staged attempt", &name))?;
        let mut staged = HashMap::new();
        let hash = index::read(&dir, &name, |entry| {
            if contains(&won.runs, entry.seq) {
                staged.insert(entry.key, (entry.size, entry.blake3));
            }
            Ok(())
        })?;
        check_index(won, &name, staged.len() as u64, hash)?;
        manifest::check_objects(&library, &lease.batch, staged)?;
    }
    Ok(true)
}

fn move_all(won: &Attempt, name: &str, attempt: &Dir, library: &Dir) -> Result<(), HandlerError> {
    let tree = attempt.open_dir(TREE).map_err(disk("opening", format!("{name}/{TREE}")))?;
    let mut mover = Mover { tree, library, folder: None };
    let mut found = 0;
    let hash = index::read(attempt, name, |entry| {
        if contains(&won.runs, entry.seq) {
            found += 1;
            mover.move_one(&entry.key)?;
        }
        Ok(())
    })?;
    check_index(won, name, found, hash)
}

/// Whether an attempt's index is the one that was reported, with all that it won.
fn check_index(won: &Attempt, name: &str, found: u64, hash: blake3::Hash) -> Result<(), HandlerError> {
    if found != count(&won.runs) {
        let won = count(&won.runs);
        return Err(HandlerError::Refused(format!("`{name}` has {found} of the {won} files that it staged")));
    }
    match receipt(won)? {
        Some(receipt) if receipt.index != hash.to_hex().as_str() => {
            Err(HandlerError::Refused(format!("the index of `{name}` isn't the one that was reported")))
        }
        Some(_) | None => Ok(()),
    }
}

fn receipt(won: &Attempt) -> Result<Option<Receipt>, HandlerError> {
    if won.receipt.is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(&won.receipt)
        .map(Some)
        .map_err(|error| HandlerError::Refused(format!("the receipt of `{}` is damaged: {error}", won.token)))
}

struct Mover<'a> {
    tree: Dir,
    library: &'a Dir,
    /// The folder of the last file, in the tree and in the library.
    folder: Option<(String, Dir, Dir)>,
}

impl Mover<'_> {
    fn move_one(&mut self, key: &str) -> Result<(), HandlerError> {
        let (folder, name) = split(key);
        if self.folder.as_ref().is_none_or(|(open, ..)| open != folder) {
            let doing = || disk("making the library's folder", folder.to_owned());
            if !folder.is_empty() {
                self.library.create_dir_all(folder).map_err(doing())?;
            }
            let to = open_inside(self.library, folder).map_err(doing())?;
            let from = open_inside(&self.tree, folder).map_err(disk("opening the staged folder", folder))?;
            self.folder = Some((folder.to_owned(), from, to));
        }
        let Some((_, from, to)) = &self.folder else { return Ok(()) };
        // One name in each folder: there is nothing left to be led astray by.
        match rustix::fs::renameat(from, name, to, name) {
            Ok(()) => Ok(()),
            Err(Errno::NOENT) if to.symlink_metadata(name).is_ok() => Ok(()),
            Err(Errno::NOENT) => {
                let message = format!("`{key}` is neither staged nor in the library");
                Err(HandlerError::Refused(message))
            }
            Err(error) => Err(disk("moving into the library", key)(io::Error::from(error))),
        }
    }
}
