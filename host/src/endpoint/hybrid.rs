//! The protocol of hybrid vsock sockets, both sides.
//!
//! A VMM without a kernel's vsock on the host serves a guest's ports by Unix sockets. A program of the host connects to
//! the VMM's socket at `PATH`, writes `CONNECT port`, reads `OK port`, and then has the stream of a guest's listener. A
//! program that listens at `PATH_port` is connected when the guest connects to that port of the host. Firecracker defined
//! it; Cloud Hypervisor, Kata Containers, vhost-device-vsock and this crate's bridge speak it.
//!
//! ```
//! use scx_vsock::endpoint::hybrid::{connect_line, is_ok, ok_line, parse_connect};
//!
//! assert_eq!(parse_connect(connect_line(729).as_bytes()), Some(729)); // the program's line, read by the VMM
//! assert!(is_ok(ok_line(1_073_741_824).trim_end().as_bytes())); // and the VMM's reply, read by the program
//! ```

use std::path::{Path, PathBuf};

/// Bytes of the longest `CONNECT` line that a VMM reads, LF counted, as in Firecracker.
pub const MAX_CONNECT_BYTES: usize = 32;

/// Bytes of the longest reply that a program expects, LF counted.
pub const MAX_REPLY_BYTES: usize = 64;

/// Returns the line by which a program asks for `port` of the guest.
#[must_use]
pub fn connect_line(port: u32) -> String {
    format!("CONNECT {port}\n")
}

/// Returns the port that a `CONNECT` line asks for, or `None` where it is no such line.
///
/// Words are separated by any white space and the first is of any case, since VMMs accept all of that and their clients
/// rely on it: Kata Containers writes `connect`. Further words are ignored, as Firecracker ignores them.
#[must_use]
pub fn parse_connect(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line.strip_suffix(b"\n")?).ok()?.split_whitespace();
    words.next().filter(|word| word.eq_ignore_ascii_case("CONNECT"))?;
    words.next()?.parse().ok()
}

/// Returns the reply to a connected program. `port` is the host's end of the connection.
#[must_use]
pub fn ok_line(port: u32) -> String {
    format!("OK {port}\n")
}

/// Whether `line`, without its LF, is the reply to a connected program.
#[must_use]
pub fn is_ok(line: &[u8]) -> bool {
    let port = line.strip_prefix(b"OK ").and_then(|port| std::str::from_utf8(port).ok());
    port.is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u32>().is_ok())
}

/// Returns the path at which a program listens for the guest's connections to `port` of the host.
#[must_use]
pub fn listener_path(socket: &Path, port: u32) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(format!("_{port}"));
    path.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_read_as_vmms_read_it() {
        assert_eq!(connect_line(729), "CONNECT 729\n");
        for line in [
            "CONNECT 729\n",
            "connect 729\n",
            "CONNECT 729\r\n",
            "CONNECT  729\n",
            " Connect\t729 \n",
            "CONNECT 729 x\n",
        ] {
            assert_eq!(parse_connect(line.as_bytes()), Some(729), "{line:?}");
        }
        assert_eq!(parse_connect(connect_line(u32::MAX).as_bytes()), Some(u32::MAX));
        assert!(connect_line(u32::MAX).len() <= MAX_CONNECT_BYTES);
    }

    #[test]
    fn other_lines_ask_for_no_port() {
        for line in [
            &b"CONNECT 4294967296\n"[..],
            b"CONNECT -1\n",
            b"CONNECT \n",
            b"CONNECT\n",
            b"CONNECT729\n",
            b"CONNECT 1",
            b"\n",
            b"",
            b"CONNECT \xff\n",
        ] {
            assert_eq!(parse_connect(line), None, "{line:?}");
        }
    }

    #[test]
    fn a_reply_is_ok_and_a_port() {
        assert_eq!(ok_line(1_073_741_824), "OK 1073741824\n");
        assert!(ok_line(u32::MAX).len() <= MAX_REPLY_BYTES);
        assert!(is_ok(b"OK 1073741824"));
        for line in [&b"OK"[..], b"OK ", b"OK x", b"OK +1", b"OK 4294967296", b"ok 1", b"OK 1 ", b"OK \xff"] {
            assert!(!is_ok(line), "{line:?}");
        }
    }

    #[test]
    fn a_ports_socket_is_beside_the_vmms() {
        assert_eq!(listener_path(Path::new("/run/guest1"), 7290), Path::new("/run/guest1_7290"));
    }
}
