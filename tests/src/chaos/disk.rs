//! Small disks that can be filled, and freed again.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How the ballast is written: small pieces at the end, so that really nothing is left.
const PIECES: [usize; 3] = [1024 * 1024, 64 * 1024, 4096];

/// A small file system in memory.
#[derive(Debug)]
pub struct Disk {
    root: PathBuf,
    /// Whether it is a file system of its own; a plain folder can't be filled.
    small: bool,
}

impl Disk {
    /// A file system of so many MiB at this path, or a plain folder where none can be mounted.
    pub fn new(root: PathBuf, mib: usize, mount: bool) -> Self {
        std::fs::create_dir_all(&root).expect("a folder");
        if mount {
            let mut command = Command::new("mount");
            command.args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"]).arg(&root);
            let output = command.output().expect("mount, which was tried before");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        Self { root, small: mount }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Whether it can be filled.
    pub fn is_small(&self) -> bool {
        self.small
    }

    /// Fills it to the last page. Returns how much that took, in bytes.
    pub fn fill(&self) -> u64 {
        assert!(self.small, "this would fill everybody's disk");
        let mut file = File::create(self.ballast()).expect("an entry, which needs no page");
        let mut written = 0;
        for piece in PIECES {
            let bytes = vec![b'#'; piece];
            while let Ok(some) = file.write(&bytes)
                && some > 0
            {
                written += some as u64;
            }
        }
        written
    }

    /// Frees it again.
    pub fn free(&self) {
        std::fs::remove_file(self.ballast()).expect("the ballast");
    }

    fn ballast(&self) -> PathBuf {
        self.root.join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.small {
            // The folder can't be removed before. If it fails, the namespace's end does it.
            let _ = Command::new("umount").arg("--lazy").arg(&self.root).output();
        }
    }
}
