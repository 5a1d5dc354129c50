//! Signals that end calls: one for all calls that began between the same two freezes.
//!
//! So a stop wakes any number of calls with one signal, and a call that no stop meets costs none. The signals are
//! in a list that only grows, as far as calls of different epochs ever waited at once. Calls join one after the other; a
//! stop takes no lock and allocates nothing, so it may come under any lock of its caller's.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use crate::io::eventfd::Notify;
use crate::io::sync::{AtomicU64, AtomicUsize, Mutex, OnceLock, fence};

/// All signals of one owner.
pub(crate) struct WaitQueue<N> {
    first: OnceLock<Arc<Node<N>>>,
    /// Held by the call that joins, for as long as making a descriptor or emptying one takes. A signal that others have
    /// then was theirs when it began, so there are never more of them than epochs with calls.
    joining: Mutex<()>,
}

/// A signal, and the calls that it ends.
struct Node<N> {
    wake: N,
    /// How many calls have it.
    calls: AtomicUsize,
    /// The freezes that had been before those calls. Changes only while there are none.
    epoch: AtomicU64,
    next: OnceLock<Arc<Node<N>>>,
}

impl<N: Notify> Node<N> {
    fn new(epoch: u64) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            wake: N::new()?,
            calls: AtomicUsize::new(0),
            epoch: AtomicU64::new(epoch),
            next: OnceLock::new(),
        }))
    }

    fn is_of(&self, epoch: u64) -> bool {
        self.epoch.load(Ordering::SeqCst) == epoch
    }

    fn is_free(&self) -> bool {
        self.calls.load(Ordering::SeqCst) == 0
    }

    /// Gives a signal that nobody has to the calls of this epoch.
    fn begin(&self, epoch: u64) {
        // It was signalled for the calls that had it before.
        self.wake.clear();
        self.epoch.store(epoch, Ordering::SeqCst);
    }
}

impl<N: Notify> WaitQueue<N> {
    /// None yet.
    pub(crate) fn new() -> Self {
        Self { first: OnceLock::new(), joining: Mutex::new(()) }
    }

    /// The signal of the calls that begin in this epoch.
    ///
    /// # Errors
    ///
    /// What the kernel says if it has no more.
    pub(crate) fn join(&self, epoch: u64) -> io::Result<Alarm<N>> {
        // There is nothing in it that a panic could leave half done.
        let _joining = self.joining.lock().unwrap_or_else(PoisonError::into_inner);
        let node = match self.nodes().find(|node| node.is_of(epoch)) {
            Some(node) => node,
            None => match self.nodes().find(|node| node.is_free()) {
                Some(node) => {
                    node.begin(epoch);
                    node
                }
                None => self.append(Node::new(epoch)?),
            },
        };
        node.calls.fetch_add(1, Ordering::SeqCst);
        // The list's links are ordered with nothing else: either a stop finds this call, or the call then sees the stop.
        fence(Ordering::SeqCst);
        Ok(Alarm { node: Arc::clone(node), epoch })
    }

    fn append(&self, new: Arc<Node<N>>) -> &Arc<Node<N>> {
        self.nodes().last().map_or(&self.first, |last| &last.next).get_or_init(|| new)
    }

    /// Signals all calls.
    pub(crate) fn ring(&self) {
        fence(Ordering::SeqCst);
        self.nodes().filter(|node| !node.is_free()).for_each(|node| node.wake.notify());
    }

    fn nodes(&self) -> impl Iterator<Item = &Arc<Node<N>>> {
        std::iter::successors(self.first.get(), |node| node.next.get())
    }
}

/// A call's hold on its signal, given back on drop.
pub(crate) struct Alarm<N: Notify> {
    node: Arc<Node<N>>,
    epoch: u64,
}

impl<N: Notify> Alarm<N> {
    /// The signal, which other calls have too.
    pub(crate) fn wake(&self) -> &N {
        &self.node.wake
    }

    /// The freezes that had been before this call.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }
}

impl<N: Notify> Drop for Alarm<N> {
    fn drop(&mut self) {
        self.node.calls.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::eventfd::EventFd;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::thread;

    fn is_rung(alarm: &Alarm<EventFd>) -> bool {
        poll(&mut [PollFd::new(alarm.wake(), PollFlags::IN)], Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
    }

    fn are_one(a: &Alarm<EventFd>, b: &Alarm<EventFd>) -> bool {
        Arc::ptr_eq(&a.node, &b.node)
    }

    #[test]
    fn calls_of_one_epoch_have_one_signal_and_those_of_another_have_another() {
        let alarms = WaitQueue::<EventFd>::new();
        let (first, second, later) = (alarms.join(0).unwrap(), alarms.join(0).unwrap(), alarms.join(1).unwrap());
        assert!(are_one(&first, &second) && !are_one(&first, &later));
        assert_eq!((first.epoch(), later.epoch()), (0, 1));
        alarms.ring();
        assert!(is_rung(&first) && is_rung(&second) && is_rung(&later));
    }

    #[test]
    fn a_signal_is_used_again_for_another_epoch_once_all_its_calls_are_over() {
        let alarms = WaitQueue::<EventFd>::new();
        let (first, second) = (alarms.join(0).unwrap(), alarms.join(0).unwrap());
        alarms.ring();
        drop(first);
        let other = alarms.join(1).unwrap();
        assert!(!are_one(&second, &other) && !is_rung(&other));
        let node = Arc::clone(&second.node);
        drop(second);
        assert!(are_one(&alarms.join(1).unwrap(), &other), "calls of one epoch stay together");
        let third = alarms.join(2).unwrap();
        assert!(Arc::ptr_eq(&third.node, &node));
        assert!(!is_rung(&third), "the signal was for the calls before");
        assert_eq!(alarms.nodes().count(), 2);
    }

    #[test]
    fn no_signal_is_ever_shared_by_calls_of_two_epochs() {
        let alarms = WaitQueue::<EventFd>::new();
        thread::scope(|scope| {
            for thread in 0..8 {
                let alarms = &alarms;
                scope.spawn(move || {
                    for round in 0..2_000 {
                        let epoch = round / (thread + 1);
                        let alarm = alarms.join(epoch).unwrap();
                        assert_eq!(alarm.node.epoch.load(Ordering::SeqCst), epoch);
                        thread::yield_now();
                        assert_eq!(alarm.node.epoch.load(Ordering::SeqCst), epoch);
                    }
                });
            }
        });
        assert!(alarms.nodes().count() <= 8);
        assert!(alarms.nodes().all(|node| node.calls.load(Ordering::SeqCst) == 0));
    }
}
