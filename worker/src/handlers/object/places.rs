//! The open folders of a batch.

use super::fail::{OpenError, disk};
use super::target::{Located, Roots, Target};
use crate::handler::HandlerError;
use crate::handlers::params::ParamError;
use crate::lease::BatchInfo;
use cap_std::ambient_authority;
use cap_std::fs::{Dir, MetadataExt as _};
use std::io;
use std::path::{Path, PathBuf};

/// The folders that staging needs.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) source: Dir,
    /// None if it isn't there yet.
    pub(super) library: Option<Dir>,
    /// `{staging}/{batch id}`.
    pub(super) batch: Dir,
}

impl Places {
    pub(super) fn open(batch: &BatchInfo, target: &Target, roots: &Roots) -> Result<Self, OpenError> {
        let source_path = target.source(roots)?;
        let source = Dir::open_ambient_dir(&source_path, ambient_authority())
            .map_err(|error| ParamError::new("source", source_path.display(), error.to_string()))?;
        let located = target.locate()?;
        located.check(roots)?;
        let library = match Dir::open_ambient_dir(&located.library, ambient_authority()) {
            Ok(library) => Some(library),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                return Err(ParamError::new("library", located.library.display(), error.to_string()).into());
            }
        };
        same_file_system(&located)?;
        let batch = match make_batch_dir(&located, batch_dir_name(batch)?) {
            Ok(batch) => batch,
            Err(error) if is_a_wrong_place(&error) => {
                return Err(ParamError::new("staging", located.staging.display(), error.to_string()).into());
            }
            Err(error) => return Err(disk("making the folder", located.staging.display())(error).into()),
        };
        Ok(Self { source, library, batch })
    }
}

impl Places {
    /// Whether the batch's folder is still one; a removed one has no name.
    pub(super) fn is_there(&self) -> bool {
        self.batch.dir_metadata().is_ok_and(|meta| meta.nlink() > 0)
    }
}

/// The batch's id, which names its folder: nothing that leads elsewhere.
pub(super) fn batch_dir_name(batch: &BatchInfo) -> Result<&str, HandlerError> {
    match batch.id() {
        id if id.is_empty() || id == "." || id == ".." || id.contains('\0') => {
            Err(HandlerError::Refused(format!("the batch's id `{id}` can't name a folder")))
        }
        id => Ok(id),
    }
}

/// Makes `{staging}/{id}`. Another batch's sweep may remove the empty folder above it at any moment.
pub(super) fn make_batch_dir(located: &Located, id: &str) -> io::Result<Dir> {
    let path = located.staging.join(id);
    let mut tries = 0;
    loop {
        let made =
            std::fs::create_dir_all(&path).and_then(|()| Dir::open_ambient_dir(&path, ambient_authority()));
        match made {
            Err(error) if error.kind() == io::ErrorKind::NotFound && tries < 10 => tries += 1,
            made => return made,
        }
    }
}

fn is_a_wrong_place(error: &io::Error) -> bool {
    use io::ErrorKind::{AlreadyExists, NotADirectory, PermissionDenied, ReadOnlyFilesystem};
    matches!(error.kind(), AlreadyExists | NotADirectory | PermissionDenied | ReadOnlyFilesystem)
}

/// A rename can't cross file systems: better said before anything is made or copied.
fn same_file_system(located: &Located) -> Result<(), OpenError> {
    let device = |path: &Path| existing_device(path).map_err(disk("reading the folder", path.display()));
    if device(&located.library)? == device(&located.staging)? {
        return Ok(());
    }
    let rule = format!("must be on the file system of the library `{}`", located.library.display());
    Err(ParamError::new("staging", located.staging.display(), rule).into())
}

fn existing_device(path: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let there = path.ancestors().find_map(|there| there.metadata().ok());
    there.map(|meta| meta.dev()).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Splits a checked key into its folder (empty for none) and its name.
pub(super) fn split(key: &str) -> (&str, &str) {
    key.rsplit_once('/').unwrap_or(("", key))
}

/// Opens a folder inside another; nothing means itself.
pub(super) fn open_inside(dir: &Dir, folder: &str) -> io::Result<Dir> {
    if folder.is_empty() { dir.try_clone() } else { dir.open_dir(folder) }
}

/// A batch's places after it was decided: only library and staging count.
pub(super) fn decided(batch: &BatchInfo, roots: &Roots) -> Result<(Located, PathBuf), HandlerError> {
    let refused = |error: ParamError| HandlerError::Refused(error.to_string());
    let located = Target::parse(&batch.params).and_then(|target| target.locate()).map_err(refused)?;
    located.check(roots).map_err(refused)?;
    let dir = located.staging.join(batch_dir_name(batch)?);
    Ok((located, dir))
}
