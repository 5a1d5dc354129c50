//! Guests that are paused, resumed and reset at any moment, through QMP.
#![allow(clippy::panic, clippy::unwrap_used, reason = "tests")]

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use scx_vsock::guest::{FrozenGuest, Guest};
use scx_vsock::{RunControl, SchedStatsClient, SchedStatsError};
use scx_vsock_tests::guest::{builder, exchange_traffic, output, wait_for_scheduler};
use scx_vsock_tests::notifying_port::NotifyingPort;
use scx_vsock_tests::program;

const GUEST_PEER: &str = env!("CARGO_BIN_EXE_guest_peer");

/// How long anything may take, in an emulated guest on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);

const PAUSES: usize = 20;

/// Bytes each way on each connection of the transfer that the pauses interrupt.
const BYTES: u64 = 512 << 10;

fn with_procsched() -> Guest {
    let guest =
        builder().scheduler(program::built("procsched"), &[]).program(GUEST_PEER, "/bin/guest_peer").boot().unwrap();
    wait_for_scheduler(&guest);
    guest
}

/// How many calls ended in which way.
#[derive(Debug, Default)]
struct Outcomes {
    answered: usize,
    timed_out: usize,
    frozen: usize,
}

impl Outcomes {
    /// Sends a request that no other call sends, and checks the answer if there is one.
    fn ask(&mut self, client: &SchedStatsClient, asker: usize) {
        let question = format!("question {asker} {}", self.answered + self.timed_out + self.frozen);
        match client.request_raw(format!(r#"{{"req":"{question}"}}"#)) {
            Ok(answer) => {
                let right = format!(r#"{{"errno":22,"args":{{"resp":"unknown command \"{question}\""}}}}"#);
                assert_eq!(String::from_utf8_lossy(&answer), right);
                self.answered += 1;
            }
            // A paused guest's agent sends no hello on a new session.
            Err(SchedStatsError::TimedOut { .. } | SchedStatsError::AgentUnreachable { .. }) => self.timed_out += 1,
            Err(SchedStatsError::DuringFreeze) => self.frozen += 1,
            Err(error) => panic!("{question}: {error}"),
        }
    }

    /// Sends requests until `done`. After a call that a freeze ended it waits for the thaw.
    fn ask_until(client: &SchedStatsClient, asker: usize, done: &AtomicBool, thaws: &Receiver<()>) -> Self {
        let mut outcomes = Self::default();
        while !done.load(Ordering::Relaxed) {
            let before = outcomes.frozen;
            outcomes.ask(client, asker);
            if outcomes.frozen > before && thaws.recv().is_err() {
                break;
            }
        }
        outcomes
    }
}

/// Pauses the guest at a random moment for a random time, with the run frozen if there is one.
fn pause_and_resume(guest: &Guest, run: Option<&RunControl>, random: &mut fastrand::Rng) {
    thread::sleep(Duration::from_millis(random.u64(0..200)));
    let frozen = run.map(|run| guest.freeze(run).unwrap());
    guest.pause().unwrap();
    thread::sleep(Duration::from_millis(random.u64(0..200)));
    frozen.map_or_else(|| guest.resume(), FrozenGuest::thaw).unwrap();
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn calls_and_transfers_survive_pauses() {
    let guest = with_procsched();
    let run = RunControl::new();
    let controlled = SchedStatsClient::builder(guest.handle().agent()).control(&run).deadline(DEADLINE).build();
    // Some calls wait until the guest resumes, some do not.
    let patient = guest.client().with_deadline(DEADLINE);
    let clients = [patient.clone(), patient, guest.client().with_deadline(Duration::from_millis(300)), controlled];
    let done = AtomicBool::new(false);
    let mut thaws = Vec::new();
    thread::scope(|scope| {
        let transfer = scope.spawn(|| exchange_traffic(&guest, BYTES));
        let asks = |(asker, client)| {
            let (thawed, thaws_of_asker) = channel();
            thaws.push(thawed);
            let done = &done;
            scope.spawn(move || Outcomes::ask_until(client, asker, done, &thaws_of_asker))
        };
        let asking: Vec<_> = clients.iter().enumerate().map(asks).collect();
        let mut random = fastrand::Rng::with_seed(1);
        for pause in 0..PAUSES {
            let frozen = (pause % 2 == 1).then_some(&run);
            pause_and_resume(&guest, frozen, &mut random);
            if frozen.is_some() {
                thaws.iter().for_each(|thawed| thawed.send(()).unwrap());
            }
        }
        done.store(true, Ordering::Relaxed);
        thaws.clear();
        let outcomes: Vec<Outcomes> = asking.into_iter().map(|asks| asks.join().unwrap()).collect();
        println!("{outcomes:?}");
        let [first, second, hasty, controlled] = outcomes.as_slice() else { panic!("{outcomes:?}") };
        assert!(first.answered > 0 && second.answered > 0);
        assert_eq!([first.timed_out, second.timed_out, controlled.timed_out], [0; 3]);
        assert_eq!([first.frozen, second.frozen, hasty.frozen], [0; 3]);
        assert!(controlled.frozen > 0);
        let [_outside, _inside] = transfer.join().unwrap();
    });
    for client in &clients {
        client.with_deadline(DEADLINE).stats(&[]).unwrap();
    }
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn a_call_to_a_paused_guest_always_ends() {
    let guest = with_procsched();
    let run = RunControl::new();
    let client = SchedStatsClient::builder(guest.handle().agent()).control(&run).deadline(DEADLINE).build();
    client.stats(&[]).unwrap();
    guest.pause().unwrap();
    let error = client.with_deadline(Duration::from_millis(100)).stats(&[]).unwrap_err();
    assert_eq!(error, SchedStatsError::TimedOut { after_ms: 100 });
    thread::scope(|scope| {
        let (port, connected) = NotifyingPort::new(guest.handle().agent());
        let in_flight = SchedStatsClient::builder(port).control(&run).deadline(DEADLINE).build();
        let call = scope.spawn(move || in_flight.stats(&[]));
        connected.recv_timeout(DEADLINE).unwrap();
        let frozen = run.freeze();
        assert_eq!(call.join().unwrap(), Err(SchedStatsError::DuringFreeze));
        assert_eq!(client.stats(&[]), Err(SchedStatsError::DuringFreeze));
        drop(frozen);
        let (port, connected) = NotifyingPort::new(guest.handle().agent());
        let waits = SchedStatsClient::builder(port).deadline(DEADLINE).build();
        let call = scope.spawn(move || waits.stats(&[]));
        connected.recv_timeout(DEADLINE).unwrap();
        guest.resume().unwrap();
        call.join().unwrap().unwrap();
    });
    client.stats(&[]).unwrap();
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn a_client_survives_reboots_of_its_guest() {
    let mut guest = with_procsched();
    let client = guest.client().with_deadline(DEADLINE);
    for _ in 0..2 {
        client.stats(&[]).unwrap();
        let session = client.session();
        output(&guest, &["sh", "-c", "kill -STOP $(pidof procsched)"]);
        let (port, connected) = NotifyingPort::new(guest.handle().agent());
        let in_flight = SchedStatsClient::builder(port).deadline(DEADLINE).build();
        let call = thread::spawn(move || in_flight.stats(&[]));
        connected.recv_timeout(DEADLINE).unwrap();
        let mut plain = agent_session(&guest);
        guest.reboot(DEADLINE).unwrap();
        let error = call.join().unwrap().unwrap_err();
        assert!(matches!(error, SchedStatsError::AgentUnreachable { .. }), "{error}");
        assert_ends(&mut plain);
        client.wait_for_scheduler(DEADLINE).unwrap();
        client.stats(&[]).unwrap();
        assert!(client.session() > session, "the delta baseline is gone");
        assert_eq!(output(&guest, &["echo", "commands too"]), b"commands too\n");
    }
    // A guest that resets itself still ends, as after a panic.
    guest.run(&["reboot", "-f"]).unwrap_err();
    assert!(guest.pause().is_err());
}

/// Opens a session with the agent, and reads the first byte of its hello.
fn agent_session(guest: &Guest) -> UnixStream {
    let mut stream = guest.handle().connect(scx_vsock::AGENT_PORT).unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 1);
    stream
}

fn assert_ends(stream: &mut UnixStream) {
    match stream.read_to_end(&mut Vec::new()) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
    }
}
