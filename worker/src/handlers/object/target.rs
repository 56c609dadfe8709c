//! The target's parameters, and where they may point.

use crate::handlers::params::{ParamError, refuse_unknown};
use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path, PathBuf};

/// The parameters, checked as far as text goes: any worker would say the same.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Target {
    source: PathBuf,
    library: PathBuf,
    staging: Option<PathBuf>,
    pub(super) check_image: bool,
    pub(super) fail_if_exists: bool,
}

/// Where library and staging really are: links followed, missing ends kept.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Located {
    pub(super) library: PathBuf,
    pub(super) staging: PathBuf,
    /// The folder around staging, if it is ours.
    pub(super) around: Option<PathBuf>,
    /// As they were given: what an error has to name.
    given_library: PathBuf,
    given_staging: PathBuf,
}

impl Target {
    pub(super) fn parse(params: &BTreeMap<String, String>) -> Result<Self, ParamError> {
        refuse_unknown(params, &["source", "library", "staging", "check", "if_exists"])?;
        let choice = |name: &str, default: &str, other: &str| match params.get(name) {
            None => Ok(false),
            Some(value) if value == default => Ok(false),
            Some(value) if value == other => Ok(true),
            Some(value) => Err(ParamError::new(name, value, format!("must be `{default}` or `{other}`"))),
        };
        let library = absolute("library", params.get("library"))?;
        if library.file_name().is_none() {
            return Err(ParamError::new("library", library.display(), "must not be the root folder"));
        }
        let staging = params.get("staging");
        Ok(Self {
            source: absolute("source", params.get("source"))?,
            library,
            staging: staging.map(|_| absolute("staging", staging)).transpose()?,
            check_image: choice("check", "none", "image")?,
            fail_if_exists: choice("if_exists", "overwrite", "fail")?,
        })
    }

    /// Where the source is.
    pub(super) fn source(&self, roots: &Roots) -> Result<PathBuf, ParamError> {
        let source = locate("source", &self.source)?;
        roots.check("source", &self.source, &source)?;
        Ok(source)
    }

    /// Where library and staging are, wherever that is.
    pub(super) fn locate(&self) -> Result<Located, ParamError> {
        let library = locate("library", &self.library)?;
        let (staging, around) = if let Some(staging) = &self.staging {
            (locate("staging", staging)?, None)
        } else {
            let mut around = std::ffi::OsString::from(".");
            around.push(library.file_name().unwrap_or_default());
            around.push(".tranche");
            // Beside the real folder, not beside a link to it: a rename must reach it.
            let around = library.with_file_name(around);
            (locate("staging", &around.join("staging"))?, Some(around))
        };
        if staging.starts_with(&library) || library.starts_with(&staging) {
            let rule = format!("staging and library (`{}`) must not contain each other", library.display());
            return Err(ParamError::new("staging", staging.display(), rule));
        }
        let given_staging = self.staging.clone().unwrap_or_else(|| staging.clone());
        Ok(Located { library, staging, around, given_library: self.library.clone(), given_staging })
    }
}

impl Located {
    /// Refuses places outside of the roots.
    pub(super) fn check(&self, roots: &Roots) -> Result<(), ParamError> {
        roots.check("library", &self.given_library, &self.library)?;
        roots.check("staging", &self.given_staging, &self.staging)
    }
}

/// Folders under which a worker may read and write.
#[derive(Clone, Debug)]
pub(super) struct Roots(Vec<PathBuf>);

impl Roots {
    pub(super) fn new(roots: Vec<PathBuf>) -> Self {
        Self(roots)
    }

    fn check(&self, param: &str, given: &Path, real: &Path) -> Result<(), ParamError> {
        let mut roots = self.0.iter().filter_map(|root| root.canonicalize().ok());
        if roots.any(|root| real.starts_with(root)) {
            return Ok(());
        }
        let really = if real == given { String::new() } else { format!("is `{}`, which ", real.display()) };
        let rule = format!("{really}isn't under any allow-root of this worker");
        Err(ParamError::new(param, given.display(), rule))
    }
}

fn absolute(param: &str, value: Option<&String>) -> Result<PathBuf, ParamError> {
    let value = value.ok_or_else(|| ParamError::new(param, "", "is required"))?;
    let path = Path::new(value);
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !path.is_absolute() || !plain || value.contains('\0') {
        return Err(ParamError::new(param, value, "must be an absolute path without `..`"));
    }
    Ok(path.components().collect())
}

/// A path with its links followed; `None` when it isn't there. Other leases may be making it just now.
fn canonical(path: &Path) -> io::Result<Option<PathBuf>> {
    loop {
        match path.canonicalize() {
            Ok(real) => return Ok(Some(real)),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Err(error) => match path.symlink_metadata() {
                // A link to nothing could lead anywhere tomorrow.
                Ok(there) if there.is_symlink() => return Err(error),
                // It came between the two looks.
                Ok(_) => {}
                Err(_) => return Ok(None),
            },
        }
    }
}

/// Follows the links of the part of a path that exists, and keeps the rest.
fn locate(param: &str, path: &Path) -> Result<PathBuf, ParamError> {
    for there in path.ancestors() {
        match canonical(there) {
            Ok(Some(real)) => {
                let rest = path.strip_prefix(there).unwrap_or(Path::new(""));
                // Joining nothing would add a slash.
                return Ok(if rest.as_os_str().is_empty() { real } else { real.join(rest) });
            }
            Ok(None) => {}
            Err(error) => return Err(ParamError::new(param, path.display(), error.to_string())),
        }
    }
    Err(ParamError::new(param, path.display(), "can't be found"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// Other leases make the staging folder, and other batches' sweeps remove it, at any moment.
    #[test]
    fn a_place_that_comes_and_goes_is_located_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let place = root.join("around/staging");
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::fs::create_dir_all(&place).unwrap();
                    std::fs::remove_dir_all(root.join("around")).unwrap();
                }
            });
            let located: Vec<_> = (0..30_000).map(|_| locate("staging", &place)).collect();
            stop.store(true, Ordering::Relaxed);
            for one in located {
                assert_eq!(one.map_err(|error| error.to_string()), Ok(place.clone()));
            }
        });
    }

    #[test]
    fn a_link_to_nothing_is_no_place() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(dir.path().join("nothing"), dir.path().join("link")).unwrap();
        assert!(locate("library", &dir.path().join("link/below")).is_err());
    }
}
