//! Whether who connects to [`READY_PORT`](crate::READY_PORT) is the agent.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use scx_vsock_wire::HELLO_PREFIX;

/// Whether the connection begins as an agent's does, as far as that shows `within` this time. Any process of the guest
/// can connect.
///
/// ```
/// use std::io::Write;
/// use std::os::unix::net::UnixStream;
/// use std::time::Duration;
/// use scx_vsock::vsock::says_hello;
///
/// let (mut agent, stream) = UnixStream::pair()?;
/// agent.write_all(br#"{"hello":{"protocol":1,"#)?;
/// assert!(says_hello(&stream, Duration::from_secs(1)));
/// # Ok::<(), std::io::Error>(())
/// ```
#[must_use]
pub fn says_hello(mut stream: &UnixStream, within: Duration) -> bool {
    let mut beginning = [0; HELLO_PREFIX.len()];
    stream.set_nonblocking(false).is_ok()
        && stream.set_read_timeout(Some(within.max(Duration::from_millis(1)))).is_ok()
        && stream.read_exact(&mut beginning).is_ok()
        && beginning == HELLO_PREFIX
}
