//! How many streams are open: of all callers together, and of each namespace or identity.

use crate::config::Share;
use crate::error::Error;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A kind of streams.
#[derive(Debug)]
pub struct Streams {
    /// What they are, for people.
    what: &'static str,
    most: usize,
    free: Arc<Semaphore>,
    share: Share,
    /// Of those that have any: as many as there are streams, at most.
    open: Mutex<HashMap<String, usize>>,
}

impl Streams {
    /// `most` of all, and of each its share.
    pub fn new(what: &'static str, most: usize, share: Share) -> Arc<Self> {
        let free = Arc::new(Semaphore::new(most));
        Arc::new(Self { what, most, free, share, open: Mutex::default() })
    }

    /// Opens one, which is open until the value is dropped.
    ///
    /// # Errors
    /// [`Error::Busy`]: there are too many.
    pub fn enter(self: &Arc<Self>) -> Result<Open, Error> {
        let place = self.free.clone().try_acquire_owned();
        let place = place.map_err(|_| Error::Busy { what: self.what, limit: self.most })?;
        Ok(Open { _place: place, of: OnceLock::new(), streams: self.clone() })
    }

    /// How many are open.
    pub fn count(&self) -> usize {
        self.most - self.free.available_permits()
    }

    fn open(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open stream.
#[derive(Debug)]
pub struct Open {
    _place: OwnedSemaphorePermit,
    of: OnceLock<String>,
    streams: Arc<Streams>,
}

impl Open {
    /// Says whose it is: a resource name. One that is somebody's already stays theirs.
    ///
    /// # Errors
    /// [`Error::Quota`]: they have too many.
    pub fn belongs(&self, to: String) -> Result<(), Error> {
        if self.of.get().is_some() {
            return Ok(());
        }
        let Share { most, setting } = self.streams.share;
        let mut open = self.streams.open();
        let count = open.entry(to.clone()).or_default();
        if *count >= most {
            let what = self.streams.what;
            return Err(Error::Quota { of: to, what, limit: most as u64, setting, passes: true });
        }
        *count += 1;
        // One task has the stream.
        let _ = self.of.set(to);
        Ok(())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let Some(of) = self.of.take() else { return };
        if let Entry::Occupied(mut count) = self.streams.open().entry(of) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::{Code, Status};
    use tonic_types::StatusExt;

    fn streams(most: usize, share: usize) -> Arc<Streams> {
        Streams::new("watchers", most, Share { most: share, setting: "max_watchers_per_namespace" })
    }

    fn refused(result: Result<impl std::fmt::Debug, Error>) -> (Code, String, String) {
        let status = Status::from(result.expect_err("refused"));
        let details = status.get_error_details();
        assert!(details.retry_info().is_some(), "it passes");
        let reason = details.error_info().expect("there").reason.clone();
        (status.code(), reason, status.message().to_owned())
    }

    #[test]
    fn one_stream_over_the_limit_is_refused_until_one_ends() {
        let streams = streams(2, 2);
        let one = streams.enter().expect("the first");
        let _two = streams.enter().expect("the second");
        let message = "too many watchers at once, the limit is 2".to_owned();
        assert_eq!(refused(streams.enter()), (Code::ResourceExhausted, "OVERLOADED".to_owned(), message));
        assert_eq!(streams.count(), 2);
        drop(one);
        drop(streams.enter().expect("free again"));
    }

    #[test]
    fn one_namespace_has_its_share_and_the_rest_is_for_others() {
        let streams = streams(4, 2);
        let enter = |of: &str| {
            let open = streams.enter()?;
            open.belongs(of.to_owned()).map(|()| open)
        };
        let first = enter("namespaces/a").expect("the first");
        let second = enter("namespaces/a").expect("the second");
        let (code, reason, message) = refused(enter("namespaces/a"));
        assert_eq!((code, reason.as_str()), (Code::ResourceExhausted, "QUOTA_EXCEEDED"));
        assert_eq!(
            message,
            "namespaces/a has too many watchers, the limit is 2 (max_watchers_per_namespace): end some, or have it raised"
        );
        let other = enter("namespaces/b").expect("another's");
        assert_eq!(streams.count(), 3, "what was refused takes no place");
        first.belongs("namespaces/b".to_owned()).expect("it has an owner");
        drop(first);
        let last = enter("namespaces/a").expect("free again");
        drop((last, second, other));
        assert_eq!(
            (streams.count(), streams.open().len()),
            (0, 0),
            "nothing is kept of those that have none"
        );
    }
}
