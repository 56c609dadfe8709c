//! Page sizes and page tokens (AIP-158).
//!
//! A token is opaque to clients: hexadecimal digits of a version, a digest of what the list was asked for,
//! a checksum, and where the next page begins. A token of another list, or of the same list with another
//! filter, is refused; the page size may change.

use super::validate::invalid;
use crate::error::Error;
use std::fmt::Write;

const VERSION: u8 = 1;
/// Version, digest, checksum.
const HEAD: usize = 1 + 8 + 4;

/// What a list was asked for: only its own tokens are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Query(u64);

impl Query {
    /// A query of these words, in this order; the first names the list.
    pub(crate) fn new<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        // FNV-1a: replicas of two versions must agree, which the standard hasher doesn't promise. Each
        // word's length goes in, so that no two lists of words look alike.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for word in words {
            for &byte in (word.len() as u64).to_be_bytes().iter().chain(word.as_bytes()) {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        }
        Self(hash)
    }

    /// The token of the page after `cursor`.
    pub(crate) fn token(self, cursor: &str) -> String {
        let mut bytes = vec![VERSION];
        bytes.extend(self.0.to_be_bytes());
        bytes.extend(self.checksum(cursor).to_be_bytes());
        bytes.extend(cursor.as_bytes());
        bytes.iter().fold(String::new(), |mut token, byte| {
            let _ = write!(token, "{byte:02x}");
            token
        })
    }

    /// Where the page begins: after this. `None`: at the beginning.
    pub(crate) fn cursor(self, token: &str) -> Result<Option<String>, Error> {
        if token.is_empty() {
            return Ok(None);
        }
        let wrong = |why: &str| invalid("page_token", why);
        let bytes = decode(token).ok_or_else(|| wrong("is no page token"))?;
        let Some((head, cursor)) = bytes.split_at_checked(HEAD).filter(|(head, _)| head[0] == VERSION) else {
            return Err(wrong("is no page token"));
        };
        let cursor = std::str::from_utf8(cursor).map_err(|_| wrong("is no page token"))?;
        if head[1..9] != self.0.to_be_bytes() {
            return Err(wrong("belongs to another list or another filter"));
        }
        if head[9..] != self.checksum(cursor).to_be_bytes() {
            return Err(wrong("is no page token"));
        }
        Ok(Some(cursor.to_owned()))
    }

    fn checksum(self, cursor: &str) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(&self.0.to_be_bytes()), cursor.as_bytes())
    }
}

fn decode(token: &str) -> Option<Vec<u8>> {
    let digits = token.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    digits.chunks_exact(2).map(|pair| Some((digit(pair[0])? << 4) | digit(pair[1])?)).collect()
}

/// The most of a page.
pub(crate) const MAX_PAGE_SIZE: usize = 1000;

/// How many to answer, given what was asked.
pub(crate) fn size(asked: i32, default: usize) -> Result<usize, Error> {
    match usize::try_from(asked) {
        Ok(0) => Ok(default),
        Ok(size) => Ok(size.min(MAX_PAGE_SIZE)),
        Err(_) => Err(invalid("page_size", format!("is {asked}, must not be negative"))),
    }
}

/// One page of a list that is there wholly, and the token of the next (empty: this is the last). Keys must
/// be different; the page is in their order.
pub(crate) fn cut<T>(
    query: Query,
    items: Vec<T>,
    key: impl Fn(&T) -> String,
    page_size: usize,
    page_token: &str,
) -> Result<(Vec<T>, String), Error> {
    let after = query.cursor(page_token)?;
    let mut rest: Vec<_> = items.into_iter().map(|item| (key(&item), item)).collect();
    rest.retain(|(key, _)| after.as_ref().is_none_or(|after| key > after));
    rest.sort_by(|(a, _), (b, _)| a.cmp(b));
    let more = rest.len() > page_size;
    rest.truncate(page_size);
    let token = rest.last().filter(|_| more).map_or_else(String::new, |(key, _)| query.token(key));
    Ok((rest.into_iter().map(|(_, item)| item).collect(), token))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(error: Error) -> String {
        match error {
            Error::Invalid(violations) => violations[0].field.clone(),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn a_token_comes_back() {
        let query = Query::new(["batches", "ns"]);
        for cursor in ["", "a", "0190-x", "ä/ö"] {
            let token = query.token(cursor);
            assert_eq!(query.cursor(&token).expect("its own"), Some(cursor.to_owned()));
        }
        assert_eq!(query.cursor("").expect("the first page"), None);
        // Of one version to the next.
        assert_eq!(query.token("a"), "01f1751245940bd1b53aac333461");
    }

    #[test]
    fn tokens_of_others_and_broken_ones_are_refused() {
        let query = Query::new(["batches", "ns"]);
        let token = query.token("0190");
        for other in [vec!["batches", "n", "s"], vec!["batches"], vec!["failures", "ns"], vec!["batchesns"]] {
            assert_eq!(field(Query::new(other).cursor(&token).expect_err("another's")), "page_token");
        }
        for at in 0..token.len() {
            let mut broken = token.clone().into_bytes();
            broken[at] = if broken[at] == b'0' { b'1' } else { b'0' };
            let broken = String::from_utf8(broken).expect("ASCII");
            assert_eq!(field(query.cursor(&broken).expect_err("changed")), "page_token");
        }
        for broken in ["x", "zz", "01", "+1", &token[..token.len() - 1], &token[..token.len() - 2], "äö"] {
            assert_eq!(field(query.cursor(broken).expect_err("broken")), "page_token", "{broken}");
        }
    }

    #[test]
    fn sizes_have_a_default_and_a_most() {
        for (asked, wanted) in [(0, 50), (1, 1), (50, 50), (1000, 1000), (1001, 1000), (i32::MAX, 1000)] {
            assert_eq!(size(asked, 50).expect("right"), wanted);
        }
        assert_eq!(field(size(-1, 50).expect_err("negative")), "page_size");
    }

    #[test]
    fn pages_are_the_whole_list_in_order() {
        let query = Query::new(["numbers"]);
        let all: Vec<u32> = vec![5, 3, 9, 1, 7];
        let cut =
            |size, token: &str| cut(query, all.clone(), |n| format!("{n:03}"), size, token).expect("a page");
        for size in 1..=6 {
            let (mut seen, mut token, mut pages) = (Vec::new(), String::new(), 0);
            loop {
                let (page, next) = cut(size, &token);
                seen.extend(page);
                pages += 1;
                token = next;
                if token.is_empty() {
                    break;
                }
            }
            assert_eq!(seen, [1, 3, 5, 7, 9]);
            assert_eq!(pages, 5_usize.div_ceil(size));
        }
        let empty = super::cut(query, Vec::<u32>::new(), ToString::to_string, 5, "").expect("a page");
        assert_eq!(empty, (vec![], String::new()));
    }
}
