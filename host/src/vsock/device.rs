//! The device: the two ends of its queues, and the driver's life cycle.

use std::iter;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
#[cfg(feature = "vhost-user")]
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemory;
use vm_memory::bitmap::{BS, BitmapSlice};

use super::burst::{Burst, GuestPacket};
use super::chain::{Chain, Direction, gather};
use super::connection::MAX_BUFFERS;
use super::counters::Counters;
use super::error::DeviceError;
use super::event_queue::TransportReset;
use super::features;
use super::handle::Handle;
use super::host_side::HostSide;
use super::muxer::Muxer;
use super::packet::Header;
#[cfg(feature = "vhost-user")]
use super::poller::HostEvents;
use super::snapshot::{DeviceState, InvalidSnapshot};
use super::spec::RESERVED_CIDS;

/// Packets of one call of [`Device::service`], so that other guests of the thread get their turn.
const MAX_SERVICE_PACKETS: usize = 1024;

/// Bytes of payload of one call, which the last packets may exceed.
const MAX_SERVICE_BYTES: usize = 4 << 20;

/// How long one call goes on after it began, but for a batch: a packet may be spread over as many descriptors as its
/// queue has.
const MAX_SERVICE_TIME: Duration = Duration::from_millis(10);

/// Packets in one direction before it is the other's turn.
const BATCH_PACKETS: usize = 16;

/// The queues whose interrupt is to be raised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Interrupts {
    /// The receive queue.
    pub rx: bool,
    /// The transmit queue.
    pub tx: bool,
    /// The event queue.
    pub event: bool,
}

impl Interrupts {
    /// Whether there is any, for a transport that has one interrupt for all queues.
    #[must_use]
    pub fn any(self) -> bool {
        self.rx || self.tx || self.event
    }

    fn count(self) -> u64 {
        [self.rx, self.tx, self.event].map(u64::from).iter().sum()
    }
}

/// Whether a guest may have this CID.
fn is_guest_cid(cid: u64) -> bool {
    cid <= u64::from(u32::MAX) && !RESERVED_CIDS.contains(&cid)
}

/// A virtio-vsock device.
///
/// ```
/// use scx_vsock::vsock::Device;
/// use virtio_queue::{Queue, QueueT};
/// use vm_memory::{GuestAddress, GuestMemoryMmap};
///
/// let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?;
/// let (mut rx, mut tx, mut event) = (Queue::new(256)?, Queue::new(256)?, Queue::new(256)?);
/// let mut device = Device::new(3)?;
/// let stream = device.handle().connect(8080)?;
/// // ... whenever the driver has notified a queue that it set up, or `device.fd()` is readable:
/// let interrupts = device.service(&memory, &mut rx, &mut tx, Some(&mut event))?;
/// assert!(!interrupts.any(), "there is no driver");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Device {
    guest_cid: u64,
    muxer: Muxer,
    host_side: Arc<HostSide>,
    transport_reset: TransportReset,
    /// The driver broke a queue, and has not reset the device since.
    broken: bool,
    /// A packet waits in the transmit queue until the guest has received some.
    blocked: bool,
}

impl Device {
    /// The feature bits that a transport offers to the driver.
    pub const FEATURES: u64 = features::OFFERED;

    /// Returns a device for the guest with this CID.
    ///
    /// # Errors
    ///
    /// [`DeviceError::ReservedCid`], [`DeviceError::Host`].
    pub fn new(guest_cid: u64) -> Result<Self, DeviceError> {
        if !is_guest_cid(guest_cid) {
            return Err(DeviceError::ReservedCid(guest_cid));
        }
        let host_side = Arc::new(HostSide::new()?);
        let muxer = Muxer::new(guest_cid, Arc::clone(&host_side))?;
        Ok(Self {
            guest_cid,
            muxer,
            host_side,
            transport_reset: TransportReset::default(),
            broken: false,
            blocked: false,
        })
    }

