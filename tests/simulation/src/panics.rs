//! Panics in the code that is run: the runtime swallows them, here they are violations.

use std::cell::{Cell, RefCell};
use std::sync::Once;

thread_local! {
    static WATCHED: Cell<bool> = const { Cell::new(false) };
    static LAST: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Panics on this thread are kept from now on, until [`unwatch`].
pub(crate) fn watch() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if WATCHED.get() {
                LAST.set(Some(info.to_string()));
            } else {
                before(info);
            }
        }));
    });
    WATCHED.set(true);
}

/// The last panic.
pub(crate) fn take() -> Option<String> {
    LAST.take()
}

/// Panics are printed again.
pub(crate) fn unwatch() {
    WATCHED.set(false);
}
