//! The waiting calls of a run, woken by one signal for all that began between the same two freezes.
//!
//! So a stop wakes any number of calls with one signal, and a call that no stop ends costs none. The signals are in a
//! list that only grows, by as many as there were epochs with calls at once. Calls join one after the other; waking takes
//! no lock and allocates nothing, so it may be done under any lock.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use crate::io::eventfd::Notify;
use crate::io::sync::{AtomicU64, AtomicUsize, Mutex, OnceLock, fence};

/// All waiters of one run.
pub(crate) struct WaitQueue<N> {
    first: OnceLock<Arc<Node<N>>>,
    /// Held by a call that joins, for as long as it takes to create or clear a descriptor. A signal that is in use then
    /// was in use when the call began, so there are never more of them than epochs with calls.
    joining: Mutex<()>,
}

/// A signal, and the calls that wait for it.
struct Node<N> {
    signal: N,
    /// How many calls wait for it.
    calls: AtomicUsize,
    /// The freezes before those calls. Changes only while there are none.
    epoch: AtomicU64,
    next: OnceLock<Arc<Node<N>>>,
}

impl<N: Notify> Node<N> {
    fn new(epoch: u64) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            signal: N::new()?,
            calls: AtomicUsize::new(0),
            epoch: AtomicU64::new(epoch),
            next: OnceLock::new(),
        }))
    }

    fn is_of(&self, epoch: u64) -> bool {
        self.epoch.load(Ordering::SeqCst) == epoch
    }

    fn is_unused(&self) -> bool {
        self.calls.load(Ordering::SeqCst) == 0
    }

    /// Reuses a signal without calls for the calls of this epoch.
    fn reuse(&self, epoch: u64) {
        // What it was signalled for is over.
        self.signal.clear();
        self.epoch.store(epoch, Ordering::SeqCst);
    }
}

impl<N: Notify> WaitQueue<N> {
    pub(crate) fn new() -> Self {
        Self { first: OnceLock::new(), joining: Mutex::new(()) }
    }

    /// Adds a call that begins in this epoch.
    ///
    /// # Errors
    ///
    /// If the process has no more descriptors.
    pub(crate) fn join(&self, epoch: u64) -> io::Result<Waiter<N>> {
        // It protects no data that a panic could leave half changed.
        let _joining = self.joining.lock().unwrap_or_else(PoisonError::into_inner);
        let node = match self.own_nodes().find(|node| node.is_of(epoch)) {
            Some(node) => node,
            None => match self.own_nodes().find(|node| node.is_unused()) {
                Some(node) => {
                    node.reuse(epoch);
                    node
                }
                None => self.append(Node::new(epoch)?),
            },
        };
        node.calls.fetch_add(1, Ordering::SeqCst);
        // The links of the list are not ordered with the numbers of a run: by the fences, either a stop finds this call
        // in the list or the call sees the stop.
        fence(Ordering::SeqCst);
        Ok(Waiter { node: Arc::clone(node), epoch })
    }

    fn append(&self, new: Arc<Node<N>>) -> &Arc<Node<N>> {
        self.nodes().last().map_or(&self.first, |last| &last.next).get_or_init(|| new)
    }

    /// Signals all waiters.
    pub(crate) fn wake_all(&self) {
        fence(Ordering::SeqCst);
        self.own_nodes().filter(|node| !node.is_unused()).for_each(|node| node.signal.notify());
    }

    /// The nodes of this process. A parent waits for the signals that it created before a fork.
    fn own_nodes(&self) -> impl Iterator<Item = &Arc<Node<N>>> {
        self.nodes().filter(|node| !node.signal.is_inherited())
    }

    fn nodes(&self) -> impl Iterator<Item = &Arc<Node<N>>> {
        std::iter::successors(self.first.get(), |node| node.next.get())
    }
}

/// A call's place in the queue, given back on drop.
pub(crate) struct Waiter<N: Notify> {
    node: Arc<Node<N>>,
    epoch: u64,
}

impl<N: Notify> Waiter<N> {
    /// Returns the signal, which other calls wait for as well.
    pub(crate) fn signal(&self) -> &N {
        &self.node.signal
    }

