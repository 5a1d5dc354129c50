//! The fair mutex and the stops of calls under a model checker, which chooses the order of every step (`ci/test model`).
//!
//! The code is the client's own; instead of event descriptors it uses a [`ModelSignal`] of the checker's. A lost wake-up
//! shows as a deadlock, which the checker finds. That it does so is shown by a signal that is lost.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use shuttle::sync::atomic::AtomicUsize;
use shuttle::sync::{Condvar, Mutex};
use shuttle::{check_dfs, check_pct, check_random, thread};

use crate::client::fair_mutex::{Block, FairMutex};
use crate::control::{InFlight, InFlightCall};
use crate::io::eventfd::Notify;
use crate::stats::SchedStatsError;

/// A signal that threads of the checker can wait for.
trait Wait: Notify + Send + Sync + 'static {
    /// Waits until one of the signals is there, as the kernel's poll does, and returns the first of those.
    fn wait_for_any(signals: &[&Self]) -> Option<usize>;
}

shuttle::lazy_static! {
    /// Notified of each signal. All signals of a run of the checker's share it.
    static ref NOTIFIED: (Mutex<()>, Condvar) = (Mutex::new(()), Condvar::new());
}

/// Written and read under the lock of [`NOTIFIED`], where the checker switches threads.
#[derive(Debug)]
struct ModelSignal(std::sync::atomic::AtomicBool);

impl Notify for ModelSignal {
    fn new() -> std::io::Result<Self> {
        Ok(Self(false.into()))
    }

    fn notify(&self) {
        let _lock = NOTIFIED.0.lock().unwrap();
        self.0.store(true, Ordering::SeqCst);
        NOTIFIED.1.notify_all();
    }

    fn clear(&self) {
        let _lock = NOTIFIED.0.lock().unwrap();
        self.0.store(false, Ordering::SeqCst);
    }
}

impl Wait for ModelSignal {
    /// Waits until one of the signals is there, as the kernel's poll does, and returns the first of those.
    fn wait_for_any(signals: &[&Self]) -> Option<usize> {
        let mut lock = NOTIFIED.0.lock().unwrap();
        loop {
            let ready = signals.iter().position(|signal| signal.0.load(Ordering::SeqCst));
            if ready.is_some() {
                return ready;
            }
            lock = NOTIFIED.1.wait(lock).unwrap();
        }
    }
}

/// A signal that only wakes threads that wait already.
struct LostSignal;

impl Notify for LostSignal {
    fn new() -> std::io::Result<Self> {
        Ok(Self)
    }

    fn notify(&self) {
        NOTIFIED.1.notify_all();
    }

    fn clear(&self) {}
}

impl Wait for LostSignal {
    fn wait_for_any(_: &[&Self]) -> Option<usize> {
        let _woken = NOTIFIED.1.wait(NOTIFIED.0.lock().unwrap()).unwrap();
        None
    }
}

/// One call of a client.
struct Call<N: Notify> {
    in_flight: InFlightCall<N>,
    clock: Arc<Clock<N>>,
    /// How often it was woken; no step of the checker's.
    wake_ups: std::sync::atomic::AtomicUsize,
}

/// The deadline of a call, which passes at a moment of the checker's choice.
struct Clock<N> {
    /// No step of the checker's: the kernel reads its clock as it signals.
    has_passed: std::sync::atomic::AtomicBool,
    signal: N,
}

impl<N: Notify> Clock<N> {
    fn pass(&self) {
        self.has_passed.store(true, Ordering::SeqCst);
        self.signal.notify();
    }
}

impl<N: Wait> Call<N> {
    fn begin(run: &Arc<InFlight<N>>) -> Result<Self, SchedStatsError> {
        let clock = Clock { has_passed: false.into(), signal: N::new().unwrap() };
        Ok(Self { in_flight: run.begin()?, clock: Arc::new(clock), wake_ups: 0.into() })
    }

    /// Waits for an answer that never comes, as a request in flight does.
    fn wait_for_ever(&self) -> SchedStatsError {
        loop {
            match self.check() {
                Ok(()) => self.wait_or(None),
                Err(error) => return error,
            }
        }
    }

    fn wait_or(&self, other: Option<&N>) {
        let signals: Vec<_> = [self.in_flight.signal(), &self.clock.signal].into_iter().chain(other).collect();
        let ready = N::wait_for_any(&signals);
        self.wake_ups.fetch_add(1, Ordering::SeqCst);
        if ready == Some(0) {
            self.in_flight.on_signal();
        }
    }
}

impl<N: Wait> Block<N> for Call<N> {
    fn block(&self, unlocked: &N) -> Result<(), SchedStatsError> {
        self.wait_or(Some(unlocked));
        unlocked.clear();
        Ok(())
    }

