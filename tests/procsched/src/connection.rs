//! One connection: reads request lines, writes answer lines, and keeps a baseline for each target.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::counters::{Counters, Load};
use crate::meta;

/// The errno of a reply to a request that is not understood.
const EINVAL: i32 = 22;

#[derive(Deserialize)]
struct Request {
    req: String,
    #[serde(default)]
    args: BTreeMap<String, String>,
}

/// A reply, in the field order of real servers.
#[derive(Serialize)]
struct Reply {
    errno: i32,
    args: Args,
}

#[derive(Serialize)]
struct Args {
    resp: Value,
}

/// The counters of a connection's last read of one target.
struct Baseline {
    counters: Counters,
    at: Instant,
}

/// Answers the requests of `stream` until it ends.
pub fn serve(stream: &UnixStream) -> io::Result<()> {
    let mut requests = BufReader::new(stream);
    let mut answers = stream;
    let mut baselines = BTreeMap::new();
    let mut line = Vec::new();
    while requests.read_until(b'\n', &mut line)? > 0 {
        let Ok(request) = std::str::from_utf8(&line) else { return Ok(()) };
        let mut reply = serde_json::to_vec(&reply(request, &mut baselines))?;
        reply.push(b'\n');
        answers.write_all(&reply)?;
        line.clear();
    }
    Ok(())
}

fn reply(request: &str, baselines: &mut BTreeMap<String, Baseline>) -> Reply {
    let (errno, resp) = match execute(request, baselines) {
        Ok(resp) => (0, resp),
        Err(reason) => (EINVAL, Value::String(reason)),
    };
    Reply { errno, args: Args { resp } }
}

fn execute(request: &str, baselines: &mut BTreeMap<String, Baseline>) -> Result<Value, String> {
    let Request { req, args } = serde_json::from_str(request).map_err(|error| error.to_string())?;
    match req.as_str() {
        "stats" => stats(args.get("target").map_or("top", String::as_str), baselines),
        "stats_meta" => Ok(meta::structs()),
        _ => Err(format!("unknown command {req:?}")),
    }
}

fn stats(target: &str, baselines: &mut BTreeMap<String, Baseline>) -> Result<Value, String> {
    if !matches!(target, "top" | "cpu") {
        return Err(format!("unknown stat target {target:?}"));
    }
    let read = || Counters::read().map_err(|error| error.to_string());
    // A server opens a target's state at the first read, so the first sample spans almost no time.
    let before = match baselines.remove(target) {
        Some(before) => before,
        None => Baseline { counters: read()?, at: Instant::now() },
    };
    let now = Baseline { counters: read()?, at: Instant::now() };
    let delta = now.counters.since(&before.counters);
    let elapsed_ms = now.at.duration_since(before.at).as_millis();
    let resp = match target {
        "top" => json!({
            "elapsed_ms": u64::try_from(elapsed_ms).unwrap_or(u64::MAX),
            "totals": now.counters,
            "delta": delta,
            "load": Load::read().map_err(|error| error.to_string())?,
        }),
        _ => json!({ "total": now.counters.cpu, "delta": delta.cpu }),
    };
    baselines.insert(target.to_owned(), now);
    Ok(resp)
}
