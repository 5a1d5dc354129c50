//! `scx-vsock export --web.config.file` as a process: TLS and passwords, and those who abuse them.
#![allow(clippy::panic, clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use rustls::version::{TLS12, TLS13};
use scx_vsock::export::MAX_SCRAPERS;
use scx_vsock_tests::agent::Agent;
use scx_vsock_tests::exporter::{Exporter, Metrics};
use scx_vsock_tests::meta_scheduler::{meta, scheduler, stats};
use scx_vsock_tests::scripted_scheduler::ScriptedScheduler;
use scx_vsock_tests::tls_client::{get, pem};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// The header of alice, whose password is "secret", and of bob, who is nobody.
const ALICE: &str = "Authorization: Basic YWxpY2U6c2VjcmV0\r\nAccept: application/openmetrics-text\r\n";
const BOB: &str = "Authorization: Basic Ym9iOnNlY3JldA==\r\n";
const USERS: &str = "basic_auth_users:\n  alice: $2y$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW\n";
const TLS: &str = "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n";

/// A guest, and an exporter of it with a web configuration.
struct Served {
    exporter: Exporter,
    folder: TempDir,
    _agent: Agent,
    _scheduler: ScriptedScheduler,
}

impl Served {
    fn with(config: &str) -> Self {
        Self::of(scheduler(&meta(), &stats()), config)
    }

    fn of(scheduler: ScriptedScheduler, config: &str) -> Self {
        let agent = Agent::start();
        symlink(scheduler.path(), agent.scheduler_path(0)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        for name in ["server.crt", "server.key"] {
            fs::copy(pem(name), folder.path().join(name)).unwrap();
        }
        let mut command = export(&write_config(folder.path(), config));
        command.args(["--interval", "100ms"]).arg(format!("web=unix:{}", agent.host_path(0).display()));
        Self { exporter: Exporter::start(command), folder, _agent: agent, _scheduler: scheduler }
    }

    fn page(&self, certificate: &str) -> Metrics {
        let response = get(self.exporter.at(), certificate, ALICE, &[&TLS13]).unwrap();
        assert!(response.head.starts_with("HTTP/1.1 200 OK\r\n"), "{}", response.head);
        Metrics::parse(&response.body)
    }
}

/// The first line of the response to a scrape with these headers.
fn status(at: SocketAddr, headers: &str) -> String {
    get(at, "server.crt", headers, &[&TLS13]).unwrap().head.lines().next().unwrap().to_owned()
}

fn write_config(folder: &Path, config: &str) -> PathBuf {
    let path = folder.join("web.yml");
    fs::write(&path, config).unwrap();
    path
}

fn export(config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scx-vsock"));
    command.args(["export", "--web.config.file"]).arg(config);
    command
}

#[test]
fn only_those_who_know_the_password_scrape_under_tls() {
    let served = Served::with(&format!("{TLS}{USERS}"));
    assert!(served.page("server.crt").is_up("web"));
    let wrong = ALICE.replace("YWxpY2U6c2VjcmV0", "YWxpY2U6c2VjcmV1");
    for headers in ["", BOB, &wrong, "Authorization: Bearer x\r\n"] {
        assert_eq!(status(served.exporter.at(), headers), "HTTP/1.1 401 Unauthorized", "{headers}");
    }
    let denied = get(served.exporter.at(), "server.crt", "", &[&TLS12]).unwrap();
    assert!(denied.head.contains("\r\nWWW-Authenticate: Basic realm="), "{}", denied.head);
    assert!(get(served.exporter.at(), "other.crt", ALICE, &[&TLS13]).is_err(), "it is another server");
    // In the clear there is no answer, but an alert at most.
    let mut stream = served.exporter.connect();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _reset = stream.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    assert!(served.page("server.crt").is_up("web"));
}

#[test]
fn passwords_alone_are_possible() {
    let served = Served::with(USERS);
    let status = |headers: &str| {
        let response = scx_vsock_tests::exporter::get(served.exporter.at(), "/metrics", headers);
        response.head.lines().next().unwrap().to_owned()
    };
    assert_eq!(status(ALICE), "HTTP/1.1 200 OK");
    assert_eq!(status(BOB), "HTTP/1.1 401 Unauthorized");
}

#[test]
fn an_older_tls_than_the_least_is_refused() {
    let served = Served::with(&format!("{TLS}  min_version: TLS13\n"));
    assert!(get(served.exporter.at(), "server.crt", "", &[&TLS13]).is_ok());
    assert!(get(served.exporter.at(), "server.crt", "", &[&TLS12]).is_err());
}

#[test]
fn a_large_page_arrives_whole_under_tls() {
    let keys: Map<String, Value> = (0..1_900).map(|at| (format!("{at:0>120}"), json!(at))).collect();
    let meta = json!({ "T": { "top": true, "fields": { "d": { "dict": { "key": "string", "datum": "u64" } } } } });
    let served = Served::of(scheduler(&meta, &json!({ "d": keys })), &format!("{TLS}{USERS}"));
    assert!(served.page("server.crt").values.len() > 3_800);
}

/// Begins a handshake and sends no more.
fn stalled(exporter: &Exporter) -> TcpStream {
    let mut stream = exporter.connect();
    // The head of a record with a ClientHello, and a part of that.
    stream.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").unwrap();
    stream
}

#[test]
fn a_handshake_that_stalls_is_ended_and_keeps_nobody_out() {
    let served = Served::with(&format!("{TLS}{USERS}"));
    let mut first = stalled(&served.exporter);
    let mut ended = [0];
    match first.read(&mut ended) {
        Ok(0) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("{other:?}"),
    }
    let _stalled: Vec<TcpStream> = (0..MAX_SCRAPERS + 20).map(|_| stalled(&served.exporter)).collect();
    assert!(served.page("server.crt").is_up("web"));
}

#[test]
fn wrong_passwords_keep_nobody_out() {
    let served = Served::with(&format!("{TLS}{USERS}"));
    assert!(served.page("server.crt").is_up("web"));
    thread::scope(|scope| {
        for guess in 0..20 {
            let at = served.exporter.at();
            scope.spawn(move || {
                let headers = format!("Authorization: Basic YWxpY2U6c2Vjcm{:02}\r\n", guess + 10);
                let status = status(at, &headers);
                assert!(status == "HTTP/1.1 401 Unauthorized" || status.starts_with("HTTP/1.1 503 "), "{status}");
            });
        }
        for _ in 0..10 {
            assert!(served.page("server.crt").is_up("web"));
        }
    });
}

#[test]
fn passwords_from_one_host_keep_no_other_host_out() {
    // A check of a password takes long enough for many others to come.
    let served =
        Served::with("basic_auth_users:\n  alice: $2y$10$abcdefghijklmnopqrstuuqflPDzB6gcMhKa1rZqKiun2YGL5sa2u\n");
    let guess = |guess: usize| {
        let mut stream = served.exporter.connect_from([127, 0, 0, 2]);
        let _may_be_refused =
            write!(stream, "GET /metrics HTTP/1.0\r\nAuthorization: Basic YWxpY2U6c2Vjc{guess:03}\r\n\r\n");
        stream
    };
    let mut guesses: Vec<TcpStream> = (0..MAX_SCRAPERS).map(guess).collect();
    let mut honest = served.exporter.connect();
    write!(honest, "GET /metrics HTTP/1.0\r\n{ALICE}\r\n").unwrap();
    guesses.extend((MAX_SCRAPERS..2 * MAX_SCRAPERS).map(guess));
    let mut response = String::new();
    honest.read_to_string(&mut response).unwrap();
    assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response:?}");
}

