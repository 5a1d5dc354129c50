//! What the vhost-user framework calls: the rings, guest memory and configuration of one front end.
//!
//! The framework's worker hands its thread over to the back end, which waits for kicks and the host's streams together, in
//! the device's epoll instance. It gives the thread back when the framework has something for it: a ring that starts, or
//! the end.

use std::hint;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VringT};
use virtio_queue::QueueT;
use vm_memory::{GuestAddressSpace, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use super::busy_poll::BusyPoll;
use super::events::{Event, Events};
use super::interrupt_gate::InterruptGate;
use super::kick_count::KickCount;
use super::shared_memory::Watch;
use super::shutdown::Shutdown;
use super::vring::{Memory, Vring};
use crate::io::eventfd::{EventFd, Notify};
use crate::io::lock::lock;
use crate::vsock::spec::{RX_QUEUE, TX_QUEUE};
use crate::vsock::{self, Device, DeviceError, HostEvent, HostEvents, Notifications, wait};

/// The receive, transmit and event queue. A front end may keep the event queue, as QEMU does.
pub(super) const QUEUES: usize = 3;

/// Entries of the largest queue that a driver may set up.
const MAX_QUEUE_SIZE: usize = 1024;

/// How long the worker goes on with what comes before it looks for the end of the session.
const LONGEST_CALL: Duration = Duration::from_millis(1);

/// Looks at the rings, which cost no system call, for each at the host's side.
const LOOKS: usize = 8;

/// The back end of one device.
pub(super) struct BackEnd {
    /// The device's epoll instance.
    epoll: Arc<OwnedFd>,
    /// Signalled while the framework's worker has its thread.
    hand_over: EventFd,
    rings: Mutex<DeviceRings>,
    memory: Mutex<Option<Arc<WatchedMemory>>>,
    exit: Mutex<Option<(EventConsumer, EventNotifier)>>,
    interrupts: InterruptGate,
    events: Arc<Events>,
    shutdown: Arc<Shutdown>,
    /// Whether the peer has sent what only a front end sends.
    has_front_end: AtomicBool,
}

/// Guest memory, which the front end may truncate at any time.
struct WatchedMemory {
    /// Dropped first: memory stays mapped as long as it is watched.
    watch: Watch,
    memory: Arc<GuestMemoryMmap>,
}

/// The device, and how its receive and transmit ring run. A front end stops rings to pause a guest and to reset it; only
/// where they start again shows which it was. Whether there is an event ring says nothing about either.
struct DeviceRings {
    device: Device,
    run: Run,
    busy_poll: BusyPoll,
    kick_count: KickCount<QUEUES>,
}

/// How the receive and the transmit ring run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Run {
    /// They have not run since the front end connected.
    New,
    /// At least one was stopped since both last ran.
    Stopped,
    /// Both run.
    Running,
    /// Both run for a driver that another device served before: it is to be sent TRANSPORT_RESET as soon as there is an
    /// event ring.
    TakenOver,
}

impl DeviceRings {
    /// Both rings run, from these indices if they were stopped. A guest that was reset starts both at 0, and then knows of
    /// no connection; one that another device served before knows of connections that this one does not have. Returns
    /// whether they have just started.
    fn start(&mut self, rx: u16, tx: u16) -> bool {
        let before = self.run;
        self.run = match before {
            Run::New | Run::Stopped if rx == 0 && tx == 0 => {
                self.device.reset();
                Run::Running
            }
            Run::New => Run::TakenOver,
            Run::Stopped | Run::Running => Run::Running,
            Run::TakenOver => Run::TakenOver,
        };
        matches!(before, Run::New | Run::Stopped)
    }

    /// The event ring runs, too.
    fn start_events(&mut self) {
        if self.run == Run::TakenOver {
            self.device.reset_transport();
            self.run = Run::Running;
        }
    }

    /// Counts a ring's kicks that are not counted yet.
    fn count_kicks(&mut self, ring: &Vring) {
        self.device.count_notifications(ring.take_kicks());
    }

    fn stop(&mut self) {
        self.run = match self.run {
            Run::New | Run::TakenOver => Run::New,
            Run::Stopped | Run::Running => Run::Stopped,
        };
    }
}

