//! The expectations of a run, and their verdicts at its end.

use anyhow::Result;
use scx_vsock::Sample;
use scx_vsock::series::expectation::{Evaluation, Expectation, Source};

use super::junit::JunitFile;
use super::named_verdicts::NamedVerdicts;
use super::verdicts::Verdicts;
use crate::display::clean;

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
    /// Those of [`Verdicts::conclude`].
    pub fn conclude(self, outcome: Result<()>) -> Result<()> {
        let is_worth_printing = self.has_begun || outcome.is_ok();
        let verdicts = Verdicts::new(self.verdicts(), self.junit);
        if is_worth_printing {
            verdicts.print();
        }
        verdicts.conclude(outcome)
    }

    /// Prints a line for each verdict so far.
    pub fn print(&self) {
        Verdicts::new(self.verdicts(), None).print();
    }

    /// The verdicts of each guest so far.
    pub fn verdicts(&self) -> Vec<NamedVerdicts> {
        let of = |of: &Evaluation| (of.expectation().clone(), of.verdict());
        let named = |guest: &Guest| NamedVerdicts {
            name: guest.name.clone(),
            verdicts: guest.evaluations.iter().map(of).collect(),
        };
        self.guests.iter().map(named).collect()
    }
}
