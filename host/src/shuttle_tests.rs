//! Turn-taking and stops under a model checker, which chooses the order of every step (`ci/test model`).
//!
//! The code is the client's own; in place of descriptors that the kernel polls it wakes with a [`Bell`] of the
//! checker's. A wake-up that is lost shows as a deadlock, which the checker finds. That it does so is shown by a bell
//! that forgets.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use shuttle::sync::atomic::AtomicUsize;
use shuttle::sync::{Condvar, Mutex};
use shuttle::{check_dfs, check_pct, check_random, thread};

use crate::client::fair_mutex::{FairMutex, Waiting};
use crate::control::{Entry, InFlight};
use crate::io::eventfd::Notify;
use crate::stats::SchedStatsError;

/// A waiter can block on several, as on the kernel's poll, until one of them is there: the first of those.
trait Ring: Notify + Send + Sync + 'static {
    fn wait_for_any(bells: &[&Self]) -> Option<usize>;
}

shuttle::lazy_static! {
    /// Told of each bell that is rung. All bells of a run of the checker's have it.
    static ref RUNG: (Mutex<()>, Condvar) = (Mutex::new(()), Condvar::new());
}

/// Changes and is looked at under the lock of [`RUNG`], where the checker switches threads.
#[derive(Debug)]
struct Bell(std::sync::atomic::AtomicBool);

impl Notify for Bell {
    fn new() -> std::io::Result<Self> {
        Ok(Self(false.into()))
    }

    fn notify(&self) {
        let _lock = RUNG.0.lock().unwrap();
        self.0.store(true, Ordering::SeqCst);
        RUNG.1.notify_all();
    }

    fn clear(&self) {
        let _lock = RUNG.0.lock().unwrap();
        self.0.store(false, Ordering::SeqCst);
    }
}

impl Ring for Bell {
    fn wait_for_any(bells: &[&Self]) -> Option<usize> {
        let mut lock = RUNG.0.lock().unwrap();
        loop {
            let rung = bells.iter().position(|bell| bell.0.load(Ordering::SeqCst));
            if rung.is_some() {
                return rung;
            }
            lock = RUNG.1.wait(lock).unwrap();
        }
    }
}

/// A bell that only wakes who waits already.
struct Forgetful;

impl Notify for Forgetful {
    fn new() -> std::io::Result<Self> {
        Ok(Self)
    }

    fn notify(&self) {
        RUNG.1.notify_all();
    }

    fn clear(&self) {}
}

impl Ring for Forgetful {
    fn wait_for_any(_: &[&Self]) -> Option<usize> {
        let _woken = RUNG.1.wait(RUNG.0.lock().unwrap()).unwrap();
        None
    }
}

/// One call of a client.
struct Call<N: Notify> {
    entry: Entry<N>,
    clock: Arc<Clock<N>>,
    /// How often it was; no step of the checker's.
    woken: std::sync::atomic::AtomicUsize,
}

/// The deadline of a call, which passes at a moment of the checker's choice.
struct Clock<N> {
    /// No step of the checker's: the kernel looks at its clock as it signals.
    late: std::sync::atomic::AtomicBool,
    bell: N,
}

impl<N: Notify> Clock<N> {
    fn pass(&self) {
        self.late.store(true, Ordering::SeqCst);
        self.bell.notify();
    }
}

impl<N: Ring> Call<N> {
    fn begin(stops: &Arc<InFlight<N>>) -> Result<Self, SchedStatsError> {
        let clock = Clock { late: false.into(), bell: N::new().unwrap() };
        Ok(Self { entry: stops.enter()?, clock: Arc::new(clock), woken: 0.into() })
    }

    /// Waits for an answer that never comes, as a request in flight does.
    fn wait_for_ever(&self) -> SchedStatsError {
        loop {
            match self.interrupted() {
                Ok(()) => self.wait_or(None),
                Err(error) => return error,
            }
        }
    }

    fn wait_or(&self, turn: Option<&N>) {
        let bells: Vec<_> = [self.entry.wake(), &self.clock.bell].into_iter().chain(turn).collect();
        let rung = N::wait_for_any(&bells);
        self.woken.fetch_add(1, Ordering::SeqCst);
        if rung == Some(0) {
            self.entry.woken();
        }
    }
}

impl<N: Ring> Waiting<N> for Call<N> {
    fn sleep(&self, turn: &N) -> Result<(), SchedStatsError> {
        self.wait_or(Some(turn));
        turn.clear();
        Ok(())
    }

    fn interrupted(&self) -> Result<(), SchedStatsError> {
        self.entry.stopped()?;
        if self.clock.late.load(Ordering::SeqCst) { Err(SchedStatsError::TimedOut { after_ms: 1 }) } else { Ok(()) }
    }
}

