//! The reason inside an error of any type.

use std::error::Error;
use std::io;
use std::sync::Arc;

use super::error::SchedStatsError;
use super::peer_text::bounded;
use super::reason::MissingStatsReason;

type BoxedError = Box<dyn Error + Send + Sync>;

impl MissingStatsReason {
    /// Returns the first [`SchedStatsError`] or reason of an error: as a context, as a cause, boxed, or inside an
    /// [`io::Error`].
    ///
    /// One error cannot be found: an `io::Error` that was made of an [`anyhow::Error`] without a context. What anyhow boxes
    /// then is of a private type, which no one can downcast ([`anyhow::Error::into_boxed_dyn_error`]), and of which
    /// [`source`](std::error::Error::source) skips the error inside. A context makes that error a source; and
    /// [`reallocate_into_boxed_dyn_error_without_backtrace`][reallocate] makes a box that can be downcast.
    ///
    /// [reallocate]: anyhow::Error::reallocate_into_boxed_dyn_error_without_backtrace
    ///
    /// ```
    /// use std::io;
    /// use scx_vsock::{MissingStatsReason, SchedStatsError};
    ///
    /// let error = anyhow::Error::from(io::Error::other(SchedStatsError::Cancelled)).context("sampling");
    /// assert_eq!(MissingStatsReason::find(&error), Some(MissingStatsReason::Cancelled));
    /// assert_eq!(MissingStatsReason::find(&anyhow::anyhow!("no such file")), None);
    /// ```
    #[must_use]
    pub fn find(error: &anyhow::Error) -> Option<Self> {
        // Contexts are no part of the chain; `downcast_ref` sees them.
        let context = error.downcast_ref::<SchedStatsError>().map(Self::from);
        let context = context.or_else(|| error.downcast_ref::<Self>().cloned());
        let boxed = || find_in(&**error.downcast_ref::<BoxedError>()?);
        context.or_else(boxed).or_else(|| find_in(error.as_ref()))
    }
}

/// The reason that [`find`](MissingStatsReason::find) finds; without one,
/// [`NoScheduler`](MissingStatsReason::NoScheduler) with the whole chain's text.
impl From<&anyhow::Error> for MissingStatsReason {
    fn from(error: &anyhow::Error) -> Self {
        Self::find(error).unwrap_or_else(|| Self::NoScheduler { reason: bounded(format!("{error:#}")) })
    }
}

