//! Guests that are paused, go on and are reset at any moment, through QEMU's monitor.
#![allow(clippy::panic, clippy::unwrap_used, reason = "tests")]

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use scx_vsock::guest::qemu::Guest;
use scx_vsock::{RunControl, SchedStatsClient, SchedStatsError};
use scx_vsock_tests::guest::{builder, exchange_traffic, output, wait_for_scheduler};
use scx_vsock_tests::notifying_port::NotifyingPort;

const GUEST_PEER: &str = env!("CARGO_BIN_EXE_guest_peer");
const PROCSCHED: &str = env!("CARGO_BIN_EXE_procsched");

/// How long what must happen may take, in an emulated guest on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);

const STOPS: usize = 20;

/// Bytes each way on each connection of the transfer that the stops interrupt.
const BYTES: u64 = 512 << 10;

fn with_procsched() -> Guest {
    let guest = builder().scheduler(PROCSCHED, &[]).program(GUEST_PEER, "/bin/guest_peer").boot().unwrap();
    wait_for_scheduler(&guest);
    guest
}

/// How calls ended.
#[derive(Debug, Default)]
struct Ends {
    answered: usize,
    timed_out: usize,
    frozen: usize,
}

impl Ends {
    /// Asks what no other call asks, and holds the answer, if there is one, against it.
    fn ask(&mut self, client: &SchedStatsClient, asker: usize) {
        let question = format!("question {asker} {}", self.answered + self.timed_out + self.frozen);
        match client.request_raw(format!(r#"{{"req":"{question}"}}"#)) {
            Ok(answer) => {
                let right = format!(r#"{{"errno":22,"args":{{"resp":"unknown command \"{question}\""}}}}"#);
                assert_eq!(String::from_utf8_lossy(&answer), right);
                self.answered += 1;
            }
            Err(SchedStatsError::TimedOut { .. }) => self.timed_out += 1,
            Err(SchedStatsError::DuringFreeze) => self.frozen += 1,
            Err(error) => panic!("{question}: {error}"),
        }
    }

    /// Asks until `done`. After a call that a freeze ended it waits for the thaw.
    fn ask_until(client: &SchedStatsClient, asker: usize, done: &AtomicBool, thaws: &Receiver<()>) -> Self {
        let mut ends = Self::default();
        while !done.load(Ordering::Relaxed) {
            let before = ends.frozen;
            ends.ask(client, asker);
            if ends.frozen > before && thaws.recv().is_err() {
                break;
            }
        }
        ends
    }
}

/// InFlight the guest for a moment at a moment that nobody knows before.
fn stop_and_go_on(guest: &Guest, random: &mut fastrand::Rng) {
    thread::sleep(Duration::from_millis(random.u64(0..200)));
    guest.pause().unwrap();
    thread::sleep(Duration::from_millis(random.u64(0..200)));
    guest.resume().unwrap();
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn calls_and_transfers_go_on_rightly_over_stops_at_random_moments() {
    let guest = with_procsched();
    let run = RunControl::new();
    let controlled = SchedStatsClient::builder(guest.handle().agent()).control(&run).deadline(DEADLINE).build();
    // Some wait for the guest to go on, some do not.
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
            scope.spawn(move || Ends::ask_until(client, asker, done, &thaws_of_asker))
        };
        let asking: Vec<_> = clients.iter().enumerate().map(asks).collect();
        let mut random = fastrand::Rng::with_seed(1);
        for stop in 0..STOPS {
            let mut frozen = (stop % 2 == 1).then(|| run.freeze());
            stop_and_go_on(&guest, &mut random);
            if frozen.take().is_some() {
                thaws.iter().for_each(|thawed| thawed.send(()).unwrap());
            }
        }
        done.store(true, Ordering::Relaxed);
        thaws.clear();
        let ends: Vec<Ends> = asking.into_iter().map(|asks| asks.join().unwrap()).collect();
        println!("{ends:?}");
        let [first, second, hasty, controlled] = ends.as_slice() else { panic!("{ends:?}") };
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
fn a_call_to_a_paused_guest_ends_by_its_deadline_by_a_freeze_or_when_the_guest_goes_on() {
    let guest = with_procsched();
    let run = RunControl::new();
    let client = SchedStatsClient::builder(guest.handle().agent()).control(&run).deadline(DEADLINE).build();
    client.stats(&[]).unwrap();
    guest.pause().unwrap();
    let error = client.with_deadline(Duration::from_millis(100)).stats(&[]).unwrap_err();
    assert_eq!(error, SchedStatsError::TimedOut { after_ms: 100 });
    thread::scope(|scope| {
        let (told, connected) = NotifyingPort::new(guest.handle().agent());
        let in_flight = SchedStatsClient::builder(told).control(&run).deadline(DEADLINE).build();
        let call = scope.spawn(move || in_flight.stats(&[]));
        connected.recv_timeout(DEADLINE).unwrap();
        let frozen = run.freeze();
        assert_eq!(call.join().unwrap(), Err(SchedStatsError::DuringFreeze));
        assert_eq!(client.stats(&[]), Err(SchedStatsError::DuringFreeze));
        drop(frozen);
        let (told, connected) = NotifyingPort::new(guest.handle().agent());
        let waits = SchedStatsClient::builder(told).deadline(DEADLINE).build();
        let call = scope.spawn(move || waits.stats(&[]));
        connected.recv_timeout(DEADLINE).unwrap();
        guest.resume().unwrap();
        call.join().unwrap().unwrap();
    });
    client.stats(&[]).unwrap();
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn a_client_outlives_reboots_of_its_guest() {
    let mut guest = with_procsched();
    let client = guest.client().with_deadline(DEADLINE);
    for _ in 0..2 {
        client.stats(&[]).unwrap();
        let session = client.session();
        output(&guest, &["sh", "-c", "kill -STOP $(pidof procsched)"]);
        let (told, connected) = NotifyingPort::new(guest.handle().agent());
        let in_flight = SchedStatsClient::builder(told).deadline(DEADLINE).build();
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
    // A guest that resets itself still ends, as a panic must.
    guest.run(&["reboot", "-f"]).unwrap_err();
    assert!(guest.pause().is_err());
}

/// A session with the agent that has its hello.
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
