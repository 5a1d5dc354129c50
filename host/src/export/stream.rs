//! A scraper's connection, in the clear or under TLS. Nothing here waits.

use std::net::TcpStream;

use rustix::buffer::spare_capacity;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

#[cfg(feature = "tls")]
use super::tls_stream::TlsStream;

#[derive(Debug)]
pub(super) enum ScraperStream {
    Plain(TcpStream),
    #[cfg(feature = "tls")]
    Tls(Box<TlsStream>),
}

impl ScraperStream {
    /// The connection under it all.
    pub(super) fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.tcp(),
        }
    }

    /// Whether a response can be sent: not before a handshake is complete.
    pub(super) fn is_open(&self) -> bool {
        match self {
            Self::Plain(_) => true,
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.is_open(),
        }
    }

    /// Whether it holds bytes that the connection had no room for.
    pub(super) fn wants_write(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.wants_write(),
        }
    }

    /// Reads what has arrived into the spare capacity; returns 0 at the end.
    pub(super) fn recv(&mut self, into: &mut Vec<u8>) -> Result<usize, Errno> {
        match self {
            Self::Plain(tcp) => {
                retry_on_intr(|| recv(&*tcp, spare_capacity(into), RecvFlags::DONTWAIT)).map(|read| read.0)
            }
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.recv(into),
        }
    }

    /// Takes some of the bytes. None is taken, and it is no error, if some of those before were sent.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<usize, Errno> {
        match self {
            Self::Plain(tcp) => retry_on_intr(|| send(&*tcp, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.send(bytes),
        }
    }

    /// Ends the sending side.
    pub(super) fn shutdown(&mut self) -> Result<(), Errno> {
        #[cfg(feature = "tls")]
        if let Self::Tls(tls) = self {
            tls.close();
        }
        shutdown(self.tcp(), Shutdown::Write)
    }
}