impl BackEnd {
    /// Returns a back end that reports to `events` and disconnects faulty front ends by `shutdown`, and the raw descriptor
    /// of its exit event's consumer.
    ///
    /// # Errors
    ///
    /// The kernel's, if it has no event descriptor.
    pub(super) fn new(device: Device, events: Arc<Events>, shutdown: Arc<Shutdown>) -> io::Result<(Self, RawFd)> {
        let exit = new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC)?;
        let exit_consumer = exit.0.as_raw_fd();
        let hand_over = EventFd::new()?;
        hand_over.notify();
        let back_end = Self {
            epoll: Arc::new(device.fd().try_clone_to_owned()?),
            hand_over,
            rings: Mutex::new(DeviceRings {
                device,
                run: Run::New,
                busy_poll: BusyPoll::default(),
                kick_count: KickCount::default(),
            }),
            memory: Mutex::default(),
            exit: Mutex::new(Some(exit)),
            interrupts: InterruptGate::default(),
            events,
            shutdown,
            has_front_end: AtomicBool::new(false),
        };
        Ok((back_end, exit_consumer))
    }

    /// Whether a front end has connected, not only a program that went or sent something else.
    pub(super) fn has_front_end(&self) -> bool {
        self.has_front_end.load(Ordering::Relaxed)
    }

    /// A message came that only a front end sends.
    fn on_front_end(&self) {
        if !self.has_front_end.swap(true, Ordering::Relaxed) {
            self.events.report(Event::Connected);
        }
    }

    /// Ends interrupts, so that the worker does not wait in one.
    pub(super) fn close_interrupts(&self) {
        self.interrupts.close();
    }

    /// Ends the device: the front end is gone.
    pub(super) fn close(&self) {
        lock(&self.rings).device.close();
        self.events.close();
    }

    /// Returns the device's epoll instance, for what else wakes the worker.
    pub(super) fn epoll(&self) -> &OwnedFd {
        &self.epoll
    }

    /// Returns the event by which the framework's worker hands its thread over.
    pub(super) fn hand_over(&self) -> &EventFd {
        &self.hand_over
    }

    /// Serves the device until the framework has something for its worker.
    ///
    /// # Errors
    ///
    /// The kernel's, if it cannot wait.
    fn run(&self, rings: [&Vring; QUEUES]) -> io::Result<()> {
        for (queue, ring) in rings.into_iter().enumerate() {
            ring.watch_kick(queue, &self.epoll);
        }
        let mut events = HostEvents::new();
        loop {
            if self.end_if_faulty(rings) {
                return Ok(());
            }
            if let Err(error) = self.work(rings, &events) {
                self.events.report(Event::Error(error.into()));
            }
            if events.contains(&HostEvent::Transport) {
                return Ok(());
            }
            events = self.wait()?;
        }
    }

    /// Waits for something to do. Returns no event when it is time to count kicks.
    fn wait(&self) -> io::Result<HostEvents> {
        let within = lock(&self.rings).kick_count.due_within(Instant::now());
        wait(&self.epoll, within)
    }

    /// Takes events of the device's epoll instance.
    fn on_events(&self, events: &HostEvents) {
        let mut rings = lock(&self.rings);
        rings.device.on_events(events);
        for event in events {
            if let HostEvent::Notification(queue) = *event {
                rings.kick_count.on_kick(queue);
            }
        }
    }

    /// Counts the kicks that came, if it is time to. To be called before the rings are looked at: what is counted here is not
    /// reported any more.
    fn count_kicks(&self, rings: [&Vring; QUEUES]) {
        let mut of_device = lock(&self.rings);
        for queue in of_device.kick_count.take_due(Instant::now()) {
            if let Some(ring) = rings.get(queue) {
                of_device.count_kicks(ring);
            }
        }
    }

    /// Does what there is to do, and what comes soon after it.
    fn work(&self, rings: [&Vring; QUEUES], events: &HostEvents) -> Result<(), DeviceError> {
        self.on_events(events);
        self.count_kicks(rings);
        if events.is_empty() {
            return self.service(rings, Notifications::Enabled);
        }
        let window = lock(&self.rings).busy_poll.on_wake(Instant::now());
        let polled = if window.is_zero() { None } else { Some(self.work_while_polling(rings, window)?) };
        self.service(rings, Notifications::Enabled)?;
        lock(&self.rings).busy_poll.on_wait(polled.unwrap_or_else(Instant::now));
        Ok(())
    }

    /// Goes on with what comes each time within this time of the work before. Returns when that was done last.
    fn work_while_polling(&self, rings: [&Vring; QUEUES], window: Duration) -> Result<Instant, DeviceError> {
        let started = Instant::now();
        loop {
            self.service(rings, Notifications::NotNeeded)?;
            let worked_at = Instant::now();
            let took = worked_at.saturating_duration_since(started);
            if took > LONGEST_CALL || !self.has_more_within(rings, window)? {
                return Ok(worked_at);
            }
        }
    }

    /// Waits for work of the guest or the host without sleeping. Returns whether there is some.
    fn has_more_within(&self, rings: [&Vring; QUEUES], window: Duration) -> Result<bool, DeviceError> {
        let started = Instant::now();
        loop {
            for _ in 0..LOOKS {
                if self.has_work(rings)? {
                    return Ok(true);
                }
                hint::spin_loop();
            }
            let events = wait(&self.epoll, Some(Duration::ZERO))?;
            self.on_events(&events);
            // A notification is of what the rings have shown already, or show next.
            if events.iter().any(|event| !matches!(event, HostEvent::Notification(_) | HostEvent::Transport)) {
                return Ok(true);
            }
            if started.elapsed() >= window {
                return Ok(false);
            }
            // The one that it waits for may have no other processor.
            thread::yield_now();
        }
    }

    /// Whether the guest has added something to a ring.
    fn has_work(&self, [rx, tx, _]: [&Vring; QUEUES]) -> Result<bool, DeviceError> {
        let rings = lock(&self.rings);
        let Some(watched) = lock(&self.memory).clone() else { return Ok(false) };
        if watched.watch.is_gone() || !matches!(rings.run, Run::Running | Run::TakenOver) {
            return Ok(false);
        }
        let (rx, tx) = (rx.get_ref(), tx.get_ref());
        let has_work = rings.device.has_work(&*watched.memory, rx.get_queue(), tx.get_queue());
        // The access that finds memory gone reports it: no other does.
        if watched.watch.is_gone() { Err(DeviceError::MemoryGone) } else { Ok(has_work) }
    }

    fn service(&self, rings: [&Vring; QUEUES], notifications: Notifications) -> Result<(), DeviceError> {
        let due = self.service_rings(rings, notifications)?;
        let [rx, tx, event] = rings;
        for (is_due, ring) in [(due.rx, rx), (due.tx, tx), (due.event, event)] {
            if is_due && let Some(call) = ring.call() {
                self.interrupts.raise(&call);
            }
        }
        Ok(())
    }

    /// Returns the queues whose interrupt is to be raised, once no lock is held.
    fn service_rings(
        &self,
        [rx, tx, event]: [&Vring; QUEUES],
        notifications: Notifications,
    ) -> Result<vsock::Interrupts, DeviceError> {
        let mut rings = lock(&self.rings);
        let none = vsock::Interrupts::default();
        let (mut rx, mut tx, mut event) = (rx.get_mut(), tx.get_mut(), event.get_mut());
        let running = [&rx, &tx].into_iter().all(|ring| ring.is_enabled() && ring.get_queue().ready());
        let memory = lock(&self.memory).clone().filter(|watched| running && !watched.watch.is_gone());
        let Some(watched) = memory else {
            rings.device.publish_counters();
            return Ok(none);
        };
        if rings.start(rx.get_queue().next_avail(), tx.get_queue().next_avail()) {
            self.events.report(Event::Running);
        }
        let has_events = event.is_enabled() && event.get_queue().ready();
        if has_events {
            rings.start_events();
        }
        let events = has_events.then(|| event.get_queue_mut());
        let (rx, tx) = (rx.get_queue_mut(), tx.get_queue_mut());
        let served = rings.device.serve(&*watched.memory, rx, tx, events, notifications);
        if watched.watch.is_gone() { Err(DeviceError::MemoryGone) } else { served }
    }

    /// Ends the session if the front end has made a fault in a ring. Returns whether it has.
    fn end_if_faulty(&self, rings: [&Vring; QUEUES]) -> bool {
        let fault = (0..).zip(rings).find_map(|(queue, ring)| ring.take_fault(queue));
        let faulty = fault.is_some();
        if let Some(error) = fault {
            self.events.report(Event::Error(error));
            self.shutdown.end_session();
        }
        faulty
    }
}

