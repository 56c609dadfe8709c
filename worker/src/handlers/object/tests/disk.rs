//! Full disks and other file systems: on small tmpfs mounts, which need root.

use super::*;
use std::process::Command;

/// A mounted tmpfs; unmounted when dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    /// None if this process may not mount.
    fn mount(path: PathBuf, size: &str) -> Option<Self> {
        std::fs::create_dir_all(&path).unwrap();
        let options = format!("size={size}");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tranche-test"]).arg(&path);
        let mounted = mount.output().is_ok_and(|output| output.status.success());
        if !mounted {
            eprintln!("skipped: this process may not mount a tmpfs");
        }
        mounted.then_some(Self(path))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

#[tokio::test]
async fn a_full_disk_fails_the_lease_and_gives_the_space_back() {
    let world = World::new();
    let Some(_full) = Tmpfs::mount(world.path("small"), "1m") else { return };
    let library = world.path("small/library");
    let world = World { params: world.params.clone(), ..world }.param("library", library.to_str().unwrap());
    world.write("source/fits", vec![1; 100_000]);
    world.write("source/large", vec![1; 3_000_000]);
    let lease = world.lease(1, 1, &[("fits", ""), ("large", ""), ("missing", "")]);
    let error = world.stage(&lease).await.unwrap_err();
    let HandlerError::Retryable(message) = &error else { panic!("{error:?}") };
    assert!(message.contains("No space left") && message.contains("large"), "{message}");
    let mut left = tree(&world.path("small"));
    left.retain(|path, content| content.is_some() && !path.contains("/claims/"));
    assert!(left.is_empty(), "nothing is left of the lease: {:?}", left.keys());
    // Another lease that fits works.
    let lease = world.lease(2, 1, &[("fits", "")]);
    assert!(world.stage(&lease).await.unwrap().failures.is_empty());
}

#[tokio::test]
async fn a_disk_that_is_full_of_small_files_fails_the_lease() {
    let world = World::new();
    let Some(_full) = Tmpfs::mount(world.path("small"), "256k") else { return };
    let library = world.path("small/library");
    let world = World { params: world.params.clone(), ..world }.param("library", library.to_str().unwrap());
    let keys: Vec<String> = (0..200).map(|n| format!("f{n}")).collect();
    for key in &keys {
        world.write(&format!("source/{key}"), vec![7; 4096]);
    }
    let tasks: Vec<_> = keys.iter().map(|key| (key.as_str(), "")).collect();
    let error = world.stage(&world.lease(1, 1, &tasks)).await.unwrap_err();
    assert!(error.to_string().contains("No space left"), "{error}");
}

#[tokio::test]
async fn staging_on_another_file_system_is_refused_before_anything_is_copied() {
    let world = World::new();
    let Some(_other) = Tmpfs::mount(world.path("other"), "1m") else { return };
    let staging = world.path("other/staging");
    let world = World { params: world.params.clone(), ..world }.param("staging", staging.to_str().unwrap());
    world.sources(&[("a", "1")]);
    let (code, message) = world.failure("a", "").await;
    assert_eq!(code, "INVALID_TARGET");
    assert!(message.contains("`staging`") && message.contains("file system of the library"), "{message}");
    assert!(!staging.exists());
}
