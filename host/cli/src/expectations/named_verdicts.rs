//! What became of the expectations of one guest, recording or run.

use scx_vsock::series::expectation::{Expectation, Verdict};

/// What became of the expectations of one.
pub struct NamedVerdicts {
    /// Its name, as it may be shown.
    pub name: String,
    /// Each expectation and its verdict.
    pub verdicts: Vec<(Expectation, Verdict)>,
}

impl NamedVerdicts {
    /// How many were not met.
    pub fn broken(&self) -> usize {
        self.verdicts.iter().filter(|(_, verdict)| !verdict.is_held()).count()
    }
}
