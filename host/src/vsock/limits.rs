//! The bounds of a device: how many connections it has, and how much memory they make the host hold.

/// The number of connections of a device, closing ones included.
pub const MAX_CONNECTIONS: usize = 1024;

/// The number of connections that only the host can have: a guest that takes all of the others leaves these.
pub const RESERVED_CONNECTIONS: usize = 64;

/// The number of connections that a guest can have to one port of the host.
pub const MAX_PORT_CONNECTIONS: usize = 256;

/// The receive buffer of a connection in bytes: the `buf_alloc` that guests are sent (5.10.6.3).
pub const BUFFER_BYTES: u32 = 256 * 1024;

/// The send buffer of either end of a socket pair in bytes, whatever the system's default is. A write that begins below
/// this limit may exceed it by half.
pub const SEND_BUFFER_BYTES: usize = 208 * 1024;

/// Bytes of a connection's sockets, files and table entries.
const CONNECTION_BYTES: usize = 8 * 1024;

/// Bytes of a device without connections.
const DEVICE_BYTES: usize = 1 << 20;

/// Returns the most bytes that this many connections make the host hold, the kernel's memory included, wherever they end on
/// the host: at a stream of [`Handle::connect`](super::Handle::connect), at a listener whose backlog they wait in, or at a
/// program's Unix socket. A connection of the guest that is over counts until the host's program has read or closed its
/// stream. A program that makes its own send buffer larger than [`SEND_BUFFER_BYTES`] holds that much more; so does one
/// that asked for a connection, and keeps its stream after the guest has ended it.
///
/// ```
/// use scx_vsock::vsock::{MAX_CONNECTIONS, memory_bound};
///
/// assert!(memory_bound(scx_vsock_wire::SESSIONS) < 8 << 20, "the sessions of an agent");
/// assert!(memory_bound(MAX_CONNECTIONS) < 1 << 30, "a hostile guest");
/// ```
#[must_use]
pub const fn memory_bound(connections: usize) -> usize {
    let in_one_direction = SEND_BUFFER_BYTES + SEND_BUFFER_BYTES / 2;
    let of_each = BUFFER_BYTES as usize + 2 * in_one_direction + CONNECTION_BYTES;
    connections.saturating_mul(of_each).saturating_add(DEVICE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_bound_grows_with_each_connection() {
        let of_one = memory_bound(1) - memory_bound(0);
        assert!(of_one > SEND_BUFFER_BYTES * 2 + BUFFER_BYTES as usize);
        assert_eq!(memory_bound(MAX_CONNECTIONS) - memory_bound(0), MAX_CONNECTIONS * of_one);
        assert_eq!(memory_bound(usize::MAX), usize::MAX);
    }
}
