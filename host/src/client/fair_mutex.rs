//! A mutex that is locked first come, first served, and that a call waits for no longer than it may.
//!
//! A standard mutex can neither give up at a deadline nor be woken by anything else, and lets a thread that locks again
//! at once overtake the others. Here a queue of event descriptors decides who is next, and the standard mutex around the
//! value is only ever locked by that one; its poison says that an earlier one panicked.

use std::collections::VecDeque;
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, PoisonError};

use crate::io::eventfd::{EventFd, Notify};
use crate::io::sync::{Mutex, MutexGuard};
use crate::stats::SchedStatsError;

/// How a call blocks while the mutex is locked.
pub(crate) trait Block<N> {
    /// Blocks until `unlocked` is signalled, which it clears, or something else ends this call, which
    /// [`check`](Self::check) then returns.
    ///
    /// # Errors
    ///
    /// If the call cannot block.
    fn block(&self, unlocked: &N) -> Result<(), SchedStatsError>;

    /// Checks that nothing has ended this call.
    ///
    /// # Errors
    ///
    /// What has ended it.
    fn check(&self) -> Result<(), SchedStatsError>;
}

#[derive(Debug)]
pub(crate) struct FairMutex<T, N = EventFd> {
    queue: Mutex<LockQueue<N>>,
    value: Mutex<T>,
}

#[derive(Debug)]
struct LockQueue<N> {
    locked: bool,
    waiters: VecDeque<Arc<N>>,
    /// Signals of earlier waiters, for later ones: as many as ever waited at once.
    unused: Vec<Arc<N>>,
}

impl<T, N: Notify> FairMutex<T, N> {
    pub(crate) fn new(value: T) -> Self {
        let queue = LockQueue { locked: false, waiters: VecDeque::new(), unused: Vec::new() };
        Self { queue: Mutex::new(queue), value: Mutex::new(value) }
    }

    /// Locks the mutex, after all who came before.
    ///
    /// # Errors
    ///
    /// What ended the call before it was its turn; [`SchedStatsError::MutexPoisoned`].
    pub(crate) fn lock(&self, call: &impl Block<N>) -> Result<FairMutexGuard<'_, T, N>, SchedStatsError> {
        if !self.queue().try_lock() {
            self.wait(call)?;
        }
        let unlock = Unlock { queue: &self.queue };
        let value = self.value.lock().map_err(|_| SchedStatsError::MutexPoisoned)?;
        Ok(FairMutexGuard { value, _unlock: unlock })
    }

    /// Waits in the queue until the mutex is this call's.
    fn wait(&self, call: &impl Block<N>) -> Result<(), SchedStatsError> {
        let waiter = &self.queue().push().map_err(SchedStatsError::no_descriptor)?;
        let mut outcome = Ok(());
        loop {
            let mut queue = self.queue();
            if queue.try_lock_as(waiter) {
                queue.recycle(waiter);
                return Ok(());
            }
            if outcome.is_err() {
                queue.cancel(waiter);
                queue.recycle(waiter);
                return outcome;
            }
            drop(queue);
            // Even if something has ended the call: a mutex that became its own meanwhile is locked, and unlocked in order.
            outcome = call.block(waiter).and_then(|()| call.check());
        }
    }

    fn queue(&self) -> MutexGuard<'_, LockQueue<N>> {
        lock(&self.queue)
    }
}

/// Nothing panics while the queue is locked, so its poison means nothing.
fn lock<N>(queue: &Mutex<LockQueue<N>>) -> MutexGuard<'_, LockQueue<N>> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<N: Notify> LockQueue<N> {
    fn try_lock(&mut self) -> bool {
        let is_free = !self.locked && self.waiters.is_empty();
        self.locked |= is_free;
        is_free
    }

    /// Locks the mutex if `waiter` is the first in the queue.
    fn try_lock_as(&mut self, waiter: &Arc<N>) -> bool {
        let is_next = !self.locked && self.waiters.front().is_some_and(|first| Arc::ptr_eq(first, waiter));
        if is_next {
            self.locked = true;
            self.waiters.pop_front();
        }
        is_next
    }

    /// Removes a waiter that gives up. What it was signalled for is the next one's.
    fn cancel(&mut self, waiter: &Arc<N>) {
        self.waiters.retain(|other| !Arc::ptr_eq(other, waiter));
        if !self.locked {
            self.wake_first();
        }
    }

    /// Appends a waiter, and returns its signal.
    fn push(&mut self) -> io::Result<Arc<N>> {
        // A parent process waits on the signals that it created before the fork.
        self.unused.retain(|signal| !signal.is_inherited());
        let waiter = self.unused.pop().map_or_else(|| N::new().map(Arc::new), Ok)?;
        self.waiters.push_back(Arc::clone(&waiter));
        Ok(waiter)
    }

    /// Keeps the signal of a waiter that has left the queue, cleared.
    fn recycle(&mut self, waiter: &Arc<N>) {
        waiter.clear();
        self.unused.push(Arc::clone(waiter));
    }

    fn wake_first(&self) {
        if let Some(first) = self.waiters.front() {
            first.notify();
        }
    }
}

/// A locked [`FairMutex`]; unlocks it on drop.
#[derive(Debug)]
pub(crate) struct FairMutexGuard<'a, T, N: Notify = EventFd> {
    // Dropped in this order: the value is unlocked before the next waiter is woken.
    value: MutexGuard<'a, T>,
    _unlock: Unlock<'a, N>,
}

