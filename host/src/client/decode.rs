//! Decoding a scheduler's answer: exactly one JSON object, of bounded depth, in one pass.
//!
//! These functions are what [`PollClient::on_ready`](super::PollClient::on_ready) is called with.
//!
//! ```
//! use scx_vsock::client::{Answer, decode};
//!
//! let answer = Answer::Scheduler(br#"{"errno":0,"args":{"resp":[1,2]}}"#);
//! assert_eq!(decode::resp::<Vec<u8>>(answer)?.value, [1, 2]);
//! assert_eq!(decode::response(answer)?.value.args["resp"][1], 2);
//! let refused = decode::raw(Answer::Scheduler(br#"{"errno":22,"args":{"resp":"no"}}"#))?;
//! assert_eq!(refused.errno, 22);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::session::{AgentAnswer, Answer};
use crate::stats::{MAX_JSON_DEPTH, SchedExt, SchedStatsError, StatsResponse, nests_deeper_than};

/// A decoded answer and its errno.
///
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded<T> {
    /// The value.
    pub value: T,
    /// The answer's errno. The session of an answer with another errno than 0 carries no further request.
    pub errno: i32,
}

/// Returns the scheduler's line as it came, once it is known to be one JSON object.
///
/// # Errors
///
/// [`SchedStatsError::MalformedResponse`].
pub fn raw(answer: Answer<'_>) -> Result<Decoded<Vec<u8>>, SchedStatsError> {
    let line = scheduler(answer)?;
    let Outline { errno } = parse(line)?;
    Ok(Decoded { value: line.as_bytes().to_vec(), errno })
}

/// Returns the scheduler's answer, whatever its errno.
///
/// # Errors
///
/// [`SchedStatsError::MalformedResponse`].
pub fn response(answer: Answer<'_>) -> Result<Decoded<StatsResponse>, SchedStatsError> {
    let value: StatsResponse = parse(scheduler(answer)?)?;
    let errno = value.errno;
    Ok(Decoded { value, errno })
}

/// Returns `args["resp"]` of an answer with errno 0, decoded straight from the line.
///
/// # Errors
///
/// [`SchedStatsError::SchedulerError`], [`SchedStatsError::MissingResp`], and
/// [`SchedStatsError::MalformedResponse`], also for a `resp` that is no `T`.
pub fn resp<T: DeserializeOwned>(answer: Answer<'_>) -> Result<Decoded<T>, SchedStatsError> {
    let line = scheduler(answer)?;
    match parse(line) {
        Ok(Reply { errno: 0, args: Args { resp } }) => Ok(Decoded { value: resp, errno: 0 }),
        // Only an answer without stats is parsed twice.
        Ok(Reply { .. }) => Err(without_resp(line, SchedStatsError::malformed("its errno is not 0"))),
        Err(error) => Err(without_resp(line, error)),
    }
}

/// Expects no answer but that the scheduler accepts connections.
///
/// # Errors
///
/// [`SchedStatsError::MalformedResponse`].
pub fn ready(answer: Answer<'_>) -> Result<Decoded<()>, SchedStatsError> {
    match answer {
        Answer::Agent(AgentAnswer::SchedulerReady {}) => Ok(Decoded { value: (), errno: 0 }),
        other => Err(unexpected(other, "scheduler_ready")),
    }
}

/// Returns what the guest's kernel says about sched_ext.
///
/// # Errors
///
/// [`SchedStatsError::MalformedResponse`].
pub fn sched_ext(answer: Answer<'_>) -> Result<Decoded<SchedExt>, SchedStatsError> {
    match answer {
        Answer::Agent(AgentAnswer::SchedExt(said)) => Ok(Decoded { value: said.clone(), errno: 0 }),
        other => Err(unexpected(other, "sched_ext")),
    }
}

