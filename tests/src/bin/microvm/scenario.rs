//! The steps that the guest goes through.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use scx_vsock::guest::microvm::Outcome;
use scx_vsock::vsock::Handle;
use scx_vsock::vsock::spec::{F_EVENT_IDX, F_VERSION_1};
use scx_vsock::{RunControl, SchedStatsClient, SchedStatsError};
use scx_vsock_tests::guest::{begin_traffic, exchange_traffic_with};
use scx_vsock_tests::microvm_guest::MicrovmGuest;
use scx_vsock_tests::notifying_port::NotifyingPort;
use scx_vsock_tests::peer::Peer;
use serde_json::{Value, json};

/// How long anything may take, in a guest that is emulated twice on a busy machine.
const DEADLINE: Duration = Duration::from_secs(90);

/// Consecutive restores: more than the agent has sessions, so that each session must end in the guest, too.
const RESTORES: usize = 10;
/// Pauses at random moments of a transfer.
const PAUSES: usize = 10;
/// Bytes each way on each connection of a transfer.
const BYTES: u64 = 64 << 10;
/// Bytes of a transfer that never ends.
const ENDLESS: u64 = 1 << 30;
/// The host port of a connection that the guest holds.
const HELD: u32 = 5000;

/// Connections that are open at each of many restores.
const CONNECTIONS: usize = 64;
/// Consecutive restores with as many connections.
const MANY_RESTORES: usize = 30;
/// The guest's port of these connections.
const ECHO: u32 = 5001;
/// How long all of these restores may take.
const MANY_RESTORES_END: Duration = Duration::from_secs(400);

/// A guest, and the run control of its clients.
pub struct Scenario {
    guest: MicrovmGuest,
    run: RunControl,
}

impl Scenario {
    /// Returns the scenario of a guest whose agent is ready.
    pub fn new(guest: MicrovmGuest) -> Self {
        Self { guest, run: RunControl::new() }
    }

    /// Returns a client of the guest, with a session of its own.
    fn client(&self) -> SchedStatsClient {
        let agent = self.guest.handle().agent();
        SchedStatsClient::builder(agent).control(&self.run).deadline(DEADLINE).build()
    }

    fn output(&self, command: &[&str]) -> Result<String> {
        self.guest.shell().output(command, DEADLINE)
    }

    /// Pauses the guest for a change.
    fn while_paused(self, change: impl FnOnce(&MicrovmGuest) -> Result<()>) -> Result<Self> {
        let frozen = self.run.freeze();
        self.guest.microvm().pause()?;
        change(&self.guest)?;
        self.guest.microvm().resume()?;
        drop(frozen);
        Ok(self)
    }

    fn restore_device(self) -> Result<Self> {
        self.while_paused(MicrovmGuest::restore_device)
    }

    /// The driver has initialised the device, as far as its snapshot shows.
    pub fn negotiate(self) -> Result<Self> {
        self.while_paused(|paused| {
            let snapshot = serde_json::to_value(paused.microvm().device_snapshot()?)?;
            let is = |pointer: &str, value: Value| snapshot.pointer(pointer) == Some(&value);
            let ready = (0..3).all(|queue| is(&format!("/queues/{queue}/ready"), json!(true)));
            let features = is("/features", json!(F_VERSION_1 | F_EVENT_IDX));
            ensure!(
                is("/status", json!(15)) && features && ready,
                "the driver has not initialised the device: {snapshot}"
            );
            Ok(())
        })
    }

    /// The host and the guest get the same answers from the scheduler.
    pub fn answer(self) -> Result<Self> {
        let client = self.client();
        client.wait_for_scheduler(DEADLINE)?;
        let meta = r#"{"req":"stats_meta","args":{}}"#;
        let inside = self.output(&["guest_peer", "ask", "/var/run/scx/root/stats", meta])?;
        let outside = String::from_utf8(client.request_raw(meta)?)?;
        ensure!(
            inside.trim_end() == outside && outside.len() > 500,
            "{outside:?} on the host, {inside:?} in the guest"
        );
        let totals = |stats: &Value| stats.pointer("/totals/ctxt").and_then(Value::as_u64);
        let (first, second) = (totals(&client.stats(&[])?), totals(&client.stats(&[])?));
        ensure!(first.is_some() && first < second, "context switches go from {first:?} to {second:?}");
        Ok(self)
    }

