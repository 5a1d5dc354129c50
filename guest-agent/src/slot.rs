//! One place in the agent's table: a session machine and the descriptors that it drives.

use core::ffi::CStr;

use scx_vsock_wire::Text;

use crate::session::{Action, Buffers, Session};
use crate::sys::{self, Epoll, Errno, Fd};
use crate::token::Token;
use crate::watched::{Transfer, Watched};

/// Actions of one session before the others get their turn.
const ACTIONS_A_TURN: usize = 16;

/// How a session stands after its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is more to do at once.
    More,
    /// An event will come, or the timer's.
    Idle,
}

/// One place in the table.
#[derive(Debug)]
pub struct Slot<'a, const MAX: usize> {
    number: u8,
    generation: u32,
    session: Session<'a, MAX>,
    socket: &'a [u8],
    host: Option<Watched>,
    scheduler: Option<Watched>,
    /// Whether a scheduler that is waited for may be dialled now, or only when the timer has gone off.
    dial_due: bool,
}

impl<'a, const MAX: usize> Slot<'a, MAX> {
    /// A free slot.
    pub fn new(number: u8, buffers: &'a mut Buffers<MAX>) -> Self {
        let session = Session::new(buffers);
        Self { number, generation: 0, session, socket: b"", host: None, scheduler: None, dial_due: false }
    }

    /// Whether no session is open here.
    pub fn is_free(&self) -> bool {
        self.host.is_none()
    }

    /// Starts a session with a host whose requests go to `socket`.
    pub fn open(&mut self, epoll: &Epoll, host: Fd, socket: &'a [u8]) -> sys::Result<()> {
        let token = Token::Host { slot: self.number, generation: self.generation };
        self.host = Some(Watched::new(epoll, host, token.pack())?);
        self.socket = socket;
        self.dial_due = true;
        self.session.open(env!("CARGO_PKG_VERSION"));
        Ok(())
    }

    /// Takes note of an event of the host's stream, unless it is a former session's.
    pub fn note_host(&mut self, generation: u32, events: u32) {
        if let (true, Some(host)) = (generation == self.generation, &mut self.host) {
            host.note(events);
        }
    }

    /// Takes note of an event of the scheduler's stream, unless it is a former session's.
    pub fn note_scheduler(&mut self, generation: u32, events: u32) {
        if let (true, Some(scheduler)) = (generation == self.generation, &mut self.scheduler) {
            scheduler.note(events);
        }
    }

    /// The timer went off: a scheduler that is waited for may be dialled again.
    pub fn retry(&mut self) {
        self.dial_due = true;
    }

    /// Whether a scheduler is waited for that gives no event when it comes.
    pub fn awaits_timer(&self) -> bool {
        !self.dial_due && self.host.is_some() && self.session.awaits_scheduler()
    }

    /// Does what the session wants until it has to wait, or its turn is over.
    pub fn step(&mut self, epoll: &Epoll) -> Step {
        for _ in 0..ACTIONS_A_TURN {
            self.look_first();
            if let Some(step) = self.act(epoll) {
                return step;
            }
        }
        Step::More
    }

    /// What decides before any action: the host's end, and what the scheduler does unasked.
    fn look_first(&mut self) {
        if self.host.as_ref().is_some_and(Watched::has_ended) {
            self.session.host_ended();
        }
        let Some(scheduler) = self.scheduler.as_mut().filter(|scheduler| scheduler.is_readable()) else { return };
        if self.session.awaits_no_answer() {
            match scheduler.receive(&mut [0]) {
                Transfer::Done(0) => self.session.scheduler_ended(0),
                Transfer::Done(_) => self.session.scheduler_unasked(),
                Transfer::Failed(errno) => self.session.scheduler_ended(errno.into_raw()),
                Transfer::Blocked => {}
            }
        }
    }

    /// Does one action; gives how the session stands where it can do no more now.
    fn act(&mut self, epoll: &Epoll) -> Option<Step> {
        let Self { session, host: Some(host), scheduler, .. } = self else { return Some(Step::Idle) };
        match (session.action(), scheduler) {
            (Action::ReadHost(buffer), _) => match host.receive(buffer) {
                Transfer::Done(count) => session.host_read(count),
                Transfer::Blocked => return Some(Step::Idle),
                Transfer::Failed(_) => session.host_ended(),
            },
            (Action::WriteHost(pieces), _) => match host.send(epoll, pieces) {
                Transfer::Done(count) => session.host_wrote(count),
                Transfer::Blocked => return Some(Step::Idle),
                Transfer::Failed(_) => session.host_ended(),
            },
            (Action::WriteScheduler(line), Some(scheduler)) => match scheduler.send(epoll, [line, &[], &[]]) {
                Transfer::Done(count) => session.scheduler_wrote(count),
                Transfer::Blocked => return Some(Step::Idle),
                Transfer::Failed(errno) => session.scheduler_ended(errno.into_raw()),
            },
            (Action::ReadScheduler(buffer), Some(scheduler)) => match scheduler.receive(buffer) {
                Transfer::Done(count) => session.scheduler_read(count),
                Transfer::Blocked => return Some(Step::Idle),
                Transfer::Failed(errno) => session.scheduler_ended(errno.into_raw()),
            },
            (Action::ConnectScheduler | Action::AwaitScheduler, Some(_)) => session.scheduler_connected(),
            (Action::ConnectScheduler, None) => self.connect(epoll),
            (Action::AwaitScheduler, None) => return self.await_scheduler(epoll),
            // Without a scheduler there is nothing to write to or read from: its end was reported before.
            (Action::WriteScheduler(_) | Action::ReadScheduler(_), None) => session.scheduler_ended(0),
            (Action::Close, _) => {
                self.close();
                return Some(Step::Idle);
            }
        }
        None
    }

    fn dial(&mut self, epoll: &Epoll) -> sys::Result<()> {
        let token = Token::Scheduler { slot: self.number, generation: self.generation };
        let stream = sys::connect_unix(self.socket)?;
        self.scheduler = Some(Watched::new(epoll, stream, token.pack())?);
        self.session.scheduler_connected();
        Ok(())
    }

    fn connect(&mut self, epoll: &Epoll) {
        if let Err(errno) = self.dial(epoll) {
            let sched_ext = kernel_says(c"/sys/kernel/sched_ext/state");
            let ops = kernel_says(c"/sys/kernel/sched_ext/root/ops");
            self.session.scheduler_refused(errno.into_raw(), sched_ext, ops);
        }
    }

    fn await_scheduler(&mut self, epoll: &Epoll) -> Option<Step> {
        if self.dial_due && self.dial(epoll).is_ok() {
            return None;
        }
        self.dial_due = false;
        Some(Step::Idle)
    }

    fn close(&mut self) {
        self.host = None;
        self.scheduler = None;
        self.generation = self.generation.wrapping_add(1);
    }
}

/// The first line of a small file of the kernel's; empty where it cannot be read.
fn kernel_says(path: &CStr) -> Text {
    let mut buffer = [0; scx_vsock_wire::limits::MAX_TEXT_BYTES];
    Text::first_line(sys::read_file(path, &mut buffer).unwrap_or(&[]))
}

/// Tells a connection that every session is taken, as far as it goes without waiting, and closes it.
pub fn refuse(host: &Fd, sessions: usize) {
    let busy = scx_vsock_wire::Envelope::busy(sessions).emit();
    let _told: Result<usize, Errno> = sys::send(host, &busy);
}
