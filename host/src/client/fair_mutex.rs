//! Taking turns on one value, first come first served, without waiting longer than a call may.
//!
//! A mutex alone can neither give up at a deadline nor be woken by anything else, and lets a thread that asks again at
//! once overtake the others. So a queue of wake descriptors decides whose turn it is, and the mutex around the value is
//! only ever locked by the one who has it; its poison says that an earlier one panicked.

use std::collections::VecDeque;
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, PoisonError};

use crate::io::eventfd::{EventFd, Notify, no_descriptor};
use crate::io::sync::{Mutex, MutexGuard};
use crate::stats::SchedStatsError;

/// How a call waits.
pub(crate) trait Waiting<N> {
    /// Waits until `turn` is signalled, which it takes back, or something else ends this call, which is for
    /// [`interrupted`](Self::interrupted) to say.
    ///
    /// # Errors
    ///
    /// If waiting itself fails.
    fn sleep(&self, turn: &N) -> Result<(), SchedStatsError>;

    /// Whether anything other than its turn ends this call.
    ///
    /// # Errors
    ///
    /// What ends it.
    fn interrupted(&self) -> Result<(), SchedStatsError>;
}

#[derive(Debug)]
pub(crate) struct FairMutex<T, N = EventFd> {
    queue: Mutex<Queue<N>>,
    value: Mutex<T>,
}

#[derive(Debug)]
struct Queue<N> {
    taken: bool,
    waiting: VecDeque<Arc<N>>,
    /// Signals of calls that waited, for those to come: as many as ever waited at once.
    spare: Vec<Arc<N>>,
}

impl<T, N: Notify> FairMutex<T, N> {
    pub(crate) fn new(value: T) -> Self {
        let queue = Queue { taken: false, waiting: VecDeque::new(), spare: Vec::new() };
        Self { queue: Mutex::new(queue), value: Mutex::new(value) }
    }

    /// Waits for the turn and takes it.
    pub(crate) fn take(&self, wait: &impl Waiting<N>) -> Result<Turn<'_, T, N>, SchedStatsError> {
        if !self.queue().take_if_free() {
            self.wait_in_queue(wait)?;
        }
        let ticket = Ticket { queue: &self.queue };
        let value = self.value.lock().map_err(|_| SchedStatsError::MutexPoisoned)?;
        Ok(Turn { value, _ticket: ticket })
    }

    fn wait_in_queue(&self, wait: &impl Waiting<N>) -> Result<(), SchedStatsError> {
        let me = &self.queue().join().map_err(no_descriptor)?;
        let mut end = Ok(());
        loop {
            let mut queue = self.queue();
            if queue.take_if_first(me) {
                queue.spare(me);
                return Ok(());
            }
            if end.is_err() {
                queue.leave(me);
                queue.spare(me);
                return end;
            }
            drop(queue);
            // Whatever ends the wait, a turn that has come by then is taken and passed on in good order.
            end = wait.sleep(me).and_then(|()| wait.interrupted());
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue<N>> {
        lock(&self.queue)
    }
}

/// Nothing panics while the queue is locked, so its poison means nothing.
fn lock<N>(queue: &Mutex<Queue<N>>) -> MutexGuard<'_, Queue<N>> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<N: Notify> Queue<N> {
    fn take_if_free(&mut self) -> bool {
        let free = !self.taken && self.waiting.is_empty();
        self.taken |= free;
        free
    }

    fn take_if_first(&mut self, me: &Arc<N>) -> bool {
        let mine = !self.taken && self.waiting.front().is_some_and(|first| Arc::ptr_eq(first, me));
        if mine {
            self.taken = true;
            self.waiting.pop_front();
        }
        mine
    }

    fn leave(&mut self, me: &Arc<N>) {
        self.waiting.retain(|waiter| !Arc::ptr_eq(waiter, me));
        if !self.taken {
            self.wake_first();
        }
    }

    /// Puts a call into the line; gives its signal.
    fn join(&mut self) -> io::Result<Arc<N>> {
        let me = self.spare.pop().map_or_else(|| N::new().map(Arc::new), Ok)?;
        self.waiting.push_back(Arc::clone(&me));
        Ok(me)
    }

    /// Keeps the signal of a call that waits no more, without what it was signalled for.
    fn spare(&mut self, me: &Arc<N>) {
        me.clear();
        self.spare.push(Arc::clone(me));
    }

    fn wake_first(&self) {
        if let Some(first) = self.waiting.front() {
            first.notify();
        }
    }
}

