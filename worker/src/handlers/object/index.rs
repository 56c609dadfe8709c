//! The list of what an attempt staged: one JSON object a line.

use super::fail::disk;
use crate::handler::HandlerError;
use cap_std::fs::Dir;
use serde::{Deserialize, Serialize};
use std::io::{BufRead as _, BufReader, BufWriter, Write as _};

/// Its name in the attempt's folder.
pub(super) const INDEX: &str = "index.jsonl";

/// A staged file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) seq: u64,
    pub(super) key: String,
    pub(super) size: u64,
    /// Its BLAKE3 in hexadecimal.
    pub(super) blake3: String,
}

/// Writes an index.
pub(super) struct Writer {
    out: BufWriter<cap_std::fs::File>,
    hash: blake3::Hasher,
    line: Vec<u8>,
}

impl Writer {
    pub(super) fn create(attempt: &Dir) -> Result<Self, HandlerError> {
        let file = attempt.create(INDEX).map_err(disk("making", INDEX))?;
        Ok(Self { out: BufWriter::new(file), hash: blake3::Hasher::new(), line: Vec::new() })
    }

    pub(super) fn add(&mut self, entry: &Entry) -> Result<(), HandlerError> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, entry).map_err(|e| disk("writing", INDEX)(e.into()))?;
        self.line.push(b'\n');
        self.hash.update(&self.line);
        self.out.write_all(&self.line).map_err(disk("writing", INDEX))
    }

    /// Hands all to the system; returns the BLAKE3 of the index.
    pub(super) fn finish(mut self) -> Result<blake3::Hash, HandlerError> {
        self.out.flush().map_err(disk("writing", INDEX))?;
        Ok(self.hash.finalize())
    }
}

/// Calls `each` with every entry, in order; returns the BLAKE3 of the index. Holds one line at a time.
pub(super) fn read(
    attempt: &Dir,
    name: &str,
    mut each: impl FnMut(Entry) -> Result<(), HandlerError>,
) -> Result<blake3::Hash, HandlerError> {
    let doing = || format!("{name}/{INDEX}");
    let mut input = BufReader::new(attempt.open(INDEX).map_err(disk("reading", doing()))?);
    let mut hash = blake3::Hasher::new();
    let mut line = Vec::new();
    loop {
        line.clear();
        if input.read_until(b'\n', &mut line).map_err(disk("reading", doing()))? == 0 {
            return Ok(hash.finalize());
        }
        hash.update(&line);
        let entry = serde_json::from_slice(&line)
            .map_err(|error| HandlerError::Refused(format!("`{}` is damaged: {error}", doing())))?;
        each(entry)?;
    }
}
