//! A vhost-user front end that sends anything, with any descriptors: its own session may end, nothing else may, and what
//! it asks of the configuration space is answered truly.

use std::fs::File;
use std::io::{ErrorKind, IoSlice, IoSliceMut, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::pipe::{PipeFlags, pipe_with};
use scx_vsock::transport::vhost_user::Server;

use super::Script;
use crate::guest_driver::CID;

/// Messages of one script.
const MAX_MESSAGES: usize = 60;

/// Bytes of the memory file that the front end shares.
const SHARED: u64 = 0x1_0000;

/// Descriptors that a message carries at the most.
const MAX_FILES: usize = 4;

const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_OWNER: u32 = 3;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const SET_VRING_ENABLE: u32 = 18;
const GET_CONFIG: u32 = 24;

const VERSION: u32 = 1;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;

/// Bytes of a message's header: request, flags, size.
const HEADER: usize = 12;

/// Bytes before a part of the configuration space: offset, size, flags.
const CONFIG: usize = 12;

/// Counts scripts, for the name of each one's socket.
static RUN: AtomicU64 = AtomicU64::new(0);

/// Runs a script.
pub fn check(input: &[u8]) {
    let name = format!("scx-vsock-model-{}-{}", std::process::id(), RUN.fetch_add(1, Ordering::Relaxed));
    let address = SocketAddr::from_abstract_name(name).expect("a name");
    let listener = UnixListener::bind_addr(&address).expect("a socket");
    let stream = UnixStream::connect_addr(&address).expect("a listener");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket");
    let server = Server::start(listener, CID).expect("a server");
    let waiting = server.handle().connect(1);
    let mut front_end = FrontEnd { stream, files: Files::new() };
    front_end.negotiate();
    let mut script = Script::new(input);
    for _ in 0..MAX_MESSAGES {
        if script.is_over() || !front_end.say_something(&mut script) {
            break;
        }
    }
    drop(front_end);
    drop(server);
    let mut end = Vec::new();
    if let Ok(mut stream) = waiting {
        stream.set_nonblocking(false).expect("a socket");
        stream.read_to_end(&mut end).expect("the device is gone");
    }
}

/// Descriptors that messages carry.
struct Files {
    memory: File,
    event: OwnedFd,
    /// An event whose counter is full, so that a plain write to it waits.
    full: OwnedFd,
    /// A pipe that is full.
    pipe: (OwnedFd, OwnedFd),
    other: File,
}

impl Files {
    fn new() -> Self {
        let memory = memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memory file");
        ftruncate(&memory, SHARED).expect("a memory file");
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).expect("an event");
        let full = eventfd(0, EventfdFlags::CLOEXEC).expect("an event");
        rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).expect("an empty counter");
        let pipe = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).expect("a pipe");
        while rustix::io::write(&pipe.1, &[0; 4096]).is_ok() {}
        Self { memory: memory.into(), event, full, pipe, other: File::open("/dev/null").expect("a file") }
    }

    fn choose(&self, script: &mut Script<'_>) -> BorrowedFd<'_> {
        match script.byte() % 8 {
            0 => self.memory.as_fd(),
            1 | 2 => self.event.as_fd(),
            3 => self.other.as_fd(),
            4 | 5 => self.full.as_fd(),
            6 => self.pipe.0.as_fd(),
            _ => self.pipe.1.as_fd(),
        }
    }
}

struct FrontEnd {
    stream: UnixStream,
    files: Files,
}

impl FrontEnd {
    /// What every honest front end sends first: without it, most messages are refused.
    fn negotiate(&mut self) {
        self.send(SET_OWNER, VERSION, &[], &[]);
        self.send(GET_FEATURES, VERSION, &[], &[]);
        let reply = self.reply().expect("features");
        self.send(SET_FEATURES, VERSION, &reply, &[]);
        // Everything that is offered: several queues, replies, the configuration space.
        self.send(16, VERSION, &0x209u64.to_le_bytes(), &[]);
    }

    /// Sends one message; false if the back end has ended the session, or waits for the rest of a message.
    fn say_something(&mut self, script: &mut Script<'_>) -> bool {
        match script.byte() % 16 {
            0 => {
                let (request, flags) = (script.word() % 64, script.word());
                let count = script.below(80);
                self.send_any(request, flags, script.bytes(count), script)
            }
            1 => {
                let count = script.below(40);
                self.send_raw(script.bytes(count), &[]);
                false
            }
            2 | 3 => self.ask_for_config(script),
            4 | 5 => self.share_memory(script),
            6 => self.send_vring(SET_VRING_NUM, script),
            7 | 8 => self.send_addresses(script),
            9 => self.send_vring(SET_VRING_BASE, script),
            10 => self.send_vring(SET_VRING_ENABLE, script),
            11 => self.send_vring(GET_VRING_BASE, script),
            12 | 13 => self.send_file(SET_VRING_KICK, script),
            14 => self.send_file(SET_VRING_CALL, script),
            _ => {
                let _full = rustix::io::write(&self.files.event, &1u64.to_ne_bytes());
                true
            }
        }
    }