/// The turn. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Turn<'a, T, N: Notify = EventFd> {
    // Dropped in this order: the value is unlocked before the next one is woken.
    value: MutexGuard<'a, T>,
    _ticket: Ticket<'a, N>,
}

#[derive(Debug)]
struct Ticket<'a, N: Notify> {
    queue: &'a Mutex<Queue<N>>,
}

impl<N: Notify> Drop for Ticket<'_, N> {
    fn drop(&mut self) {
        let mut queue = lock(self.queue);
        queue.taken = false;
        queue.wake_first();
    }
}

impl<T, N: Notify> Deref for Turn<'_, T, N> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T, N: Notify> DerefMut for Turn<'_, T, N> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::client::wait::Wait;
    use crate::control::RunControl;

    fn wait(allowed: Duration) -> Wait {
        Wait::new(&RunControl::new(), allowed).unwrap()
    }

    fn long() -> Wait {
        wait(Duration::from_secs(20))
    }

    fn turn() -> Arc<EventFd> {
        Arc::new(EventFd::new().unwrap())
    }

    fn queue(taken: bool, waiting: [&Arc<EventFd>; 2]) -> Queue<EventFd> {
        Queue { taken, waiting: waiting.map(Arc::clone).into(), spare: Vec::new() }
    }

    #[test]
    fn the_turn_goes_to_who_came_first() {
        let (first, second) = (&turn(), &turn());
        let mut queue = queue(true, [first, second]);
        assert!(!queue.take_if_first(first));
        queue.taken = false;
        assert!(!queue.take_if_free());
        assert!(!queue.take_if_first(second));
        assert!(queue.take_if_first(first));
        queue.taken = false;
        assert!(queue.take_if_first(second));
        queue.taken = false;
        assert!(queue.take_if_free());
    }

    #[test]
    fn who_leaves_passes_the_turn_on() {
        let (first, second) = (&turn(), &turn());
        let mut queue = queue(false, [first, second]);
        queue.leave(first);
        let before = Instant::now();
        long().sleep(second).unwrap();
        assert!(before.elapsed() < Duration::from_secs(10), "the second was not woken");
        assert!(queue.take_if_first(second));
    }

    #[test]
    fn waiting_ends_at_the_deadline_and_leaves_the_line() {
        let turns = FairMutex::new(());
        let held = turns.take(&long()).unwrap();
        let ended = turns.take(&wait(Duration::from_millis(30))).unwrap_err();
        assert_eq!(ended, SchedStatsError::TimedOut { after_ms: 30 });
        assert!(turns.queue().waiting.is_empty());
        drop(held);
        turns.take(&wait(Duration::ZERO)).unwrap();
    }

    #[test]
    fn a_freeze_ends_the_waiting_and_leaves_the_line() {
        let (turns, control) = (FairMutex::new(()), RunControl::new());
        let held = turns.take(&long()).unwrap();
        let waits = Wait::new(&control, Duration::from_secs(20)).unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| turns.take(&waits).map(drop).unwrap_err());
            drop(control.freeze());
            assert_eq!(waiting.join().unwrap(), SchedStatsError::DuringFreeze);
        });
        assert!(turns.queue().waiting.is_empty());
        drop(held);
    }

    #[test]
    fn a_panic_with_the_turn_is_told_to_all_who_follow() {
        let turns = FairMutex::new(());
        thread::scope(|scope| {
            let panics = scope.spawn(|| {
                let _turn = turns.take(&long()).unwrap();
                panic!("on purpose");
            });
            panics.join().unwrap_err();
        });
        for _ in 0..2 {
            assert_eq!(turns.take(&long()).unwrap_err(), SchedStatsError::MutexPoisoned);
        }
    }

    #[test]
    fn no_turn_is_lost_and_none_is_given_twice() {
        let turns = FairMutex::new(0u32);
        thread::scope(|scope| {
            for thread in 0..8 {
                let turns = &turns;
                scope.spawn(move || {
                    for round in 0..500 {
                        // Some give up at once, in the midst of the others.
                        let hurried = (round + thread) % 7 == 0;
                        if hurried {
                            drop(turns.take(&wait(Duration::ZERO)));
                        }
                        *turns.take(&long()).unwrap() += 1;
                    }
                });
            }
        });
        assert_eq!(*turns.take(&long()).unwrap(), 8 * 500);
        let queue = turns.queue();
        assert!(queue.waiting.is_empty() && queue.spare.len() <= 8, "{} signals", queue.spare.len());
    }
}
