//! The stand-in scheduler as a process: it behaves as scx_stats servers do, and serves the machine's own counters.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a helper of a test that fails is a test that fails"
)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use scx_vsock_tests::peer::Peer;
use scx_vsock_tests::program;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The running program. Killed on drop.
struct Procsched {
    child: Child,
    socket: PathBuf,
}

impl Procsched {
    /// Starts the program and waits for its line that it listens.
    fn start(socket: &Path) -> Self {
        let mut child = Command::new(program::built("procsched"))
            .arg("--socket")
            .arg(socket)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, format!("procsched: listening on {}\n", socket.display()));
        Self { child, socket: socket.to_owned() }
    }

    fn connect(&self) -> Peer {
        Peer::connect(&self.socket)
    }
}

impl Drop for Procsched {
    fn drop(&mut self) {
        let _may_have_ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn start_procsched() -> (TempDir, Procsched) {
    let folder = tempfile::tempdir().unwrap();
    let procsched = Procsched::start(&folder.path().join("scx/root/stats"));
    (folder, procsched)
}

fn ask(peer: &mut Peer, request: impl AsRef<[u8]>) -> Value {
    peer.send([request.as_ref(), b"\n"].concat());
    serde_json::from_slice(&peer.line()).unwrap()
}

fn stats(peer: &mut Peer) -> Value {
    let answer = ask(peer, r#"{"req":"stats"}"#);
    assert_eq!(answer["errno"], 0);
    answer["args"]["resp"].clone()
}

/// Returns the numbers of a line of `/proc/stat`.
fn proc_stat(name: &str) -> Vec<u64> {
    let text = fs::read_to_string("/proc/stat").unwrap();
    let line = text.lines().find(|line| line.split(' ').next() == Some(name)).unwrap();
    line.split_ascii_whitespace().skip(1).map(|word| word.parse().unwrap()).collect()
}

#[test]
fn totals_are_the_machines_own() {
    let (_folder, procsched) = start_procsched();
    let mut peer = procsched.connect();
    let before = (proc_stat("cpu"), proc_stat("ctxt"), proc_stat("processes"));
    let totals = stats(&mut peer)["totals"].clone();
    let after = (proc_stat("cpu"), proc_stat("ctxt"), proc_stat("processes"));
    // Idle and iowait may go back a little; the others only grow.
    for (at, field) in [(0, "user"), (1, "nice"), (2, "system"), (5, "irq"), (6, "softirq"), (7, "steal")] {
        let value = totals["cpu"][field].as_u64().unwrap();
        assert!((before.0[at]..=after.0[at]).contains(&value), "{field}: {value}");
    }
    assert!((before.1[0]..=after.1[0]).contains(&totals["ctxt"].as_u64().unwrap()));
    assert!((before.2[0]..=after.2[0]).contains(&totals["processes"].as_u64().unwrap()));
    let cpus = fs::read_to_string("/proc/stat").unwrap().lines().filter(|line| line.starts_with("cpu")).count() - 1;
    assert_eq!(totals["cpus"].as_object().unwrap().len(), cpus);
}

#[test]
fn deltas_span_one_connections_reads() {
    let (_folder, procsched) = start_procsched();
    let mut peer = procsched.connect();
    let first = stats(&mut peer);
    let mut other = procsched.connect();
    stats(&mut other);
    let second = stats(&mut peer);
    let difference = second["totals"]["ctxt"].as_u64().unwrap() - first["totals"]["ctxt"].as_u64().unwrap();
    assert_eq!(second["delta"]["ctxt"].as_u64().unwrap(), difference);
    assert!(difference > 0, "this test itself switches contexts");
}

#[test]
fn each_target_has_its_own_baseline() {
    let (_folder, procsched) = start_procsched();
    let mut peer = procsched.connect();
    let first = stats(&mut peer);
    let cpu = ask(&mut peer, r#"{"req":"stats","args":{"target":"cpu"}}"#);
    assert_eq!(cpu["errno"], 0);
    let second = stats(&mut peer);
    let user = |sample: &Value| sample["totals"]["cpu"]["user"].as_u64().unwrap();
    assert_eq!(second["delta"]["cpu"]["user"].as_u64().unwrap(), user(&second) - user(&first));
}

#[test]
fn a_bad_request_is_errno_22_and_the_connection_goes_on() {
    let (_folder, procsched) = start_procsched();
    let mut peer = procsched.connect();
    for line in [
        "not json",
        "",
        "\0",
        r#"{"req":"stop"}"#,
        r#"{"req":"stats","args":{"target":"nothing"}}"#,
        r#"{"req":"stats","args":{"target":1}}"#,
    ] {
        let answer = ask(&mut peer, line);
        assert_eq!(answer["errno"], 22, "{line:?}");
        assert!(answer["args"]["resp"].is_string());
    }
    stats(&mut peer);
}

#[test]
fn invalid_utf_8_closes_without_an_answer() {
    let (_folder, procsched) = start_procsched();
    let mut peer = procsched.connect();
    peer.send(b"\xff\n");
    peer.expect_end();
    stats(&mut procsched.connect());
}

#[test]
fn pipelined_and_unterminated_requests_are_answered_in_order() {
    let (_folder, procsched) = start_procsched();
    let mut peer = procsched.connect();
    peer.send("{\"req\":\"stats_meta\"}\nbad\n{\"req\":\"stats\"}");
    peer.stream().shutdown(Shutdown::Write).unwrap();
    let answers: Vec<Value> = (0..3).map(|_| serde_json::from_slice(&peer.line()).unwrap()).collect();
    assert!(answers[0]["args"]["resp"]["Top"].is_object());
    assert_eq!(answers[1]["errno"], 22);
    assert!(answers[2]["args"]["resp"]["totals"].is_object());
    peer.expect_end();
}

#[test]
fn a_stale_socket_refuses_and_is_replaced() {
    let (_folder, procsched) = start_procsched();
    let socket = procsched.socket.clone();
    drop(procsched);
    assert!(socket.exists());
    UnixStream::connect(&socket).unwrap_err();
    let again = Procsched::start(&socket);
    stats(&mut again.connect());
}

#[test]
fn stats_meta_describes_every_field() {
    let (_folder, procsched) = start_procsched();
    let mut peer = procsched.connect();
    let meta = ask(&mut peer, r#"{"req":"stats_meta"}"#)["args"]["resp"].clone();
    assert_eq!(meta["Top"]["top"], json!(true));
    let sample = stats(&mut peer);
    assert_described(&meta, "Top", &sample);
}

/// Checks a struct of an answer, and those inside it, against `stats_meta`.
fn assert_described(meta: &Value, name: &str, value: &Value) {
    let described = &meta[name];
    assert_eq!(described["name"], name);
    let fields = described["fields"].as_object().unwrap();
    let value = value.as_object().unwrap();
    assert_eq!(fields.keys().collect::<Vec<_>>(), value.keys().collect::<Vec<_>>(), "{name}");
    for (field, kind) in fields {
        assert!(kind["desc"].is_string(), "{name}.{field}");
        let value = &value[field];
        if let Some(of) = kind["dict"]["datum"]["struct"].as_str() {
            value.as_object().unwrap().values().for_each(|value| assert_described(meta, of, value));
        } else if let Some(of) = kind["datum"]["struct"].as_str() {
            assert_described(meta, of, value);
        } else {
            match kind["datum"].as_str() {
                Some("u64") => assert!(value.is_u64(), "{name}.{field}"),
                Some("float") => assert!(value.is_f64(), "{name}.{field}"),
                other => panic!("{name}.{field} is a {other:?}"),
            }
        }
    }
}
