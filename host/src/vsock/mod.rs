//! The virtio-vsock device (virtio 1.3, 5.10), for any monitor.
//!
//! One packet's way: a [front](crate::transport) calls [`Device::service`] when the guest kicked a queue or [`Device::fd`]
//! is readable. `chain` makes one sequence of bytes of a descriptor chain, [`packet`] reads its first 44, `muxer`
//! finds the connection, whose state machine (`connection`, `credit`) says what the packet means; payload goes from
//! guest memory into the connection's `stream`, one end of a socket pair whose other end the host got from
//! [`Handle::connect`] or [`Listener::accept`]. The way back is the same in reverse, one packet a connection in turn.
//! The `event` queue tells a running driver that its connections are gone.
//!
//! # Bounds
//!
//! A guest can make the host hold at most [`memory_bound`] bytes, the kernel's memory included: for each connection a
//! spill of [`BUFFER_BYTES`] and what the kernel buffers in both directions of a socket pair, which is
//! [`SEND_BUFFER_BYTES`] and at the most half as much again; and for the device a constant, with
//! [`MAX_RESETS`] and one for each connection small packets. An idle connection holds no spill.
//!
//! There are at most [`MAX_CONNECTIONS`] connections, each with one descriptor at either end. Besides, each of at most
//! [`MAX_LISTENERS`] ports has a backlog of at most [`MAX_BACKLOG`] streams that the host has not accepted, which count
//! as connections even when the guest has ended theirs: what it sent is still there to be read.
//!
//! # Threads
//!
//! The device belongs to one thread, which must not block in [`Device::service`]'s caller for long: it serves every
//! connection of the guest. A [`Handle`] may be used from any thread, that one included, since its calls never wait
//! for the device; waiting for a stream's bytes on the device's own thread waits for ever.

// Open for the models of guests that the tests and fuzz targets share; nothing else should build on it.
#[doc(hidden)]
pub mod chain;
mod connection;
mod credit;
mod event_queue;
pub(crate) mod features;
mod handle;
mod listener;
mod muxer;
pub mod packet;
mod ready;
mod rst_queue;
mod snapshot;
pub mod spec;
mod stream;
mod transfer;
pub mod unix_bridge;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemory;

pub use chain::ChainError;
pub use connection::BUFFER_BYTES;
pub use connection::Key;
pub use handle::{Handle, Port};
pub use listener::{Listener, MAX_BACKLOG, MAX_LISTENERS};
pub use muxer::MAX_CONNECTIONS;
pub use ready::says_hello;
pub use rst_queue::{MAX_RESETS, Reset};
pub use snapshot::{DeviceState, InvalidSnapshot};
pub use stream::SEND_BUFFER_BYTES;

use chain::{Chain, Direction, gather};
use event_queue::TransportReset;
use handle::Shared;
use muxer::Muxer;
use packet::Header;
use spec::RESERVED_CIDS;

/// Packets of one call of [`Device::service`], so that other guests of the thread get their turn.
const PACKETS_A_TURN: usize = 1024;

/// Bytes that the sockets, files and table entries of a connection take.
const CONNECTION_BYTES: usize = 8 * 1024;

/// Bytes that a device without connections takes.
const DEVICE_BYTES: usize = 1 << 20;

/// Bytes that this many connections can make the host hold at the most, the kernel's memory included.
///
/// ```
/// use scx_vsock::vsock::{MAX_CONNECTIONS, memory_bound};
///
/// assert!(memory_bound(scx_vsock_wire::SESSIONS) < 8 << 20, "the sessions of an agent");
/// assert!(memory_bound(MAX_CONNECTIONS) < 1 << 30, "a guest that does its worst");
/// ```
#[must_use]
pub const fn memory_bound(connections: usize) -> usize {
    let in_one_direction = SEND_BUFFER_BYTES + SEND_BUFFER_BYTES / 2;
    let of_each = BUFFER_BYTES as usize + 2 * in_one_direction + CONNECTION_BYTES;
    connections.saturating_mul(of_each).saturating_add(DEVICE_BYTES)
}