    fn check(&self) -> Result<(), SchedStatsError> {
        self.in_flight.check()?;
        if self.clock.has_passed.load(Ordering::SeqCst) {
            Err(SchedStatsError::TimedOut { after_ms: 1 })
        } else {
            Ok(())
        }
    }
}

/// What clones of one client share, and how many threads hold the lock.
struct Client<N> {
    run: Arc<InFlight<N>>,
    counter: FairMutex<usize, N>,
    holders: AtomicUsize,
}

impl<N: Wait> Client<N> {
    fn new() -> Arc<Self> {
        Arc::new(Self { run: Arc::new(InFlight::new()), counter: FairMutex::new(0), holders: AtomicUsize::new(0) })
    }

    /// Locks the counter and increments it.
    fn count(&self, call: &Call<N>) -> Result<(), SchedStatsError> {
        let mut counter = self.counter.lock(call)?;
        assert_eq!(self.holders.fetch_add(1, Ordering::SeqCst), 0, "two threads hold the lock");
        *counter += 1;
        self.holders.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }

    /// Locks the counter and waits for an answer that never comes.
    fn request(&self) -> SchedStatsError {
        let outcome = Call::begin(&self.run).and_then(|call| {
            let locked = self.counter.lock(&call)?;
            let error = call.wait_for_ever();
            drop(locked);
            Err::<(), _>(error)
        });
        outcome.unwrap_err()
    }
}

fn spawn<N: Wait, T: Send + 'static>(
    client: &Arc<Client<N>>,
    work: impl FnOnce(&Client<N>) -> T + Send + 'static,
) -> thread::JoinHandle<T> {
    let client = Arc::clone(client);
    thread::spawn(move || work(&client))
}

/// Some calls lock the mutex at once.
fn contend(calls: usize) {
    let client = Client::<ModelSignal>::new();
    let threads: Vec<_> =
        (0..calls).map(|_| spawn(&client, |client| client.count(&Call::begin(&client.run).unwrap()))).collect();
    for thread in threads {
        thread.join().unwrap().unwrap();
    }
    let last = Call::begin(&client.run).unwrap();
    assert_eq!(*client.counter.lock(&last).unwrap(), calls);
}

/// The mutex is unlocked as another call begins to wait for it.
fn unlock_while_locking<N: Wait>() {
    let client = Client::<N>::new();
    let (first, second) = (Call::begin(&client.run).unwrap(), Call::begin(&client.run).unwrap());
    let locked = client.counter.lock(&first).unwrap();
    let comes = spawn(&client, move |client| client.counter.lock(&second).map(drop));
    drop(locked);
    comes.join().unwrap().unwrap();
}

/// The mutex is unlocked as the only waiter times out; it is free then, whichever came first.
fn unlock_while_timing_out() {
    let client = Client::<ModelSignal>::new();
    let (first, second) = (Call::begin(&client.run).unwrap(), Call::begin(&client.run).unwrap());
    let locked = client.counter.lock(&first).unwrap();
    let clock = Arc::clone(&second.clock);
    let comes = spawn(&client, move |client| client.counter.lock(&second).map(drop));
    clock.pass();
    drop(locked);
    let outcome = comes.join().unwrap();
    assert!(matches!(outcome, Ok(()) | Err(SchedStatsError::TimedOut { .. })));
    client.counter.lock(&first).unwrap();
}

/// Calls whose deadline passes among the others, in the queue or as the mutex becomes theirs.
fn hurry(patient: usize, hurried: usize) {
    let client = Client::<ModelSignal>::new();
    let patient = (0..patient).map(|_| spawn(&client, |client| client.count(&Call::begin(&client.run).unwrap())));
    let hurried = (0..hurried).map(|_| {
        spawn(&client, |client| {
            let call = Call::begin(&client.run).unwrap();
            let clock = Arc::clone(&call.clock);
            let clock = thread::spawn(move || clock.pass());
            let outcome = client.count(&call);
            clock.join().unwrap();
            outcome
        })
    });
    let threads: Vec<_> = patient.map(|thread| (thread, false)).chain(hurried.map(|thread| (thread, true))).collect();
    let mut counted = 0;
    for (thread, hurried) in threads {
        match thread.join().unwrap() {
            Ok(()) => counted += 1,
            Err(error) => assert!(hurried && error == SchedStatsError::TimedOut { after_ms: 1 }, "{error}"),
        }
    }
    let last = Call::begin(&client.run).unwrap();
    assert_eq!(*client.counter.lock(&last).unwrap(), counted);
}

/// A freeze that is thawed at once meets a call that has begun.
fn freeze_meets_a_call<N: Wait>() {
    let client = Client::<N>::new();
    let call = Call::begin(&client.run).unwrap();
    let waits = thread::spawn(move || call.wait_for_ever());
    client.run.freeze();
    client.run.thaw();
    assert_eq!(waits.join().unwrap(), SchedStatsError::DuringFreeze);
    assert!(Call::begin(&client.run).is_ok());
}

