//! The guards that keep a batch safe, each by its name.
//!
//! A guard is a line of code without which everything still seems to work. Such a line asks [`Guard::on`],
//! and a build with the feature `planted` can switch it off on one thread: a test that then doesn't fail is
//! no test of it. Without the feature `on` is `true`, known when the code is compiled: nothing is left of
//! the question. `docs/reliability.md` has the table of guards and of the tests that catch them.

/// Makes the enum, its list and its names from one table.
macro_rules! guards {
    ($($(#[doc = $doc:literal])+ $guard:ident,)+) => {
        /// One guard.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Guard {
            $($(#[doc = $doc])+ $guard,)+
        }

        impl Guard {
            /// Every guard.
            pub const ALL: &[Self] = &[$(Self::$guard,)+];

            /// Its name, as in the code.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$guard => stringify!($guard),)+
                }
            }
        }
    };
}

guards! {
    /// Every transaction of an owner compares the lock's create revision with its epoch.
    EpochCompare,
    /// A transaction compares the mod revision of each record that it changes.
    RecordCompare,
    /// Grants and reports compare that nobody has decided.
    UndecidedCompare,
    /// A decision is only written where none is.
    DecisionOnce,
    /// A client's decision compares the cut-off that it freezes.
    CutoffFrozen,
    /// A lease is sent only when its range's record is durable.
    GrantAfterDurable,
    /// A report is acknowledged only when it is durable.
    AckAfterDurable,
    /// An append is acknowledged only when its segment's record is durable.
    AppendAfterDurable,
    /// A report counts only under the token of a lease that is out.
    TokenCheck,
    /// Events of a refused write are worked in again.
    EventsKept,
    /// A rollback of a range waits until nobody stages it any more.
    RollbackWaits,
    /// A rollback sweeps until it finds nothing.
    SweepUntilClean,
    /// Only attempts that count are committed.
    WinnersOnly,
    /// A rollback names every attempt there was, and the sweep finds the rest.
    RollbackAll,
    /// An append that was taken before changes nothing.
    AppendOnce,
    /// A request id makes one batch.
    RequestOnce,
    /// A batch that was deleted isn't made again by a late copy of the transaction that made it.
    DeletedStaysDeleted,
    /// A transaction whose answer was lost is read back.
    ReadBack,
    /// No staging lease is sent after the rollback was told.
    RevokedBatch,
    /// A worker says that it stopped only when it has.
    AckWhenStopped,
    /// A worker keeps a report until it is acknowledged, and sends it again.
    ReportKept,
    /// Of two owners of a batch a worker follows the younger.
    NewestOwner,
    /// A worker names every lease that it holds.
    HelloNamesAll,
    /// A worker removes what it staged under a lease that doesn't count.
    LostAttemptRemoved,
    /// A batch that lost a worker is swept once more, later.
    LateSweep,
    /// A worker stops a lease by itself when its time is over.
    LeaseLapses,
    /// What is staged is durable before it is reported.
    SyncBeforeReport,
    /// What is committed is durable before it is reported.
    SyncBeforeCommitted,
}

impl Guard {
    /// Whether it is in place: always, but in a test build that switched it off.
    #[cfg(not(feature = "planted"))]
    #[inline(always)]
    #[allow(clippy::inline_always)]
    pub const fn on(self) -> bool {
        true
    }

    /// Whether it is in place: always, but in a test build that switched it off.
    #[cfg(feature = "planted")]
    pub fn on(self) -> bool {
        planted::on(self)
    }
}

#[cfg(feature = "planted")]
pub use planted::{everywhere_without, without};

#[cfg(feature = "planted")]
mod planted {
    use super::Guard;
    use std::cell::Cell;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// One more than the place in [`Guard::ALL`]; 0: none.
    static OFF_EVERYWHERE: AtomicUsize = AtomicUsize::new(0);

    thread_local! {
        static OFF: Cell<Option<Guard>> = const { Cell::new(None) };
    }

    pub(super) fn on(guard: Guard) -> bool {
        OFF.get() != Some(guard) && OFF_EVERYWHERE.load(Ordering::SeqCst) != guard as usize + 1
    }

    /// Runs `work` with this guard switched off on this thread.
    pub fn without<T>(guard: Option<Guard>, work: impl FnOnce() -> T) -> T {
        struct Restore(Option<Guard>);
        impl Drop for Restore {
            fn drop(&mut self) {
                OFF.set(self.0);
            }
        }
        let _restore = Restore(OFF.replace(guard));
        work()
    }

    /// Switches this guard off on all threads, for code that works on several; `None`: all are on again.
    pub fn everywhere_without(guard: Option<Guard>) {
        OFF_EVERYWHERE.store(guard.map_or(0, |guard| guard as usize + 1), Ordering::SeqCst);
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_guard_is_off_on_all_threads() {
            everywhere_without(Some(Guard::SyncBeforeReport));
            let elsewhere = std::thread::spawn(|| Guard::SyncBeforeReport.on()).join().expect("the thread");
            assert!(!elsewhere && Guard::SyncBeforeCommitted.on());
            everywhere_without(None);
            assert!(Guard::SyncBeforeReport.on());
        }

        #[test]
        fn a_guard_is_off_on_its_thread_and_while_it_works() {
            assert!(Guard::TokenCheck.on());
            without(Some(Guard::TokenCheck), || {
                assert!(!Guard::TokenCheck.on());
                assert!(Guard::ReadBack.on());
                std::thread::spawn(|| assert!(Guard::TokenCheck.on())).join().expect("the other thread");
            });
            assert!(Guard::TokenCheck.on());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique() {
        let names: BTreeSet<_> = Guard::ALL.iter().map(|guard| guard.name()).collect();
        assert_eq!(names.len(), Guard::ALL.len());
    }

    #[test]
    fn the_document_says_of_each_what_sees_that_it_is_missing() {
        let document = include_str!("../../docs/reliability.md");
        let missing = |guard: &&Guard| !document.contains(&format!("| `{}` |", guard.name()));
        let missing: Vec<_> = Guard::ALL.iter().filter(missing).collect();
        assert!(missing.is_empty(), "docs/reliability.md has no row for {missing:?}");
    }
}
