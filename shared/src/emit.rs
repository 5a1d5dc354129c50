//! Writing the agent's envelopes: a function for each, which writes the line with its LF to the beginning of a buffer and
//! returns its length.
//!
//! Each text is truncated to its own bound, so that [`MAX_AGENT_ENVELOPE_BYTES`](crate::limits::MAX_AGENT_ENVELOPE_BYTES)
//! are always enough room. An `errno` is written without sign: the kernel's are positive.
//!
//! ```
//! use scx_vsock_wire::emit::{Notice, notice};
//!
//! let mut line = [0; 64];
//! let length = notice(&mut line, Notice::Busy, 8, 0);
//! assert_eq!(&line[..length], b"{\"relay_error\":{\"busy\":{\"sessions\":8}}}\n");
//! ```

use crate::limits::{MAX_CAUSE_BYTES, MAX_NAME_BYTES, MAX_OPS_BYTES, MIN_PROTOCOL, PROTOCOL};
use crate::line::nth_line;
use crate::template::Writer;
use crate::text::Text;

/// An envelope without texts, or the beginning of one with texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub enum Notice {
    /// The answer `scheduler_ready`.
    SchedulerReady,
    /// The relay error `unsolicited_data`.
    UnsolicitedData,
    /// The relay error `unknown_verb`.
    UnknownVerb,
    /// The relay error `busy`; its number is that of the sessions.
    Busy,
    /// The relay error `request_too_large`; its number is the line's size.
    RequestTooLarge,
    /// The relay error `response_too_large`; its number is the line's size.
    ResponseTooLarge,
}

/// A line for each notice, and one for each of the relay errors with texts. Those of the last two notices have the cap
/// after them.
const TEMPLATES: &str = "\
{\"agent\":{\"scheduler_ready\":{}}}
{\"relay_error\":{\"unsolicited_data\":{}}}
{\"relay_error\":{\"unknown_verb\":{}}}
{\"relay_error\":{\"busy\":{\"sessions\":#}}}
{\"relay_error\":{\"request_too_large\":{\"size\":#,
{\"relay_error\":{\"response_too_large\":{\"size\":#,
{\"relay_error\":{\"no_scheduler\":{\"errno\":#,
{\"relay_error\":{\"scheduler_gone\":{\"errno\":#,";
const NO_SCHEDULER: usize = 6;
const SCHEDULER_GONE: usize = 7;

/// Begins an envelope.
fn begin(out: &mut [u8], template: usize, number: u32) -> Writer<'_> {
    let mut writer = Writer::new(out);
    writer.add(nth_line(TEMPLATES, template), number.into(), Text::EMPTY);
    writer
}

/// Writes a notice with its number; `max` is the cap that a line is over.
pub fn notice(out: &mut [u8], notice: Notice, number: u32, max: u32) -> usize {
    let mut writer = begin(out, notice as usize, number);
    let end: &[u8] = if notice >= Notice::RequestTooLarge { b"\"max\":#}}}\n" } else { b"\n" };
    writer.add(end, max.into(), Text::EMPTY);
    writer.length()
}

/// Writes the hello of an agent of this protocol.
pub fn hello(out: &mut [u8], agent: Text<'_>, boot_id: Text<'_>, max_line_bytes: u32) -> usize {
    any_hello(out, agent, boot_id, [PROTOCOL, MIN_PROTOCOL, max_line_bytes, max_line_bytes])
}

/// Writes a hello: `numbers` are the newest and the oldest protocol and the caps of requests and of responses.
pub fn any_hello(out: &mut [u8], agent: Text<'_>, boot_id: Text<'_>, numbers: [u32; 4]) -> usize {
    let [protocol, min_protocol, max_request, max_response] = numbers;
    let mut writer = Writer::new(out);
    let (agent, boot_id) = (agent.truncated(MAX_NAME_BYTES), boot_id.truncated(MAX_NAME_BYTES));
    writer.add(b"{\"hello\":{\"protocol\":#,", protocol.into(), Text::EMPTY);
    writer.add(b"\"min_protocol\":#,\"agent\":\"$\",", min_protocol.into(), agent);
    writer.add(b"\"boot_id\":\"$\",\"max_request_bytes\":#,", max_request.into(), boot_id);
    writer.add(b"\"max_response_bytes\":#}}\n", max_response.into(), Text::EMPTY);
    writer.length()
}

/// Writes the relay error `no_scheduler`.
pub fn no_scheduler(out: &mut [u8], errno: i32, sched_ext: Text<'_>, ops: Text<'_>, cause: Text<'_>) -> usize {
    let mut writer = begin(out, NO_SCHEDULER, errno.unsigned_abs());
    writer.add(b"\"sched_ext\":\"$\",", 0, sched_ext.truncated(MAX_NAME_BYTES));
    writer.add(b"\"ops\":\"$\",", 0, ops.truncated(MAX_OPS_BYTES));
    end_with_cause(writer, cause)
}

/// Writes the relay error `scheduler_gone`.
pub fn scheduler_gone(out: &mut [u8], errno: i32, cause: Text<'_>) -> usize {
    end_with_cause(begin(out, SCHEDULER_GONE, errno.unsigned_abs()), cause)
}

fn end_with_cause(mut writer: Writer<'_>, cause: Text<'_>) -> usize {
    writer.add(b"\"cause\":\"$\"}}}\n", 0, cause.truncated(MAX_CAUSE_BYTES));
    writer.length()
}