    /// Returns the number of freezes before this call.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }
}

impl<N: Notify> Drop for Waiter<N> {
    fn drop(&mut self) {
        self.node.calls.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::eventfd::EventFd;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::sync::atomic::AtomicBool;
    use std::thread;

    fn is_signalled(waiter: &Waiter<EventFd>) -> bool {
        poll(&mut [PollFd::new(waiter.signal(), PollFlags::IN)], Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap()
            == 1
    }

    fn share_a_signal(a: &Waiter<EventFd>, b: &Waiter<EventFd>) -> bool {
        Arc::ptr_eq(&a.node, &b.node)
    }

    #[test]
    fn calls_of_one_epoch_share_a_signal() {
        let queue = WaitQueue::<EventFd>::new();
        let (first, second, later) = (queue.join(0).unwrap(), queue.join(0).unwrap(), queue.join(1).unwrap());
        assert!(share_a_signal(&first, &second) && !share_a_signal(&first, &later));
        assert_eq!((first.epoch(), later.epoch()), (0, 1));
        queue.wake_all();
        assert!(is_signalled(&first) && is_signalled(&second) && is_signalled(&later));
    }

    #[test]
    fn an_unused_signal_is_reused() {
        let queue = WaitQueue::<EventFd>::new();
        let (first, second) = (queue.join(0).unwrap(), queue.join(0).unwrap());
        queue.wake_all();
        drop(first);
        let other = queue.join(1).unwrap();
        assert!(!share_a_signal(&second, &other) && !is_signalled(&other));
        let node = Arc::clone(&second.node);
        drop(second);
        assert!(share_a_signal(&queue.join(1).unwrap(), &other), "calls of one epoch stay together");
        let third = queue.join(2).unwrap();
        assert!(Arc::ptr_eq(&third.node, &node));
        assert!(!is_signalled(&third), "the signal was for the calls before");
        assert_eq!(queue.nodes().count(), 2);
    }

    #[test]
    fn calls_of_two_epochs_share_no_signal() {
        let queue = WaitQueue::<EventFd>::new();
        thread::scope(|scope| {
            for thread in 0..8 {
                let queue = &queue;
                scope.spawn(move || {
                    for round in 0..2_000 {
                        let epoch = round / (thread + 1);
                        let waiter = queue.join(epoch).unwrap();
                        assert_eq!(waiter.node.epoch.load(Ordering::SeqCst), epoch);
                        thread::yield_now();
                        assert_eq!(waiter.node.epoch.load(Ordering::SeqCst), epoch);
                    }
                });
            }
        });
        assert!(queue.nodes().count() <= 8);
        assert!(queue.nodes().all(|node| node.calls.load(Ordering::SeqCst) == 0));
    }

    /// A signal that is inherited once the test says so.
    struct Inheritable {
        signalled: AtomicBool,
        inherited: AtomicBool,
    }

    impl Notify for Inheritable {
        fn new() -> io::Result<Self> {
            Ok(Self { signalled: AtomicBool::new(false), inherited: AtomicBool::new(false) })
        }

        fn notify(&self) {
            self.signalled.store(true, Ordering::SeqCst);
        }

        fn clear(&self) {
            self.signalled.store(false, Ordering::SeqCst);
        }

        fn is_inherited(&self) -> bool {
            self.inherited.load(Ordering::SeqCst)
        }
    }

    #[test]
    fn an_inherited_signal_is_never_touched() {
        let queue = WaitQueue::<Inheritable>::new();
        let parents = queue.join(0).unwrap();
        parents.signal().notify();
        parents.signal().inherited.store(true, Ordering::SeqCst);
        let own = queue.join(0).unwrap();
        assert!(!Arc::ptr_eq(&parents.node, &own.node));
        parents.signal().clear();
        queue.wake_all();
        assert!(own.signal().signalled.load(Ordering::SeqCst));
        assert!(!parents.signal().signalled.load(Ordering::SeqCst), "the parent's calls were woken");
    }
}