/// A call begins right after a freeze that another call has not seen yet.
fn begin_after_a_freeze() {
    let client = Client::<ModelSignal>::new();
    let before = Call::begin(&client.run).unwrap();
    let before = thread::spawn(move || before.wait_for_ever());
    client.run.freeze();
    client.run.thaw();
    let after = Call::begin(&client.run).unwrap();
    let clock = Arc::clone(&after.clock);
    let after = thread::spawn(move || after.wait_for_ever());
    assert_eq!(before.join().unwrap(), SchedStatsError::DuringFreeze);
    clock.pass();
    assert_eq!(after.join().unwrap(), SchedStatsError::TimedOut { after_ms: 1 });
}

/// A freeze signals a call that cannot begin, and the next calls reuse its signal.
fn begin_with_an_old_signal() {
    let client = Client::<ModelSignal>::new();
    let freeze = spawn(&client, |client| {
        client.run.freeze();
        client.run.thaw();
    });
    drop(Call::begin(&client.run));
    freeze.join().unwrap();
    let wait = |call: Call<ModelSignal>| {
        thread::spawn(move || {
            assert_eq!(call.wait_for_ever(), SchedStatsError::DuringFreeze);
            let wake_ups = call.wake_ups.load(Ordering::SeqCst);
            assert!(wake_ups <= 2, "{wake_ups} wake-ups: one by the earlier freeze, one by its own");
        })
    };
    let (first, second) = (Call::begin(&client.run).unwrap(), Call::begin(&client.run).unwrap());
    let (first, second) = (wait(first), wait(second));
    client.run.freeze();
    client.run.thaw();
    first.join().unwrap();
    second.join().unwrap();
}

/// A freeze meets calls as one of them clears the signal of an earlier freeze.
fn freeze_meets_an_old_signal() {
    let client = Client::<ModelSignal>::new();
    let calls = [Call::begin(&client.run).unwrap(), Call::begin(&client.run).unwrap()];
    client.run.wake_late();
    let waiting = calls.map(|call| thread::spawn(move || call.wait_for_ever()));
    client.run.freeze();
    for waits in waiting {
        assert_eq!(waits.join().unwrap(), SchedStatsError::DuringFreeze);
    }
}

/// Calls begin, wait in the queue and wait for an answer while the run is frozen, thawed and then cancelled.
fn stop_all(calls: usize) {
    let client = Client::<ModelSignal>::new();
    let requests: Vec<_> = (0..calls).map(|_| spawn(&client, Client::request)).collect();
    client.run.freeze();
    assert_eq!(Call::begin(&client.run).map(drop), Err(SchedStatsError::DuringFreeze));
    client.run.thaw();
    client.run.cancel();
    assert_eq!(Call::begin(&client.run).map(drop), Err(SchedStatsError::Cancelled));
    for request in requests {
        let error = request.join().unwrap();
        assert!(matches!(error, SchedStatsError::DuringFreeze | SchedStatsError::Cancelled), "{error}");
    }
}

/// Tries every order of the steps, however many there are.
fn check_every_order(scenario: fn()) {
    check_dfs(scenario, None);
}

#[test]
fn an_unlock_wakes_a_new_waiter() {
    check_every_order(unlock_while_locking::<ModelSignal>);
}

#[test]
fn an_unlock_during_a_timeout_frees_the_mutex() {
    check_every_order(unlock_while_timing_out);
}

#[test]
fn contention_loses_no_wake_up() {
    check_random(|| contend(4), 20_000);
    check_pct(|| contend(4), 20_000, 3);
}

#[test]
fn a_timeout_passes_the_lock_on() {
    check_random(|| hurry(2, 2), 20_000);
    check_pct(|| hurry(2, 2), 20_000, 4);
}

#[test]
fn a_freeze_ends_a_call_in_every_order() {
    check_every_order(freeze_meets_a_call::<ModelSignal>);
}

#[test]
fn a_new_call_clears_no_signal_of_earlier_ones() {
    check_random(begin_after_a_freeze, 20_000);
    check_pct(begin_after_a_freeze, 20_000, 4);
}

#[test]
fn an_old_signal_is_cleared_once() {
    check_random(begin_with_an_old_signal, 20_000);
    check_pct(begin_with_an_old_signal, 20_000, 4);
}

#[test]
fn clearing_an_old_signal_hides_no_new_one() {
    check_random(freeze_meets_an_old_signal, 50_000);
    check_pct(freeze_meets_an_old_signal, 50_000, 4);
}

#[test]
fn stops_end_every_call_wherever_it_is() {
    check_random(|| stop_all(3), 20_000);
    check_pct(|| stop_all(3), 20_000, 4);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_lost_signal_deadlocks_the_mutex() {
    check_every_order(unlock_while_locking::<LostSignal>);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_lost_signal_deadlocks_a_freeze() {
    check_every_order(freeze_meets_a_call::<LostSignal>);
}
