//! What a guest's kernel says about sched_ext: the answer to the verb `sched_ext`.
//!
//! The agent copies files of `/sys/kernel/sched_ext` and messages of the kernel's log into a [`SchedExtLine`]; a host reads
//! the line as a [`SchedExt`]. Texts are truncated to their own bounds, and all of it stays within [`MAX_SCHED_EXT_BYTES`].

use crate::emit;
use crate::limits::{
    MAX_DECIMAL_BYTES, MAX_EVENTS, MAX_KERNEL_MESSAGE_BYTES, MAX_KERNEL_MESSAGES, MAX_NAME_BYTES, MAX_OPS_BYTES,
    MAX_SCHED_EXT_BYTES,
};
use crate::line::{nth_line, take_until};
use crate::template::Writer;
use crate::text::Text;

/// What the kernel says about sched_ext. `S` is the type of its texts, `E` that of its events and `L` that of its log.
///
/// The first six are the files of these names, without their LF; one that the kernel lacks is absent.
///
/// ```
/// # #[cfg(feature = "serde")] {
/// use std::collections::BTreeMap;
/// use scx_vsock_wire::{KernelMessage, SchedExt};
///
/// let text = r#"{"state":"disabled","enable_seq":"1","uptime_us":9120627,"log":[{"time_us":81,"text":"sched_ext: off"}]}"#;
/// let read: SchedExt<String, BTreeMap<String, String>, Vec<KernelMessage<String>>> = serde_json::from_str(text).unwrap();
/// assert_eq!(read.state.as_deref(), Some("disabled"));
/// assert_eq!(read.ops, None);
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SchedExt<S, E, L> {
    /// `state`: `enabled`, `disabled` or one in between.
    #[cfg_attr(feature = "serde", serde(default = "none", skip_serializing_if = "Option::is_none"))]
    pub state: Option<S>,
    /// `root/ops`: the loaded scheduler's name.
    #[cfg_attr(feature = "serde", serde(default = "none", skip_serializing_if = "Option::is_none"))]
    pub ops: Option<S>,
    /// `enable_seq`: how many schedulers were enabled since the boot.
    #[cfg_attr(feature = "serde", serde(default = "none", skip_serializing_if = "Option::is_none"))]
    pub enable_seq: Option<S>,
    /// `hotplug_seq`: how many CPUs came or went since the boot.
    #[cfg_attr(feature = "serde", serde(default = "none", skip_serializing_if = "Option::is_none"))]
    pub hotplug_seq: Option<S>,
    /// `nr_rejected`: tasks that were refused sched_ext since this scheduler was enabled.
    #[cfg_attr(feature = "serde", serde(default = "none", skip_serializing_if = "Option::is_none"))]
    pub nr_rejected: Option<S>,
    /// `switch_all`: `1` where the scheduler has every ordinary task.
    #[cfg_attr(feature = "serde", serde(default = "none", skip_serializing_if = "Option::is_none"))]
    pub switch_all: Option<S>,
    /// Microseconds of the guest's monotonic clock, which those of its log are close to.
    pub uptime_us: u64,
    /// `root/events`: names and decimal numbers, counted since this scheduler was enabled; absent without a scheduler, and
    /// before Linux 6.15.
    #[cfg_attr(feature = "serde", serde(default = "none", skip_serializing_if = "Option::is_none"))]
    pub events: Option<E>,
    /// The newest messages of the kernel about sched_ext, oldest first.
    #[cfg_attr(feature = "serde", serde(default = "none", skip_serializing_if = "Option::is_none"))]
    pub log: Option<L>,
    /// What reading the log failed with.
    #[cfg_attr(feature = "serde", serde(default = "none", skip_serializing_if = "Option::is_none"))]
    pub log_errno: Option<i32>,
    /// Whether the log, or the log and the events, are absent because the agent's buffer has no room for them.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "is_false"))]
    pub truncated: bool,
}

/// A message of the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct KernelMessage<S> {
    /// When it was logged, in microseconds since the boot; absent where the kernel writes no times.
    #[cfg_attr(feature = "serde", serde(default = "none", skip_serializing_if = "Option::is_none"))]
    pub time_us: Option<u64>,
    /// The message, which begins with `sched_ext: `.
    pub text: S,
}

/// A file of the kernel's whose text is the value of the key of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field(usize);

/// The key `state`.
pub const STATE: Field = Field(0);
/// The key `ops`.
pub const OPS: Field = Field(1);
/// The key `enable_seq`.
pub const ENABLE_SEQ: Field = Field(2);
/// The key `hotplug_seq`.
pub const HOTPLUG_SEQ: Field = Field(3);
/// The key `nr_rejected`.
pub const NR_REJECTED: Field = Field(4);
/// The key `switch_all`.
pub const SWITCH_ALL: Field = Field(5);

