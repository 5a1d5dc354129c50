//! Descriptors that wake waiting calls, handed out from a list that only grows and is read without a lock.
//!
//! A list that grows as far as calls ever waited at the same time keeps [`wake_all`](Wakers::wake_all) free of locks
//! and allocations: it walks nodes that stay where they are, and signals those that are in use.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::event::{EventfdFlags, eventfd};

use crate::error::SchedStatsError;

/// All wakers of one owner.
#[derive(Default)]
pub(crate) struct Wakers {
    first: OnceLock<Box<Node>>,
}

/// A descriptor, and whether a call has it.
struct Node {
    wake: Arc<Wake>,
    taken: AtomicBool,
    next: OnceLock<Box<Node>>,
}

/// A descriptor that wakes one waiter.
#[derive(Debug)]
pub(crate) struct Wake(OwnedFd);

impl Wake {
    fn new() -> Result<Self, SchedStatsError> {
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map(Self)
            .map_err(|error| SchedStatsError::unreachable(format!("no descriptor to wait with: {error}")))
    }

    /// Wakes the waiter, or its next wait.
    pub(crate) fn wake(&self) {
        // The only failure is a count that is full, and then the waiter is woken already.
        let _full = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Takes the signal back.
    pub(crate) fn clear(&self) {
        // It fails where nothing was signalled, which is what it is for.
        let _empty = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Wakers {
    /// A waker of `owner`'s that nobody else has.
    pub(crate) fn take<O: AsRef<Self>>(owner: &Arc<O>) -> Result<Waker<O>, SchedStatsError> {
        let mut place = &AsRef::<Self>::as_ref(&**owner).first;
        loop {
            let node = match place.get() {
                Some(node) => node,
                None => {
                    let wake = Arc::new(Wake::new()?);
                    let new = Node { wake, taken: AtomicBool::new(false), next: OnceLock::new() };
                    // Somebody else may have been faster; then that node is looked at, and this one is dropped.
                    place.get_or_init(|| Box::new(new))
                }
            };
            if !node.taken.swap(true, Ordering::SeqCst) {
                // What was signalled for the call that had it before.
                node.wake.clear();
                return Ok(Waker { owner: Arc::clone(owner), wake: Arc::clone(&node.wake) });
            }
            place = &node.next;
        }
    }

    /// Wakes every call that has a waker.
    pub(crate) fn wake_all(&self) {
        self.nodes().filter(|node| node.taken.load(Ordering::SeqCst)).for_each(|node| node.wake.wake());
    }

    fn nodes(&self) -> impl Iterator<Item = &Node> {
        std::iter::successors(self.first.get(), |node| node.next.get()).map(|node| &**node)
    }

    fn give_back(&self, wake: &Arc<Wake>) {
        if let Some(node) = self.nodes().find(|node| Arc::ptr_eq(&node.wake, wake)) {
            node.taken.store(false, Ordering::SeqCst);
        }
    }
}

/// A descriptor of one call, given back on drop.
pub(crate) struct Waker<O: AsRef<Wakers>> {
    owner: Arc<O>,
    wake: Arc<Wake>,
}

impl<O: AsRef<Wakers>> Waker<O> {
    /// Whose it is.
    pub(crate) fn owner(&self) -> &O {
        &self.owner
    }

    /// The descriptor.
    pub(crate) fn wake(&self) -> &Arc<Wake> {
        &self.wake
    }
}

impl<O: AsRef<Wakers>> Drop for Waker<O> {
    fn drop(&mut self) {
        AsRef::<Wakers>::as_ref(&*self.owner).give_back(&self.wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::collections::HashSet;
    use std::sync::Mutex;
    use std::thread;

    struct Owner(Wakers);

    impl AsRef<Wakers> for Owner {
        fn as_ref(&self) -> &Wakers {
            &self.0
        }
    }

    fn is_woken(wake: &Wake) -> bool {
        poll(&mut [PollFd::new(wake, PollFlags::IN)], Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
    }

    #[test]
    fn all_who_wait_are_woken_and_what_is_given_back_is_used_again() {
        let owner = Arc::new(Owner(Wakers::default()));
        let (first, second) = (Wakers::take(&owner).unwrap(), Wakers::take(&owner).unwrap());
        owner.0.wake_all();
        assert!(is_woken(first.wake()) && is_woken(second.wake()));
        let descriptor = Arc::clone(first.wake());
        drop(first);
        let third = Wakers::take(&owner).unwrap();
        assert!(Arc::ptr_eq(&descriptor, third.wake()));
        assert!(!is_woken(third.wake()), "the signal was for the call before");
    }

    #[test]
    fn no_two_calls_ever_have_the_same_waker() {
        let owner = Arc::new(Owner(Wakers::default()));
        let used = Mutex::new(HashSet::new());
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        let waker = Wakers::take(&owner).unwrap();
                        let place = Arc::as_ptr(waker.wake()) as usize;
                        assert!(used.lock().unwrap().insert(place), "two calls have it");
                        assert!(used.lock().unwrap().remove(&place));
                    }
                });
            }
        });
        assert!(owner.0.nodes().count() <= 8);
    }
}
