//! Copies one file into staging, and checks it on the way.

use super::fail::{StageError, TaskFail, disk, escapes};
use super::key::{Checksum, Wanted};
use crate::handler::HandlerError;
use cap_std::fs::{Dir, File, OpenOptions, OpenOptionsExt as _};
use sha2::{Digest as _, Sha256};
use std::io::{self, BufReader, Read as _, Seek as _, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use tokio_util::sync::CancellationToken;

/// Large enough that most pictures take few calls, small enough to stay in the processor's cache.
const BUFFER: usize = 256 * 1024;

/// A source that is open for reading.
pub(super) struct Source {
    file: File,
    /// Bytes, as it was opened. 0 may be a file that doesn't know, such as those of `/proc`.
    size: u64,
}

/// A file that was copied.
pub(super) struct Copied {
    pub(super) size: u64,
    pub(super) blake3: blake3::Hash,
}

/// Copies files, through one buffer.
pub(super) struct Copier<'a> {
    cancel: &'a CancellationToken,
    buffer: Vec<u8>,
}

impl<'a> Copier<'a> {
    pub(super) fn new(cancel: &'a CancellationToken) -> Self {
        Self { cancel, buffer: vec![0; BUFFER] }
    }

    /// Opens a task's source for reading.
    pub(super) fn open(dir: &Dir, source: &str) -> Result<Source, TaskFail> {
        let mut options = OpenOptions::new();
        // Opening a pipe would wait for its writer.
        options.read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
        let fail = |code, why: &dyn std::fmt::Display| {
            TaskFail::new(code, format!("source `{}`: {why}", source.escape_debug()))
        };
        let file = dir.open_with(source, &options).map_err(|error| match error.kind() {
            _ if escapes(&error) => fail("INVALID_SOURCE", &"leads out of the source folder"),
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => fail("NOT_FOUND", &error),
            _ => fail("UNREADABLE", &error),
        })?;
        match file.metadata() {
            Ok(meta) if meta.is_file() => Ok(Source { file, size: meta.len() }),
            Ok(_) => Err(fail("UNREADABLE", &"is no regular file")),
            Err(error) => Err(fail("UNREADABLE", &error)),
        }
    }

    /// Copies, then checks size, checksum and picture. What it leaves in `staged` after a failure is
    /// of no use.
    pub(super) fn copy(
        &mut self,
        source: Source,
        staged: &mut File,
        wanted: &Wanted,
        check_image: bool,
    ) -> Result<Copied, StageError> {
        let copied = self.transfer(source, staged, wanted)?;
        if check_image {
            staged.rewind().map_err(disk("reading back", &wanted.source))?;
            check_picture(staged)?;
        }
        Ok(copied)
    }

    fn transfer(
        &mut self,
        mut source: Source,
        staged: &mut File,
        wanted: &Wanted,
    ) -> Result<Copied, StageError> {
        let mut size = 0;
        let mut blake3 = blake3::Hasher::new();
        let mut sha256 = matches!(wanted.checksum, Some(Checksum::Sha256(_))).then(Sha256::new);
        loop {
            if self.cancel.is_cancelled() {
                return Err(HandlerError::Cancelled.into());
            }
            let read = match source.file.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    let source = wanted.source.escape_debug();
                    return Err(TaskFail::new("UNREADABLE", format!("source `{source}`: {error}")).into());
                }
            };
            let part = &self.buffer[..read];
            blake3.update(part);
            if let Some(sha256) = &mut sha256 {
                sha256.update(part);
            }
            // Not the task's fault: the disk is full or broken.
            staged.write_all(part).map_err(disk("staging a copy of", &wanted.source))?;
            size += read as u64;
            // The end is known: a small file is one read and one write. What is appended meanwhile isn't copied.
            if size == source.size {
                break;
            }
        }
        let blake3 = blake3.finalize();
        if let Some(expected) = wanted.size.filter(|expected| *expected != size) {
            let message = format!("has {size} bytes, not {expected}");
            return Err(TaskFail::new("SIZE_MISMATCH", message).into());
        }
        let (kind, found, expected) = match (&wanted.checksum, sha256) {
            (Some(Checksum::Sha256(expected)), Some(sha256)) => {
                ("sha256", sha256.finalize().into(), *expected)
            }
            (Some(Checksum::Blake3(expected)), _) => ("blake3", *blake3.as_bytes(), *expected),
            (Some(Checksum::Sha256(_)) | None, _) => return Ok(Copied { size, blake3 }),
        };
        if found != expected {
            let hex = |bytes| blake3::Hash::from_bytes(bytes).to_hex();
            let message = format!("{kind} is {}, not {}", hex(found), hex(expected));
            return Err(TaskFail::new("CHECKSUM_MISMATCH", message).into());
        }
        Ok(Copied { size, blake3 })
    }
}

fn check_picture(staged: &mut File) -> Result<(), StageError> {
    let decode = || -> Result<(), String> {
        let reader = image::ImageReader::new(BufReader::new(staged));
        let reader = reader.with_guessed_format().map_err(|error| error.to_string())?;
        reader.decode().map(drop).map_err(|error| error.to_string())
    };
    // A decoder that panics on a broken file must not take the other tasks with it.
    let decoded =
        catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(|_| Err("the decoder panicked".into()));
    decoded.map_err(|error| TaskFail::new("NOT_A_PICTURE", error).into())
}
