//! Gets a thread out of KVM.
#![allow(unsafe_code, reason = "a signal is sent to a thread by its number")]

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::OnceLock;
use std::thread::JoinHandle;

use kvm_ioctls::KvmRunWrapper;
use libc::{c_int, c_void, siginfo_t};
use vmm_sys_util::errno::Error as Errno;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

/// A vCPU's thread, and how it is made to leave KVM.
pub(super) struct Kick {
    thread: JoinHandle<()>,
    /// The vCPU's page of state, mapped once more.
    control: KvmRunWrapper,
}

/// Lets a signal interrupt the system call in which a thread waits, and do nothing else.
///
/// # Errors
///
/// The system's.
pub(super) fn prepare() -> io::Result<()> {
    static REGISTERED: OnceLock<Result<(), Errno>> = OnceLock::new();
    Ok((*REGISTERED.get_or_init(|| register_signal_handler(SIGRTMIN(), on_signal)))?)
}

extern "C" fn on_signal(_number: c_int, _about: *mut siginfo_t, _context: *mut c_void) {}

impl Kick {
    /// Returns the kick of the vCPU that `thread` runs, whose page of state is `control`.
    pub(super) fn new(thread: JoinHandle<()>, control: KvmRunWrapper) -> Self {
        Self { thread, control }
    }

    /// Makes KVM return, whether the thread is in it by now or is about to enter it.
    pub(super) fn kick(&mut self) {
        self.control.as_mut_ref().immediate_exit = 1;
        // SAFETY: the thread was not joined, since its handle is here, so that its number is still its own.
        let _has_ended = unsafe { libc::pthread_kill(self.thread.as_pthread_t(), SIGRTMIN()) };
    }

    /// Waits for the thread's end.
    pub(super) fn join(self) {
        let _panicked = self.thread.join();
    }
}

impl std::fmt::Debug for Kick {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kick").field("thread", &self.thread).finish_non_exhaustive()
    }
}