/// Bytes that [`Device::held_bytes`] never exceeds.
pub const MAX_HELD_BYTES: usize = MAX_CONNECTIONS * (BUFFER_BYTES as usize + size_of::<Key>() + size_of::<Reset>())
    + (MAX_RESETS + 1) * size_of::<Reset>();

/// Why there is no device, or why it stopped.
///
/// ```
/// use scx_vsock::vsock::{Device, DeviceError};
///
/// let error = Device::new(2).unwrap_err();
/// assert!(matches!(error, DeviceError::ReservedCid(2)));
/// assert_eq!(error.to_string(), "2 cannot be a guest's CID: use one from 3 to 4294967294");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The CID is not one that a guest can have.
    #[error("{0} cannot be a guest's CID: use one from 3 to 4294967294")]
    ReservedCid(u64),
    /// The kernel has no descriptors or memory for it.
    #[error("the host's kernel refuses the vsock device what it needs")]
    Host(#[from] io::Error),
    /// A descriptor chain is broken. The device does no more until it is reset.
    #[error("the guest's driver broke a vsock queue")]
    Chain(#[from] ChainError),
    /// Guest memory is shared by a file, which was cut short. The device does no more until it is given other memory.
    #[error("guest memory is gone: the process that shares it cut its file short")]
    MemoryGone,
    /// A ring is broken. The device does no more until it is reset.
    #[error("the guest's driver broke a vsock queue")]
    Ring(#[from] virtio_queue::Error),
}

/// Which queues' interrupt the guest is owed.
///
/// ```no_run
/// # use scx_vsock::vsock::{Device, Interrupts};
/// # use virtio_queue::Queue;
/// # fn serve<M: vm_memory::GuestMemory>(device: &mut Device, memory: &M, rx: &mut Queue, tx: &mut Queue) {
/// # fn interrupt(queue: usize) {}
/// if let Ok(Interrupts { rx, tx, .. }) = device.service(memory, rx, tx, None) {
///     rx.then(|| interrupt(0));
///     tx.then(|| interrupt(1));
/// }
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Interrupts {
    /// The receive queue's.
    pub rx: bool,
    /// The transmit queue's.
    pub tx: bool,
    /// The event queue's.
    pub event: bool,
}

impl Interrupts {
    /// Whether there is any, for a guest that has one interrupt for all queues.
    ///
    /// ```
    /// use scx_vsock::vsock::Interrupts;
    ///
    /// assert!(Interrupts { tx: true, ..Interrupts::default() }.any());
    /// assert!(!Interrupts::default().any());
    /// ```
    #[must_use]
    pub fn any(self) -> bool {
        self.rx || self.tx || self.event
    }
}

/// Whether a guest may have this CID.
fn is_guests(cid: u64) -> bool {
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
/// // ... each time when the driver has kicked a queue that it set up, or `device.fd()` is readable:
/// let interrupts = device.service(&memory, &mut rx, &mut tx, Some(&mut event))?;
/// assert!(!interrupts.any(), "here is no driver");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Device {
    guest_cid: u64,
    muxer: Muxer,
    shared: Arc<Shared>,
    transport_reset: TransportReset,
    broken: bool,
}

impl Device {
    /// The feature bits that a front offers to the driver.
    pub const FEATURES: u64 = features::OFFERED;

    /// A device for the guest with this CID.
    ///
    /// ```
    /// use scx_vsock::vsock::Device;
    ///
    /// assert!(Device::new(3).is_ok());
    /// assert!(Device::new(u64::from(u32::MAX)).is_err(), "it stands for any guest");
    /// ```
    ///
    /// # Errors
    ///
    /// [`DeviceError::ReservedCid`], [`DeviceError::Host`].
    pub fn new(guest_cid: u64) -> Result<Self, DeviceError> {
        if !is_guests(guest_cid) {
            return Err(DeviceError::ReservedCid(guest_cid));
        }
        let shared = Arc::new(Shared::new()?);
        let muxer = Muxer::new(guest_cid, Arc::clone(&shared))?;
        Ok(Self { guest_cid, muxer, shared, transport_reset: TransportReset::None, broken: false })
    }

    /// The device's host side.
    ///
    /// ```
    /// let device = scx_vsock::vsock::Device::new(3)?;
    /// let client = scx_vsock::SchedStatsClient::builder(device.handle().agent()).build();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle::new(Arc::clone(&self.shared), self.guest_cid)
    }

    /// The configuration space (5.10.4): the guest's CID.
    ///
    /// ```
    /// let device = scx_vsock::vsock::Device::new(3)?;
    /// assert_eq!(device.config(), [3, 0, 0, 0, 0, 0, 0, 0]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn config(&self) -> [u8; 8] {
        self.guest_cid.to_le_bytes()
    }

    /// A descriptor that is readable when [`service`](Self::service) has something to do for the host's side.
    ///
    /// ```
    /// use rustix::event::{PollFd, PollFlags, poll};
    ///
    /// let device = scx_vsock::vsock::Device::new(3)?;
    /// let _stream = device.handle().connect(8080)?;
    /// let ready = poll(&mut [PollFd::new(&device.fd(), PollFlags::IN)], None)?;
    /// assert_eq!(ready, 1, "the connection is to be made");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.muxer.fd().as_fd()
    }

    /// How many connections there are, those that close included.
    ///
    /// ```
    /// let mut device = scx_vsock::vsock::Device::new(3)?;
    /// let _stream = device.handle().connect(8080)?;
    /// device.service_host()?;
    /// assert_eq!(device.connections(), 1, "it waits for a driver");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn connections(&self) -> usize {
        self.muxer.connections()
    }

    /// Bytes of this process that hold what the guest sent and the host's sockets have no room for, and packets that wait
    /// for receive buffers: at most [`MAX_HELD_BYTES`].
    ///
    /// ```
    /// use scx_vsock::vsock::{Device, MAX_HELD_BYTES};
    ///
    /// let device = Device::new(3)?;
    /// assert!(device.held_bytes() <= MAX_HELD_BYTES);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.muxer.held_bytes()
    }

    /// The guest's driver was reset: connections that it knew of are gone, and their host ends read the end.
    /// Connections that the host asked for meanwhile wait for the next driver.
    ///
    /// ```
    /// # use std::io::Read;
    /// # let mut device = scx_vsock::vsock::Device::new(3)?;
    /// let mut stream = device.handle().connect(8080)?;
    /// device.reset();
    /// assert!(stream.read(&mut [0]).is_err(), "it has not ended: it waits for the next driver");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn reset(&mut self) {
        self.muxer.reset();
        self.transport_reset = TransportReset::None;
        self.broken = false;
    }

    /// The driver has chosen these features. One that has no stream sockets by its own choice gets none: what it sends
    /// is reset, and what the host asks for ends at once.
    ///
    /// ```
    /// use scx_vsock::vsock::{Device, spec};
    ///
    /// let mut device = Device::new(3)?;
    /// // The driver wrote its choice of `Device::FEATURES`, of which the device judges what is about sockets:
    /// device.negotiate(spec::F_VERSION_1 | spec::F_STREAM);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn negotiate(&mut self, chosen: u64) {
        self.muxer.set_streams(features::has_streams(chosen));
    }

    /// The running driver's connections are interrupted, as by a restore: they are gone, and their host ends read the
    /// end. The driver is told by the event queue; until it is through with that, no packet goes either way. For a driver
    /// that set the event queue up, and gives it no buffer or does not give one back, that is until it resets the device.
    ///
    /// ```
    /// # use scx_vsock::vsock::Device;
    /// let before = Device::new(3)?.state();
    /// let mut device = Device::new(3)?;
    /// device.restore(&before)?;
    /// device.reset_transport(); // the driver runs on, with the connections that it had to the device before
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn reset_transport(&mut self) {
        self.muxer.reset();
        self.transport_reset = TransportReset::Owed;
    }

    /// What a later device for the same guest goes on from.
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

    /// Goes on from where another device was, whose guest may have had another CID. If its driver runs it is to be told
    /// by [`reset_transport`](Self::reset_transport) that connections are gone.
    ///
    /// ```
    /// use scx_vsock::vsock::{Device, DeviceState};
    ///
    /// let mut device = Device::new(4)?;
    /// let saved = DeviceState { guest_cid: 3, next_port: 1073741900 };
    /// device.restore(&saved)?;
    /// assert_eq!(device.state(), DeviceState { guest_cid: 4, ..saved });
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`InvalidSnapshot`].
    pub fn restore(&mut self, state: &DeviceState) -> Result<(), InvalidSnapshot> {
        if !is_guests(state.guest_cid) {
            return Err(InvalidSnapshot::GuestCid(state.guest_cid));
        }
        let known = self.muxer.set_next_port(state.next_port);
        if known { Ok(()) } else { Err(InvalidSnapshot::NextPort(state.next_port)) }
    }

    /// The guest is gone for good: every stream reads its end, and handles and listeners fail from now on.
    ///
    /// ```
    /// # use std::io::ErrorKind;
    /// let mut device = scx_vsock::vsock::Device::new(3)?;
    /// device.close();
    /// assert_eq!(device.handle().connect(8080).unwrap_err().kind(), ErrorKind::NotConnected);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn close(&mut self) {
        self.shared.close();
        self.muxer.clear();
    }

    /// Takes note of what the host's side did while the queues do not run.
    ///
    /// ```
    /// # use std::os::fd::AsFd;
    /// # use rustix::event::{PollFd, PollFlags, Timespec, poll};
    /// let mut device = scx_vsock::vsock::Device::new(3)?;
    /// let _stream = device.handle().connect(8080)?;
    /// device.service_host()?;
    /// let ready = poll(&mut [PollFd::new(&device.fd(), PollFlags::IN)], Some(&Timespec::default()))?;
    /// assert_eq!(ready, 0, "there is nothing to do until the queues run");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`DeviceError::Host`].
    pub fn service_host(&mut self) -> Result<(), DeviceError> {
        Ok(self.muxer.look()?)
    }

    /// Makes [`fd`](Self::fd) readable, so that the device's thread calls [`service`](Self::service).
    ///
    /// ```
    /// use rustix::event::{PollFd, PollFlags, poll};
    ///
    /// let device = scx_vsock::vsock::Device::new(3)?;
    /// device.wake(); // another thread saw the guest's kick
    /// assert_eq!(poll(&mut [PollFd::new(&device.fd(), PollFlags::IN)], None)?, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn wake(&self) {
        self.shared.wake();
    }

    /// Does what there is to do, for the guest and for the host, without waiting. To be called when the guest kicked
    /// any queue and when [`fd`](Self::fd) is readable. A front that does not have the event queue gives none, nor
    /// does one whose driver did not set it up: such a guest is never told of a transport reset.
    ///
    /// ```
    /// # use virtio_queue::{Queue, QueueT};
    /// # use vm_memory::{GuestAddress, GuestMemoryMmap};
    /// # let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?;
    /// # let mut device = scx_vsock::vsock::Device::new(3)?;
    /// # let (mut rx, mut tx) = (Queue::new(256)?, Queue::new(256)?);
    /// match device.service(&memory, &mut rx, &mut tx, None) {
    ///     Ok(interrupts) if interrupts.any() => { /* ... raise them ... */ }
    ///     Ok(_) => {}
    ///     Err(error) => eprintln!("{error}"), // ... and tell the driver that it must reset the device
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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
        self.muxer.look()?;
        if self.broken || !rx.ready() || !tx.ready() {
            return Ok(Interrupts::default());
        }
        let served = self.serve_queues(memory, rx, tx, event);
        self.broken = served.is_err();
        served
    }

    fn serve_queues<M: GuestMemory>(
        &mut self,
        memory: &M,
        rx: &mut Queue,
        tx: &mut Queue,
        event: Option<&mut Queue>,
    ) -> Result<Interrupts, DeviceError> {
        let event = self.serve_events(memory, event)?;
        if self.transport_reset == TransportReset::None {
            Ok(Interrupts { event, ..self.serve_packets(memory, rx, tx)? })
        } else {
            Ok(Interrupts { event, ..Interrupts::default() })
        }
    }

    /// Goes on with a transport reset; gives whether the event queue's interrupt is owed.
    fn serve_events<M: GuestMemory>(&mut self, memory: &M, event: Option<&mut Queue>) -> Result<bool, DeviceError> {
        let Some(event) = event.filter(|event| event.ready()) else {
            self.transport_reset = TransportReset::None;
            return Ok(false);
        };
        Ok(self.transport_reset.advance(memory, event)? && event.needs_notification(memory)?)
    }

    fn serve_packets<M: GuestMemory>(
        &mut self,
        memory: &M,
        rx: &mut Queue,
        tx: &mut Queue,
    ) -> Result<Interrupts, DeviceError> {
        let mut left = PACKETS_A_TURN;
        let mut used = Interrupts::default();
        loop {
            let taken = self.process(memory, tx, &mut left)?;
            let given = self.dispatch(memory, rx, &mut left)?;
            used.tx |= taken.any;
            used.rx |= given;
            if left == 0 {
                self.shared.wake();
                break;
            }
            // Kicks of the transmit queue are wanted unless a packet waits there; those of the receive queue only while
            // packets wait for buffers, since each costs the guest an exit. A queue that got entries meanwhile gave no kick
            // for them.
            let more = (given || !taken.one_waits) && tx.enable_notification(memory)?;
            let room = self.muxer.has_packets() && rx.enable_notification(memory)?;
            if !more && !room {
                break;
            }
        }
        Ok(Interrupts {
            rx: used.rx && rx.needs_notification(memory)?,
            tx: used.tx && tx.needs_notification(memory)?,
            event: false,
        })
    }

    /// Takes the guest's packets, as long as what they may be owed has room.
    fn process<M: GuestMemory>(&mut self, memory: &M, tx: &mut Queue, left: &mut usize) -> Result<Taken, DeviceError> {
        let mut taken = Taken::default();
        while *left > 0 {
            let Some(head) = tx.iter(memory)?.next().map(|chain| chain.head_index()) else { break };
            let chain = gather(memory, tx, head, Direction::Readable)?;
            if let Some(packet) = chain.read_header() {
                if !self.muxer.has_room_for(&packet) {
                    tx.go_to_previous_position();
                    taken.one_waits = true;
                    break;
                }
                self.muxer.process(&packet, &chain);
            }
            *left -= 1;
            tx.add_used(memory, head, 0)?;
            taken.any = true;
        }
        Ok(taken)
    }

    /// Gives the guest its packets, as long as it has buffers for them.
    fn dispatch<M: GuestMemory>(&mut self, memory: &M, rx: &mut Queue, left: &mut usize) -> Result<bool, DeviceError> {
        let mut used = false;
        while *left > 0 && self.muxer.has_packets() {
            let Some(head) = rx.iter(memory)?.next().map(|chain| chain.head_index()) else { break };
            *left -= 1;
            let chain = gather(memory, rx, head, Direction::Writable)?;
            let Some(length) = self.fill(&chain) else {
                rx.go_to_previous_position();
                break;
            };
            rx.add_used(memory, head, length)?;
            used = true;
        }
        Ok(used)
    }

    /// Fills a receive buffer with the next packet; gives the bytes that are used of it, none if there is no packet
    /// after all. A buffer that has no room behind the header goes back unused.
    fn fill<B: vm_memory::bitmap::BitmapSlice>(&mut self, chain: &Chain<'_, B>) -> Option<u32> {
        if chain.len() <= Header::BYTES {
            return Some(0);
        }
        let packet = self.muxer.dispatch(chain)?;
        let _long_enough = chain.write_header(&packet);
        u32::try_from(Header::BYTES).ok()?.checked_add(packet.len)
    }
}

/// What became of the guest's packets.
#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    /// Whether any was taken.
    any: bool,
    /// Whether one waits until the guest has received some.
    one_waits: bool,
}

impl Drop for Device {
    fn drop(&mut self) {
        self.shared.close();
    }
}

/// A device has more descriptors than a process may have where nobody asked for more.
#[cfg(test)]
fn allow_all_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
}