/// A line for each, with the zero byte that ends a path of the kernel's.
const FILES: &str = "\
state\0
root/ops\0
enable_seq\0
hotplug_seq\0
nr_rejected\0
switch_all\0";

impl Field {
    /// All of them, in the order of the answer.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..SWITCH_ALL.0 + 1).map(Self)
    }

    /// Returns where the file is in `/sys/kernel/sched_ext`, with a zero byte at the end.
    #[must_use]
    pub fn path(self) -> &'static [u8] {
        nth_line(FILES, self.0)
    }

    /// The bytes of its text that are written. The state is no number, but shorter than one can be.
    fn max(self) -> usize {
        if self == OPS { MAX_OPS_BYTES } else { MAX_DECIMAL_BYTES }
    }

    fn name(self) -> Text<'static> {
        let mut name = self.path();
        if self == OPS {
            take_until(&mut name, b'/');
        }
        Text::line(take_until(&mut name, 0))
    }
}

/// Bytes that are kept for what ends the line.
const END_BYTES: usize = 64;

/// The line of an answer, written key by key in the order of [`SchedExt`].
///
/// In a buffer that is too small for the log, or for the events, that key is dropped with what follows it.
///
/// ```
/// use scx_vsock_wire::{SchedExtLine, Text, sched_ext};
///
/// let mut out = [0; 1024];
/// let mut line = SchedExtLine::begin(&mut out);
/// line.field(&sched_ext::STATE, Text::first_line(b"disabled\n"));
/// line.uptime(9_120_627);
/// let length = line.end(None);
/// assert_eq!(&out[..length], b"{\"agent\":{\"sched_ext\":{\"state\":\"disabled\",\"uptime_us\":9120627}}}\n");
/// ```
#[derive(Debug)]
pub struct SchedExtLine<'o> {
    writer: Writer<'o>,
    /// Where the list begins that is being written.
    list: usize,
    /// Items that the list still takes.
    left: usize,
    truncated: bool,
}

impl<'o> SchedExtLine<'o> {
    /// Begins the answer in `out`, which is at least 512 bytes long.
    pub fn begin(out: &'o mut [u8]) -> Self {
        let room = out.len().min(MAX_SCHED_EXT_BYTES);
        let writer = emit::begin(out.split_at_mut(room).0, emit::SCHED_EXT, 0);
        Self { writer, list: 0, left: 0, truncated: false }
    }

    /// Adds the text of one of the kernel's files.
    pub fn field(&mut self, field: &Field, text: Text<'_>) {
        self.writer.pair(field.name(), text.truncated(field.max()));
    }

    /// Adds the guest's clock.
    pub fn uptime(&mut self, uptime_us: u64) {
        self.writer.add_number(b"\"uptime_us\":#", uptime_us);
    }

    /// Begins the events.
    pub fn begin_events(&mut self) {
        self.begin_list(b",\"events\":{", MAX_EVENTS);
    }

    /// Adds an event.
    pub fn event(&mut self, name: Text<'_>, number: Text<'_>) {
        if self.take_item() {
            self.writer.pair(name.truncated(MAX_NAME_BYTES), number.truncated(MAX_DECIMAL_BYTES));
        }
    }

    /// Ends the events.
    pub fn end_events(&mut self) {
        self.end_list(b'}');
    }

    /// Begins the log.
    pub fn begin_log(&mut self) {
        self.begin_list(b",\"log\":[", MAX_KERNEL_MESSAGES);
    }

    /// Adds a message of the log.
    pub fn message(&mut self, message: KernelMessage<Text<'_>>) {
        if self.take_item() {
            let template: &[u8] =
                if message.time_us.is_some() { b"{\"time_us\":#,\"text\":\"$\"}," } else { b"{\"text\":\"$\"}," };
            let text = message.text.truncated(MAX_KERNEL_MESSAGE_BYTES);
            self.writer.add(template, message.time_us.unwrap_or(0), text);
        }
    }

    /// Ends the log.
    pub fn end_log(&mut self) {
        self.end_list(b']');
    }

    /// Ends the line and returns its length; `log_errno` is what reading the log failed with.
    #[must_use]
    pub fn end(mut self, log_errno: Option<i32>) -> usize {
        if let Some(errno) = log_errno {
            self.writer.add_number(b",\"log_errno\":#", errno.unsigned_abs().into());
        }
        let end: &[u8] = if self.truncated { b",\"truncated\":true}}}\n" } else { b"}}}\n" };
        self.writer.add_plain(end);
        self.writer.length()
    }