/// What clones of one client share, and how many are at it.
struct Client<N> {
    stops: Arc<InFlight<N>>,
    turns: FairMutex<usize, N>,
    inside: AtomicUsize,
}

impl<N: Ring> Client<N> {
    fn new() -> Arc<Self> {
        Arc::new(Self { stops: Arc::new(InFlight::new()), turns: FairMutex::new(0), inside: AtomicUsize::new(0) })
    }

    /// Takes the turn, counts, and gives it back.
    fn count(&self, call: &Call<N>) -> Result<(), SchedStatsError> {
        let mut turn = self.turns.take(call)?;
        assert_eq!(self.inside.fetch_add(1, Ordering::SeqCst), 0, "two have the turn");
        *turn += 1;
        self.inside.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }

    /// Takes the turn and asks what is never answered.
    fn ask(&self) -> SchedStatsError {
        let outcome = Call::begin(&self.stops).and_then(|call| {
            let turn = self.turns.take(&call)?;
            let error = call.wait_for_ever();
            drop(turn);
            Err::<(), _>(error)
        });
        outcome.unwrap_err()
    }
}

fn spawn<N: Ring, T: Send + 'static>(
    client: &Arc<Client<N>>,
    work: impl FnOnce(&Client<N>) -> T + Send + 'static,
) -> thread::JoinHandle<T> {
    let client = Arc::clone(client);
    thread::spawn(move || work(&client))
}

/// Some calls take turns.
fn take_turns(calls: usize) {
    let client = Client::<Bell>::new();
    let threads: Vec<_> =
        (0..calls).map(|_| spawn(&client, |client| client.count(&Call::begin(&client.stops).unwrap()))).collect();
    for thread in threads {
        thread.join().unwrap().unwrap();
    }
    let last = Call::begin(&client.stops).unwrap();
    assert_eq!(*client.turns.take(&last).unwrap(), calls);
}

/// The turn is given back as another call comes for it.
fn pass_on<N: Ring>() {
    let client = Client::<N>::new();
    let (first, second) = (Call::begin(&client.stops).unwrap(), Call::begin(&client.stops).unwrap());
    let turn = client.turns.take(&first).unwrap();
    let comes = spawn(&client, move |client| client.turns.take(&second).map(drop));
    drop(turn);
    comes.join().unwrap().unwrap();
}

/// The turn is given back as the only call in line gives up; the line is free then, whoever was first.
fn give_up() {
    let client = Client::<Bell>::new();
    let (first, second) = (Call::begin(&client.stops).unwrap(), Call::begin(&client.stops).unwrap());
    let turn = client.turns.take(&first).unwrap();
    let clock = Arc::clone(&second.clock);
    let comes = spawn(&client, move |client| client.turns.take(&second).map(drop));
    clock.pass();
    drop(turn);
    let outcome = comes.join().unwrap();
    assert!(matches!(outcome, Ok(()) | Err(SchedStatsError::TimedOut { .. })));
    client.turns.take(&first).unwrap();
}