#[test]
fn a_new_certificate_is_used_at_once() {
    let served = Served::with(&format!("{TLS}{USERS}"));
    assert!(served.page("server.crt").is_up("web"));
    for (name, file) in [("other.key", "server.key"), ("other.crt", "server.crt")] {
        let new = served.folder.path().join("new");
        fs::copy(pem(name), &new).unwrap();
        fs::rename(new, served.folder.path().join(file)).unwrap();
    }
    // The key alone does not fit.
    while !served.exporter.message().ends_with("web.yml again") {}
    assert!(served.page("other.crt").is_up("web"));
    fs::write(served.folder.path().join("web.yml"), "tls: {}\n").unwrap();
    let message = served.exporter.message();
    assert!(
        message.contains("unknown field `tls`") && message.ends_with("; the configuration stays as it was"),
        "{message}"
    );
    assert!(served.page("other.crt").is_up("web"));
}

#[test]
fn a_wrong_configuration_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for (config, expected) in [
        ("tls_server_config: {cert_file: nothing, key_file: nothing}", "nothing: No such file or directory"),
        ("rate_limit: {}", "unknown field `rate_limit`"),
    ] {
        let path = write_config(folder.path(), config);
        let output = export(&path).args(["unix:/x", "--listen", "127.0.0.1:0"]).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        let shown = format!("cannot use the web configuration {}: ", path.display());
        assert!(output.status.code() == Some(1) && stderr.contains(&shown) && stderr.contains(expected), "{stderr}");
    }
}
