//! `tranche-worker`: attaches to coordinators and works with the built-in handlers.

mod settings;

use settings::{LogFormat, Settings};
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use tracing_subscriber::EnvFilter;
use tranche_ops::trace::Traces;
use tranche_worker::handlers::{Noop, Object};
use tranche_worker::{Handler, Worker, WorkerError};

/// Exit code of a runtime failure.
const FAILED: u8 = 1;
/// Exit code of a wrong configuration or usage.
const BAD_CONFIG: u8 = 2;
/// How long file work that can't be interrupted may hold up the end of the process.
const LAST_WORK: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let settings = match Settings::load() {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("tranche-worker: {error}");
            return ExitCode::from(BAD_CONFIG);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("tranche-worker: no runtime: {error}");
            return ExitCode::from(FAILED);
        }
    };
    let endpoint = settings.otlp_endpoint.as_deref();
    let traces = {
        let _in = runtime.enter();
        endpoint.map(|url| Traces::to(url, "tranche-worker", env!("CARGO_PKG_VERSION"))).transpose()
    };
    let started = traces.and_then(|traces| start_log(&settings, traces.as_ref()).map(|()| traces));
    let traces = match started {
        Ok(traces) => traces,
        Err(error) => {
            eprintln!("tranche-worker: {error}");
            return ExitCode::from(BAD_CONFIG);
        }
    };
    let code = runtime.block_on(run(settings));
    if let Some(traces) = traces {
        traces.end();
    }
    runtime.shutdown_timeout(LAST_WORK);
    code
}

async fn run(settings: Settings) -> ExitCode {
    if settings.allow_roots.is_empty() && settings.handlers.iter().any(|handler| handler == "object") {
        warn!("no allow-root is given: the handler `object` refuses every batch");
    }
    let handler = |name: &String| -> Arc<dyn Handler> {
        match name.as_str() {
            "object" => Arc::new(Object::new(settings.allow_roots.clone())),
            // Settings have checked that there is no other.
            _ => Arc::new(Noop::new()),
        }
    };
    let worker = Worker::new(settings.worker.clone(), settings.handlers.iter().map(handler).collect());
    let shutdown = CancellationToken::new();
    let signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => {
            error!(%error, "no signals");
            return ExitCode::from(FAILED);
        }
    };
    let ended = CancellationToken::new();
    // Hung up on when this returns, whatever is open.
    let _ended = ended.clone().drop_guard();
    if let Some(address) = settings.ops_listen {
        let asks = settings.ops_tls.as_ref().is_some_and(|files| files.client_ca.is_some());
        let tls = settings.ops_tls.map(|files| files.start_for(&[b"http/1.1"])).transpose();
        let tls = match tls {
            Ok(tls) => tls,
            Err(error) => {
                eprintln!("tranche-worker: {error}");
                return ExitCode::from(BAD_CONFIG);
            }
        };
        let bound = async {
            let listener = tokio::net::TcpListener::bind(address).await?;
            let bound = listener.local_addr()?;
            Ok::<_, std::io::Error>((listener, bound))
        };
        let (listener, bound) = match bound.await {
            Ok(bound) => bound,
            Err(error) => {
                error!(%address, %error, "can't listen on the ops port");
                return ExitCode::from(FAILED);
            }
        };
        writeln!(std::io::stdout(), "ops port on {bound}").ok();
        info!(address = %bound, "ops port");
        let (operator, incoming) = (Arc::new(worker.operator()), tranche_ops::incoming(listener));
        match tls {
            None => tokio::spawn(tranche_ops::serve(incoming, operator, |_| true, ended)),
            Some(tls) => {
                let incoming = Box::pin(tranche_tls::accept(incoming, tls));
                let known = move |peer: &tranche_tls::TlsConnection<_>| !asks || peer.is_known();
                tokio::spawn(tranche_ops::serve(incoming, operator, known, ended))
            }
        };
    }
    let mut attached = worker.attached();
    let announce = async {
        if let Ok(url) = attached.wait_for(Option::is_some).await {
            let mut out = std::io::stdout();
            // Nobody reads it: that's no reason to end.
            writeln!(out, "attached to {}", url.as_deref().unwrap_or_default()).ok();
            out.flush().ok();
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        result = worker.run(shutdown.clone()) => match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(error @ (WorkerError::Config(_) | WorkerError::NoHandler)) => {
                eprintln!("tranche-worker: {error}");
                ExitCode::from(BAD_CONFIG)
            }
        },
        () = signals.watch(shutdown) => {
            warn!("second signal: exiting at once");
            ExitCode::from(FAILED)
        }
        () = announce => ExitCode::from(FAILED),
    }
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// The first signal begins the shutdown; returns at the second.
    async fn watch(mut self, shutdown: CancellationToken) {
        self.next().await;
        info!("signal: draining");
        shutdown.cancel();
        self.next().await;
    }

    async fn next(&mut self) {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

fn start_log(settings: &Settings, traces: Option<&Traces>) -> Result<(), String> {
    let filter = EnvFilter::try_new(&settings.log)
        .map_err(|error| format!("log = {:?}: must be a level or a filter: {error}", settings.log))?;
    tranche_ops::logs::start(filter, settings.log_format == LogFormat::Json, traces);
    Ok(())
}
