//! `tranche bench flood`: what somebody else notices of an attack.
//!
//! One client makes small calls, one after the other, on a connection of its own. Beside it, in turns: nothing; two
//! controls, which attack nobody; each attack. An attacker is a process with one thread that never pauses, and begins
//! anew as soon as its connection is closed.
//!
//! On few cores an attacker takes from the others by running at all, which no coordinator can help: so the figure that is
//! judged is the p99 under an attack against the p99 beside a process that only keeps a core busy (`spin`).
//! The other control (`calls`) makes calls as fast as a connection carries them, and reads the answers.
//!
//! | attack | what comes without end |
//! | --- | --- |
//! | reset | calls that are reset at once |
//! | continuation | HEADERS, and CONTINUATION without END_HEADERS |
//! | ping, settings | what must be answered |
//! | connect | connections that begin, and say nothing more |

mod attacker;

use std::fmt;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde_json::json;
use tranche_client::{Client, v1};

pub(super) use self::attacker::{AttackerArgs, attack};
use super::cluster::{Cluster, ClusterArgs, Flags, StoreArgs};
use super::figure::{Figure, percentile};
use super::process::Process;
use super::report::Measured;
use super::runs::{Context, Row};
use super::usage;
use crate::error::Result;

/// Calls before the clock counts.
const WARM_UP: u32 = 300;
/// Between two calls: it is no load itself.
const PAUSE: Duration = Duration::from_millis(1);
/// What the p99 of others may become.
const TARGET: f64 = 2.0;

/// What goes on beside the calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Kind {
    /// Keeps a core busy.
    Spin,
    /// Makes calls.
    Calls,
    /// Rapid reset.
    Reset,
    /// Headers without an end.
    Continuation,
    /// PINGs.
    Ping,
    /// SETTINGS.
    Settings,
    /// Connections.
    Connect,
}

const CONTROLS: [Kind; 2] = [Kind::Spin, Kind::Calls];
const ATTACKS: [Kind; 5] = [Kind::Reset, Kind::Continuation, Kind::Ping, Kind::Settings, Kind::Connect];

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Spin => "spin",
            Self::Calls => "calls",
            Self::Reset => "reset",
            Self::Continuation => "continuation",
            Self::Ping => "ping",
            Self::Settings => "settings",
            Self::Connect => "connect",
        })
    }
}

#[derive(Clone, Debug, Args)]
pub(crate) struct FloodArgs {
    /// Only these attacks.
    #[arg(long, value_enum, value_delimiter = ',')]
    attack: Vec<Kind>,
    /// How long each of them, and each control, goes on in one turn.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// How often it is each one's turn.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    turns: u32,
    #[command(flatten)]
    store: StoreArgs,
}

/// What was measured beside one kind, over all turns.
#[derive(Debug, Default)]
struct Beside {
    calls: Vec<f64>,
    coordinator_cpu: f64,
    frames: u64,
    connections: u64,
    seconds: f64,
}

impl Row for FloodArgs {
    async fn run(&self, context: &Context) -> Result<Measured> {
        let args = ClusterArgs { workers: 0, slots: 1, store: self.store.clone() };
        // Here all come from one address, and calls are limited by caller: it would be the others' limit, too.
        let coordinator = ["--max-calls-per-second", "0"].map(str::to_owned).to_vec();
        let flags = Flags { coordinator, ..Flags::default() };
        let mut cluster = Cluster::start_with(context, &args, &flags).await?;
        let client = cluster.client().await?;
        let batch = v1::Batch {
            targets: vec![v1::Target { handler: "noop".into(), ..Default::default() }],
            ..Default::default()
        };
        let request = v1::CreateBatchRequest { batch: Some(batch), ..Default::default() };
        let batch = client.create(request).await?.name;
        for _ in 0..WARM_UP {
            client.get(&batch).await?;
        }
        let attacks = if self.attack.is_empty() { ATTACKS.to_vec() } else { self.attack.clone() };
        let kinds: Vec<Option<Kind>> =
            [None].into_iter().chain(CONTROLS.into_iter().chain(attacks.clone()).map(Some)).collect();
        let mut measured: Vec<Beside> = kinds.iter().map(|_| Beside::default()).collect();
        for turn in 1..=self.turns {
            for (kind, into) in kinds.iter().zip(&mut measured) {
                context.progress(|| format!("turn {turn}: {}", name(*kind)));
                self.turn(context, &mut cluster, &client, &batch, *kind, into).await?;
            }
        }
        let peak = cluster.usage().into_iter().find(|one| one.name == "coordinator");
        cluster.stop().await;
        let memory = peak.map_or(0, |one| one.peak_memory);
        Ok(self.told(&kinds, &measured, &attacks, memory))
    }
}

