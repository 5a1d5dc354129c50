//! Signals that wake waiting calls, handed out from a list that only grows and is read without a lock.
//!
//! A list that grows as far as calls ever waited at the same time keeps [`wake_all`](Wakers::wake_all) free of locks
//! and allocations: it walks nodes that stay where they are, and signals those that are in use.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::sync::{AtomicBool, OnceLock};
use crate::wake::Notify;

/// All wakers of one owner.
pub(crate) struct Wakers<N> {
    first: OnceLock<Arc<Node<N>>>,
}

/// A signal, and whether a call has it.
struct Node<N> {
    wake: Arc<N>,
    taken: AtomicBool,
    next: OnceLock<Arc<Node<N>>>,
}

impl<N: Notify> Node<N> {
    fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { wake: Arc::new(N::new()?), taken: AtomicBool::new(false), next: OnceLock::new() }))
    }
}

impl<N: Notify> Wakers<N> {
    /// None yet.
    pub(crate) fn new() -> Self {
        Self { first: OnceLock::new() }
    }

    /// A waker that nobody else has.
    ///
    /// # Errors
    ///
    /// What the kernel says if it has no more.
    pub(crate) fn take(&self) -> io::Result<Waker<N>> {
        let mut place = &self.first;
        loop {
            let node = match place.get() {
                Some(node) => node,
                None => {
                    let new = Node::new()?;
                    // Somebody else may have been faster; then that node is looked at, and this one is dropped.
                    place.get_or_init(|| new)
                }
            };
            if !node.taken.swap(true, Ordering::SeqCst) {
                // What was signalled for the call that had it before.
                node.wake.clear();
                return Ok(Waker { node: Arc::clone(node) });
            }
            place = &node.next;
        }
    }

    /// Wakes every call that has a waker.
    pub(crate) fn wake_all(&self) {
        self.nodes().filter(|node| node.taken.load(Ordering::SeqCst)).for_each(|node| node.wake.notify());
    }

    fn nodes(&self) -> impl Iterator<Item = &Node<N>> {
        std::iter::successors(self.first.get(), |node| node.next.get()).map(|node| &**node)
    }
}

/// A signal of one call, given back on drop.
pub(crate) struct Waker<N> {
    node: Arc<Node<N>>,
}

impl<N> Waker<N> {
    /// The signal.
    pub(crate) fn wake(&self) -> &Arc<N> {
        &self.node.wake
    }
}

impl<N> Drop for Waker<N> {
    fn drop(&mut self) {
        self.node.taken.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wake::Wake;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::collections::HashSet;
    use std::sync::Mutex;
    use std::thread;

    fn is_woken(wake: &Wake) -> bool {
        poll(&mut [PollFd::new(wake, PollFlags::IN)], Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
    }

    #[test]
    fn all_who_wait_are_woken_and_what_is_given_back_is_used_again() {
        let wakers = Wakers::<Wake>::new();
        let (first, second) = (wakers.take().unwrap(), wakers.take().unwrap());
        wakers.wake_all();
        assert!(is_woken(first.wake()) && is_woken(second.wake()));
        let descriptor = Arc::clone(first.wake());
        drop(first);
        let third = wakers.take().unwrap();
        assert!(Arc::ptr_eq(&descriptor, third.wake()));
        assert!(!is_woken(third.wake()), "the signal was for the call before");
    }

    #[test]
    fn no_two_calls_ever_have_the_same_waker() {
        let wakers = Wakers::<Wake>::new();
        let used = Mutex::new(HashSet::new());
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        let waker = wakers.take().unwrap();
                        let place = Arc::as_ptr(waker.wake()) as usize;
                        assert!(used.lock().unwrap().insert(place), "two calls have it");
                        assert!(used.lock().unwrap().remove(&place));
                    }
                });
            }
        });
        assert!(wakers.nodes().count() <= 8);
    }
}
