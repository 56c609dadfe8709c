//! Makes staged files final: renames them into the library.

use super::attempt::{self, Receipt, TREE};
use super::fail::disk;
use super::index;
use super::places::{decided, open_inside, split};
use super::sync::Sync;
use super::target::Roots;
use crate::handler::HandlerError;
use crate::lease::{Attempt, CommitLease, contains, count};
use cap_std::ambient_authority;
use cap_std::fs::Dir;
use rustix::io::Errno;
use std::io;
use tranche_guards::Guard;

/// Idempotent at every point: a file that isn't staged any more and is in the library was moved.
pub(super) fn commit(lease: &CommitLease, roots: &Roots) -> Result<u64, HandlerError> {
    if lease.tasks() == 0 {
        return Ok(0);
    }
    let (located, batch_path) = decided(&lease.batch, roots)?;
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
    if found != count(&won.runs) {
        let won = count(&won.runs);
        return Err(HandlerError::Refused(format!("`{name}` has {found} of the {won} files that it staged")));
    }
    if won.receipt.is_empty() {
        return Ok(());
    }
    match serde_json::from_slice::<Receipt>(&won.receipt) {
        Ok(receipt) if receipt.index != hash.to_hex().as_str() => {
            Err(HandlerError::Refused(format!("the index of `{name}` isn't the one that was reported")))
        }
        Ok(_) => Ok(()),
        Err(error) => Err(HandlerError::Refused(format!("the receipt of `{name}` is damaged: {error}"))),
    }
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
