//! What a host asks of the agent itself.
//!
//! A line that begins with exactly [`AGENT_LINE_PREFIX`] is for the agent: an object with the one key `agent`, whose
//! value is an object with one key, the verb, whose value is an object: the verb's body.
//!
//! The parser is liberal. Whitespace and control characters may stand between any two tokens after the prefix; keys of a body may come in
//! any order, the last of several of one name counts, and keys that it does not know are skipped with their values. It
//! needs balanced brackets, one verb, an object as its body, and digits where a number belongs (a fraction is ignored);
//! otherwise it does not judge the JSON. Names are compared as they are written: one with an escape is an unknown one.
//! It reads each byte once and neither recurses nor allocates.

use core::slice::Iter;

use heapless::Vec;

#[cfg(doc)]
use crate::limits::AGENT_LINE_PREFIX;
use crate::line::{line_number, up_to};
use crate::template::Writer;

/// Bytes that suffice for every verb's line.
const MAX_VERB_BYTES: usize = 64;

/// A line for the agent.
///
/// ```
/// use scx_vsock_wire::Verb;
///
/// let verb = Verb::WaitScheduler { timeout_ms: 4500 };
/// assert_eq!(verb.emit(), b"{\"agent\":{\"wait_scheduler\":{\"timeout_ms\":4500}}}\n");
/// assert_eq!(Verb::parse(br#" {"wait_scheduler": {"timeout_ms": 4500, "since": [1]}}}"#), Some(verb));
/// assert_eq!(Verb::parse(br#""wait_scheduler"}"#), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Answer when the scheduler accepts a connection.
    WaitScheduler {
        /// Milliseconds after which the answer is `no_scheduler`. A greater number than a `u32` holds means the
        /// greatest, and so does a body without this key.
        timeout_ms: u32,
    },
    /// Answer at once with what the guest's kernel says about sched_ext.
    SchedExt {},
}

impl Verb {
    /// Parses what follows [`AGENT_LINE_PREFIX`] in a line, with or without the line's LF. `None` for a verb that this
    /// version does not know.
    #[must_use]
    pub fn parse(rest: &[u8]) -> Option<Self> {
        let mut bytes = rest.iter();
        let (mut verb, mut name) = (NAMES.len(), NAMES.len());
        let mut timeout_ms = u32::MAX;
        let mut depth = LINE;
        while depth > 0 {
            match *bytes.next()? {
                b'"' => name = take_name(&mut bytes)?,
                byte @ (b'{' | b'[') => {
                    if byte == b'{' && depth == VERB {
                        verb = name;
                    }
                    depth += 1;
                }
                b'}' | b']' => depth -= 1,
                b',' if depth <= VERB => return None,
                b':' if depth == BODY && verb == WAIT_SCHEDULER && name == TIMEOUT_MS => {
                    timeout_ms = take_number(&mut bytes)?;
                }
                _ => {}
            }
        }
        if !bytes.all(|&byte| byte <= b' ') {
            return None;
        }
        match verb {
            WAIT_SCHEDULER => Some(Self::WaitScheduler { timeout_ms }),
            SCHED_EXT => Some(Self::SchedExt {}),
            _ => None,
        }
    }

    /// Returns the verb's line with its LF.
    #[must_use]
    pub fn emit(&self) -> Vec<u8, MAX_VERB_BYTES> {
        let mut line = [0; MAX_VERB_BYTES];
        let (template, number): (&[u8], u32) = match *self {
            Self::WaitScheduler { timeout_ms } => {
                (b"{\"agent\":{\"wait_scheduler\":{\"timeout_ms\":#}}}\n", timeout_ms)
            }
            Self::SchedExt {} => (b"{\"agent\":{\"sched_ext\":{}}}\n", 0),
        };
        let mut writer = Writer::new(&mut line);
        writer.add_number(template, number.into());
        writer.written().iter().copied().collect()
    }
}

/// The names that are known, a line for each.
const NAMES: &str = "wait_scheduler\nsched_ext\ntimeout_ms";
const WAIT_SCHEDULER: usize = 0;
const SCHED_EXT: usize = 1;
const TIMEOUT_MS: usize = 2;

/// How many brackets are open after the prefix, before the verb and in its body.
const LINE: u32 = 1;
const VERB: u32 = 2;
const BODY: u32 = 3;

/// Takes a string's bytes and its closing quote; returns its line's number in [`NAMES`].
fn take_name(bytes: &mut Iter<'_, u8>) -> Option<usize> {
    let name = bytes.as_slice();
    loop {
        match bytes.next()? {
            b'"' => break,
            b'\\' => {
                bytes.next();
            }
            _ => {}
        }
    }
    Some(line_number(NAMES, up_to(name, name.len() - bytes.len() - 1)))
}

