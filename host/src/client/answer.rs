//! Decoding a scheduler's answer: exactly one JSON object, of bounded depth, in one pass.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::session::Answer;
use crate::error::SchedStatsError;
use crate::request::StatsResponse;

/// Arrays and objects that may stand inside each other in a line that is passed on: serde_json's own limit for what it
/// builds. It does not hold for what serde_json skips, which costs no stack here, but may in whoever reads the line.
const MAX_DEPTH: usize = 127;

/// What was decoded, and the errno that came with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded<T> {
    /// The value.
    pub value: T,
    /// The answer's errno. The session of an answer with another errno than 0 carries no further request.
    pub errno: i32,
}

/// The scheduler's line as it came, once it is known to be one JSON object.
///
/// # Errors
///
/// [`SchedStatsError::MalformedResponse`].
pub fn raw(answer: Answer<'_>) -> Result<Decoded<Vec<u8>>, SchedStatsError> {
    let line = scheduler(answer)?;
    let Outline { errno } = parse(line)?;
    if is_deeper_than(line.as_bytes(), MAX_DEPTH) {
        return Err(SchedStatsError::malformed(format!(
            "the scheduler's line nests more than {MAX_DEPTH} levels deep"
        )));
    }
    Ok(Decoded { value: line.as_bytes().to_vec(), errno })
}

/// The scheduler's envelope, whatever its errno.
///
/// # Errors
///
/// [`SchedStatsError::MalformedResponse`].
pub fn response(answer: Answer<'_>) -> Result<Decoded<StatsResponse>, SchedStatsError> {
    let value: StatsResponse = parse(scheduler(answer)?)?;
    let errno = value.errno;
    Ok(Decoded { value, errno })
}

/// `args["resp"]` of an answer with errno 0, decoded straight from the line.
///
/// # Errors
///
/// [`SchedStatsError::SchedulerError`], [`SchedStatsError::MissingResp`], and
/// [`SchedStatsError::MalformedResponse`], also for a `resp` that is no `T`.
pub fn resp<T: DeserializeOwned>(answer: Answer<'_>) -> Result<Decoded<T>, SchedStatsError> {
    let line = scheduler(answer)?;
    match parse(line) {
        Ok(Reply { errno: 0, args: Args { resp } }) => Ok(Decoded { value: resp, errno: 0 }),
        // Only an answer without stats is looked at twice.
        Ok(Reply { .. }) => Err(without_resp(line, SchedStatsError::malformed("its errno is not 0"))),
        Err(error) => Err(without_resp(line, error)),
    }
}

/// Nothing but that the scheduler accepts connections.
///
/// # Errors
///
/// [`SchedStatsError::MalformedResponse`].
pub fn ready(answer: Answer<'_>) -> Result<Decoded<()>, SchedStatsError> {
    match answer {
        Answer::SchedulerReady => Ok(Decoded { value: (), errno: 0 }),
        Answer::Scheduler(_) => Err(SchedStatsError::malformed("stats, and the agent was asked for scheduler_ready")),
    }
}

fn scheduler(answer: Answer<'_>) -> Result<&str, SchedStatsError> {
    match answer {
        Answer::Scheduler(line) => std::str::from_utf8(line)
            .map_err(|error| SchedStatsError::malformed(format!("the scheduler's line is not UTF-8: {error}"))),
        Answer::SchedulerReady => Err(SchedStatsError::malformed("scheduler_ready, and the scheduler was asked")),
    }
}

/// Parses the whole line as one object.
fn parse<'de, T: Deserialize<'de>>(line: &'de str) -> Result<T, SchedStatsError> {
    if !line.trim_ascii_start().starts_with('{') {
        return Err(SchedStatsError::malformed("the scheduler's line is no JSON object"));
    }
    serde_json::from_str(line)
        .map_err(|error| SchedStatsError::malformed(format!("the scheduler's line is not understood: {error}")))
}

/// Whether more than `max` brackets are open anywhere. Says nothing about whether `json` is JSON.
fn is_deeper_than(json: &[u8], max: usize) -> bool {
    let mut depth = 0usize;
    let mut bytes = json.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => skip_string(&mut bytes),
            b'[' | b'{' if depth == max => return true,
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

fn skip_string(bytes: &mut std::slice::Iter<'_, u8>) {
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => return,
            b'\\' => {
                bytes.next();
            }
            _ => {}
        }
    }
}

/// Why an answer has no `resp` to decode, or `otherwise` where it has one.
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

/// The `args` of an answer with stats. By hand, since a derived form would take an array for an object, and an absent
/// `resp` for one that is null.
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
