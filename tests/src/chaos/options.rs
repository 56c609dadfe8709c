//! The command's flags.

use super::plan;
use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

/// How a run is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// How long new rounds begin, in minutes. Default: 3.
    pub minutes: f64,
    /// What the plan of faults and batches is drawn from. Default: the time of day.
    pub seed: u64,
    /// The folder with logs and data stays, also when all is well.
    pub keep: bool,
    /// Only these kinds of faults. Default: all.
    pub faults: BTreeSet<String>,
}

impl Options {
    /// What the flags are.
    pub fn usage() -> String {
        let kinds = plan::kinds().collect::<Vec<_>>().join(",");
        format!(
            "usage: tranche-chaos [--minutes N] [--seed S] [--keep] [--faults KIND,...]\n\
             \n\
             Runs batches over real files on three etcd nodes, three coordinators and six workers, all as\n\
             processes on this machine, hurts them at random, and checks every batch.\n\
             \n\
             --minutes N   how long it begins new rounds (a fraction is fine) [default: 3]\n\
             --seed S      what the plan of faults and batches is drawn from [default: the time of day]\n\
             --keep        keeps logs and data; they are kept anyway when something is wrong\n\
             --faults ...  only these kinds [default: {kinds}]\n\
             \n\
             Exit codes: 0 no violation, 1 violations, 2 wrong flags."
        )
    }

    /// The command that runs the same plan again.
    pub fn replay(&self) -> String {
        let mut line = format!("tests/chaos --seed {} --minutes {}", self.seed, self.minutes);
        if self.faults.len() < plan::kinds().count() {
            line += " --faults ";
            line += &self.faults.iter().cloned().collect::<Vec<_>>().join(",");
        }
        line
    }

    /// Reads the flags.
    ///
    /// # Errors
    /// Which one is wrong.
    pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut this = Self {
            minutes: 3.0,
            seed: now.as_micros() as u64 % 1_000_000_000,
            keep: false,
            faults: plan::kinds().map(str::to_owned).collect(),
        };
        let mut arguments = arguments.into_iter();
        while let Some(flag) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{flag} needs a value"));
            match flag.as_str() {
                "--keep" => this.keep = true,
                "--minutes" => {
                    let text = value()?;
                    let minutes = text.parse().ok().filter(|minutes: &f64| *minutes > 0.0);
                    this.minutes = minutes.ok_or_else(|| format!("--minutes {text}: must be above 0"))?;
                }
                "--seed" => {
                    let text = value()?;
                    this.seed = text.parse().map_err(|error| format!("--seed {text}: {error}"))?;
                }
                "--faults" => {
                    this.faults =
                        value()?.split(',').filter(|kind| !kind.is_empty()).map(str::to_owned).collect();
                    if let Some(unknown) = this.faults.iter().find(|kind| !plan::kinds().any(|k| k == **kind))
                    {
                        return Err(format!("--faults: {unknown:?} is none"));
                    }
                }
                _ => return Err(format!("{flag} is unknown")),
            }
        }
        Ok(this)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        Options::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn flags_are_read_and_wrong_ones_are_named() {
        let options = parse("--minutes 0.5 --seed 9 --keep --faults kill,pause").unwrap();
        assert_eq!((options.minutes, options.seed, options.keep), (0.5, 9, true));
        assert_eq!(options.replay(), "tests/chaos --seed 9 --minutes 0.5 --faults kill,pause");
        assert_eq!(options.faults.into_iter().collect::<Vec<_>>(), ["kill", "pause"]);
        assert_eq!(parse("").unwrap().faults.len(), plan::kinds().count());
        for wrong in ["--minutes", "--minutes 0", "--seed x", "--faults flood", "--what"] {
            assert!(parse(wrong).unwrap_err().contains(wrong.split(' ').next().unwrap()), "{wrong}");
        }
    }
}
