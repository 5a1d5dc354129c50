//! Where the threads of the vCPUs wait while the guest is paused.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::error::Error;
use super::kick::Kick;
use super::outcome::{Outcome, VcpuPosition};
use crate::io::eventfd::{EventFd, Notify};
use crate::io::lock::lock;

/// What a vCPU does at the gate.
pub(super) trait Parked {
    /// What there is to save.
    type Saved;

    /// Remembers the guest's time.
    ///
    /// # Errors
    ///
    /// KVM's.
    fn stop_time(&mut self) -> io::Result<()>;

    /// Goes on with the guest's time after so many cycles of the host's processor.
    ///
    /// # Errors
    ///
    /// KVM's.
    fn start_time(&mut self, cycles: u64) -> io::Result<()>;

    /// Returns the vCPU's state.
    ///
    /// # Errors
    ///
    /// KVM's.
    fn save(&mut self) -> Result<Self::Saved, Error>;

    /// Enters the guest at the next call, instead of returning at once.
    fn allow_entry(&mut self);
}

/// What the vCPUs are to do.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Paused,
    /// The guest was paused for so many cycles of the host's processor.
    Running {
        cycles: u64,
    },
    Ended(Outcome),
}

#[derive(Debug)]
struct State<S> {
    phase: Phase,
    /// Threads that wait here with their time stopped.
    parked: usize,
    /// Threads that have not ended.
    alive: usize,
    kicks: Vec<Kick>,
    positions: Vec<VcpuPosition>,
    /// How often the states of all vCPUs were asked for.
    saves: u64,
    /// Those of the last time.
    saved: Vec<Result<S, Error>>,
}

/// The gate, of a guest that begins paused. `S` is what a vCPU saves.
#[derive(Debug)]
pub(super) struct Gate<S> {
    state: Mutex<State<S>>,
    changed: Condvar,
    /// Readable while no vCPU is to run.
    halt: EventFd,
    /// Readable once the guest has ended.
    ended: EventFd,
}

impl<S> Gate<S> {
    /// # Errors
    ///
    /// The process has no more descriptors.
    pub(super) fn new() -> io::Result<Self> {
        let (halt, ended) = (EventFd::new()?, EventFd::new()?);
        halt.notify();
        let state = State {
            phase: Phase::Paused,
            parked: 0,
            alive: 0,
            kicks: Vec::new(),
            positions: Vec::new(),
            saves: 0,
            saved: Vec::new(),
        };
        Ok(Self { state: Mutex::new(state), changed: Condvar::new(), halt, ended })
    }

    /// Adds a thread, which is about to come to the gate. `start` starts it.
    ///
    /// # Errors
    ///
    /// Those of `start`.
    pub(super) fn add<E>(&self, start: impl FnOnce() -> Result<Kick, E>) -> Result<(), E> {
        let mut state = self.state();
        let kick = start()?;
        state.alive += 1;
        state.kicks.push(kick);
        Ok(())
    }

    /// Waits while the guest is paused. Returns whether it still runs.
    ///
    /// # Errors
    ///
    /// Those of the vCPU.
    pub(super) fn pass(&self, vcpu: &mut impl Parked<Saved = S>) -> io::Result<bool> {
        let mut state = self.state();
        loop {
            match state.phase {
                Phase::Running { .. } => {
                    vcpu.allow_entry();
                    return Ok(true);
                }
                Phase::Ended(_) => return Ok(false),
                Phase::Paused => {
                    vcpu.stop_time()?;
                    state.parked += 1;
                    self.changed.notify_all();
                    state = self.park(state, vcpu);
                    let started = match state.phase {
                        Phase::Running { cycles } => vcpu.start_time(cycles),
                        _ => Ok(()),
                    };
                    state.parked -= 1;
                    self.changed.notify_all();
                    started?;
                    // None goes on before the time of all does.
                    state = self.wait_while(state, State::is_resuming);
                }
            }
        }
    }

