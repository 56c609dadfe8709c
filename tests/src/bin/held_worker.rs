//! A worker that tests hold, slow down and make crash: `held_worker CONTROL ID SLOTS ALLOW_ROOT URL...`.
//! See `tranche_tests::control`.

use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tranche_tests::control::{Control, Controlled};
use tranche_worker::handlers::Object;
use tranche_worker::{Config, Worker};

#[tokio::main(worker_threads = 2)]
async fn main() {
    let filter = tracing_subscriber::EnvFilter::new("info,tranche_worker=debug");
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let mut args = std::env::args().skip(1);
    let mut next = || args.next().expect("usage: held_worker CONTROL ID SLOTS ALLOW_ROOT URL...");
    let (control, id, slots, root) = (next(), next(), next(), next());
    let mut config = Config::new(args.collect::<Vec<String>>());
    config.id.clone_from(&id);
    config.slots = slots.parse().expect("SLOTS is a number");
    config.prefetch = 1;
    config.drain_timeout = Duration::from_secs(10);
    config.reconnect_max = Duration::from_millis(500);
    let object = Arc::new(Object::new(vec![root.into()]));
    let handler = Controlled::new(Control::new(control), id, object);
    let worker = Worker::new(config, vec![Arc::new(handler)]);
    let mut attached = worker.attached();
    let announce = async {
        if let Ok(url) = attached.wait_for(Option::is_some).await {
            println!("attached to {}", url.as_deref().unwrap_or_default());
        }
    };
    let shutdown = CancellationToken::new();
    let mut term = signal(SignalKind::terminate()).expect("signals");
    let asked = async {
        term.recv().await;
        shutdown.cancel();
    };
    let (result, (), ()) = tokio::join!(worker.run(shutdown.clone()), announce, async {
        tokio::select! { () = asked => {}, () = shutdown.cancelled() => {} }
    });
    result.expect("a right configuration");
}
