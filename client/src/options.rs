//! What a client may be told, with defaults that suit both loopback and a data centre.

use std::time::Duration;

use tranche_tls::Credentials;

/// Limits of a [`Client`](crate::Client).
#[derive(Clone, Debug)]
pub struct Options {
    /// How long one attempt to connect may take. Default: 5 s.
    pub connect_timeout: Duration,
    /// How long one attempt of a call that is not a stream may take. Default: 30 s.
    pub call_timeout: Duration,
    /// How long to go on trying without any progress before the last error is returned. It counts from
    /// the first failure after the last success. Zero: never try again. Default: 60 s.
    pub retry_for: Duration,
    /// How long an append stream with unacknowledged tasks may stay silent before it counts as broken.
    /// Default: 60 s.
    pub append_stall: Duration,
    /// The most tasks in an append message. Default: [`Options::CHUNK_TASKS`]; the service takes 65,536.
    pub chunk_tasks: usize,
    /// The most encoded bytes in an append message of more than one task. Default:
    /// [`Options::CHUNK_BYTES`]; the service takes 4 MiB, of which one task may fill a quarter.
    pub chunk_bytes: usize,
    /// The most append messages kept until they are acknowledged. Default: [`Options::WINDOW_CHUNKS`].
    pub window_chunks: usize,
    /// The most encoded bytes kept until they are acknowledged, give or take one message. Default:
    /// [`Options::WINDOW_BYTES`].
    pub window_bytes: usize,
    /// The trace that the calls are part of, as W3C's `traceparent`; a batch that is created goes on in it, to the work of
    /// the workers. Default: none.
    pub traceparent: Option<String>,
    /// CA, client certificate and token, from files that are read again when they change
    /// ([`Credentials::load`]). Default: the system's CAs, nothing of our own.
    pub credentials: Credentials,
}

impl Options {
    /// 8,192 tasks: enough that the cost of a message vanishes, few enough that staging starts early.
    pub const CHUNK_TASKS: usize = 8_192;
    /// 1 MiB: a segment worth writing, and well below the service's limit.
    pub const CHUNK_BYTES: usize = 1024 * 1024;
    /// 32 messages: hides a round trip of 100 ms at 320 messages a second.
    pub const WINDOW_CHUNKS: usize = 32;
    /// 32 MiB: what a client pays in memory at most, however many tasks there are. Several segments of the
    /// service's, so that one is filled while others are written.
    pub const WINDOW_BYTES: usize = 32 * 1024 * 1024;
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            call_timeout: Duration::from_secs(30),
            retry_for: Duration::from_mins(1),
            append_stall: Duration::from_mins(1),
            chunk_tasks: Self::CHUNK_TASKS,
            chunk_bytes: Self::CHUNK_BYTES,
            window_chunks: Self::WINDOW_CHUNKS,
            window_bytes: Self::WINDOW_BYTES,
            traceparent: None,
            credentials: Credentials::default(),
        }
    }
}