    /// Returns the device's host side.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle::new(Arc::clone(&self.host_side), self.guest_cid)
    }

    /// Returns the configuration space (5.10.4): the guest's CID.
    #[must_use]
    pub fn config(&self) -> [u8; 8] {
        self.guest_cid.to_le_bytes()
    }

    /// Returns a descriptor that is readable when [`service`](Self::service) has something to do for the host's side.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.muxer.fd()
    }

    /// Returns the number of connections, closing ones included.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.muxer.connections()
    }

    /// Returns the bytes of this process that hold what the guest sent and the host's sockets have no room for, and
    /// packets that wait for receive buffers: at most [`MAX_HELD_BYTES`](super::MAX_HELD_BYTES).
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.muxer.held_bytes()
    }

    /// Resets the device (2.4): connections that the driver knew of are gone, and their host ends read the end.
    /// Connections that the host asks for meanwhile wait for the next driver.
    pub fn reset(&mut self) {
        self.muxer.reset();
        self.transport_reset = TransportReset::default();
        self.broken = false;
    }

    /// Takes the driver's choice of features. A driver without stream sockets by its own choice gets none: what it
    /// sends is answered by RST, and what the host asks for ends at once.
    pub fn negotiate(&mut self, driver_features: u64) {
        self.muxer.set_streams(features::has_streams(driver_features));
    }

    /// Interrupts the connections of the running driver, as a restore does: they are gone, and their host ends read the
    /// end. The driver is sent TRANSPORT_RESET (5.10.6.7); until it has handled that, no packet is taken or sent. A
    /// driver that set the event queue up, and never posts a buffer to it or does not post one again, is not served
    /// until it resets the device.
    pub fn reset_transport(&mut self) {
        self.muxer.reset();
        self.transport_reset = TransportReset::Pending;
    }

    /// Returns what a later device for the same guest goes on from.
    ///
    /// ```
    /// let device = scx_vsock::vsock::Device::new(3)?;
    /// let saved = serde_json::to_string(&device.state())?;
    /// assert_eq!(saved, r#"{"guest_cid":3,"next_port":1073741824}"#);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn state(&self) -> DeviceState {
        DeviceState { guest_cid: self.guest_cid, next_port: self.muxer.next_port() }
    }

    /// Goes on from where another device was, whose guest may have had another CID. If its driver runs, call
    /// [`reset_transport`](Self::reset_transport) so that it learns that connections are gone.
    ///
    /// # Errors
    ///
    /// [`InvalidSnapshot`].
    pub fn restore(&mut self, state: &DeviceState) -> Result<(), InvalidSnapshot> {
        if !is_guest_cid(state.guest_cid) {
            return Err(InvalidSnapshot::GuestCid(state.guest_cid));
        }
        let valid = self.muxer.set_next_port(state.next_port);
        if valid { Ok(()) } else { Err(InvalidSnapshot::NextPort(state.next_port)) }
    }

    /// Ends every stream, and makes handles and listeners fail from now on: the guest is gone for good.
    pub fn close(&mut self) {
        self.host_side.close();
        self.muxer.close();
        self.muxer.publish_counters();
    }

    /// Returns what the device has done so far, and its connections by state.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.muxer.counters()
    }

    /// Serves the host's side alone, while the queues do not run.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Host`].
    pub fn service_host(&mut self) -> Result<(), DeviceError> {
        let polled = self.muxer.poll();
        self.muxer.publish_counters();
        Ok(polled?)
    }

    /// Counts notifications of the driver, as [`Counters::notifications`].
    #[cfg(feature = "vhost-user")]
    pub(crate) fn count_notifications(&mut self, count: u64) {
        self.muxer.count_notifications(count);
    }

    /// Makes [`fd`](Self::fd) readable, so that the device's thread calls [`service`](Self::service).
    pub fn wake(&self) {
        self.host_side.wake();
    }

    /// Serves the guest and the host, without waiting, for at most 1,024 packets, 4 MiB of payload or 10 ms, each of which
    /// the last packets may exceed: if there is more to do, [`fd`](Self::fd) is readable. Both directions have their turn
    /// every 16 packets, and so have the streams of the host. A call ends then, too, when the driver waits for an interrupt,
    /// so that the guest takes packets while the device goes on. To be called when the guest notified a queue and when
    /// that descriptor is readable. A transport without the event queue passes none, and one whose driver did not set it
    /// up may pass it: such a guest is not sent TRANSPORT_RESET.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Chain`] or [`DeviceError::Ring`] once, when the guest's driver broke a queue; the device does
    /// nothing from then on until it is [`reset`](Self::reset). [`DeviceError::Host`].
    pub fn service<M: GuestMemory>(
        &mut self,
        memory: &M,
        rx: &mut Queue,
        tx: &mut Queue,
        event: Option<&mut Queue>,
    ) -> Result<Interrupts, DeviceError> {
        self.muxer.poll()?;
        self.serve(memory, rx, tx, event, Notifications::Enabled)
    }

    /// Takes what happened on the host's side, where the transport's thread waits for the descriptor's events itself.
    #[cfg(feature = "vhost-user")]
    pub(crate) fn on_events(&mut self, events: &HostEvents) {
        self.muxer.on_events(events);
    }

    /// Shows the counters to the handles, where the queues do not run.
    #[cfg(feature = "vhost-user")]
    pub(crate) fn publish_counters(&self) {
        self.muxer.publish_counters();
    }

    /// Whether the driver has added something to the queues that can be dealt with.
    #[cfg(feature = "vhost-user")]
    pub(crate) fn has_work<M: GuestMemory>(&self, memory: &M, rx: &Queue, tx: &Queue) -> bool {
        let has_entries =
            |queue: &Queue| queue.avail_idx(memory, Ordering::Acquire).is_ok_and(|index| index.0 != queue.next_avail());
        let is_served = !self.broken && self.transport_reset == TransportReset::Idle;
        is_served && (!self.blocked && has_entries(tx) || self.muxer.has_packets() && has_entries(rx))
    }

    /// Does what [`service`](Self::service) does once the host's side was polled. After a call without notifications the
    /// thread looks at [`has_work`](Self::has_work) and the descriptor, and calls it once more with them before it waits.
    ///
    /// # Errors
    ///
    /// Those of [`service`](Self::service).
    pub(crate) fn serve<M: GuestMemory>(
        &mut self,
        memory: &M,
        rx: &mut Queue,
        tx: &mut Queue,
        event: Option<&mut Queue>,
        notifications: Notifications,
    ) -> Result<Interrupts, DeviceError> {
        let served = if self.broken || !rx.ready() || !tx.ready() {
            Ok(Interrupts::default())
        } else {
            let served = self.service_queues(memory, rx, tx, event, notifications);
            self.broken = served.is_err();
            served.inspect(|due| self.muxer.count_interrupts(due.count()))
        };
        self.muxer.arm_timer();
        self.muxer.publish_counters();
        served
    }

    fn service_queues<M: GuestMemory>(
        &mut self,
        memory: &M,
        rx: &mut Queue,
        tx: &mut Queue,
        event: Option<&mut Queue>,
        notifications: Notifications,
    ) -> Result<Interrupts, DeviceError> {
        let event = self.service_events(memory, event)?;
        if self.transport_reset == TransportReset::Idle {
            Ok(Interrupts { event, ..self.service_packets(memory, rx, tx, notifications)? })
        } else {
            Ok(Interrupts { event, ..Interrupts::default() })
        }
    }

    /// Continues a transport reset. Returns whether the event queue's interrupt is to be raised.
    fn service_events<M: GuestMemory>(&mut self, memory: &M, event: Option<&mut Queue>) -> Result<bool, DeviceError> {
        let Some(event) = event.filter(|event| event.ready()) else {
            self.transport_reset = TransportReset::Idle;
            return Ok(false);
        };
        Ok(self.transport_reset.advance(memory, event)? && event.needs_notification(memory)?)
    }

    fn service_packets<M: GuestMemory>(
        &mut self,
        memory: &M,
        rx: &mut Queue,
        tx: &mut Queue,
        notifications: Notifications,
    ) -> Result<Interrupts, DeviceError> {
        let mut budget = Budget::new();
        let mut used = Interrupts::default();
        loop {
            let received = self.receive(memory, tx, &mut budget)?;
            let sent = self.send(memory, rx, &mut budget)?;
            used.tx |= received.any;
            used.rx |= sent.any;
            self.blocked = received.end == BatchEnd::Blocked;
            if budget.is_used_up() {
                self.host_side.wake();
                break;
            }
            if received.end == BatchEnd::Full || sent.end == BatchEnd::Full {
                let due = due_interrupts(memory, rx, tx, used)?;
                if due.any() {
                    self.host_side.wake();
                    return Ok(due);
                }
                self.muxer.poll()?;
                continue;
            }
            if notifications != Notifications::Enabled {
                break;
            }
            // Notifications of the transmit queue are enabled unless a packet is blocked there; those of the receive queue
            // only while packets wait for buffers, since each costs the guest an exit. A queue that got entries meanwhile
            // sent no notification of them.
            let more = (sent.any || received.end != BatchEnd::Blocked) && tx.enable_notification(memory)?;
            let room = self.muxer.has_packets() && rx.enable_notification(memory)?;
            if !more && !room {
                break;
            }
        }
        due_interrupts(memory, rx, tx, used)
    }

    /// Takes a batch of packets of the guest, as long as there is room for the RSTs that may answer them.
    fn receive<M: GuestMemory>(
        &mut self,
        memory: &M,
        tx: &mut Queue,
        budget: &mut Budget,
    ) -> Result<Batch, DeviceError> {
        let mut burst = Burst::new();
        let first = tx.next_used();
        let end = self.receive_burst(memory, tx, budget, &mut burst);
        // A broken ring loses nothing that came before.
        self.finish(memory, tx, &mut burst)?;
        Ok(Batch { end: end?, any: tx.next_used() != first })
    }

    /// Takes packets up to the end of a batch. The last ones are left in `burst`, which the caller finishes, also after an
    /// error.
    fn receive_burst<'m, M: GuestMemory>(
        &mut self,
        memory: &'m M,
        tx: &mut Queue,
        budget: &mut Budget,
        burst: &mut Burst<'m, BS<'m, M::Bitmap>>,
    ) -> Result<BatchEnd, DeviceError> {
        for _ in 0..BATCH_PACKETS {
            let Some(head) = tx.iter(memory)?.next().map(|chain| chain.head_index()) else {
                return Ok(BatchEnd::Empty);
            };
            let chain = gather(memory, tx, head, Direction::Readable)?;
            let mut payload = 0;
            if let Some(header) = chain.read_header() {
                let packet = GuestPacket { head, header, chain };
                if !burst.can_take(&packet) {
                    self.finish(memory, tx, burst)?;
                }
                if !self.muxer.has_room_for(&packet.header) {
                    tx.go_to_previous_position();
                    self.muxer.count_reset_stall();
                    return Ok(BatchEnd::Blocked);
                }
                payload = packet.payload_bytes().min(packet.chain.len());
                burst.push(packet);
            } else {
                self.finish(memory, tx, burst)?;
                self.muxer.count_short_packet();
                tx.add_used(memory, head, 0)?;
            }
            if !budget.spend(payload) {
                break;
            }
        }
        Ok(BatchEnd::Full)
    }

    /// Processes the packets of a burst, and gives their buffers back.
    fn finish<'m, M: GuestMemory>(
        &mut self,
        memory: &'m M,
        tx: &mut Queue,
        burst: &mut Burst<'m, BS<'m, M::Bitmap>>,
    ) -> Result<(), DeviceError> {
        self.muxer.process(burst.packets());
        let given_back = burst.packets().iter().try_for_each(|packet| tx.add_used(memory, packet.head, 0));
        // Whether they were or not: what has reached the host is not sent to it again.
        burst.clear();
        Ok(given_back?)
    }

    /// Sends a batch of packets to the guest, as long as it has buffers for them.
    fn send<M: GuestMemory>(&mut self, memory: &M, rx: &mut Queue, budget: &mut Budget) -> Result<Batch, DeviceError> {
        let mut any = false;
        let mut left = BATCH_PACKETS;
        while left > 0 {
            let wanted = self.muxer.wanted_buffers().min(left);
            let buffers = if self.muxer.has_packets() { take_buffers(memory, rx, wanted)? } else { Buffers::default() };
            let lengths = self.fill(&buffers.chains);
            for _ in lengths.len()..buffers.chains.len() {
                rx.go_to_previous_position();
            }
            if lengths.is_empty() {
                return Ok(Batch { any, end: BatchEnd::Empty });
            }
            any = true;
            left -= lengths.len();
            let mut goes_on = true;
            for (&head, &length) in buffers.heads.iter().zip(&lengths) {
                rx.add_used(memory, head, length)?;
                goes_on &= budget.spend(usize::try_from(length).unwrap_or(usize::MAX));
            }
            if !goes_on {
                break;
            }
        }
        Ok(Batch { any, end: BatchEnd::Full })
    }

    /// Fills receive buffers with the next packets. Returns how many bytes are used of each, from the first one on; none if
    /// there is no packet after all. A buffer that has no room after the header is alone, and returned unused.
    fn fill<B: BitmapSlice>(&mut self, buffers: &[Chain<'_, B>]) -> heapless::Vec<u32, MAX_BUFFERS> {
        match buffers {
            [] => heapless::Vec::new(),
            [short] if short.len() <= Header::BYTES => iter::once(0).collect(),
            _ => {
                let packets = self.muxer.dispatch(buffers);
                let filled = packets.iter().zip(buffers).map(|(packet, buffer)| {
                    let _long_enough = buffer.write_header(packet);
                    u32::try_from(packet.packet_bytes()).unwrap_or(u32::MAX)
                });
                filled.collect()
            }
        }
    }
}