    /// The guest's time stands still while it is paused, by its clock and by what its scheduler's watchdog counts.
    pub fn stand_still(self) -> Result<Self> {
        const PAUSE: Duration = Duration::from_secs(4);
        let uptime = |scenario: &Self| -> Result<Duration> {
            let text = scenario.output(&["cut", "-d", " ", "-f", "1", "/proc/uptime"])?;
            Ok(Duration::from_secs_f64(text.trim().parse()?))
        };
        let (started, before) = (Instant::now(), uptime(&self)?);
        let scenario = self.while_paused(|_| {
            thread::sleep(PAUSE);
            Ok(())
        })?;
        let (in_guest, outside) = (uptime(&scenario)?.saturating_sub(before), started.elapsed());
        ensure!(in_guest + PAUSE / 2 < outside, "{in_guest:?} in the guest while {outside:?} passed with a pause");
        println!("{:.1} s in the guest while {:.1} s passed", in_guest.as_secs_f32(), outside.as_secs_f32());
        Ok(scenario)
    }

    /// Transfers survive pauses at random moments.
    pub fn pause_during_transfers(mut self) -> Result<Self> {
        let (handle, shell) = (self.guest.handle(), self.guest.shell());
        let transfer =
            thread::spawn(move || exchange_traffic_with(handle, BYTES, |command| shell.run(command, DEADLINE)));
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..PAUSES {
            thread::sleep(Duration::from_millis(random.u64(0..200)));
            self = self.while_paused(|_| {
                thread::sleep(Duration::from_millis(random.u64(0..50)));
                Ok(())
            })?;
        }
        let [outside, inside] = transfer.join().map_err(|_| anyhow::anyhow!("the transfer failed"))?;
        println!("{outside} connections from the host and {inside} from the guest were opened and closed");
        Ok(self)
    }

    /// After each restore the earlier sessions have ended, on the host with the right reason and in the guest by a reset,
    /// and the same agent answers.
    pub fn restore(mut self) -> Result<Self> {
        let agent = self.output(&["pidof", "scx-vsock-agent"])?;
        for restore in 0..RESTORES {
            self = self.restore_once().with_context(|| format!("restore {restore}"))?;
        }
        ensure!(agent == self.output(&["pidof", "scx-vsock-agent"])?, "the agent started again");
        Ok(self)
    }

    fn restore_once(mut self) -> Result<Self> {
        let listener = self.guest.handle().listen(HELD)?;
        let shell = self.guest.shell();
        self.output(&["sh", "-c", "kill -STOP $(pidof procsched)"])?;
        let held = thread::spawn(move || shell.output(&["guest_peer", "hold", "2", &HELD.to_string()], DEADLINE));
        let stream = listener.accept_within(DEADLINE)?;
        stream.set_nonblocking(false)?;
        let mut connection = Peer::within(stream, DEADLINE);
        ensure!(connection.line() == b"held\n");
        let in_flight = |client: SchedStatsClient| thread::spawn(move || client.stats(&[]));
        let (port, connected) = NotifyingPort::new(self.guest.handle().agent());
        let interrupted = in_flight(SchedStatsClient::builder(port).deadline(DEADLINE).build());
        let (port, controlled_connected) = NotifyingPort::new(self.guest.handle().agent());
        let controlled = in_flight(SchedStatsClient::builder(port).control(&self.run).deadline(DEADLINE).build());
        for connected in [connected, controlled_connected] {
            connected.recv_timeout(DEADLINE)?;
        }
        self = self.restore_device()?;
        let outcomes = [interrupted, controlled].map(|call| call.join().expect("no panic"));
        let right =
            matches!(outcomes, [Err(SchedStatsError::AgentUnreachable { .. }), Err(SchedStatsError::DuringFreeze)]);
        ensure!(right, "{outcomes:?}");
        connection.expect_end();
        ensure!(held.join().expect("no panic")? == "reset\n", "the guest's own connection was not reset");
        self.output(&["sh", "-c", "kill -CONT $(pidof procsched)"])?;
        self.client().stats(&[])?;
        Ok(self)
    }