/// Takes a whole number, saturating, and whitespace before it.
fn take_number(bytes: &mut Iter<'_, u8>) -> Option<u32> {
    let mut number = None;
    loop {
        let rest = bytes.clone();
        match (bytes.next(), number) {
            (Some(digit @ b'0'..=b'9'), _) => {
                number = Some((number.unwrap_or(0) * 10 + u64::from(digit & 0xf)).min(u64::from(u32::MAX)));
            }
            (Some(..=b' '), None) => {}
            _ => {
                *bytes = rest;
                return u32::try_from(number?).ok();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::AGENT_LINE_PREFIX;
    use proptest::prelude::*;

    fn parse(line: &[u8]) -> Option<Verb> {
        line.strip_prefix(AGENT_LINE_PREFIX).and_then(Verb::parse)
    }

    fn timeout_of(body: &str) -> Option<u32> {
        parse(format!("{{\"agent\":{{\"wait_scheduler\":{body}}}}}").as_bytes())
            .and_then(|verb| if let Verb::WaitScheduler { timeout_ms } = verb { Some(timeout_ms) } else { None })
    }

    #[test]
    fn whitespace_between_tokens_is_skipped() {
        let line = b"{\"agent\": {\t\"wait_scheduler\" : { \"timeout_ms\" : 7 } } } \r\n";
        assert_eq!(parse(line), Some(Verb::WaitScheduler { timeout_ms: 7 }));
    }

    #[test]
    fn unknown_keys_of_a_body_are_skipped() {
        for body in [
            r#"{"a":1,"timeout_ms":7}"#,
            r#"{"timeout_ms":7,"a":{"b":[1,{"timeout_ms":8},"}]"],"c":"\"}"}}"#,
            r#"{"a":[[[]]],"timeout_ms":7,"b":null,"c":-1.5e3,"d":true}"#,
            r#"{"timeout_ms":1,"timeout_ms":7}"#,
            r#"{"timeout_ms":7.5}"#,
            r#"{"a":{"timeout_ms":8},"timeout_ms":7,"b":{"timeout_ms":9}}"#,
            r#"{"timeout_ms":7,"timeout\u005fms":8}"#,
        ] {
            assert_eq!(timeout_of(body), Some(7), "{body}");
        }
    }

    #[test]
    fn a_verb_without_a_body_skips_what_is_in_it() {
        for body in ["{}", "{ }", r#"{"since":{"a":[1]},"timeout_ms":"1"}"#] {
            assert_eq!(parse(format!(r#"{{"agent":{{"sched_ext":{body}}}}}"#).as_bytes()), Some(Verb::SchedExt {}));
        }
        assert_eq!(Verb::SchedExt {}.emit(), b"{\"agent\":{\"sched_ext\":{}}}\n");
    }

    #[test]
    fn a_missing_or_huge_timeout_is_the_greatest() {
        assert_eq!(timeout_of("{}"), Some(u32::MAX));
        assert_eq!(timeout_of(r#"{"timeout_ms":99999999999999999999}"#), Some(u32::MAX));
        assert_eq!(timeout_of(r#"{"timeout_ms":4294967295}"#), Some(u32::MAX));
        assert_eq!(timeout_of(r#"{"timeout_ms":0}"#), Some(0));
    }

    #[test]
    fn everything_else_is_an_unknown_verb() {
        for line in [
            r#"{"agent":"#,
            r#"{"agent":"wait_scheduler"}"#,
            r#"{"agent":{}}"#,
            r#"{"agent":{"sing":{}}}"#,
            r#"{"agent":{"sched_ext":null}}"#,
            r#"{"agent":{"sched_ext":{},"wait_scheduler":{}}}"#,
            r#"{"agent":{"wait_scheduler":5}}"#,
            r#"{"agent":{"wait_scheduler":{}}"#,
            r#"{"agent":{"wait_scheduler":{}}}x"#,
            r#"{"agent":{"wait_scheduler":{}},"x":1}"#,
            r#"{"agent":{"wait_scheduler":{},"x":{}}}"#,
            r#"{"agent":{"wait_scheduler":{"timeout_ms":-1}}}"#,
            r#"{"agent":{"wait_scheduler":{"timeout_ms":"1"}}}"#,
            r#"{"agent":{"wait_scheduler":{"a":1"#,
            r#"{"agent":{"wait_scheduler":{"a"#,
            r#"{"agent":{"wait_scheduler":{"a\"#,
            r#"{"agent":{"wait_scheduler":{"a":[}}}"#,
            r#"{"agent":{"wait_scheduler":[]}}"#,
            r#"{"agent":["wait_scheduler",{}]}"#,
            r#"{"agent":{"wait\u005fscheduler":{}}}"#,
        ] {
            assert_eq!(parse(line.as_bytes()), None, "{line}");
        }
    }

    proptest! {
        #[test]
        fn an_emitted_verb_reads_back(timeout_ms: u32) {
            let verb = Verb::WaitScheduler { timeout_ms };
            prop_assert_eq!(parse(&verb.emit()), Some(verb));
            let json = serde_json::json!({ "agent": { "wait_scheduler": { "timeout_ms": timeout_ms } } });
            let line = format!("{json}\n");
            prop_assert_eq!(&*verb.emit(), line.as_bytes());
        }

        #[test]
        fn any_json_that_is_the_verb_is_read_as_such(timeout_ms: u32, others in proptest::collection::btree_map("[a-z\"\\\\]{0,4}", json_value(), 0..4)) {
            let mut body: serde_json::Map<_, _> = others.into_iter().collect();
            body.insert("timeout_ms".to_owned(), timeout_ms.into());
            let json = serde_json::json!({ "agent": { "wait_scheduler": body } });
            prop_assert_eq!(parse(json.to_string().as_bytes()), Some(Verb::WaitScheduler { timeout_ms }));
        }

        #[test]
        fn no_bytes_panic(rest in proptest::collection::vec(prop_oneof![
            Just(b'"'), Just(b'{'), Just(b'}'), Just(b'['), Just(b']'), Just(b':'), Just(b','), Just(b'\\'), any::<u8>(),
        ], 0..60)) {
            let _any = parse(&[AGENT_LINE_PREFIX, br#"{"wait_scheduler":{"#, &rest].concat());
            let _any = parse(&[AGENT_LINE_PREFIX, &rest].concat());
        }
    }

    fn json_value() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            "[a-z\"\\\\{}\\[\\],]{0,6}".prop_map(Into::into),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
                proptest::collection::btree_map("[a-z]{0,3}", inner, 0..4)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        })
    }
}
