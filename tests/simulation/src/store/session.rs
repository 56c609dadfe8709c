//! Keeps a session alive, as the etcd store does.

use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// Keep-alives in one time to live.
const BEATS: u32 = 3;
/// This part of the time to live is not used: the holder needs time to stop.
const MARGIN: u32 = 10;
/// The pause after a failed keep-alive.
const PAUSE: Duration = Duration::from_millis(50);

/// Keeps a session alive until it is lost or nobody holds it; `beat` gives `None` when there was no answer.
pub(super) async fn keep_alive<F>(
    lost: watch::Sender<bool>,
    ttl: Duration,
    sent: Instant,
    beat: impl Fn(Duration) -> F,
) where
    F: Future<Output = Option<bool>>,
{
    let usable = ttl / MARGIN * (MARGIN - 1);
    let mut until = sent + usable;
    let mut next = sent + ttl / BEATS;
    loop {
        tokio::select! {
            biased;
            () = lost.closed() => return,
            () = sleep_until(until) => break,
            () = sleep_until(next) => {}
        }
        if *lost.borrow() {
            return;
        }
        let now = Instant::now();
        match beat(until.saturating_duration_since(now)).await {
            Some(true) => {
                until = now + usable;
                next = now + ttl / BEATS;
            }
            Some(false) => break,
            None => next = Instant::now() + PAUSE,
        }
    }
    lost.send_replace(true);
}