/// Expects no answer but that the session is open.
///
/// # Errors
///
/// [`SchedStatsError::MalformedResponse`].
pub fn opened(answer: Answer<'_>) -> Result<Decoded<()>, SchedStatsError> {
    match answer {
        Answer::Opened => Ok(Decoded { value: (), errno: 0 }),
        other => Err(unexpected(other, "nothing")),
    }
}

fn scheduler(answer: Answer<'_>) -> Result<&str, SchedStatsError> {
    match answer {
        // Also of what is skipped or passed on, which a later reader may build.
        Answer::Scheduler(line) if nests_deeper_than(line, MAX_JSON_DEPTH) => Err(SchedStatsError::malformed(format!(
            "the scheduler's line nests more than {MAX_JSON_DEPTH} levels deep"
        ))),
        Answer::Scheduler(line) => std::str::from_utf8(line)
            .map_err(|error| SchedStatsError::malformed(format!("the scheduler's line is not UTF-8: {error}"))),
        other => Err(unexpected(other, "stats")),
    }
}

/// Returns the error of an answer of another kind than the one that was requested.
fn unexpected(answer: Answer<'_>, expected: &str) -> SchedStatsError {
    let sent = match answer {
        Answer::Scheduler(_) => "stats",
        Answer::Agent(AgentAnswer::SchedulerReady {}) => "scheduler_ready",
        Answer::Agent(AgentAnswer::SchedExt(_)) => "sched_ext",
        Answer::Opened => "nothing",
    };
    SchedStatsError::malformed(format!("the agent sent {sent} instead of {expected}"))
}

/// Parses the whole line as one object.
fn parse<'de, T: Deserialize<'de>>(line: &'de str) -> Result<T, SchedStatsError> {
    if !line.trim_ascii_start().starts_with('{') {
        return Err(SchedStatsError::malformed("the scheduler's line is not a JSON object"));
    }
    serde_json::from_str(line)
        .map_err(|error| SchedStatsError::malformed(format!("cannot parse the scheduler's line: {error}")))
}

/// Returns why an answer has no `resp` to decode, or `otherwise` where it has one.
fn without_resp(line: &str, otherwise: SchedStatsError) -> SchedStatsError {
    match parse::<StatsResponse>(line) {
        Ok(StatsResponse { errno: 0, args }) if args.get("resp").is_some() => otherwise,
        Ok(StatsResponse { errno: 0, args }) => SchedStatsError::MissingResp { args },
        Ok(StatsResponse { errno, args }) => SchedStatsError::SchedulerError { errno, args },
        Err(error) => error,
    }
}

/// An answer of which only the errno is kept.
#[derive(Deserialize)]
struct Outline {
    #[serde(default)]
    errno: i32,
}

/// An answer with stats.
#[derive(Deserialize)]
#[serde(bound = "T: DeserializeOwned")]
struct Reply<T> {
    #[serde(default)]
    errno: i32,
    args: Args<T>,
}

/// The `args` of an answer with stats. Implemented by hand, since a derived `Deserialize` takes an array for an object,
/// and an absent `resp` for one that is null.
struct Args<T> {
    resp: T,
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Args<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ArgsVisitor(PhantomData))
    }
}

struct ArgsVisitor<T>(PhantomData<T>);

