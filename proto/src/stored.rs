//! Records that keep what they don't know.
//!
//! Two versions of a coordinator may run side by side; the older one must not drop the newer one's
//! fields when it writes a record back. prost drops unknown fields, so [`Stored`] carries them.

use prost::Message;
use prost::encoding::{decode_key, encode_key};
use prost_types::FileDescriptorSet;
use std::collections::HashMap;
use std::sync::OnceLock;

/// A record with the fields that this version doesn't know.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stored<T> {
    /// What this version knows.
    pub value: T,
    unknown: Vec<u8>,
}

impl<T: Message + Default + Record> Stored<T> {
    /// A record with nothing unknown in it.
    pub fn new(value: T) -> Self {
        Self { value, unknown: Vec::new() }
    }

    /// Decodes a record and keeps its unknown fields (of the record itself, not of messages in it).
    ///
    /// # Errors
    /// When the bytes are no such record.
    pub fn decode(bytes: &[u8]) -> Result<Self, prost::DecodeError> {
        Ok(Self { value: T::decode(bytes)?, unknown: unknown_fields(bytes, known_tags(T::NAME))? })
    }

    /// A record in the place of one whose unknown fields were kept.
    pub fn with_unknown(value: T, unknown: Vec<u8>) -> Self {
        Self { value, unknown }
    }

    /// The value, and the unknown fields to keep.
    pub fn into_parts(self) -> (T, Vec<u8>) {
        (self.value, self.unknown)
    }

    /// Encodes the record, then the unknown fields.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.value.encode_to_vec();
        out.extend_from_slice(&self.unknown);
        out
    }
}

/// A message that is stored as a record.
pub trait Record {
    /// Its name in the package.
    const NAME: &'static str;
}

macro_rules! records {
    ($($name:ident),*) => { $(impl Record for crate::v1::$name { const NAME: &'static str = stringify!($name); })* };
}
records!(
    CoordinatorRecord,
    SpecRecord,
    RequestRecord,
    DeletionRecord,
    LockRecord,
    StateRecord,
    DecisionRecord,
    CutoffRecord,
    SegmentRecord,
    RangeRecord,
    SlotRecord
);

fn known_tags(name: &str) -> &'static [u32] {
    static TAGS: OnceLock<HashMap<String, Vec<u32>>> = OnceLock::new();
    let all = TAGS.get_or_init(|| {
        let set = FileDescriptorSet::decode(crate::FILE_DESCRIPTOR_SET).expect("made by our own build");
        set.file
            .iter()
            .filter(|file| file.package() == "tranche.v1")
            .flat_map(|file| &file.message_type)
            .map(|message| {
                let tags = message.field.iter().map(|f| f.number().unsigned_abs()).collect();
                (message.name().to_owned(), tags)
            })
            .collect()
    });
    all.get(name).map_or(&[], Vec::as_slice)
}

fn unknown_fields(mut bytes: &[u8], known: &[u32]) -> Result<Vec<u8>, prost::DecodeError> {
    let mut unknown = Vec::new();
    while !bytes.is_empty() {
        let (tag, wire) = decode_key(&mut bytes)?;
        let before = bytes;
        prost::encoding::skip_field(wire, tag, &mut bytes, prost::encoding::DecodeContext::default())?;
        if !known.contains(&tag) {
            encode_key(tag, wire, &mut unknown);
            unknown.extend_from_slice(&before[..before.len() - bytes.len()]);
        }
    }
    Ok(unknown)
}

/// Encodes runs of sequence numbers for a record: for each the gap since the end of the run before it
/// (since 0 for the first), and its length.
pub fn encode_runs(runs: impl IntoIterator<Item = (u64, u64)>) -> Vec<u64> {
    let mut out = Vec::new();
    let mut end = 0;
    for (first, last) in runs {
        out.extend([first - end, last - first + 1]);
        end = last;
    }
    out
}

/// Decodes [`encode_runs`] into `(first, last)` pairs; a torn last pair is dropped.
pub fn decode_runs(encoded: &[u64]) -> Vec<(u64, u64)> {
    let mut end = 0;
    encoded
        .chunks_exact(2)
        .map(|pair| {
            let first = end + pair[0];
            end = first + pair[1] - 1;
            (first, end)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::CutoffRecord;
    use prost::encoding::{WireType, encode_varint};

    #[test]
    fn fields_of_a_newer_version_survive_a_rewrite() {
        let mut bytes = CutoffRecord { cutoff: 7, next_token: 3 }.encode_to_vec();
        encode_key(99, WireType::Varint, &mut bytes);
        encode_varint(1234, &mut bytes);
        encode_key(100, WireType::LengthDelimited, &mut bytes);
        encode_varint(3, &mut bytes);
        bytes.extend(b"new");

        let mut stored = Stored::<CutoffRecord>::decode(&bytes).unwrap();
        stored.value.cutoff = 8;
        let again = Stored::<CutoffRecord>::decode(&stored.encode()).unwrap();

        assert_eq!(again.value, CutoffRecord { cutoff: 8, next_token: 3 });
        assert_eq!(
            again.unknown.len(),
            bytes.len() - CutoffRecord { cutoff: 7, next_token: 3 }.encoded_len()
        );
        assert!(again.encode().ends_with(b"new"));
    }

    #[test]
    fn every_record_is_in_the_descriptor() {
        for name in ["StateRecord", "RangeRecord", "DecisionRecord", "LockRecord", "SpecRecord"] {
            assert!(!known_tags(name).is_empty(), "{name}");
        }
    }

    #[test]
    fn runs_come_back_as_they_went() {
        let runs = vec![(1, 1), (3, 9), (11, 11), (5000, 7000)];
        assert_eq!(decode_runs(&encode_runs(runs.clone())), runs);
        assert_eq!(decode_runs(&encode_runs([])), []);
    }
}