/// Calls whose deadline passes in the midst of the others, in line or as their turn comes.
fn hurry(patient: usize, hurried: usize) {
    let client = Client::<Bell>::new();
    let patient = (0..patient).map(|_| spawn(&client, |client| client.count(&Call::begin(&client.stops).unwrap())));
    let hurried = (0..hurried).map(|_| {
        spawn(&client, |client| {
            let call = Call::begin(&client.stops).unwrap();
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
    let last = Call::begin(&client.stops).unwrap();
    assert_eq!(*client.turns.take(&last).unwrap(), counted);
}

/// A freeze that is thawed at once meets a call that has begun.
fn freeze_meets_a_call<N: Ring>() {
    let client = Client::<N>::new();
    let call = Call::begin(&client.stops).unwrap();
    let waits = thread::spawn(move || call.wait_for_ever());
    client.stops.freeze();
    client.stops.thaw();
    assert_eq!(waits.join().unwrap(), SchedStatsError::DuringFreeze);
    assert!(Call::begin(&client.stops).is_ok());
}

/// A call begins right behind a freeze that another one has yet to learn of.
fn begin_behind_a_freeze() {
    let client = Client::<Bell>::new();
    let before = Call::begin(&client.stops).unwrap();
    let before = thread::spawn(move || before.wait_for_ever());
    client.stops.freeze();
    client.stops.thaw();
    let behind = Call::begin(&client.stops).unwrap();
    let clock = Arc::clone(&behind.clock);
    let behind = thread::spawn(move || behind.wait_for_ever());
    assert_eq!(before.join().unwrap(), SchedStatsError::DuringFreeze);
    clock.pass();
    assert_eq!(behind.join().unwrap(), SchedStatsError::TimedOut { after_ms: 1 });
}

/// A freeze signals a call that it keeps from beginning, and the next calls have the same signal.
fn begin_with_a_signal_that_is_there() {
    let client = Client::<Bell>::new();
    let freeze = spawn(&client, |client| {
        client.stops.freeze();
        client.stops.thaw();
    });
    drop(Call::begin(&client.stops));
    freeze.join().unwrap();
    let wait = |call: Call<Bell>| {
        thread::spawn(move || {
            assert_eq!(call.wait_for_ever(), SchedStatsError::DuringFreeze);
            let woken = call.woken.load(Ordering::SeqCst);
            assert!(woken <= 2, "woken {woken} times: once by the freeze before, once by its own");
        })
    };
    let (first, second) = (Call::begin(&client.stops).unwrap(), Call::begin(&client.stops).unwrap());
    let (first, second) = (wait(first), wait(second));
    client.stops.freeze();
    client.stops.thaw();
    first.join().unwrap();
    second.join().unwrap();
}

/// A freeze meets calls as one of them takes back the signal of the freeze before.
fn freeze_meets_a_signal_that_is_there() {
    let client = Client::<Bell>::new();
    let calls = [Call::begin(&client.stops).unwrap(), Call::begin(&client.stops).unwrap()];
    client.stops.signal_late();
    let waiting = calls.map(|call| thread::spawn(move || call.wait_for_ever()));
    client.stops.freeze();
    for waits in waiting {
        assert_eq!(waits.join().unwrap(), SchedStatsError::DuringFreeze);
    }
}

/// Calls begin, stand in line and wait while the run is frozen, thawed and then cancelled.
fn stop_all(calls: usize) {
    let client = Client::<Bell>::new();
    let asking: Vec<_> = (0..calls).map(|_| spawn(&client, Client::ask)).collect();
    client.stops.freeze();
    assert_eq!(Call::begin(&client.stops).map(drop), Err(SchedStatsError::DuringFreeze));
    client.stops.thaw();
    client.stops.cancel();
    assert_eq!(Call::begin(&client.stops).map(drop), Err(SchedStatsError::Cancelled));
    for asks in asking {
        let error = asks.join().unwrap();
        assert!(matches!(error, SchedStatsError::DuringFreeze | SchedStatsError::Cancelled), "{error}");
    }
}

/// Tries every order of the steps, however many there are.
fn check_every_order(scenario: fn()) {
    check_dfs(scenario, None);
}

#[test]
fn every_order_of_giving_the_turn_back_and_coming_for_it_passes_it_on() {
    check_every_order(pass_on::<Bell>);
}

#[test]
fn every_order_of_giving_the_turn_back_and_giving_up_leaves_it_free() {
    check_every_order(give_up);
}

#[test]
fn many_calls_take_turns_and_no_wake_up_is_lost() {
    check_random(|| take_turns(4), 20_000);
    check_pct(|| take_turns(4), 20_000, 3);
}

#[test]
fn a_turn_that_comes_as_its_call_gives_up_is_passed_on() {
    check_random(|| hurry(2, 2), 20_000);
    check_pct(|| hurry(2, 2), 20_000, 4);
}

#[test]
fn every_order_of_a_freeze_and_a_call_ends_the_call() {
    check_every_order(freeze_meets_a_call::<Bell>);
}

#[test]
fn a_call_that_begins_behind_a_freeze_takes_no_signal_from_those_before() {
    check_random(begin_behind_a_freeze, 20_000);
    check_pct(begin_behind_a_freeze, 20_000, 4);
}

#[test]
fn a_signal_for_a_call_that_could_not_begin_neither_keeps_the_next_ones_awake_nor_hides_their_own() {
    check_random(begin_with_a_signal_that_is_there, 20_000);
    check_pct(begin_with_a_signal_that_is_there, 20_000, 4);
}

#[test]
fn who_takes_back_a_signal_that_was_for_nobody_leaves_the_next_one_to_all() {
    check_random(freeze_meets_a_signal_that_is_there, 50_000);
    check_pct(freeze_meets_a_signal_that_is_there, 50_000, 4);
}

#[test]
fn stops_end_every_call_wherever_it_is() {
    check_random(|| stop_all(3), 20_000);
    check_pct(|| stop_all(3), 20_000, 4);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_bell_that_forgets_loses_a_turn() {
    check_every_order(pass_on::<Forgetful>);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_bell_that_forgets_loses_a_freeze() {
    check_every_order(freeze_meets_a_call::<Forgetful>);
}