impl<'de, T: DeserializeOwned> Visitor<'de> for ArgsVisitor<T> {
    type Value = Args<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with resp")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Args<T>, A::Error> {
        let mut resp = None;
        while let Some(key) = map.next_key::<Key>()? {
            match key {
                Key::Resp if resp.is_some() => return Err(serde::de::Error::duplicate_field("resp")),
                Key::Resp => resp = Some(map.next_value()?),
                Key::Other => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        resp.map(|resp| Args { resp }).ok_or_else(|| serde::de::Error::missing_field("resp"))
    }
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Key {
    Resp,
    #[serde(other)]
    Other,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn decoded<T: DeserializeOwned>(line: &str) -> Result<T, SchedStatsError> {
        resp(Answer::Scheduler(line.as_bytes())).map(|decoded| decoded.value)
    }

    fn kind<T>(result: Result<T, SchedStatsError>) -> &'static str {
        result.map_or_else(|error| error.kind(), |_| "none")
    }

    #[test]
    fn resp_may_be_at_any_place() {
        for line in [
            r#"{"errno":0,"args":{"resp":[1,2]}}"#,
            r#"{"args":{"resp":[1,2]},"errno":0}"#,
            r#" {"args":{"more":{"resp":3},"resp":[1,2]},"took_us":4} "#,
        ] {
            assert_eq!(decoded::<Vec<u8>>(line), Ok(vec![1, 2]), "{line}");
            assert_eq!(decoded::<Value>(line), Ok(json!([1, 2])), "{line}");
        }
    }

    #[test]
    fn a_null_resp_is_not_missing() {
        assert_eq!(decoded::<Option<u8>>(r#"{"args":{"resp":null}}"#), Ok(None));
        assert_eq!(decoded::<Value>(r#"{"args":{"resp":null}}"#), Ok(Value::Null));
        assert_eq!(
            decoded::<Option<u8>>(r#"{"errno":0,"args":{"other":1}}"#),
            Err(SchedStatsError::MissingResp { args: json!({ "other": 1 }) })
        );
        assert_eq!(decoded::<Value>("{}"), Err(SchedStatsError::MissingResp { args: Value::Null }));
        assert_eq!(decoded::<Value>(r#"{"args":[5]}"#), Err(SchedStatsError::MissingResp { args: json!([5]) }));
    }

    #[test]
    fn a_schedulers_error_keeps_its_args() {
        let expected = || SchedStatsError::SchedulerError { errno: 22, args: json!({ "resp": "bad target" }) };
        assert_eq!(decoded::<u8>(r#"{"errno":22,"args":{"resp":"bad target"}}"#), Err(expected()));
        assert_eq!(decoded::<u8>(r#"{"args":{"resp":"bad target"},"errno":22}"#), Err(expected()));
        assert_eq!(decoded::<String>(r#"{"errno":22,"args":{"resp":"bad target"}}"#), Err(expected()));
        assert_eq!(
            decoded::<Value>(r#"{"errno":-5}"#),
            Err(SchedStatsError::SchedulerError { errno: -5, args: Value::Null })
        );
    }

    #[test]
    fn a_resp_of_another_type_says_where() {
        let error = decoded::<Vec<u8>>(r#"{"errno":0,"args":{"resp":[1,"x"]}}"#).unwrap_err();
        assert_eq!(error.kind(), "malformed_response");
        assert!(error.to_string().contains("invalid type: string \"x\", expected u8 at line 1 column 32"), "{error}");
    }

    #[test]
    fn only_one_object_is_an_answer() {
        let deep = format!(r#"{{"errno":0,"args":{{"resp":{}{}}}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        let open = "[".repeat(100_000);
        for line in [
            "",
            " ",
            "null",
            "7",
            r#"[0,{"resp":1}]"#,
            r#"{"args":{"resp":1}}x"#,
            r#"{"args":{"resp":1}}{}"#,
            r#"{"args":{"resp":1}},"x":{}"#,
            r#"{"args":{"resp":1}"#,
            r#"{"errno":"0","args":{"resp":1}}"#,
            r#"{"errno":4294967296,"args":{"resp":1}}"#,
            r#"{"errno":0,"errno":0,"args":{"resp":1}}"#,
            "{\"args\":{\"resp\":1\0}}",
            "{\"args\":{\"resp\":\"a\0\"}}",
            &open,
            &deep,
        ] {
            let shown = line.get(..60).unwrap_or(line);
            let answer = Answer::Scheduler(line.as_bytes());
            assert_eq!(kind(decoded::<Value>(line)), "malformed_response", "{shown}");
            assert_eq!(kind(decoded::<u64>(line)), "malformed_response", "{shown}");
            assert_eq!(kind(response(answer)), "malformed_response", "{shown}");
            assert_eq!(kind(raw(answer)), "malformed_response", "{shown}");
        }
        let answer = Answer::Scheduler(b"{\"args\":{\"resp\":\"\xff\"}}");
        assert_eq!(kind(raw(answer)), "malformed_response");
        assert_eq!(kind(resp::<Value>(answer)), "malformed_response");
    }

    #[test]
    fn an_answer_nests_at_most_96_levels_deep() {
        #[derive(Debug, PartialEq, Deserialize)]
        struct One {
            a: u8,
        }
        for (depth, expected) in [(96, "none"), (97, "malformed_response"), (100_000, "malformed_response")] {
            let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
            let built = format!(r#"{{"errno":0,"args":{{"resp":{}}}}}"#, nested(depth - 2));
            let skipped = format!(r#"{{"args":{{"resp":{{"b":{},"a":1}}}}}}"#, nested(depth - 3));
            let before_it = format!(r#"{{"args":{{"b":{},"resp":{{"a":1}}}}}}"#, nested(depth - 2));
            assert_eq!(kind(decoded::<Value>(&built)), expected, "{depth}");
            assert_eq!(kind(raw(Answer::Scheduler(built.as_bytes()))), expected, "{depth}");
            assert_eq!(kind(response(Answer::Scheduler(built.as_bytes()))), expected, "{depth}");
            assert_eq!(kind(decoded::<One>(&skipped)), expected, "{depth}");
            assert_eq!(kind(decoded::<One>(&before_it)), expected, "{depth}");
            let refused = format!(r#"{{"errno":22,"args":{}}}"#, nested(depth - 1));
            let refusal = if expected == "none" { "scheduler_error" } else { expected };
            assert_eq!(kind(decoded::<Value>(&refused)), refusal, "{depth}");
        }
    }

    #[test]
    fn a_line_is_passed_on_byte_for_byte() {
        let line = br#" { "errno" : 0 , "args":{"resp":1.0e2} , "later":[] }"#;
        assert_eq!(raw(Answer::Scheduler(line)), Ok(Decoded { value: line.to_vec(), errno: 0 }));
        let refused = br#"{"errno":22,"args":{"resp":"no"}}"#;
        assert_eq!(raw(Answer::Scheduler(refused)), Ok(Decoded { value: refused.to_vec(), errno: 22 }));
    }

    #[test]
    fn an_answer_to_another_request_is_malformed() {
        let is_ready = Answer::Agent(&AgentAnswer::SchedulerReady {});
        assert_eq!(kind(raw(is_ready)), "malformed_response");
        assert_eq!(kind(response(is_ready)), "malformed_response");
        assert_eq!(kind(ready(Answer::Scheduler(b"{}"))), "malformed_response");
        assert_eq!(ready(is_ready), Ok(Decoded { value: (), errno: 0 }));
        assert_eq!(kind(opened(is_ready)), "malformed_response");
        let said = AgentAnswer::SchedExt(SchedExt { uptime_us: 7, ..SchedExt::default() });
        assert_eq!(kind(ready(Answer::Agent(&said))), "malformed_response");
        assert_eq!(kind(sched_ext(is_ready)), "malformed_response");
        assert_eq!(sched_ext(Answer::Agent(&said)).map(|said| said.value.uptime_us), Ok(7));
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 40, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                proptest::collection::btree_map(".{0,4}", inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_resp_comes_back_as_serde_json_reads_it(value in json_value()) {
            let line = json!({ "errno": 0, "args": { "resp": value } }).to_string();
            let reread: Value = serde_json::from_str(&line).unwrap();
            prop_assert_eq!(decoded::<Value>(&line), Ok(reread["args"]["resp"].clone()));
            let answer = Answer::Scheduler(line.as_bytes());
            prop_assert_eq!(response(answer).map(|decoded| decoded.value.args), Ok(reread["args"].clone()));
            prop_assert_eq!(raw(answer).map(|decoded| decoded.value), Ok(line.clone().into_bytes()));
        }
    }
}
