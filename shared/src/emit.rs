//! Writing the agent's envelopes: a function for each, which writes the line with its LF to the beginning of a buffer and
//! returns its length.
//!
//! Each text is truncated to its own bound, so that [`MAX_AGENT_ENVELOPE_BYTES`](crate::limits::MAX_AGENT_ENVELOPE_BYTES)
//! are always enough room. An `errno` is written without sign: the kernel's are positive.
//!
//! ```
//! use scx_vsock_wire::emit;
//!
//! let mut line = [0; 64];
//! let length = emit::busy(&mut line, 8);
//! assert_eq!(&line[..length], b"{\"relay_error\":{\"busy\":{\"sessions\":8}}}\n");
//! ```

use crate::limits::{MAX_CAUSE_BYTES, MAX_NAME_BYTES, MAX_OPS_BYTES, MIN_PROTOCOL, PROTOCOL};
use crate::template::fill;
use crate::text::Text;

/// Writes the hello of an agent of this protocol.
pub fn hello(out: &mut [u8], agent: Text<'_>, boot_id: Text<'_>, max_line_bytes: u32) -> usize {
    any_hello(out, agent, boot_id, [PROTOCOL, MIN_PROTOCOL, max_line_bytes, max_line_bytes])
}

/// Writes a hello: `numbers` are the newest and the oldest protocol and the caps of requests and of responses.
pub fn any_hello(out: &mut [u8], agent: Text<'_>, boot_id: Text<'_>, numbers: [u32; 4]) -> usize {
    fill(
        out,
        b"{\"hello\":{\"protocol\":#,\"min_protocol\":#,\"agent\":\"$\",\"boot_id\":\"$\",\
          \"max_request_bytes\":#,\"max_response_bytes\":#}}\n",
        &numbers.map(u64::from),
        &[agent.truncated(MAX_NAME_BYTES), boot_id.truncated(MAX_NAME_BYTES)],
    )
}

/// Writes the answer `scheduler_ready`.
pub fn scheduler_ready(out: &mut [u8]) -> usize {
    fill(out, b"{\"agent\":{\"scheduler_ready\":{}}}\n", &[], &[])
}

/// Writes the relay error `no_scheduler`.
pub fn no_scheduler(out: &mut [u8], errno: i32, sched_ext: Text<'_>, ops: Text<'_>, cause: Text<'_>) -> usize {
    fill(
        out,
        b"{\"relay_error\":{\"no_scheduler\":{\"errno\":#,\"sched_ext\":\"$\",\"ops\":\"$\",\"cause\":\"$\"}}}\n",
        &[errno.unsigned_abs().into()],
        &[sched_ext.truncated(MAX_NAME_BYTES), ops.truncated(MAX_OPS_BYTES), cause.truncated(MAX_CAUSE_BYTES)],
    )
}

/// Writes the relay error `scheduler_gone`.
pub fn scheduler_gone(out: &mut [u8], errno: i32, cause: Text<'_>) -> usize {
    let template = b"{\"relay_error\":{\"scheduler_gone\":{\"errno\":#,\"cause\":\"$\"}}}\n";
    fill(out, template, &[errno.unsigned_abs().into()], &[cause.truncated(MAX_CAUSE_BYTES)])
}

/// Writes the relay error `unsolicited_data`.
pub fn unsolicited_data(out: &mut [u8]) -> usize {
    fill(out, b"{\"relay_error\":{\"unsolicited_data\":{}}}\n", &[], &[])
}

/// Writes the relay error `request_too_large`.
pub fn request_too_large(out: &mut [u8], size: u32, max: u32) -> usize {
    let template = b"{\"relay_error\":{\"request_too_large\":{\"size\":#,\"max\":#}}}\n";
    fill(out, template, &[size.into(), max.into()], &[])
}

/// Writes the relay error `response_too_large`.
pub fn response_too_large(out: &mut [u8], size: u32, max: u32) -> usize {
    let template = b"{\"relay_error\":{\"response_too_large\":{\"size\":#,\"max\":#}}}\n";
    fill(out, template, &[size.into(), max.into()], &[])
}

/// Writes the relay error `unknown_verb`.
pub fn unknown_verb(out: &mut [u8]) -> usize {
    fill(out, b"{\"relay_error\":{\"unknown_verb\":{}}}\n", &[], &[])
}

/// Writes the relay error `busy`.
pub fn busy(out: &mut [u8], sessions: u32) -> usize {
    fill(out, b"{\"relay_error\":{\"busy\":{\"sessions\":#}}}\n", &[sessions.into()], &[])
}
