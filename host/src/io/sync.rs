//! What the modules that are model-checked take from the standard library: [`control::stops`](crate::control),
//! its alarms, and the client's turns. Under `cfg(shuttle)` the types have the same names, and every step of theirs
//! is a choice of the model checker's. It knows of one order of all steps only, so it does not find what a processor
//! that orders less could do: that is for the orderings and fences to exclude.

#[cfg(not(shuttle))]
pub(crate) use std::sync::{
    Mutex, MutexGuard, OnceLock,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, fence},
};

#[cfg(shuttle)]
pub(crate) use modelled::OnceLock;
#[cfg(shuttle)]
pub(crate) use shuttle::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, fence},
};

#[cfg(shuttle)]
mod modelled {
    use std::sync::atomic::Ordering;

    use shuttle::sync::atomic::AtomicBool;

    /// The model checker has none of its own: this one lets it switch threads before each look.
    #[derive(Default)]
    pub(crate) struct OnceLock<T> {
        value: std::sync::OnceLock<T>,
        step: AtomicBool,
    }

    impl<T> OnceLock<T> {
        pub(crate) fn new() -> Self {
            Self { value: std::sync::OnceLock::new(), step: AtomicBool::new(false) }
        }

        pub(crate) fn get(&self) -> Option<&T> {
            self.step.load(Ordering::SeqCst);
            self.value.get()
        }

        pub(crate) fn get_or_init(&self, make: impl FnOnce() -> T) -> &T {
            self.step.load(Ordering::SeqCst);
            self.value.get_or_init(make)
        }
    }
}
