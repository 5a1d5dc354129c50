//! A scraper's connection under TLS.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustls::{ServerConfig, ServerConnection};

/// Bytes of a response that are held encrypted, beside those that the kernel holds.
const BUFFER_BYTES: usize = 64 * 1024;

/// Reads before a scraper that sends without end gives way to others.
const MAX_READS: usize = 16;

pub(super) struct TlsStream {
    tcp: TcpStream,
    tls: ServerConnection,
}

impl fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream").field("tcp", &self.tcp).finish_non_exhaustive()
    }
}

impl TlsStream {
    /// Begins a handshake on a connection.
    ///
    /// # Errors
    ///
    /// If the configuration cannot serve one.
    pub(super) fn new(tcp: TcpStream, config: Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        let mut tls = ServerConnection::new(config)?;
        tls.set_buffer_limit(Some(BUFFER_BYTES));
        Ok(Self { tcp, tls })
    }

    pub(super) fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    pub(super) fn is_open(&self) -> bool {
        !self.tls.is_handshaking()
    }

    pub(super) fn wants_write(&self) -> bool {
        self.tls.wants_write()
    }

    pub(super) fn recv(&mut self, into: &mut Vec<u8>) -> Result<usize, Errno> {
        let mut plain = vec![0; into.capacity().saturating_sub(into.len())];
        for _ in 0..MAX_READS {
            // After each read of the connection, so that nothing stays here that no event reports.
            match self.tls.reader().read(&mut plain) {
                Ok(count) => {
                    into.extend_from_slice(plain.get(..count).unwrap_or_default());
                    return Ok(count);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return Err(Errno::CONNRESET),
            }
            let read = self.tls.read_tls(&mut Connection(&self.tcp));
            let processed = self.tls.process_new_packets();
            // Also an alert that says what is wrong.
            let flushed = self.flush();
            match read {
                Ok(0) => return Ok(0),
                Ok(_) => processed.map_err(|_| Errno::CONNRESET).and(flushed)?,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return flushed.and(Err(Errno::AGAIN)),
                Err(_) => return Err(Errno::CONNRESET),
            };
        }
        Err(Errno::AGAIN)
    }

    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<usize, Errno> {
        let sent = self.flush()?;
        let taken = self.tls.writer().write(bytes).map_err(|_| Errno::CONNRESET)?;
        let sent = sent + self.flush()?;
        if taken == 0 && sent == 0 { Err(Errno::AGAIN) } else { Ok(taken) }
    }

    /// Says that there is no more to read.
    pub(super) fn close(&mut self) {
        self.tls.send_close_notify();
        // If there is no room, the end of the connection says the same.
        let _sent = self.flush();
    }

    /// Sends what it holds, as far as there is room; returns how many bytes.
    fn flush(&mut self) -> Result<usize, Errno> {
        let mut sent = 0;
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut Connection(&self.tcp)) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return Err(Errno::CONNRESET),
            }
        }
        Ok(sent)
    }
}

/// The encrypted side, whose end raises no signal.
struct Connection<'s>(&'s TcpStream);

impl Read for Connection<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        Ok(retry_on_intr(|| recv(self.0, &mut *into, RecvFlags::DONTWAIT))?.0)
    }
}

impl Write for Connection<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(retry_on_intr(|| send(self.0, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT))?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