    fn send_any(&mut self, request: u32, flags: u32, payload: &[u8], script: &mut Script<'_>) -> bool {
        let count = script.below(MAX_FILES + 1);
        let chosen: Vec<_> = (0..count).map(|_| self.files.choose(script)).collect();
        let length = u32::try_from(payload.len()).unwrap_or(0);
        let size = if script.byte() == 0 { script.word() } else { length };
        self.send_raw(&message(request, flags, size, payload), &chosen) && size == length
    }

    /// A part of the configuration space: it is the guest's CID.
    fn ask_for_config(&mut self, script: &mut Script<'_>) -> bool {
        let (offset, size) = (u32::from(script.byte() % 12), u32::from(script.byte() % 12));
        let payload = [offset.to_le_bytes(), size.to_le_bytes(), [0; 4]].concat();
        let payload = [payload, vec![0; size as usize]].concat();
        if !self.send(GET_CONFIG, VERSION, &payload, &[]) {
            return false;
        }
        let Some(reply) = self.reply() else { return false };
        // Outside of it the back end returns nothing. What it returns may be what an earlier message asked for.
        if let [a, b, c, d, ..] = *reply
            && let Some(config) = reply.get(CONFIG..).filter(|config| !config.is_empty())
        {
            let from = u32::from_le_bytes([a, b, c, d]) as usize;
            assert_eq!(Some(config), CID.to_le_bytes().get(from..from + config.len()), "from {from}");
        }
        true
    }

    fn share_memory(&mut self, script: &mut Script<'_>) -> bool {
        let count = 1 + script.below(3);
        let mut payload = [u32::try_from(count).unwrap_or(0).to_le_bytes(), [0; 4]].concat();
        for index in 0..count as u64 {
            let odd = script.byte();
            let (size, offset) = if odd == 0 { (script.long(), script.long()) } else { (SHARED / 2, 0) };
            for field in [index * SHARED, size, index * SHARED, offset] {
                payload.extend(field.to_le_bytes());
            }
        }
        let files = vec![self.files.memory.as_fd(); count];
        self.send_raw(&message(SET_MEM_TABLE, VERSION, u32::try_from(payload.len()).unwrap_or(0), &payload), &files)
    }

    fn send_vring(&mut self, request: u32, script: &mut Script<'_>) -> bool {
        let index = u32::from(script.byte() % 4);
        let number = script.choose(&[0, 1, 2, 128, 1024, 1025, u32::MAX]);
        self.send(request, VERSION | flag(script), &[index.to_le_bytes(), number.to_le_bytes()].concat(), &[])
    }

    fn send_addresses(&mut self, script: &mut Script<'_>) -> bool {
        let index = u32::from(script.byte() % 4);
        let mut payload = [index.to_le_bytes(), [0; 4]].concat();
        for _ in 0..3 {
            let address = if script.byte() == 0 { script.long() } else { u64::from(script.short()) & !0xf };
            payload.extend(address.to_le_bytes());
        }
        payload.extend(0u64.to_le_bytes());
        self.send(SET_VRING_ADDR, VERSION | flag(script), &payload, &[])
    }

    fn send_file(&mut self, request: u32, script: &mut Script<'_>) -> bool {
        let index = u64::from(script.byte() % 4);
        let file = self.files.choose(script);
        self.send(request, VERSION, &index.to_le_bytes(), &[file])
    }

    fn send(&self, request: u32, flags: u32, payload: &[u8], files: &[BorrowedFd<'_>]) -> bool {
        self.send_raw(&message(request, flags, u32::try_from(payload.len()).unwrap_or(0), payload), files)
    }

    fn send_raw(&self, bytes: &[u8], files: &[BorrowedFd<'_>]) -> bool {
        let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(files));
        }
        sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).is_ok()
    }

    /// The payload of the next reply; none if the session has ended. Replies that an earlier message asked for are
    /// passed over.
    fn reply(&mut self) -> Option<Vec<u8>> {
        loop {
            let mut header = [0; HEADER];
            read(&mut self.stream, &mut header)?;
            let [_, _, _, _, flags, _, _, _, size @ ..] = header;
            assert!(u32::from(flags) & REPLY != 0, "the back end says what it was not asked");
            let mut payload = vec![0; u32::from_le_bytes(size) as usize];
            read(&mut self.stream, &mut payload)?;
            let request = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
            if request == GET_CONFIG || request == GET_FEATURES {
                return Some(payload);
            }
        }
    }
}

fn flag(script: &mut Script<'_>) -> u32 {
    if script.byte().is_multiple_of(4) { NEED_REPLY } else { 0 }
}

fn message(request: u32, flags: u32, size: u32, payload: &[u8]) -> Vec<u8> {
    [&request.to_le_bytes()[..], &flags.to_le_bytes(), &size.to_le_bytes(), payload].concat()
}

/// Reads all of it; none at the session's end.
fn read(stream: &mut UnixStream, bytes: &mut [u8]) -> Option<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        match stream.read_vectored(&mut [IoSliceMut::new(&mut bytes[filled..])]) {
            Ok(0) => return None,
            Ok(count) => filled += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
            Err(error) => panic!("the back end does not answer: {error}"),
        }
    }
    Some(())
}
