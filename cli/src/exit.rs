//! Exit codes: part of the command line's contract, see `cli/README.md`.

/// The command did what it was asked; a batch that was waited for is COMMITTED.
pub(crate) const OK: i32 = 0;
/// It failed.
pub(crate) const ERROR: i32 = 1;
/// The command line is wrong. (clap uses the same number.)
pub(crate) const USAGE: i32 = 2;
/// The batch that was waited for is ROLLED_BACK.
pub(crate) const ROLLED_BACK: i32 = 3;
/// The batch is COMMITTED, but tasks failed, and `--fail-on-failed` was given.
pub(crate) const FAILED_TASKS: i32 = 4;
/// The batch that was waited for is HELD.
pub(crate) const HELD: i32 = 5;
/// Interrupted: an import is ROLLED_BACK then, a watched batch goes on.
pub(crate) const INTERRUPTED: i32 = 130;

/// For the help texts.
pub(crate) const HELP: &str = "\
Exit codes:
  0    done; a batch that was waited for is COMMITTED
  1    error
  2    wrong usage
  3    the batch is ROLLED_BACK
  4    the batch is COMMITTED but tasks failed (only with --fail-on-failed)
  5    the batch is HELD and waits for `tranche commit` or `tranche cancel`
  130  interrupted: an import is ROLLED_BACK; a batch that was only watched goes on

Environment: TRANCHE_COORDINATOR, TRANCHE_NAMESPACE, TRANCHE_OUTPUT (as the flags), TRANCHE_LOG (a
tracing filter such as `info`, to stderr), NO_COLOR.";
