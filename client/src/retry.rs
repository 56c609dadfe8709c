//! When to try again, and when to give up.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use tokio::time::Instant;

use crate::Error;

/// The longest that a service's own wish to wait is followed.
const MAX_ASKED_DELAY: Duration = Duration::from_secs(30);

/// The longest pause of our own choice, before jitter.
const MAX_DELAY: Duration = Duration::from_secs(5);

/// Growing pauses within a budget of time that starts anew with every progress.
#[derive(Debug)]
pub(crate) struct Retry {
    budget: Duration,
    failing: Option<(Instant, ExponentialBackoff)>,
}

impl Retry {
    pub(crate) fn new(budget: Duration) -> Self {
        Self { budget, failing: None }
    }

    /// Something worked: the next failure is the first again.
    pub(crate) fn progressed(&mut self) {
        self.failing = None;
    }

    /// Pauses before the next attempt; returns the error when there is to be none.
    pub(crate) async fn pause(&mut self, error: Error) -> Result<(), Error> {
        let Some(delay) = self.delay(Instant::now(), &error) else { return Err(error) };
        tracing::debug!(error = %error, cause = ?error, delay_ms = delay.as_millis(), "trying again");
        tokio::time::sleep(delay).await;
        Ok(())
    }

    /// How long to pause after a failure at `now`. None: give up.
    fn delay(&mut self, now: Instant, error: &Error) -> Option<Duration> {
        if !error.retryable() {
            return None;
        }
        let (since, delays) = self.failing.get_or_insert_with(|| (now, delays()));
        let asked = error.retry_delay().unwrap_or_default().min(MAX_ASKED_DELAY);
        let delay = delays.next().unwrap_or(MAX_DELAY).max(asked);
        (now + delay <= *since + self.budget).then_some(delay)
    }
}

/// 20 ms, doubled up to 5 s, with jitter so that clients of a coordinator that came back don't arrive
/// together.
fn delays() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(20))
        .with_max_delay(MAX_DELAY)
        .with_jitter()
        .without_max_times()
        .build()
}

#[cfg(test)]
mod tests {
    use tonic::{Code, Status};
    use tonic_types::{ErrorDetails, StatusExt as _};

    use super::*;

    fn away() -> Error {
        Error::call("GetBatch", Status::unavailable("away"))
    }

    #[test]
    fn gives_up_when_the_budget_is_used_and_starts_anew_after_progress() {
        let budget = Duration::from_mins(1);
        let mut retry = Retry::new(budget);
        let start = Instant::now();
        let mut now = start;
        let mut attempts = 0;
        while let Some(delay) = retry.delay(now, &away()) {
            now += delay;
            attempts += 1;
        }
        assert!(attempts > 10, "{attempts}");
        assert!(now - start <= budget && now - start > budget / 2, "{:?}", now - start);
        assert!(retry.delay(now, &away()).is_none());
        retry.progressed();
        assert!(retry.delay(now, &away()).is_some());
    }

    #[test]
    fn never_repeats_a_refusal_and_never_with_no_budget() {
        let refused = Error::call("GetBatch", Status::not_found("none"));
        assert!(Retry::new(Duration::from_mins(1)).delay(Instant::now(), &refused).is_none());
        assert!(Retry::new(Duration::ZERO).delay(Instant::now(), &away()).is_none());
    }

    #[test]
    fn waits_as_long_as_the_service_asks() {
        let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(7)));
        let busy = Status::with_error_details(Code::ResourceExhausted, "busy", details);
        let busy = Error::call("CreateBatch", busy);
        let delay = Retry::new(Duration::from_mins(1)).delay(Instant::now(), &busy);
        assert!(delay >= Some(Duration::from_secs(7)), "{delay:?}");
    }
}