fn name(kind: Option<Kind>) -> String {
    kind.map_or_else(|| "quiet".to_owned(), |kind| kind.to_string())
}

impl FloodArgs {
    async fn turn(
        &self,
        context: &Context,
        cluster: &mut Cluster,
        client: &Client,
        batch: &str,
        kind: Option<Kind>,
        into: &mut Beside,
    ) -> Result<()> {
        let address = cluster.coordinator.url.trim_start_matches("http://").to_owned();
        let mut attacker = match kind {
            None => None,
            Some(kind) => {
                let words = ["bench", "attacker", &address, batch, &kind.to_string()];
                let words = words.map(str::to_owned);
                let program = std::env::current_exe()?;
                let mut attacker = Process::start("attacker", &program, &words, context.folder())?;
                attacker.ready("attacking").await?;
                Some(attacker)
            }
        };
        let before = cluster.usage();
        let started = Instant::now();
        let until = started + Duration::from_secs(self.seconds.into());
        cluster
            .while_alive(async {
                while Instant::now() < until {
                    let start = Instant::now();
                    client.get(batch).await?;
                    into.calls.push(start.elapsed().as_secs_f64());
                    tokio::time::sleep(PAUSE).await;
                }
                Ok(())
            })
            .await?;
        into.seconds += started.elapsed().as_secs_f64();
        let spent = usage::between(&before, &cluster.usage());
        into.coordinator_cpu +=
            spent.iter().find(|one| one.name == "coordinator").map_or(0.0, usage::Usage::cpu);
        if let Some(attacker) = &mut attacker {
            // It says twice a second what it did up to then; the last is near enough.
            let said = attacker.latest("sent ");
            let mut numbers = said.split(' ').filter_map(|number| number.parse::<u64>().ok());
            into.frames += numbers.next().unwrap_or_default();
            into.connections += numbers.next().unwrap_or_default();
        }
        if let Some(attacker) = attacker {
            attacker.stop().await;
        }
        Ok(())
    }

    fn told(&self, kinds: &[Option<Kind>], measured: &[Beside], attacks: &[Kind], memory: i64) -> Measured {
        let of = |kind: Option<Kind>| {
            let at = kinds.iter().position(|known| *known == kind).unwrap_or_default();
            &measured[at]
        };
        let p99 = |kind: Option<Kind>| percentile(&of(kind).calls, 0.99);
        let ratio = |kind: Kind| p99(Some(kind)) / p99(Some(Kind::Spin));
        let worst = attacks.iter().map(|kind| ratio(*kind)).fold(0.0, f64::max);
        let mut figures =
            vec![Figure::ratio("p99 under the worst attack, beside spin's", worst).under(TARGET)];
        figures.extend(
            attacks.iter().map(|kind| Figure::ratio(format!("{kind}: p99 beside spin's"), ratio(*kind))),
        );
        for kind in kinds {
            let beside = of(*kind);
            let name = name(*kind);
            figures.push(Figure::seconds(format!("{name}: p99"), p99(*kind)));
            figures.push(Figure::seconds(format!("{name}: p50"), percentile(&beside.calls, 0.5)));
            let cores = beside.coordinator_cpu / beside.seconds;
            figures.push(Figure::ratio(format!("{name}: cores of the coordinator"), cores));
        }
        figures.push(Figure::bytes("coordinator's peak memory", memory));
        let beside: Vec<_> = kinds
            .iter()
            .map(|kind| {
                let beside = of(*kind);
                json!({
                    "beside": name(*kind),
                    "calls": beside.calls.len(),
                    "p50_s": percentile(&beside.calls, 0.5),
                    "p99_s": percentile(&beside.calls, 0.99),
                    "frames_per_s": (beside.frames as f64 / beside.seconds).round(),
                    "connections_per_s": (beside.connections as f64 / beside.seconds).round(),
                })
            })
            .collect();
        Measured::from(figures).detail(json!({"turns": self.turns, "seconds": self.seconds, "flood": beside}))
    }
}
