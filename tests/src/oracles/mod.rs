//! What must hold whatever a peer does: each `check` reads a script of what a peer and its host do out of any bytes, does
//! it, and panics if the code under test does something else. Fuzz targets and property tests run them.

use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::sync::LazyLock;

use rustix::net::SendFlags;
use scx_vsock::vsock::{Handle, Listener};

pub mod chain;
pub mod client;
pub mod corrupt_state;
pub mod guest;
pub mod line;
#[cfg(target_arch = "x86_64")]
pub mod microvm;
pub mod mmio;
pub mod muxer;
pub mod transport_reset;
pub mod vhost_user;

/// Writes what a stream takes at once, without the signal that a program of libFuzzer's would end by.
///
/// # Errors
///
/// As `send(2)`.
pub fn send(stream: &UnixStream, bytes: &[u8]) -> rustix::io::Result<usize> {
    rustix::net::send(stream, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
}

/// The device of these is gone: each stream ends after what the guest sent, and asking for more fails.
///
/// # Panics
///
/// If one of them waits for a device that never comes.
pub fn all_have_ended(handle: &Handle, listeners: Vec<Listener>, mut streams: Vec<UnixStream>) {
    let gone = handle.connect(1).expect_err("the device is gone");
    assert_eq!(gone.kind(), ErrorKind::NotConnected);
    for listener in listeners {
        let gone = loop {
            match listener.accept() {
                Ok(stream) => streams.push(stream),
                Err(error) => break error,
            }
        };
        assert_eq!(gone.kind(), ErrorKind::NotConnected);
    }
    for mut stream in streams {
        if let Err(error) = stream.read_to_end(&mut Vec::new()) {
            // What the host wrote in vain makes the end an error.
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
    }
}

/// A repeating sequence of bytes, none of which says where it is by itself.
static PATTERN: LazyLock<Vec<u8>> =
    LazyLock::new(|| (0..PERIOD + MAX_STRETCH).map(|at| u8::try_from(at % PERIOD * 7 % 253).unwrap_or(0)).collect());

/// Bytes after which the sequence repeats: no size of a buffer.
const PERIOD: usize = 65_521;

/// The longest stretch of it.
const MAX_STRETCH: usize = 0x5_0000;

/// The `count` bytes of the sequence from `at` on.
#[must_use]
pub fn stretch(at: u64, count: usize) -> &'static [u8] {
    let from = usize::try_from(at % PERIOD as u64).unwrap_or(0);
    &PATTERN[from..from + count]
}

/// Bytes that say what to do next. After their end there are only zeros.
#[derive(Clone, Debug)]
pub struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    /// A script.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether it says nothing more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    /// The next `count` bytes, or as many as there are.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (now, later) = self.0.split_at(count.min(self.0.len()));
        self.0 = later;
        now
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let bytes = self.bytes(N);
        array[..bytes.len()].copy_from_slice(bytes);
        array
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    /// The next two bytes.
    pub fn short(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// The next four bytes.
    pub fn word(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// The next eight bytes.
    pub fn long(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// A number below `end`, of the next byte.
    pub fn below(&mut self, end: usize) -> usize {
        usize::from(self.byte()) % end.max(1)
    }

    /// One of `choices`, by the next byte.
    pub fn choose<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}
