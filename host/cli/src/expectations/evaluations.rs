//! The expectations of a run, and their verdicts at its end.

use std::process::ExitCode;

use anyhow::Result;
use scx_vsock::Sample;
use scx_vsock::series::expectation::{Evaluation, Expectation, Source, Verdict};

use super::junit::JunitFile;
use crate::display::clean;
use crate::output::eprintln;

/// The expectations of a run.
pub struct Evaluations {
    guests: Vec<Guest>,
    junit: Option<JunitFile>,
    /// Whether there was a sample.
    has_begun: bool,
}

/// The expectations of one guest.
struct Guest {
    name: String,
    evaluations: Vec<Evaluation>,
}

/// Expectations that were broken, or had no data.
#[derive(Debug, thiserror::Error)]
#[error("{broken} of {all} expectations {} not met", if *broken == 1 { "was" } else { "were" })]
pub struct ExpectationsBroken {
    broken: usize,
    all: usize,
}

impl Evaluations {
    /// Evaluates these of each guest.
    pub fn new(expectations: &[Expectation], guests: &[String], junit: Option<JunitFile>) -> Self {
        let evaluations = || expectations.iter().cloned().map(Evaluation::new).collect();
        let guests = guests.iter().map(|name| Guest { name: clean(name), evaluations: evaluations() }).collect();
        Self { guests, junit, has_begun: false }
    }

    /// Takes the next sample of the guest with this index.
    pub fn record(&mut self, guest: usize, sample: &Sample) {
        self.has_begun = true;
        let evaluations = self.guests.get_mut(guest).map(|guest| &mut guest.evaluations);
        evaluations.into_iter().flatten().for_each(|evaluation| evaluation.record(sample));
    }

    /// Whether some are about what the kernel says.
    pub fn ask_the_kernel(&self) -> bool {
        self.sources().any(|source| source == Source::Kernel)
    }

    /// Whether there are some, and none is about stats.
    pub fn need_no_stats(&self) -> bool {
        self.ask_the_kernel() && self.sources().all(|source| source == Source::Kernel)
    }

    fn sources(&self) -> impl Iterator<Item = Source> {
        let all = self.guests.iter().flat_map(|guest| &guest.evaluations);
        all.map(|evaluation| evaluation.expectation().condition().term().source())
    }

    /// Prints a line for each verdict and writes the report, if there is one. Returns how the run ended, or that
    /// expectations were not met where all else went well.
    ///
    /// # Errors
    ///
    /// That of the run; [`ExpectationsBroken`]; the report cannot be written.
    pub fn conclude(self, outcome: Result<ExitCode>) -> Result<ExitCode> {
        if self.has_begun || outcome.is_ok() {
            self.print();
        }
        let written = self.junit.as_ref().map_or(Ok(()), |junit| junit.write(&self.verdicts(), outcome.as_ref().err()));
        let code = outcome?;
        written?;
        let verdicts = self.verdicts();
        let broken = verdicts.iter().filter(|(_, _, verdict)| !verdict.is_held()).count();
        if broken == 0 || code != ExitCode::SUCCESS {
            return Ok(code);
        }
        Err(ExpectationsBroken { broken, all: verdicts.len() }.into())
    }

    /// Prints a line for each verdict so far.
    pub fn print(&self) {
        for (guest, expectation, verdict) in self.verdicts() {
            let guest = if self.guests.len() > 1 { format!("{guest}: ") } else { String::new() };
            eprintln!("scx-vsock: {guest}{}: {verdict}", clean(&expectation.to_string()));
        }
    }

    /// Each guest's name, expectation and verdict.
    fn verdicts(&self) -> Vec<(&str, &Expectation, Verdict)> {
        let of_guests = self
            .guests
            .iter()
            .flat_map(|guest| guest.evaluations.iter().map(move |evaluation| (guest.name.as_str(), evaluation)));
        of_guests.map(|(name, evaluation)| (name, evaluation.expectation(), evaluation.verdict())).collect()
    }
}