    fn begin_list(&mut self, open: &[u8], most: usize) {
        self.list = self.writer.length();
        self.left = most;
        self.writer.add_plain(open);
    }

    /// Whether the list takes another item.
    fn take_item(&mut self) -> bool {
        let left = self.left.checked_sub(1);
        self.left = left.unwrap_or(0);
        left.is_some()
    }

    /// Writes `close` in place of the last comma, or drops the list if there is no room for it.
    fn end_list(&mut self, close: u8) {
        if self.writer.written().last() == Some(&b',') {
            self.writer.truncate(self.writer.length() - 1);
        }
        self.writer.put(close);
        self.truncated |= self.writer.length() + END_BYTES > self.writer.room();
        if self.truncated {
            self.writer.truncate(self.list);
        }
    }
}

/// Says that an absent key is `None`, whatever the type.
#[cfg(feature = "serde")]
fn none<T>() -> Option<T> {
    None
}

#[cfg(feature = "serde")]
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::MAX_AGENT_ENVELOPE_BYTES;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    type Read = SchedExt<String, BTreeMap<String, String>, Vec<KernelMessage<String>>>;

    /// Writes the longest answer with these names of events and these messages, and reads it back.
    fn written(room: usize, names: &[String], texts: &[String]) -> (usize, Read) {
        let mut out = vec![0; room];
        let mut line = SchedExtLine::begin(&mut out);
        for field in [STATE, OPS, ENABLE_SEQ, HOTPLUG_SEQ, NR_REJECTED, SWITCH_ALL] {
            line.field(&field, Text::first_line(&[b'7'; 200]));
        }
        line.uptime(u64::MAX);
        line.begin_events();
        for name in names {
            line.event(Text::first_line(name.as_bytes()), Text::first_line(b"18446744073709551615"));
        }
        line.end_events();
        line.begin_log();
        for text in texts {
            line.message(KernelMessage { time_us: Some(u64::MAX), text: Text::first_line(text.as_bytes()) });
        }
        line.end_log();
        let length = line.end(Some(i32::MAX));
        assert_eq!(out[..length].last(), Some(&b'\n'));
        let mut value: serde_json::Value = serde_json::from_slice(&out[..length]).unwrap();
        (length, serde_json::from_value(value["agent"]["sched_ext"].take()).unwrap())
    }

    #[test]
    fn the_longest_answer_fits() {
        let names: Vec<_> = (0..100).map(|number| format!("{number:0<100}")).collect();
        let texts: Vec<_> = (0..20).map(|number| format!("{number:0>900}")).collect();
        let (length, read) = written(100_000, &names, &texts);
        assert!(length < MAX_SCHED_EXT_BYTES && !read.truncated, "{length}");
        assert_eq!(read.log.unwrap().len(), MAX_KERNEL_MESSAGES);
    }

    #[test]
    fn a_small_buffer_drops_the_log_and_then_the_events() {
        let names: Vec<_> = (0..30).map(|number| format!("{number:0>60}")).collect();
        let texts = vec!["x".repeat(500); 8];
        let dropped = |room| {
            let (_, read) = written(room, &names, &texts);
            (read.events.is_none(), read.log.is_none(), read.truncated)
        };
        assert_eq!(dropped(8 * 1024), (false, false, false));
        assert_eq!(dropped(4 * 1024), (false, true, true));
        assert_eq!(dropped(MAX_AGENT_ENVELOPE_BYTES / 2), (true, true, true));
    }

    #[test]
    fn the_log_is_not_kept_where_the_events_are_dropped() {
        let names: Vec<_> = (0..30).map(|number| format!("{number:0>60}")).collect();
        let (_, read) = written(2_000, &names, &["short".to_owned()]);
        assert_eq!((read.events, read.log, read.truncated), (None, None, true));
    }

    proptest! {
        #[test]
        fn any_answer_reads_back_in_any_room(
            names in proptest::collection::btree_set("[A-Z_\"\\\\\u{0}]{0,70}", 0..70),
            texts in proptest::collection::vec(".{0,600}", 0..10),
            room in MAX_AGENT_ENVELOPE_BYTES / 2..20_000,
        ) {
            let names: Vec<_> = names.into_iter().collect();
            let (length, read) = written(room, &names, &texts);
            prop_assert!(length <= room && length <= MAX_SCHED_EXT_BYTES);
            prop_assert_eq!(read.truncated, read.log.is_none());
            if let Some(log) = read.log {
                prop_assert_eq!(log.len(), texts.len().min(MAX_KERNEL_MESSAGES));
            }
        }
    }
}
