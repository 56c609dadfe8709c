//! Where an import reads, writes and keeps its records, checked before anything is made.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use crate::error::{CliError, Result};

/// The folders of one import: absolute, without symbolic links in what exists of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImportPaths {
    /// What is imported. A folder.
    pub(crate) source: PathBuf,
    /// What readers see. May not exist yet; the folder above it does.
    pub(crate) library: PathBuf,
    /// The coordinator's store. May not exist yet.
    pub(crate) state: PathBuf,
    /// Where files are staged, if not at the handler's own place.
    pub(crate) staging: Option<PathBuf>,
}

impl ImportPaths {
    /// Checks the paths as given.
    pub(crate) fn check(
        source: &Path,
        library: &Path,
        state: Option<&Path>,
        staging: Option<&Path>,
    ) -> Result<Self> {
        let source = existing_folder(source)?;
        let library = resolve("library", library)?;
        if library.exists() && !library.is_dir() {
            return Err(CliError::new(format!("library {} is not a folder", library.display())));
        }
        let (Some(above), Some(name)) = (library.parent(), library.file_name()) else {
            return Err(CliError::new(format!(
                "library {} can't be a file system's root",
                library.display()
            )));
        };
        if !above.is_dir() {
            return Err(CliError::new(format!(
                "the folder above library {} doesn't exist",
                library.display()
            ))
            .hint(format!("mkdir -p {}", above.display())));
        }
        let own = own_folder(above, name);
        let state = state.map_or_else(|| Ok(own.join("state")), |state| resolve("state", state))?;
        let staging = staging.map(|staging| resolve("staging", staging)).transpose()?;
        apart("SRC", &source, "the library", &library)?;
        apart("SRC", &source, "the state folder", &state)?;
        apart("the library", &library, "the state folder", &state)?;
        apart("SRC", &source, "the staging folder", &own)?;
        if let Some(staging) = &staging {
            apart("SRC", &source, "the staging folder", staging)?;
            apart("the library", &library, "the staging folder", staging)?;
        }
        Ok(Self { source, library, state, staging })
    }
}

/// `/pictures/.library.tranche` for `/pictures/library`: everything of ours that lies beside it.
fn own_folder(above: &Path, name: &std::ffi::OsStr) -> PathBuf {
    let mut own = OsString::from(".");
    own.push(name);
    own.push(".tranche");
    above.join(own)
}

/// A folder that must be there.
pub(crate) fn existing_folder(path: &Path) -> Result<PathBuf> {
    let found = path.canonicalize();
    let found =
        found.map_err(|error| CliError::caused(format!("cannot read SRC {}", path.display()), &error))?;
    if found.is_dir() {
        Ok(found)
    } else {
        Err(CliError::new(format!("SRC {} is not a folder", path.display())))
    }
}

/// An absolute path without symbolic links, of which the end may not exist yet.
pub(crate) fn resolve(what: &str, path: &Path) -> Result<PathBuf> {
    let wrong =
        |error: std::io::Error| CliError::caused(format!("cannot use {what} {}", path.display()), &error);
    let absolute = std::path::absolute(path).map_err(wrong)?;
    let mut missing = Vec::new();
    let mut there = absolute.as_path();
    loop {
        match there.canonicalize() {
            Ok(found) => return Ok(missing.iter().rev().fold(found, |path: PathBuf, name| path.join(name))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                // A link that leads nowhere exists, but what it would become is unknown.
                let dangling = there.symlink_metadata().is_ok();
                match (there.components().next_back(), there.parent()) {
                    (Some(Component::Normal(name)), Some(above)) if !dangling => {
                        missing.push(name.to_owned());
                        there = above;
                    }
                    _ => return Err(wrong(error)),
                }
            }
            Err(error) => return Err(wrong(error)),
        }
    }
}

