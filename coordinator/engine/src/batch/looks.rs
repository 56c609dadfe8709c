//! Counts, in this crate's own tests, how many leases and waiting ranges were looked at one by one: what a
//! worker's word costs must not grow with the number of workers.

#[cfg(test)]
thread_local! {
    static LOOKS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Passes on what is looked at.
pub(super) fn at<T>(one: &T) -> &T {
    #[cfg(test)]
    LOOKS.set(LOOKS.get() + 1);
    one
}

/// How many since the last call.
#[cfg(test)]
pub(super) fn taken() -> usize {
    LOOKS.take()
}