/// Receive buffers that were taken from the queue.
#[derive(Debug)]
struct Buffers<'m, B: BitmapSlice> {
    /// The first descriptor of each.
    heads: heapless::Vec<u16, MAX_BUFFERS>,
    chains: heapless::Vec<Chain<'m, B>, MAX_BUFFERS>,
}

impl<B: BitmapSlice> Default for Buffers<'_, B> {
    fn default() -> Self {
        Self { heads: heapless::Vec::new(), chains: heapless::Vec::new() }
    }
}

/// Takes as many receive buffers as there are, at most `wanted`: one that is too short for a packet, or others.
fn take_buffers<'m, M: GuestMemory>(
    memory: &'m M,
    rx: &mut Queue,
    wanted: usize,
) -> Result<Buffers<'m, BS<'m, M::Bitmap>>, DeviceError> {
    let mut buffers = Buffers::default();
    while buffers.chains.len() < wanted
        && let Some(head) = rx.iter(memory)?.next().map(|chain| chain.head_index())
    {
        let is_first = buffers.chains.is_empty();
        match gather(memory, rx, head, Direction::Writable) {
            Ok(chain) if is_first || chain.len() > Header::BYTES => {
                let is_short = chain.len() <= Header::BYTES;
                let _taken = (buffers.heads.push(head), buffers.chains.push(chain));
                if is_short {
                    break;
                }
            }
            Err(error) if is_first => return Err(error.into()),
            // It matters once it is the first one.
            Ok(_) | Err(_) => {
                rx.go_to_previous_position();
                break;
            }
        }
    }
    Ok(buffers)
}