/// Unlocks the queue on drop, and wakes the first waiter.
#[derive(Debug)]
struct Unlock<'a, N: Notify> {
    queue: &'a Mutex<LockQueue<N>>,
}

impl<N: Notify> Drop for Unlock<'_, N> {
    fn drop(&mut self) {
        let mut queue = lock(self.queue);
        queue.locked = false;
        queue.wake_first();
    }
}

impl<T, N: Notify> Deref for FairMutexGuard<'_, T, N> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T, N: Notify> DerefMut for FairMutexGuard<'_, T, N> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::client::blocking_call::BlockingCall;
    use crate::control::RunControl;

    fn call(allowed: Duration) -> BlockingCall {
        BlockingCall::begin(&RunControl::new(), allowed).unwrap()
    }

    fn patient() -> BlockingCall {
        call(Duration::from_secs(20))
    }

    fn waiter() -> Arc<EventFd> {
        Arc::new(EventFd::new().unwrap())
    }

    fn queue(locked: bool, waiters: [&Arc<EventFd>; 2]) -> LockQueue<EventFd> {
        LockQueue { locked, waiters: waiters.map(Arc::clone).into(), unused: Vec::new() }
    }

    #[test]
    fn the_first_waiter_is_next() {
        let (first, second) = (&waiter(), &waiter());
        let mut queue = queue(true, [first, second]);
        assert!(!queue.try_lock_as(first));
        queue.locked = false;
        assert!(!queue.try_lock());
        assert!(!queue.try_lock_as(second));
        assert!(queue.try_lock_as(first));
        queue.locked = false;
        assert!(queue.try_lock_as(second));
        queue.locked = false;
        assert!(queue.try_lock());
    }

    #[test]
    fn a_cancelled_waiter_wakes_the_next() {
        let (first, second) = (&waiter(), &waiter());
        let mut queue = queue(false, [first, second]);
        queue.cancel(first);
        let before = Instant::now();
        patient().block(second).unwrap();
        assert!(before.elapsed() < Duration::from_secs(10), "the second was not woken");
        assert!(queue.try_lock_as(second));
    }

    #[test]
    fn a_waiter_leaves_the_queue_at_its_deadline() {
        let mutex = FairMutex::new(());
        let locked = mutex.lock(&patient()).unwrap();
        let ended = mutex.lock(&call(Duration::from_millis(30))).unwrap_err();
        assert_eq!(ended, SchedStatsError::TimedOut { after_ms: 30 });
        assert!(mutex.queue().waiters.is_empty());
        drop(locked);
        mutex.lock(&call(Duration::ZERO)).unwrap();
    }

    #[test]
    fn a_waiter_leaves_the_queue_at_a_freeze() {
        let (mutex, control) = (FairMutex::new(()), RunControl::new());
        let locked = mutex.lock(&patient()).unwrap();
        let call = BlockingCall::begin(&control, Duration::from_secs(20)).unwrap();
        thread::scope(|scope| {
            let waits = scope.spawn(|| mutex.lock(&call).map(drop).unwrap_err());
            drop(control.freeze());
            assert_eq!(waits.join().unwrap(), SchedStatsError::DuringFreeze);
        });
        assert!(mutex.queue().waiters.is_empty());
        drop(locked);
    }

    #[test]
    fn a_panic_poisons_the_mutex_for_all() {
        let mutex = FairMutex::new(());
        thread::scope(|scope| {
            let panics = scope.spawn(|| {
                let _locked = mutex.lock(&patient()).unwrap();
                panic!("on purpose");
            });
            panics.join().unwrap_err();
        });
        for _ in 0..2 {
            assert_eq!(mutex.lock(&patient()).unwrap_err(), SchedStatsError::MutexPoisoned);
        }
    }

    /// The signal of a parent process.
    struct Inherited;

    impl Notify for Inherited {
        fn new() -> io::Result<Self> {
            Ok(Self)
        }

        fn notify(&self) {}

        fn clear(&self) {}

        fn is_inherited(&self) -> bool {
            true
        }
    }

    #[test]
    fn an_inherited_signal_is_not_reused() {
        let mut queue = LockQueue::<Inherited> { locked: true, waiters: VecDeque::new(), unused: Vec::new() };
        let parents = queue.push().unwrap();
        queue.recycle(&parents);
        assert!(!Arc::ptr_eq(&parents, &queue.push().unwrap()));
        assert!(queue.unused.is_empty());
    }

    #[test]
    fn only_one_thread_holds_the_lock() {
        let mutex = FairMutex::new(0u32);
        thread::scope(|scope| {
            for thread in 0..8 {
                let mutex = &mutex;
                scope.spawn(move || {
                    for round in 0..500 {
                        // Some give up at once, in the midst of the others.
                        if (round + thread) % 7 == 0 {
                            drop(mutex.lock(&call(Duration::ZERO)));
                        }
                        *mutex.lock(&patient()).unwrap() += 1;
                    }
                });
            }
        });
        assert_eq!(*mutex.lock(&patient()).unwrap(), 8 * 500);
        let queue = mutex.queue();
        assert!(queue.waiters.is_empty() && queue.unused.len() <= 8, "{} signals", queue.unused.len());
    }
}
