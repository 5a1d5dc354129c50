//! What became of the expectations of several guests or recordings.

use anyhow::Result;

use super::junit::JunitFile;
use super::named_verdicts::NamedVerdicts;
use crate::display::clean;
use crate::output::eprintln;

/// What became of the expectations of each guest or recording.
pub struct Verdicts {
    all: Vec<NamedVerdicts>,
    junit: Option<JunitFile>,
}

/// Expectations that were broken, or had no data.
#[derive(Debug, thiserror::Error)]
#[error("{broken} of {all} expectations {} not met", if *broken == 1 { "was" } else { "were" })]
pub struct ExpectationsBroken {
    /// How many.
    pub broken: usize,
    /// How many there were.
    pub all: usize,
}

impl Verdicts {
    /// Returns these, of which a report is written if there is a file for it.
    pub fn new(all: Vec<NamedVerdicts>, junit: Option<JunitFile>) -> Self {
        Self { all, junit }
    }

    /// Prints a line for each; names are shown if there are several.
    pub fn print(&self) {
        for NamedVerdicts { name, verdicts } in &self.all {
            let name = if self.all.len() > 1 { format!("{name}: ") } else { String::new() };
            for (expectation, verdict) in verdicts {
                eprintln!("scx-vsock: {name}{}: {verdict}", clean(&expectation.to_string()));
            }
        }
    }

    /// Writes the report, if there is one. Returns how the run ended, or that expectations were not met where all else went
    /// well.
    ///
    /// # Errors
    ///
    /// That of the run; [`ExpectationsBroken`]; the report cannot be written.
    pub fn conclude(self, outcome: Result<()>) -> Result<()> {
        let written = self.junit.as_ref().map_or(Ok(()), |junit| junit.write(&self.all, outcome.as_ref().err()));
        outcome?;
        written?;
        let broken = self.all.iter().map(NamedVerdicts::broken).sum();
        if broken == 0 {
            return Ok(());
        }
        let all = self.all.iter().map(|of| of.verdicts.len()).sum();
        Err(ExpectationsBroken { broken, all }.into())
    }
}