/// Returns the interrupts of the queues in which buffers were `used` that the driver asked for (2.7.7).
fn due_interrupts<M: GuestMemory>(
    memory: &M,
    rx: &mut Queue,
    tx: &mut Queue,
    used: Interrupts,
) -> Result<Interrupts, DeviceError> {
    Ok(Interrupts {
        rx: used.rx && rx.needs_notification(memory)?,
        tx: used.tx && tx.needs_notification(memory)?,
        event: false,
    })
}

/// Whether the driver is to notify the queues of new entries once a call has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notifications {
    Enabled,
    /// The queues are looked at without.
    #[cfg(feature = "vhost-user")]
    NotNeeded,
}

/// What became of a batch of packets in one direction.
#[derive(Clone, Copy, Debug)]
struct Batch {
    /// A buffer was used.
    any: bool,
    end: BatchEnd,
}

/// Why a batch has no more packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BatchEnd {
    /// It has as many as it may have.
    Full,
    /// There is no further packet, or no buffer for it.
    Empty,
    /// A packet waits until the guest has received some.
    Blocked,
}

/// What one call may still do.
#[derive(Clone, Copy, Debug)]
struct Budget {
    packets: usize,
    bytes: usize,
    end: Instant,
}

impl Budget {
    fn new() -> Self {
        let now = Instant::now();
        let end = now.checked_add(MAX_SERVICE_TIME).unwrap_or(now);
        Self { packets: MAX_SERVICE_PACKETS, bytes: MAX_SERVICE_BYTES, end }
    }

