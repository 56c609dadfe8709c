//! The Rust client of Tranche: submit a batch, watch it, decide about it.
//!
//! ```no_run
//! # async fn example() -> Result<(), tranche_client::Error> {
//! use tranche_client::{Client, v1};
//!
//! let client = Client::connect("http://127.0.0.1:7070").await?;
//! let request = v1::CreateBatchRequest {
//!     batch: Some(v1::Batch {
//!         targets: vec![v1::Target { handler: "noop".into(), ..Default::default() }],
//!         ..Default::default()
//!     }),
//!     ..Default::default()
//! };
//! let tasks = (0..1_000).map(|n| v1::Task { key: format!("item {n}"), ..Default::default() });
//! let batch = client.submit(request, tokio_stream::iter(tasks)).await?;
//! let batch = client.wait(&batch.name).await?;
//! println!("{:?}", batch.state());
//! # Ok(())
//! # }
//! ```
//!
//! [`Client::connect`] takes several URLs, separated by commas: the client moves on to the next coordinator when
//! the one that it uses is gone, and appends and watches go on there.
//!
//! A URL may begin with `https://`; [`Options::credentials`] says whom we trust there and who we are.
//!
//! Every call repeats itself after a lost connection or an answer that says 'later', for at most
//! [`Options::retry_for`] without any progress. All calls that are repeated are idempotent: a batch is
//! created once, a task is appended once. See [`Appender`] for how.

mod append;
mod calls;
mod client;
mod coordinators;
mod error;
pub mod names;
mod options;
mod retry;
mod watch;
mod window;

pub use append::{AppendProgress, Appender};
pub use client::Client;
pub use error::{Error, FieldViolation};
pub use options::Options;
pub use tranche_proto::v1;
pub use tranche_tls::{ClientFiles, Credentials, FileError, UrlError};
pub use watch::is_final;
