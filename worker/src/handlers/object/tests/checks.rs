//! Size, checksum, picture, duplicates, existing files.

use super::*;
use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;

fn sha256(data: &[u8]) -> String {
    Sha256::digest(data).iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    })
}

#[tokio::test]
async fn size_and_checksums_are_checked() {
    let world = World::new();
    world.sources(&[
        ("a", "hello"),
        ("b", "hello"),
        ("c", "hello"),
        ("d", "hello"),
        ("e", ""),
        ("f", "hello"),
    ]);
    let (right, wrong) = (sha256(b"hello"), sha256(b"other"));
    let blake3 = blake3::hash(b"hello").to_hex().to_string();
    let failures = world
        .failures(&[
            ("a", &format!(r#"{{"size":5,"checksum":"sha256:{right}"}}"#)),
            ("b", &format!(r#"{{"checksum":"sha256:{wrong}"}}"#)),
            ("c", &format!(r#"{{"checksum":"blake3:{blake3}"}}"#)),
            ("d", r#"{"size":4}"#),
            ("e", r#"{"size":0}"#),
            ("f", &format!(r#"{{"checksum":"blake3:{right}"}}"#)),
        ])
        .await;
    let expected = [(2, "CHECKSUM_MISMATCH"), (4, "SIZE_MISMATCH"), (6, "CHECKSUM_MISMATCH")];
    assert_eq!(failures, expected.map(|(sequence, code)| (sequence, code.to_owned())));
    let staged = tree(&world.staging().join("b1/5-1/tree"));
    assert_eq!(staged.keys().collect::<Vec<_>>(), ["a", "c", "e"], "what failed isn't left");
}

#[tokio::test]
async fn pictures_must_decode() {
    let world = World::new().param("check", "image");
    for (name, format) in [("a.png", image::ImageFormat::Png), ("b.gif", image::ImageFormat::Gif)] {
        image::RgbImage::new(3, 2).save_with_format(world.path("source").join(name), format).unwrap();
    }
    let png = std::fs::read(world.path("source/a.png")).unwrap();
    // What a name says doesn't matter.
    world.write("source/c.jpg", &png);
    world.write("source/cut.png", &png[..png.len() / 2]);
    world.write("source/text.png", "not a picture");
    world.write("source/empty.png", "");
    let tasks = ["a.png", "b.gif", "c.jpg", "cut.png", "text.png", "empty.png"].map(|key| (key, ""));
    let expected = [4, 5, 6].map(|sequence| (sequence, "NOT_A_PICTURE".to_owned()));
    assert_eq!(world.failures(&tasks).await, expected);
}

#[tokio::test]
async fn a_key_twice_in_a_lease_fails_the_second_time() {
    let world = World::new();
    world.sources(&[("a", "1")]);
    assert_eq!(world.failures(&[("a", ""), ("a", "")]).await, [(2, "DUPLICATE_KEY".to_owned())]);
}

#[tokio::test]
async fn a_key_below_another_key_fails() {
    let world = World::new();
    world.sources(&[("a", "1"), ("b/c", "1")]);
    let failures = world
        .failures(&[
            ("x", r#"{"source":"a"}"#),
            ("x/y", r#"{"source":"a"}"#),
            ("b/c", ""),
            ("b", r#"{"source":"a"}"#),
        ])
        .await;
    assert_eq!(failures, [(2, "INVALID_KEY".to_owned()), (4, "INVALID_KEY".to_owned())]);
}

#[tokio::test]
async fn an_existing_file_is_replaced_at_commit_or_fails_as_asked() {
    let world = World::new();
    world.sources(&[("a", "new")]);
    world.write("library/a", "old");
    let lease = world.lease(1, 1, &[("a", "")]);
    let staged = world.stage(&lease).await.unwrap();
    assert_eq!(files(&world.library()), [("a", "old".to_owned())]);
    world.object.commit(&world.commit_lease(vec![won(&lease, &staged)])).await.unwrap();
    assert_eq!(files(&world.library()), [("a", "new".to_owned())]);

    let world = World::new().param("if_exists", "fail");
    world.sources(&[("a", "new"), ("b", "new")]);
    world.write("library/a", "old");
    assert_eq!(world.failures(&[("a", ""), ("b", "")]).await, [(1, "ALREADY_EXISTS".to_owned())]);
}
