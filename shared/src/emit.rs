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

/// What follows `{"agent":{` or `{"relay_error":{`: a line for each notice, and one for the beginning of each envelope with
/// texts. Those of the last two notices have the cap after them.
const TEMPLATES: &str = "\
\"scheduler_ready\":{}}}
\"unsolicited_data\":{}}}
\"unknown_verb\":{}}}
\"busy\":{\"sessions\":#}}}
\"request_too_large\":{\"size\":#,
\"response_too_large\":{\"size\":#,
\"no_scheduler\":{\"errno\":#,
\"scheduler_gone\":{\"errno\":#,
\"sched_ext\":{";
const SCHEDULER_READY: usize = 0;
const NO_SCHEDULER: usize = 6;
const SCHEDULER_GONE: usize = 7;
pub(crate) const SCHED_EXT: usize = 8;

/// Bytes between a cause and its detail.
const SEPARATOR_BYTES: usize = 2;

/// Begins an envelope in `out`.
pub(crate) fn begin(out: &mut [u8], template: usize, number: u32) -> Writer<'_> {
    let mut writer = Writer::new(out);
    let is_answer = matches!(template, SCHEDULER_READY | SCHED_EXT);
    let key: &[u8] = if is_answer { b"{\"agent\":{" } else { b"{\"relay_error\":{" };
    writer.add_plain(key);
    writer.add_number(nth_line(TEMPLATES, template), number.into());
    writer
}

/// Writes a notice with its number; `max` is the cap that a line is over.
pub fn notice(out: &mut [u8], notice: Notice, number: u32, max: u32) -> usize {
    let mut writer = begin(out, notice as usize, number);
    let end: &[u8] = if notice >= Notice::RequestTooLarge { b"\"max\":#}}}\n" } else { b"\n" };
    writer.add_number(end, max.into());
    writer.length()
}

/// Writes the hello of an agent of this protocol.
pub fn hello(out: &mut [u8], agent: Text<'_>, boot_id: Text<'_>, max_line_bytes: u32) -> usize {
    const { assert!(PROTOCOL == MIN_PROTOCOL, "one number stands for both") };
    let mut writer = Writer::new(out);
    writer.add(
        b"{\"hello\":{\"protocol\":#,\"min_protocol\":#,\"agent\":\"$\",",
        PROTOCOL.into(),
        agent.truncated(MAX_NAME_BYTES),
    );
    writer.add(
        b"\"boot_id\":\"$\",\"max_request_bytes\":#,\"max_response_bytes\":#}}\n",
        max_line_bytes.into(),
        boot_id.truncated(MAX_NAME_BYTES),
    );
    writer.length()
}

/// Writes a hello: `numbers` are the newest and the oldest protocol and the caps of requests and of responses.
pub fn any_hello(out: &mut [u8], agent: Text<'_>, boot_id: Text<'_>, numbers: [u32; 4]) -> usize {
    let [protocol, min_protocol, max_request, max_response] = numbers;
    let mut writer = Writer::new(out);
    let (agent, boot_id) = (agent.truncated(MAX_NAME_BYTES), boot_id.truncated(MAX_NAME_BYTES));
    writer.add_number(b"{\"hello\":{\"protocol\":#,", protocol.into());
    writer.add(b"\"min_protocol\":#,\"agent\":\"$\",", min_protocol.into(), agent);
    writer.add(b"\"boot_id\":\"$\",\"max_request_bytes\":#,", max_request.into(), boot_id);
    writer.add_number(b"\"max_response_bytes\":#}}\n", max_response.into());
    writer.length()
}

/// Writes the relay error `no_scheduler`.
pub fn no_scheduler(out: &mut [u8], errno: i32, sched_ext: Text<'_>, ops: Text<'_>, cause: Text<'_>) -> usize {
    let mut line = RelayErrorLine::no_scheduler(out, errno);
    line.sched_ext(sched_ext);
    line.ops(ops);
    line.end(cause, Text::EMPTY)
}

/// Writes the relay error `scheduler_gone`.
pub fn scheduler_gone(out: &mut [u8], errno: i32, cause: Text<'_>) -> usize {
    RelayErrorLine::scheduler_gone(out, errno).end(cause, Text::EMPTY)
}

/// The line of a relay error with texts, written key by key, so that the texts need not be there at the same time.
///
/// ```
/// use scx_vsock_wire::Text;
/// use scx_vsock_wire::emit::RelayErrorLine;
///
/// let mut out = [0; 128];
/// let length = RelayErrorLine::scheduler_gone(&mut out, 104).end(Text::line(b"stall"), Text::line(b"30 s"));
/// let line = b"{\"relay_error\":{\"scheduler_gone\":{\"errno\":104,\"cause\":\"stall: 30 s\"}}}\n";
/// assert_eq!(&out[..length], line);
/// ```
#[derive(Debug)]
pub struct RelayErrorLine<'o> {
    writer: Writer<'o>,
}

impl<'o> RelayErrorLine<'o> {
    /// Begins `no_scheduler` in `out`. [`sched_ext`](Self::sched_ext) and [`ops`](Self::ops) follow.
    pub fn no_scheduler(out: &'o mut [u8], errno: i32) -> Self {
        Self { writer: begin(out, NO_SCHEDULER, errno.unsigned_abs()) }
    }

    /// Begins `scheduler_gone` in `out`.
    pub fn scheduler_gone(out: &'o mut [u8], errno: i32) -> Self {
        Self { writer: begin(out, SCHEDULER_GONE, errno.unsigned_abs()) }
    }

    /// Adds the state of the guest's sched_ext.
    pub fn sched_ext(&mut self, state: Text<'_>) {
        self.writer.pair(Text::line(b"sched_ext"), state.truncated(MAX_NAME_BYTES));
    }

    /// Adds the name of the guest's scheduler.
    pub fn ops(&mut self, ops: Text<'_>) {
        self.writer.pair(Text::line(b"ops"), ops.truncated(MAX_OPS_BYTES));
    }

    /// Ends the line with the cause and, after a colon, its detail, and returns its length.
    #[must_use]
    pub fn end(mut self, cause: Text<'_>, detail: Text<'_>) -> usize {
        let cause = cause.truncated(MAX_CAUSE_BYTES);
        self.writer.add(b"\"cause\":\"$", 0, cause);
        if !detail.is_empty() && cause.len() < MAX_CAUSE_BYTES - SEPARATOR_BYTES {
            let room = MAX_CAUSE_BYTES - SEPARATOR_BYTES - cause.len();
            self.writer.add(b": $", 0, detail.truncated(room));
        }
        self.writer.add_plain(b"\"}}}\n");
        self.writer.length()
    }
}