impl VhostUserBackend for BackEnd {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        MAX_QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        self.on_front_end();
        Device::FEATURES | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn acked_features(&self, features: u64) {
        lock(&self.rings).device.negotiate(features);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn reset_device(&self) {
        lock(&self.rings).device.reset();
    }

    fn set_event_idx(&self, _enabled: bool) {
        // The framework sets its queues up.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let config = lock(&self.rings).device.config();
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        config.get(from..).and_then(|rest| rest.get(..size)).map(<[u8]>::to_vec).unwrap_or_default()
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        let memory = memory.memory().into_inner();
        let watch = Watch::new(&memory)?;
        *lock(&self.memory) = Some(Arc::new(WatchedMemory { watch, memory }));
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        lock(&self.exit).take()
    }

    fn stop_vring(&self, queue: u32) -> io::Result<()> {
        // Taking the lock waits for work on the ring to end.
        let mut rings = lock(&self.rings);
        if usize::try_from(queue).is_ok_and(|queue| queue == RX_QUEUE || queue == TX_QUEUE) {
            rings.stop();
        }
        Ok(())
    }

    fn handle_event(&self, _event: u16, _set: EventSet, vrings: &[Vring], _thread: usize) -> io::Result<()> {
        let [rx, tx, event] = vrings else { return Err(ErrorKind::InvalidInput.into()) };
        let rings = [rx, tx, event];
        self.hand_over.clear();
        let served = self.run(rings);
        // Nobody waits for the kicks of a ring that was stopped, and this may be the end.
        let mut of_device = lock(&self.rings);
        rings.into_iter().for_each(|ring| of_device.count_kicks(ring));
        self.hand_over.notify();
        served
    }
}