    /// After each restore every earlier connection has ended, on the host and in the guest, and as many new ones, which are
    /// asked for before the driver knows of the restore, are answered.
    pub fn restore_with_many_connections(mut self) -> Result<Self> {
        let total = CONNECTIONS * (MANY_RESTORES + 1);
        let listener = self.guest.handle().listen(ECHO)?;
        let shell = self.guest.shell();
        let echo = thread::spawn(move || {
            shell.output(&["guest_peer", "echo", &ECHO.to_string(), &total.to_string()], MANY_RESTORES_END)
        });
        drop(listener.accept_within(DEADLINE)?);
        let mut open = connect_many(&self.guest.handle())?;
        for restore in 0..MANY_RESTORES {
            self = self.restore_device()?;
            let next = connect_many(&self.guest.handle()).with_context(|| format!("after restore {restore}"))?;
            std::mem::replace(&mut open, next).iter_mut().for_each(Peer::expect_end);
        }
        drop(open);
        let ended = echo.join().expect("no panic")?;
        ensure!(ended == format!("{total} ended\n"), "in the guest: {ended:?}");
        println!("{total} connections over {MANY_RESTORES} restores, none lost");
        Ok(self)
    }

    /// A restore ends the transfers in progress, and the next ones succeed.
    pub fn restore_during_transfers(mut self) -> Result<Self> {
        for restore in 0..3 {
            let transfer = begin_traffic(self.guest.handle(), ENDLESS);
            self.output(&["sh", "-c", &format!("guest_peer traffic {ENDLESS} </dev/null >/dev/null 2>&1 &")])?;
            thread::sleep(Duration::from_millis(500 + 300 * restore));
            self = self.restore_device()?;
            ensure!(transfer.join().expect("no panic").is_err(), "an endless transfer ended");
            self.output(&["sh", "-c", "killall -9 guest_peer; until ! pidof guest_peer; do usleep 20000; done"])?;
            self.client().stats(&[])?;
        }
        let shell = self.guest.shell();
        exchange_traffic_with(self.guest.handle(), BYTES, |command| shell.run(command, DEADLINE));
        Ok(self)
    }

    /// Removing the driver's modules resets the device, and loading them finds it again.
    pub fn reload_modules(self) -> Result<Self> {
        for module in ["vmw_vsock_virtio_transport", "virtio_mmio"] {
            self.client().stats(&[])?;
            // A connection that is still closing keeps the module in use, and the kernel reports no event for its end.
            self.output(&["sh", "-c", &format!("until rmmod {module}; do usleep 20000; done")])?;
            self.output(&["insmod", &format!("/lib/modules/{module}.ko")])?;
            self.client().stats(&[])?;
        }
        Ok(self)
    }

    /// The guest turns itself off.
    pub fn power_off(self) -> Result<()> {
        let shell = self.guest.shell();
        let notify_exits = self.guest.microvm().notify_exits();
        ensure!(notify_exits == 0, "{notify_exits} queue notifications came as exits");
        ensure!(shell.run(&["poweroff", "-f"], DEADLINE).is_err(), "the guest still runs");
        ensure!(self.guest.wait_for_end(DEADLINE)? == Outcome::PoweredOff);
        Ok(())
    }
}

/// Connects many at once to the guest, each of which must send back what it is sent.
fn connect_many(handle: &Handle) -> Result<Vec<Peer>> {
    let connect = |number: usize| {
        let stream = handle.connect(ECHO)?;
        stream.set_nonblocking(false)?;
        let mut connection = Peer::within(stream, DEADLINE);
        connection.send(format!("{number}\n"));
        Ok(connection)
    };
    let mut connections = (0..CONNECTIONS).map(connect).collect::<Result<Vec<Peer>>>()?;
    for (number, connection) in connections.iter_mut().enumerate() {
        let line = connection.line();
        ensure!(line == format!("{number}\n").into_bytes(), "connection {number} is lost: it got {line:?}");
    }
    Ok(connections)
}