    /// Accounts for a packet. Returns whether another one may follow.
    fn spend(&mut self, bytes: usize) -> bool {
        self.packets = self.packets.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
        self.packets > 0 && self.bytes > 0
    }

    fn is_used_up(&self) -> bool {
        self.packets == 0 || self.bytes == 0 || Instant::now() >= self.end
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.host_side.close();
    }
}

/// Raises the limit of descriptors: a device has more than a process may have by default.
#[cfg(test)]
pub(super) fn allow_all_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::time::Duration;

    use super::*;
    use crate::vsock::ConnectError;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    const CID: u64 = 3;

    #[test]
    fn any_interrupt_of_a_queue_is_one() {
        assert!(!Interrupts::default().any());
        for interrupts in [
            Interrupts { rx: true, ..Interrupts::default() },
            Interrupts { tx: true, ..Interrupts::default() },
            Interrupts { event: true, ..Interrupts::default() },
        ] {
            assert!(interrupts.any());
        }
    }

    #[test]
    fn a_state_with_a_reserved_cid_or_port_is_refused() {
        let mut device = Device::new(CID).unwrap();
        let state = device.state();
        device.restore(&DeviceState { guest_cid: 7, ..state }).unwrap();
        assert_eq!(device.config(), CID.to_le_bytes(), "a clone of the guest has this device's CID");
        let reserved = DeviceState { guest_cid: 2, ..state };
        assert_eq!(device.restore(&reserved), Err(InvalidSnapshot::GuestCid(2)));
        let port = DeviceState { next_port: 1, ..state };
        assert_eq!(device.restore(&port), Err(InvalidSnapshot::NextPort(1)));
        device.reset_transport();
        assert_eq!(device.connections(), 0);
    }

    #[test]
    fn a_wake_is_cleared_by_service_of_the_host() {
        let mut device = Device::new(CID).unwrap();
        let is_readable = |device: &Device| {
            poll(&mut [PollFd::new(&device.fd(), PollFlags::IN)], Some(&Timespec::default())).unwrap() == 1
        };
        assert!(!is_readable(&device));
        device.wake();
        assert!(is_readable(&device));
        device.service_host().unwrap();
        assert!(!is_readable(&device));
    }

    #[test]
    fn without_a_driver_a_connect_says_so() {
        let mut device = Device::new(CID).unwrap();
        let handle = device.handle();
        assert!(matches!(handle.connect_within(729, Duration::ZERO), Err(ConnectError::NoDriver)));
        device.service_host().unwrap();
        device.close();
        assert_eq!(handle.connect(729).unwrap_err().kind(), ErrorKind::NotConnected);
        assert_eq!(device.counters().connections.total(), 0);
    }
}
