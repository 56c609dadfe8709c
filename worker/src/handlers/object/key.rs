//! Keys and payloads of tasks.

use super::fail::TaskFail;
use serde::Deserialize;

/// The longest name of a file on Linux's file systems, in bytes.
const MAX_NAME: usize = 255;
/// The library's folder for manifests.
pub(super) const RESERVED: &str = "_tranche";

/// A path inside a folder: relative, `/`-separated, no empty part, `.`, `..` or NUL.
fn check_path(path: &str) -> Result<(), String> {
    if path.is_empty() {
        return Err("is empty".into());
    }
    if path.starts_with('/') {
        return Err("is absolute".into());
    }
    if path.contains('\0') {
        return Err("contains a NUL".into());
    }
    for part in path.split('/') {
        match part {
            "" => return Err("has an empty part".into()),
            "." | ".." => return Err(format!("contains `{part}`")),
            part if part.len() > MAX_NAME => return Err(format!("has a part of {} bytes", part.len())),
            _ => {}
        }
    }
    Ok(())
}

/// Checks a task's key.
pub(super) fn check_key(key: &str) -> Result<(), TaskFail> {
    let wrong = |why: String| TaskFail::new("INVALID_KEY", format!("key `{}` {why}", key.escape_debug()));
    check_path(key).map_err(wrong)?;
    if key == RESERVED || key.starts_with("_tranche/") {
        return Err(wrong(format!("is in `{RESERVED}/`, where the batches' manifests are")));
    }
    Ok(())
}

/// What a task asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Wanted {
    pub(super) source: String,
    pub(super) size: Option<u64>,
    pub(super) checksum: Option<Checksum>,
}

/// A checksum that the file must have.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Checksum {
    Sha256([u8; 32]),
    Blake3([u8; 32]),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Payload {
    source: Option<String>,
    size: Option<u64>,
    checksum: Option<String>,
}

impl Wanted {
    pub(super) fn parse(key: &str, payload: &[u8]) -> Result<Self, TaskFail> {
        if payload.is_empty() {
            return Ok(Self { source: key.to_owned(), ..Self::default() });
        }
        let payload: Payload = serde_json::from_slice(payload)
            .map_err(|error| TaskFail::new("INVALID_PAYLOAD", format!("payload: {error}")))?;
        let source = payload.source.unwrap_or_else(|| key.to_owned());
        check_path(&source).map_err(|why| {
            TaskFail::new("INVALID_SOURCE", format!("source `{}` {why}", source.escape_debug()))
        })?;
        let checksum = payload.checksum.map(|text| Checksum::parse(&text)).transpose()?;
        Ok(Self { source, size: payload.size, checksum })
    }
}

impl Checksum {
    fn parse(text: &str) -> Result<Self, TaskFail> {
        let parsed = text.split_once(':').and_then(|(kind, hex)| {
            let bytes = *blake3::Hash::from_hex(hex).ok()?.as_bytes();
            match kind {
                "sha256" => Some(Self::Sha256(bytes)),
                "blake3" => Some(Self::Blake3(bytes)),
                _ => None,
            }
        });
        parsed.ok_or_else(|| {
            let text = text.escape_debug();
            TaskFail::new(
                "INVALID_PAYLOAD",
                format!("checksum `{text}` must be `sha256:` or `blake3:` and 64 hexadecimal digits"),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_that_lead_elsewhere_are_refused() {
        for key in [
            "",
            "/etc/passwd",
            "..",
            "../x",
            "a/../b",
            "a/..",
            "a//b",
            "a/",
            "./a",
            "a/.",
            "a\0b",
            "_tranche",
            "_tranche/x.json",
        ] {
            assert_eq!(check_key(key).unwrap_err().code, "INVALID_KEY", "{key:?}");
        }
        assert!(check_key(&"x".repeat(256)).is_err());
    }

    #[test]
    fn keys_of_all_alphabets_are_taken() {
        for key in [
            "a",
            "a/b/c.png",
            "日本/写真 1.png",
            "..a",
            "a..",
            "...",
            "a\\b",
            "_tranche2",
            "x/_tranche/y",
            "-rf",
            "é",
        ] {
            check_key(key).unwrap();
        }
    }

    #[test]
    fn a_payload_names_what_is_wrong_with_it() {
        let parse = |json: &str| Wanted::parse("k", json.as_bytes());
        let wanted = parse(r#"{"source":"a/b","size":3}"#).unwrap();
        assert_eq!((wanted.source.as_str(), wanted.size), ("a/b", Some(3)));
        assert_eq!(parse("").unwrap().source, "k");
        assert_eq!(parse("{}").unwrap().source, "k");
        let error = |json: &str| parse(json).unwrap_err();
        assert_eq!(error(r#"{"source":"../x"}"#).code, "INVALID_SOURCE");
        assert!(error(r#"{"sorce":"x"}"#).message.contains("unknown field `sorce`"));
        assert!(error(r#"{"checksum":"md5:00"}"#).message.contains("md5:00"));
        assert!(error(r#"{"checksum":"sha256:é"}"#).message.contains("sha256:"));
        assert_eq!(error("not json").code, "INVALID_PAYLOAD");
    }

    proptest! {
        /// Whatever passes is one plain path below the folder it is joined to.
        #[test]
        fn what_passes_stays_inside(key in "([a-z./_]|\\PC){0,24}") {
            if check_key(&key).is_ok() {
                let path = std::path::Path::new(&key);
                let plain = path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
                prop_assert!(plain && path.to_str() == Some(&key), "{key:?}");
                prop_assert_eq!(path.components().count(), key.split('/').count());
            }
        }
    }
}