fn apart(one: &str, a: &Path, other: &str, b: &Path) -> Result<()> {
    let problem = if a == b {
        format!("{one} and {other} are the same folder, {}", a.display())
    } else if b.starts_with(a) {
        format!("{other} {} lies inside {one} {}", b.display(), a.display())
    } else if a.starts_with(b) {
        format!("{one} {} lies inside {other} {}", a.display(), b.display())
    } else {
        return Ok(());
    };
    Err(CliError::new(problem).hint("they must be apart, or an import would read what it writes"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn folders() -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().canonicalize().unwrap();
        fs::create_dir_all(path.join("src/sub")).unwrap();
        fs::write(path.join("file"), "").unwrap();
        (root, path)
    }

    fn refused(source: &Path, library: &Path) -> String {
        ImportPaths::check(source, library, None, None).unwrap_err().message
    }

    #[test]
    fn the_defaults_lie_beside_the_library() {
        let (_root, path) = folders();
        let checked = ImportPaths::check(&path.join("src"), &path.join("lib"), None, None).unwrap();
        assert_eq!(checked.source, path.join("src"));
        assert_eq!(checked.library, path.join("lib"));
        assert_eq!(checked.state, path.join(".lib.tranche/state"));
        assert!(!path.join("lib").exists() && !path.join(".lib.tranche").exists());
    }

    #[test]
    fn links_and_dots_are_resolved() {
        let (_root, path) = folders();
        symlink(path.join("src"), path.join("alias")).unwrap();
        let checked = ImportPaths::check(&path.join("alias"), &path.join("src/../lib/"), None, None).unwrap();
        assert_eq!((checked.source, checked.library), (path.join("src"), path.join("lib")));
    }

    #[test]
    fn one_inside_the_other_is_refused() {
        let (_root, path) = folders();
        let src = path.join("src");
        symlink(&src, path.join("alias")).unwrap();
        assert!(refused(&src, &src).contains("are the same folder"));
        assert!(refused(&src, &path.join("src/sub")).contains("the library"));
        assert!(refused(&src, &path.join("src/new")).contains("lies inside SRC"));
        assert!(refused(&src, &path.join("alias/new")).contains("lies inside SRC"));
        assert!(refused(&path.join("src/sub"), &src).contains("lies inside the library"));
        // A name that only begins alike is another folder.
        assert!(ImportPaths::check(&src, &path.join("src2"), None, None).is_ok());
    }

    #[test]
    fn the_state_is_apart_from_both() {
        let (_root, path) = folders();
        let (src, lib) = (path.join("src"), path.join("lib"));
        let refused =
            |state: &str| ImportPaths::check(&src, &lib, Some(&path.join(state)), None).unwrap_err().message;
        assert!(refused("src/state").contains("the state folder"));
        assert!(refused("lib/state").contains("the state folder"));
        assert!(ImportPaths::check(&src, &lib, Some(&path.join("s")), Some(&path.join("t"))).is_ok());
        let staging = ImportPaths::check(&src, &lib, None, Some(&path.join("lib/t")));
        assert!(staging.unwrap_err().message.contains("the staging folder"));
    }

    #[test]
    fn what_is_missing_or_no_folder_is_named() {
        let (_root, path) = folders();
        let (src, lib, file) = (path.join("src"), path.join("lib"), path.join("file"));
        assert!(refused(&path.join("none"), &lib).starts_with("cannot read SRC "));
        assert!(refused(&file, &lib).ends_with("file is not a folder"));
        assert!(refused(&src, &file).ends_with("file is not a folder"));
        assert!(
            refused(&src, Path::new("/")).contains("lies inside")
                || refused(&src, Path::new("/")).contains("root")
        );
        let error = ImportPaths::check(&src, &path.join("a/b/lib"), None, None).unwrap_err();
        assert!(error.message.ends_with("a/b/lib doesn't exist"), "{}", error.message);
        assert_eq!(error.hint, Some(format!("mkdir -p {}", path.join("a/b").display())));
        symlink(path.join("nowhere"), path.join("dangling")).unwrap();
        assert!(refused(&src, &path.join("dangling")).starts_with("cannot use library"));
    }
}
