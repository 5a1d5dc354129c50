//! A packet of the guest, and a packet to the guest, on a device with one connection.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use anyhow::Context;
use scx_vsock::vsock::packet::{Header, Operation};
use scx_vsock::vsock::test_util::{Packet, SimulatedDriver, guest_memory};
use scx_vsock::vsock::{Device, DeviceError, Interrupts};
use virtio_queue::Queue;

use crate::measured::{HotPath, measured, repeat};

/// The paths of this module.
pub const ALL: &[HotPath] = &[
    HotPath { name: "packet-in", times: 51, run: packets_in },
    HotPath { name: "packet-out", times: 51, run: packets_out },
];

const PORT: u32 = 729;

/// The bytes of an answer of a scheduler.
const ANSWER: [u8; 600] = [b'x'; 600];

/// The bytes of a request. As many of them as are counted are within the credit that the guest gives at first.
const REQUEST: [u8; 60] = [b'x'; 60];

/// A guest whose agent is connected to the host.
struct Guest {
    driver: SimulatedDriver,
    device: Device,
    queues: [Queue; 3],
    request: Packet,
    host: UnixStream,
    /// Bytes that the guest has sent.
    sent: u32,
}

impl Guest {
    fn connected() -> anyhow::Result<Self> {
        let mut driver = SimulatedDriver::new(guest_memory());
        driver.post_all_buffers();
        let mut queues = driver.queues();
        let mut device = Device::new(3)?;
        let host = device.handle().connect(PORT)?;
        host.set_nonblocking(false)?;
        let _interrupts = serve(&mut device, &driver, &mut queues)?;
        let request = driver.receive().context("the host connects")?;
        driver.queue_packet(&request.reply(Operation::Response), b"");
        let _interrupts = serve(&mut device, &driver, &mut queues)?;
        driver.take_sent();
        Ok(Self { driver, device, queues, request, host, sent: 0 })
    }

    /// Lets the device do what there is to do, which is counted.
    fn serve(&mut self) -> anyhow::Result<()> {
        let Self { driver, device, queues, .. } = self;
        let mut served = Ok(Interrupts::default());
        measured(&mut || served = serve(device, driver, queues));
        let _interrupts = served?;
        Ok(())
    }

    /// The guest sends an answer, and the host reads it.
    fn send(&mut self) -> anyhow::Result<()> {
        let len = u32::try_from(ANSWER.len())?;
        self.driver.queue_packet(&Header { len, ..self.request.reply(Operation::ReadWrite) }, &ANSWER);
        self.serve()?;
        self.sent += len;
        self.driver.take_sent();
        self.host.read_exact(&mut [0; ANSWER.len()])?;
        // Packets with credit.
        while self.driver.receive().is_some() {}
        Ok(())
    }

    /// The host sends a request, and the guest reads it.
    fn receive(&mut self) -> anyhow::Result<()> {
        self.host.write_all(&REQUEST)?;
        self.serve()?;
        let packet = self.driver.receive().context("the request is one packet")?;
        anyhow::ensure!(packet.payload == REQUEST, "the packet is the request");
        Ok(())
    }
}

fn serve(device: &mut Device, driver: &SimulatedDriver, queues: &mut [Queue; 3]) -> Result<Interrupts, DeviceError> {
    let [rx, tx, event] = queues;
    device.service(driver.memory(), rx, tx, Some(event))
}

fn packets_in(times: usize) -> anyhow::Result<()> {
    let mut guest = Guest::connected()?;
    repeat(times, || guest.send())?;
    let counted = guest.device.counters().from_guest.bytes;
    anyhow::ensure!(counted == u64::from(guest.sent), "the device took {counted} bytes of {}", guest.sent);
    Ok(())
}

fn packets_out(times: usize) -> anyhow::Result<()> {
    let mut guest = Guest::connected()?;
    repeat(times, || guest.receive())
}
