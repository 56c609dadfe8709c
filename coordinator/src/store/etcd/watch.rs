//! A watch that outlives its streams.

use super::clients::Clients;
use super::error::Failure;
use super::{entry, limited, plain_key, read, revision};
use crate::store::check::prefix_range;
use crate::store::{Revision, WatchEvent};
use backon::{BackoffBuilder, ExponentialBuilder};
use etcd_client::{EventType, GetOptions, WatchOptions, WatchResponse};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::sleep;

/// Pauses before a broken stream is made anew; long ones only while etcd stays away.
const PAUSES: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(20))
    .with_max_delay(Duration::from_secs(1))
    .with_jitter()
    .without_max_times();

/// Why a stream is not read any more.
enum End {
    /// Nobody reads the watch.
    ReaderGone,
    /// The events to come next are compacted away.
    Compacted,
    /// It broke.
    Broken(Failure),
}

/// Follows the events of a key range, from stream to stream.
///
/// It never stops reading: a stream that isn't read fills the connection's window, and then no call
/// gets an answer, nor a keep-alive. Events that find the channel full are dropped, and the reader is
/// told so as soon as there is room.
pub(super) struct Follower {
    clients: Clients,
    call_timeout: Duration,
    /// The store's prefix, which is taken off the keys.
    prefix: String,
    start: Vec<u8>,
    end: Vec<u8>,
    to: mpsc::Sender<WatchEvent>,
    /// Events were dropped, and the reader doesn't know yet.
    behind: bool,
}

impl Follower {
    /// `watched` is the prefix of the keys to watch, with the store's prefix in front.
    pub(super) fn new(
        clients: Clients,
        call_timeout: Duration,
        prefix: String,
        watched: Vec<u8>,
        to: mpsc::Sender<WatchEvent>,
    ) -> Self {
        let (start, end) = prefix_range(&watched);
        let end = end.unwrap_or_else(|| vec![0]);
        Self { clients, call_timeout, prefix, start, end, to, behind: false }
    }

    /// Runs until nobody reads the watch.
    pub(super) async fn run(mut self, mut after: Revision) {
        let to = self.to.clone();
        tokio::select! {
            () = self.follow(&mut after) => {}
            () = to.closed() => {}
        }
    }

    async fn follow(&mut self, after: &mut Revision) {
        let mut pauses = PAUSES.build();
        loop {
            let seen = *after;
            let end = match self.stream(after).await {
                End::Compacted => self.skip(after).await,
                end => end,
            };
            match end {
                End::ReaderGone => return,
                End::Compacted => pauses = PAUSES.build(),
                End::Broken(failure) => {
                    if *after > seen {
                        pauses = PAUSES.build();
                    }
                    tracing::debug!(after = *after, ?failure, "watch stream ended, making it anew");
                    sleep(pauses.next().unwrap_or_default()).await;
                }
            }
        }
    }

    /// Reads one stream to its end. `after` moves on with what was passed on. Responses hold whole
    /// revisions (etcd splits one only for who asks for fragments), so that no revision is passed on
    /// in part.
    async fn stream(&mut self, after: &mut Revision) -> End {
        let options = WatchOptions::new()
            .with_range(self.end.clone())
            .with_start_revision(after.cast_signed() + 1)
            // Moves on a watch that sees no events, so that compaction doesn't overtake it.
            .with_progress_notify();
        let mut client = self.clients.watch();
        let made = limited(self.call_timeout, client.watch(self.start.clone(), Some(options))).await;
        // The requests' half is held too: dropping it ends the stream.
        let mut stream = match made {
            Ok(stream) => stream,
            Err(failure) => return End::Broken(failure),
        };
        loop {
            let message = tokio::select! {
                // Told first: what comes after it is newer.
                biased;
                room = self.to.reserve(), if self.behind => {
                    let Ok(room) = room else { return End::ReaderGone };
                    room.send(WatchEvent::Missed(*after));
                    self.behind = false;
                    continue;
                }
                message = stream.message() => message,
            };
            let response = match message {
                Ok(Some(response)) => response,
                Ok(None) => return End::Broken(Failure::Lost("the stream was closed".into())),
                Err(error) => return End::Broken(error.into()),
            };
            if response.canceled() {
                if response.compact_revision() > 0 {
                    return End::Compacted;
                }
                return End::Broken(Failure::Lost(format!("cancelled: {}", response.cancel_reason())));
            }
            if response.created() {
                continue;
            }
            self.pass_on(&response, after);
            if self.to.is_closed() {
                return End::ReaderGone;
            }
        }
    }

    fn pass_on(&mut self, response: &WatchResponse, after: &mut Revision) {
        for event in response.events() {
            let Some(kv) = event.kv() else { continue };
            *after = (*after).max(kv.mod_revision() as Revision);
            if self.behind {
                continue;
            }
            let event = match event.event_type() {
                EventType::Put => entry(&self.prefix, kv.clone()).map(WatchEvent::Put),
                EventType::Delete => plain_key(&self.prefix, kv.key())
                    .map(|key| WatchEvent::Deleted(key, kv.mod_revision() as Revision)),
            };
            match event {
                Ok(event) => self.behind = self.to.try_send(event).is_err(),
                // Not a key of ours: no other key's events may wait for it.
                Err(failure) => tracing::warn!(?failure, "event of a foreign key"),
            }
        }
        if response.events().is_empty() {
            // A progress notice: all events up to here were sent.
            *after = (*after).max(revision(response.header()));
        }
    }

    /// Goes on from now; the reader is told. What it lists after it was told is newer.
    async fn skip(&mut self, after: &mut Revision) -> End {
        let now = GetOptions::new().with_count_only();
        match read(&self.clients.kv(), self.call_timeout, self.start.clone(), Some(now)).await {
            Ok(answer) => {
                *after = revision(answer.header()).max(*after);
                self.behind = true;
                End::Compacted
            }
            Err(failure) => End::Broken(failure),
        }
    }
}
