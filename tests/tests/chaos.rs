//! Chaos with real processes, for three minutes (`TRANCHE_CHAOS_MINUTES` chooses another time,
//! `TRANCHE_CHAOS_SEED` a seed). It prints its table, its seed, and how to run the same again.

use std::process::Command;

#[test]
fn no_fault_breaks_an_invariant() {
    let minutes = std::env::var("TRANCHE_CHAOS_MINUTES").unwrap_or_else(|_| "3".into());
    // A program of its own: it moves into namespaces of its own, which a thread of a test can't.
    let mut command = Command::new(env!("CARGO_BIN_EXE_tranche-chaos"));
    command.args(["--minutes", &minutes]);
    if let Ok(seed) = std::env::var("TRANCHE_CHAOS_SEED") {
        command.args(["--seed", &seed]);
    }
    let status = command.status().expect("tranche-chaos");
    assert!(status.success(), "there are violations: see above");
}