/// The first reason of a chain of causes.
fn find_in(error: &(dyn Error + 'static)) -> Option<MissingStatsReason> {
    std::iter::successors(Some(error), |&error| error.source()).find_map(|cause| {
        // The source of an `io::Error` skips what it was made of.
        let inside = || find_in(io_error(cause)?.get_ref()?);
        reason_of(cause).or_else(inside)
    })
}

/// The `io::Error` that an error is, boxed or not.
fn io_error<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e io::Error> {
    error
        .downcast_ref::<io::Error>()
        .or_else(|| error.downcast_ref::<Box<io::Error>>().map(|boxed| &**boxed))
        .or_else(|| error.downcast_ref::<Arc<io::Error>>().map(|shared| &**shared))
}

/// The reason that an error is, boxed or not.
fn reason_of(error: &(dyn Error + 'static)) -> Option<MissingStatsReason> {
    let failed = error
        .downcast_ref::<SchedStatsError>()
        .or_else(|| error.downcast_ref::<Box<SchedStatsError>>().map(|boxed| &**boxed))
        .or_else(|| error.downcast_ref::<Arc<SchedStatsError>>().map(|shared| &**shared));
    let missing = || {
        error
            .downcast_ref::<MissingStatsReason>()
            .or_else(|| error.downcast_ref::<Box<MissingStatsReason>>().map(|boxed| &**boxed))
            .or_else(|| error.downcast_ref::<Arc<MissingStatsReason>>().map(|shared| &**shared))
    };
    failed.map(MissingStatsReason::from).or_else(|| missing().cloned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(error: impl Into<anyhow::Error>) -> MissingStatsReason {
        MissingStatsReason::from(&error.into())
    }

    /// An error with a cause.
    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer<E: Error + 'static>(#[source] E);

    #[test]
    fn an_error_is_found_wherever_it_stands_in_the_chain() {
        let cancelled = || anyhow::Error::from(SchedStatsError::Cancelled);
        let deep = cancelled().context("sampling").context("phase 2").context("the run");
        assert_eq!(MissingStatsReason::from(&cancelled()), MissingStatsReason::Cancelled);
        assert_eq!(MissingStatsReason::from(&deep), MissingStatsReason::Cancelled);
        let as_context = anyhow::anyhow!("a pipe broke").context(SchedStatsError::DuringFreeze).context("the run");
        assert_eq!(MissingStatsReason::from(&as_context), MissingStatsReason::DuringFreeze);
    }

    #[test]
    fn a_reason_is_found_like_an_error() {
        assert_eq!(found(MissingStatsReason::Cancelled), MissingStatsReason::Cancelled);
        let context = anyhow::anyhow!("a pipe broke").context(MissingStatsReason::NoSchedulerBinary).context("the run");
        assert_eq!(found(context), MissingStatsReason::NoSchedulerBinary);
        assert_eq!(found(Outer(MissingStatsReason::DuringFreeze)), MissingStatsReason::DuringFreeze);
    }

    #[test]
    fn boxed_errors_are_found() {
        let expected = MissingStatsReason::Cancelled;
        let boxed: BoxedError = Box::new(SchedStatsError::Cancelled);
        assert_eq!(found(anyhow::Error::from_boxed(boxed)), expected);
        let nested: BoxedError = Box::new(Outer(Box::new(SchedStatsError::Cancelled)));
        assert_eq!(found(anyhow::Error::from_boxed(nested).context("the run")), expected);
        assert_eq!(found(Outer(Arc::new(SchedStatsError::Cancelled))), expected);
        let plain: Box<dyn Error + Send + Sync> = Box::new(MissingStatsReason::Cancelled);
        assert_eq!(found(anyhow::Error::from_boxed(plain)), expected);
    }

    #[test]
    fn errors_inside_io_errors_are_found() {
        let expected = MissingStatsReason::Cancelled;
        assert_eq!(found(io::Error::other(SchedStatsError::Cancelled)), expected);
        assert_eq!(found(io::Error::other(MissingStatsReason::Cancelled)), expected);
        let deep = Outer(io::Error::other(Outer(io::Error::other(Box::new(SchedStatsError::Cancelled)))));
        assert_eq!(found(deep), expected);
        let boxed: BoxedError = Box::new(io::Error::other(SchedStatsError::Cancelled));
        assert_eq!(found(anyhow::Error::from_boxed(boxed)), expected);
    }

    #[test]
    fn errors_inside_several_errors_are_found() {
        let expected = MissingStatsReason::Cancelled;
        let twice = || io::Error::other(io::Error::new(io::ErrorKind::NotFound, SchedStatsError::Cancelled));
        assert_eq!(found(twice()), expected);
        assert_eq!(found(anyhow::Error::from(twice()).context("sampling").context("the run")), expected);
        assert_eq!(found(io::Error::other(anyhow::Error::from(twice()).context("sampling"))), expected);
        assert_eq!(found(io::Error::other(Outer(Arc::new(twice())))), expected);
        assert_eq!(found(Outer(Box::new(twice()))), expected);
        let dynamic: BoxedError = Box::new(Outer(twice()));
        assert_eq!(found(io::Error::other(dynamic)), expected);
        assert_eq!(MissingStatsReason::find(&anyhow::Error::from(io::Error::from_raw_os_error(2))), None);
    }

    #[test]
    fn an_anyhow_error_inside_an_io_error_needs_a_context() {
        let cancelled = || anyhow::Error::from(SchedStatsError::Cancelled);
        let expected = MissingStatsReason::Cancelled;
        assert_eq!(found(io::Error::other(cancelled().context("sampling"))), expected);
        assert_eq!(found(io::Error::other(cancelled().reallocate_into_boxed_dyn_error_without_backtrace())), expected);
        let hidden = io::Error::other(cancelled());
        // Neither the box nor what it has as its sources can be downcast.
        let boxed = hidden.get_ref().unwrap();
        assert!(boxed.downcast_ref::<SchedStatsError>().is_none() && boxed.source().is_none());
        let reason = SchedStatsError::Cancelled.to_string();
        assert_eq!(found(hidden), MissingStatsReason::NoScheduler { reason });
    }

    #[test]
    fn an_unknown_error_keeps_the_text_of_its_whole_chain() {
        let unknown = anyhow::anyhow!("no such file").context("reading the config");
        let reason = "reading the config: no such file".to_owned();
        assert_eq!(MissingStatsReason::from(&unknown), MissingStatsReason::NoScheduler { reason });
    }

    #[test]
    fn an_unknown_error_has_no_terminal_escapes() {
        let hostile = anyhow::anyhow!("{}\u{1b}[2J\u{202e}{}", "x".repeat(10), "y".repeat(200_000));
        let MissingStatsReason::NoScheduler { reason } = found(hostile) else { panic!() };
        assert!(reason.starts_with(r"xxxxxxxxxx\u{1b}[2J\u{202e}yyy"), "{reason:.100}");
        assert!(reason.len() < 3_000, "{}", reason.len());
    }
}
