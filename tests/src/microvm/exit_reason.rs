//! Why a guest's processor does not run any more.

/// Why a processor does not run any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// It was stopped, and can resume.
    Stopped,
    /// The guest turned itself off.
    PoweredOff,
    /// The guest reset itself, as it does after a panic.
    Reset,
}
