//! The standard library's types for the modules that are model-checked: the stops of [`control`](crate::control) and the
//! client's fair mutex. Under `cfg(shuttle)` they are the model checker's own, which chooses the order of all steps. It
//! assumes that all threads see one order, so that it does not find the reorderings of a weaker memory model: those are
//! excluded by the orderings and fences.

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

    /// The model checker has no such type: this one lets it switch threads before each access.
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
