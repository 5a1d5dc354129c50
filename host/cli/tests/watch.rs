//! `scx-vsock watch` on a terminal of its own.
#![allow(clippy::panic, clippy::unwrap_used, reason = "tests")]

use std::io::Read;
use std::iter;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use scx_vsock_tests::fake_agent::FakeAgent;
use scx_vsock_tests::scripted_scheduler::Script;
use scx_vsock_tests::terminal::Terminal;
use serde_json::{Value, json};

const ENTER: &str = "\u{1b}[?1049h\u{1b}[?25l\u{1b}[?7l\u{1b}[2J";
const LEAVE: &str = "\u{1b}[?7h\u{1b}[?25h\u{1b}[?1049l";

/// A `watch` on a terminal.
struct Watch {
    child: Child,
    terminal: Terminal,
}

impl Watch {
    fn start(columns: u16, lines: u16, arguments: &[&str]) -> Self {
        let terminal = Terminal::new(columns, lines);
        // A session of its own, which the terminal controls, and the default action for every signal.
        let mut command = Command::new("setsid");
        command.args(["--ctty", "env", "--default-signal", env!("CARGO_BIN_EXE_scx-vsock"), "watch"]).args(arguments);
        command.env("TERM", "xterm").env_remove("NO_COLOR").stderr(Stdio::piped());
        let child = command.stdin(terminal.stdio()).stdout(terminal.stdio()).spawn().unwrap();
        Self { child, terminal }
    }

    fn wait_for(&mut self, text: &str) {
        self.terminal.wait_for(text);
    }

    fn press(&mut self, keys: &[u8]) {
        self.terminal.press(keys);
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Waits for its end. The terminal must be as it was before. Returns what was printed after that, and on stderr.
    fn end(mut self) -> (ExitStatus, String, String) {
        let status = self.child.wait().unwrap();
        assert!(!self.terminal.passes_keys());
        let printed = self.terminal.rest();
        assert_eq!(printed.matches(LEAVE).count(), 1, "{printed:?}");
        let after = printed.split(LEAVE).last().unwrap_or_default().to_owned();
        let mut errors = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        (status, after, errors)
    }
}

fn uri(agent: &FakeAgent) -> String {
    format!("unix:{}", agent.path().display())
}

/// An agent whose scheduler always sends 40 numbers.
fn numbers() -> FakeAgent {
    let stats: Value = (0..40).map(|n| (format!("nr_{n:02}"), json!(n * 1_000))).collect();
    let answer = json!({ "errno": 0, "args": { "resp": stats } }).to_string();
    FakeAgent::start(iter::repeat(Script::agent().forever(Script::new().line().stats(answer))))
}

/// An agent that never answers.
fn silent() -> FakeAgent {
    FakeAgent::start(iter::repeat(Script::agent()))
}

#[test]
fn q_quits_and_restores_the_terminal() {
    let agent = numbers();
    let mut watch = Watch::start(80, 24, &[&uri(&agent), "--interval", "50ms"]);
    watch.wait_for(ENTER);
    assert!(watch.terminal.passes_keys());
    watch.wait_for("18 more fields");
    watch.press(b"xq");
    let (status, after, errors) = watch.end();
    assert_eq!((status.code(), errors.as_str()), (Some(0), ""));
    // The last table stays, on one line less for the shell's prompt.
    assert!(after.contains("nr_20") && after.contains("19 more fields"), "{after:?}");
}

#[test]
fn a_signal_restores_the_terminal_and_ends_it() {
    let agent = silent();
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let mut watch = Watch::start(80, 24, &[&uri(&agent), "--interval", "3600"]);
        watch.wait_for("waiting for the first sample");
        if signal == Signal::INT {
            watch.press(b"\x03");
        } else {
            kill_process(watch.pid(), signal).unwrap();
        }
        let (status, after, errors) = watch.end();
        assert_eq!((status.signal(), errors.as_str()), (Some(signal.as_raw()), ""));
        assert!(!after.contains("waiting"), "{after:?}");
    }
}

#[test]
fn a_guests_text_does_not_act_on_the_terminal() {
    let stats = json!({ "a\u{1b}[31m\u{202e}b": 1, "c\u{2066}d\n": 2, "e\u{9b}2Jf": 3 });
    let answer = json!({ "errno": 0, "args": { "resp": stats } }).to_string();
    let agent = FakeAgent::start(iter::repeat(Script::agent().forever(Script::new().line().stats(answer))));
    let mut watch = Watch::start(80, 24, &[&uri(&agent), "--interval", "50ms", "--samples", "3"]);
    watch.wait_for(ENTER);
    let (status, after, _) = watch.end();
    assert!(status.success() && after.contains("c\\u{2066}d"), "{after:?}");
    assert!(!after.contains("\u{1b}[31m") && !after.contains(['\u{202e}', '\u{2066}', '\u{9b}']), "{after:?}");
}

#[test]
fn another_size_is_an_event() {
    // No sample comes meanwhile.
    let agent = silent();
    let mut watch = Watch::start(200, 60, &[&uri(&agent), "--interval", "3600"]);
    watch.wait_for("waiting for the first sample");
    watch.terminal.resize(20, 5);
    watch.wait_for("\u{1b}[2J\u{1b}[H\u{1b}[2K");
    watch.wait_for("…");
    watch.terminal.resize(200, 60);
    watch.wait_for("waiting for the first sample");
    watch.press(b"q");
    assert!(watch.end().0.success());
}

#[test]
fn a_narrow_terminal_shows_numbers() {
    let agent = numbers();
    let mut watch = Watch::start(20, 5, &[&uri(&agent), "--interval", "50ms"]);
    watch.wait_for("2000 nr_02");
    watch.wait_for("37 more fields");
    watch.press(b"Q");
    assert!(watch.end().0.success());
}

#[test]
fn a_stopped_watch_leaves_the_terminal_and_comes_back() {
    let agent = silent();
    let mut watch = Watch::start(80, 24, &[&uri(&agent), "--interval", "3600"]);
    watch.wait_for(ENTER);
    watch.press(b"\x1a");
    waitid(WaitId::Pid(watch.pid()), WaitIdOptions::STOPPED).unwrap().unwrap();
    watch.wait_for(LEAVE);
    assert!(!watch.terminal.passes_keys());
    kill_process(watch.pid(), Signal::CONT).unwrap();
    watch.wait_for(ENTER);
    assert!(watch.terminal.passes_keys());
    watch.press(b"q");
    assert!(watch.end().0.success());
}

#[test]
fn samples_without_stats_are_an_error() {
    let watch = Watch::start(80, 24, &["unix:/nowhere", "--interval", "10ms", "--samples", "2"]);
    let (status, after, errors) = watch.end();
    assert_eq!(status.code(), Some(21));
    assert!(errors.starts_with("scx-vsock: no sample had stats: no agent to talk to: unix:/nowhere"), "{errors}");
    assert!(after.contains("no stats: no agent to talk to"), "{after:?}");
}

#[test]
fn stdin_need_not_be_a_terminal() {
    let agent = numbers();
    let line = format!("{} watch {} --interval 50ms --samples 2", env!("CARGO_BIN_EXE_scx-vsock"), uri(&agent));
    // A terminal of its own, from util-linux, whose input ends at once.
    let mut command = Command::new("script");
    command.args(["-qec", &format!("{line} </dev/null"), "/dev/null"]).env("TERM", "xterm").stdin(Stdio::null());
    let output = command.output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && printed.contains("nr_20"), "{printed:?}");
}