    /// Waits for the end of the pause, and saves the vCPU's state whenever that is asked for.
    fn park<'a>(
        &'a self,
        mut state: MutexGuard<'a, State<S>>,
        vcpu: &mut impl Parked<Saved = S>,
    ) -> MutexGuard<'a, State<S>> {
        let mut saves = state.saves;
        loop {
            state = self.wait_while(state, |state| state.phase == Phase::Paused && state.saves == saves);
            if state.phase != Phase::Paused {
                return state;
            }
            saves = state.saves;
            state.saved.push(vcpu.save());
            self.changed.notify_all();
        }
    }

    /// Returns the states of all vCPUs, in no order; `None` unless the guest is paused.
    ///
    /// # Errors
    ///
    /// Those of a vCPU.
    pub(super) fn save(&self) -> Result<Option<Vec<S>>, Error> {
        let mut state = self.state();
        if state.phase != Phase::Paused {
            return Ok(None);
        }
        state.saves += 1;
        state.saved.clear();
        self.changed.notify_all();
        let mut state =
            self.wait_while(state, |state| state.phase == Phase::Paused && state.saved.len() < state.parked);
        let saved = std::mem::take(&mut state.saved);
        if state.phase == Phase::Paused { saved.into_iter().collect::<Result<_, _>>().map(Some) } else { Ok(None) }
    }

    /// A thread ends, and its vCPU was there last.
    pub(super) fn leave(&self, position: Option<VcpuPosition>) {
        let mut state = self.state();
        state.alive -= 1;
        state.positions.extend(position);
        self.changed.notify_all();
    }

    /// Stops all vCPUs, and waits until they wait here. Returns whether they do; if not, they run on.
    pub(super) fn pause(&self, within: Duration) -> bool {
        let mut state = self.state();
        if !matches!(state.phase, Phase::Running { .. }) {
            return true;
        }
        state.phase = Phase::Paused;
        self.halt.notify();
        state.kicks.iter_mut().for_each(Kick::kick);
        state = self.wait_until(state, within, |state| state.phase != Phase::Paused || state.parked == state.alive);
        if state.phase == Phase::Paused && state.parked != state.alive {
            self.run(state, 0);
            return false;
        }
        true
    }

    /// Resumes all vCPUs, whose guest was paused for so many cycles of the host's processor.
    pub(super) fn resume(&self, cycles: u64) {
        let state = self.state();
        if state.phase == Phase::Paused {
            self.run(state, cycles);
        }
    }

    fn run(&self, mut state: MutexGuard<'_, State<S>>, cycles: u64) {
        // Those that are not here yet would not come.
        state.phase = Phase::Running { cycles };
        self.halt.clear();
        self.changed.notify_all();
        drop(self.wait_while(state, State::is_resuming));
    }

    /// Ends the guest, unless it has ended.
    pub(super) fn end(&self, outcome: Outcome) {
        let mut state = self.state();
        if matches!(state.phase, Phase::Ended(_)) {
            return;
        }
        state.phase = Phase::Ended(outcome);
        self.halt.notify();
        self.ended.notify();
        state.kicks.iter_mut().for_each(Kick::kick);
        self.changed.notify_all();
    }

    /// Waits for the threads' ends, and returns where the vCPUs were last. A thread that does not end within this time is
    /// abandoned.
    pub(super) fn join(&self, within: Duration) -> Vec<VcpuPosition> {
        let mut state = self.wait_until(self.state(), within, |state| state.alive == 0);
        let have_ended = state.alive == 0;
        let (kicks, positions) = (std::mem::take(&mut state.kicks), std::mem::take(&mut state.positions));
        drop(state);
        if have_ended {
            kicks.into_iter().for_each(Kick::join);
        }
        positions
    }

    /// Waits until all threads are here for the first time, or the guest has ended.
    pub(super) fn wait_until_parked(&self) {
        drop(self.wait_while(self.state(), |state| state.phase == Phase::Paused && state.parked < state.alive));
    }

    /// Returns why the guest ended.
    pub(super) fn outcome(&self) -> Option<Outcome> {
        match &self.state().phase {
            Phase::Ended(outcome) => Some(outcome.clone()),
            _ => None,
        }
    }

    /// Returns a descriptor that is readable while no vCPU is to run.
    pub(super) fn halt_fd(&self) -> BorrowedFd<'_> {
        self.halt.as_fd()
    }

    /// Returns a descriptor that is readable once the guest has ended.
    pub(super) fn ended_fd(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    fn state(&self) -> MutexGuard<'_, State<S>> {
        lock(&self.state)
    }

    fn wait_while<'a>(
        &'a self,
        state: MutexGuard<'a, State<S>>,
        condition: impl Fn(&State<S>) -> bool,
    ) -> MutexGuard<'a, State<S>> {
        self.changed.wait_while(state, |state| condition(state)).unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_until<'a>(
        &'a self,
        state: MutexGuard<'a, State<S>>,
        within: Duration,
        condition: impl Fn(&State<S>) -> bool,
    ) -> MutexGuard<'a, State<S>> {
        let waited = self.changed.wait_timeout_while(state, within, |state| !condition(state));
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl<S> State<S> {
    /// Whether threads have not yet left the pause.
    fn is_resuming(&self) -> bool {
        self.parked > 0 && matches!(self.phase, Phase::Running { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    const LONG: Duration = Duration::from_secs(60);

    /// Counts the vCPUs whose time runs, and how often one started.
    #[derive(Default)]
    struct Counts {
        running: AtomicUsize,
        starts: AtomicUsize,
    }

    struct FakeVcpu {
        counts: Arc<Counts>,
        runs: bool,
        cycles: Vec<u64>,
        entered: bool,
    }

    impl Parked for FakeVcpu {
        type Saved = usize;

        fn stop_time(&mut self) -> io::Result<()> {
            if std::mem::replace(&mut self.runs, false) {
                self.counts.running.fetch_sub(1, Ordering::SeqCst);
            }
            Ok(())
        }

        fn start_time(&mut self, cycles: u64) -> io::Result<()> {
            self.cycles.push(cycles);
            self.runs = true;
            self.counts.running.fetch_add(1, Ordering::SeqCst);
            self.counts.starts.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }

        fn save(&mut self) -> Result<usize, Error> {
            assert!(!self.runs, "its time stands still");
            Ok(self.cycles.len())
        }

        fn allow_entry(&mut self) {
            self.entered = true;
        }
    }

    type FakeGate = Gate<usize>;

    /// A gate with threads that pass it again and again, and how many vCPUs' time runs.
    fn gate(vcpus: usize) -> (Arc<FakeGate>, Arc<Counts>, Vec<thread::JoinHandle<Vec<u64>>>) {
        let (gate, counts) = (Arc::new(FakeGate::new().unwrap()), Arc::<Counts>::default());
        gate.state().alive = vcpus;
        let start = |_| {
            let (gate, counts) = (Arc::clone(&gate), Arc::clone(&counts));
            thread::spawn(move || {
                let mut vcpu = FakeVcpu { counts, runs: false, cycles: Vec::new(), entered: false };
                while gate.pass(&mut vcpu).unwrap() {
                    assert!(std::mem::replace(&mut vcpu.entered, false));
                    let starts = vcpu.counts.starts.load(Ordering::SeqCst);
                    assert!(starts >= vcpus * vcpu.cycles.len(), "none runs before all do");
                    thread::yield_now();
                }
                gate.leave(None);
                vcpu.cycles
            })
        };
        let threads = (0..vcpus).map(start).collect();
        gate.wait_until_parked();
        (gate, counts, threads)
    }

    #[test]
    fn all_stop_and_all_go_on() {
        let (gate, counts, threads) = gate(3);
        for cycles in 0..50 {
            assert_eq!(counts.running.load(Ordering::SeqCst), 0);
            gate.resume(cycles);
            assert_eq!(counts.running.load(Ordering::SeqCst), 3);
            assert!(gate.pause(LONG));
        }
        gate.end(Outcome::Stopped);
        gate.join(LONG);
        let expected: Vec<u64> = (0..50).collect();
        assert!(threads.into_iter().all(|thread| thread.join().unwrap() == expected));
    }

    #[test]
    fn all_are_saved_while_they_wait() {
        let (gate, _counts, threads) = gate(3);
        for starts in 0..50 {
            assert_eq!(gate.save().unwrap().unwrap(), [starts; 3]);
            assert_eq!(gate.save().unwrap().unwrap(), [starts; 3]);
            gate.resume(1);
            assert!(gate.save().unwrap().is_none(), "they run");
            assert!(gate.pause(LONG));
        }
        gate.end(Outcome::Stopped);
        assert!(gate.save().unwrap().is_none());
        gate.join(LONG);
        threads.into_iter().for_each(|thread| drop(thread.join().unwrap()));
    }

    #[test]
    fn the_first_outcome_stays() {
        let (gate, _counts, threads) = gate(2);
        gate.resume(0);
        gate.end(Outcome::Reset);
        gate.end(Outcome::Stopped);
        assert!(gate.pause(LONG), "there is nothing to stop");
        gate.resume(0);
        assert_eq!(gate.outcome(), Some(Outcome::Reset));
        threads.into_iter().for_each(|thread| drop(thread.join().unwrap()));
        gate.join(LONG);
    }

    #[test]
    fn a_thread_that_does_not_come_is_not_waited_for() {
        let (gate, counts, threads) = gate(1);
        gate.resume(0);
        gate.state().alive += 1;
        assert!(!gate.pause(Duration::from_millis(20)));
        assert_eq!(counts.running.load(Ordering::SeqCst), 1, "the other goes on");
        gate.end(Outcome::Stopped);
        gate.join(Duration::from_millis(20));
        threads.into_iter().for_each(|thread| drop(thread.join().unwrap()));
    }
}
