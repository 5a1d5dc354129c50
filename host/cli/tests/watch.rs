//! `scx-vsock watch` on a terminal of its own.
#![allow(clippy::panic, clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::{array, iter};

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, getpid, kill_process, pidfd_open,
    set_child_subreaper, waitid,
};
use scx_vsock_tests::fake_agent::FakeAgent;
use scx_vsock_tests::program;
use scx_vsock_tests::scripted_scheduler::Script;
use scx_vsock_tests::terminal::Terminal;
use serde_json::{Value, json};

const ENTER: &str = "\u{1b}[?1049h\u{1b}[?25l\u{1b}[?7l\u{1b}[2J";
const LEAVE: &str = "\u{1b}[?7h\u{1b}[?25h\u{1b}[?1049l";

/// A shell script that runs a command on the terminal at stdin, and prints its process id and an empty line.
///
/// The script leads the terminal's session until it is killed, since the kernel discards what was not read of a terminal
/// when its session's leader ends. The command is no child of it any more at the empty line.
const ON_A_TERMINAL: &str = r#"trap '' INT TSTP; exec 3<&0
(env --default-signal "$@" <&3 >&3 3<&- & echo $!); echo; exec sleep 100"#;

/// A `watch` on a terminal.
struct Watch {
    leader: Child,
    id: Pid,
    terminal: Terminal,
}

impl Watch {
    fn start(columns: u16, lines: u16, arguments: &[&str]) -> Self {
        let terminal = Terminal::new(columns, lines);
        // What its parent leaves behind becomes a child of this process, which learns how it ends.
        set_child_subreaper(Some(getpid())).unwrap();
        let mut command = Command::new("setsid");
        command.args(["--ctty", "sh", "-c", ON_A_TERMINAL, "sh", env!("CARGO_BIN_EXE_scx-vsock"), "watch"]);
        command.args(arguments).env("TERM", "xterm").env_remove("NO_COLOR").stdin(terminal.stdio());
        let mut leader = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(leader.stdout.take().unwrap()).lines();
        let [id, empty] = array::from_fn(|_| lines.next().unwrap().unwrap());
        assert_eq!(empty, "");
        Self { leader, id: Pid::from_raw(id.parse().unwrap()).unwrap(), terminal }
    }

    fn wait_for(&mut self, text: &str) {
        self.terminal.wait_for(text);
    }

    fn press(&mut self, keys: &[u8]) {
        self.terminal.press(keys);
    }

    /// Waits for its end. The terminal must be as it was before. Returns what was printed after that, and on stderr.
    fn end(&mut self) -> (WaitIdStatus, String, String) {
        assert!(program::has_ended(&pidfd_open(self.id, PidfdFlags::empty()).unwrap()));
        let status = waitid(WaitId::Pid(self.id), WaitIdOptions::EXITED).unwrap().unwrap();
        assert!(!self.terminal.passes_keys());
        let printed = self.terminal.rest();
        assert_eq!(printed.matches(LEAVE).count(), 1, "{printed:?}");
        let after = printed.split(LEAVE).last().unwrap_or_default().to_owned();
        let mut errors = String::new();
        self.leader.kill().unwrap();
        self.leader.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        (status, after, errors)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _killed_before = self.leader.kill();
        self.leader.wait().unwrap();
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
    assert_eq!((status.exit_status(), errors.as_str()), (Some(0), ""));
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
            kill_process(watch.id, signal).unwrap();
        }
        let (status, after, errors) = watch.end();
        assert_eq!((status.terminating_signal(), errors.as_str()), (Some(signal.as_raw()), ""));
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
    assert!(status.exit_status() == Some(0) && after.contains("c\\u{2066}d"), "{after:?}");
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
    assert_eq!(watch.end().0.exit_status(), Some(0));
}

#[test]
fn a_narrow_terminal_shows_numbers() {
    let agent = numbers();
    let mut watch = Watch::start(20, 5, &[&uri(&agent), "--interval", "50ms"]);
    watch.wait_for("2000 nr_02");
    watch.wait_for("37 more fields");
    watch.press(b"Q");
    assert_eq!(watch.end().0.exit_status(), Some(0));
}

#[test]
fn a_stopped_watch_leaves_the_terminal_and_comes_back() {
    let agent = silent();
    let mut watch = Watch::start(80, 24, &[&uri(&agent), "--interval", "3600"]);
    watch.wait_for(ENTER);
    watch.press(b"\x1a");
    waitid(WaitId::Pid(watch.id), WaitIdOptions::STOPPED).unwrap().unwrap();
    watch.wait_for(LEAVE);
    assert!(!watch.terminal.passes_keys());
    kill_process(watch.id, Signal::CONT).unwrap();
    watch.wait_for(ENTER);
    assert!(watch.terminal.passes_keys());
    watch.press(b"q");
    assert_eq!(watch.end().0.exit_status(), Some(0));
}

#[test]
fn samples_without_stats_are_an_error() {
    let mut watch = Watch::start(80, 24, &["unix:/nowhere", "--interval", "10ms", "--samples", "2"]);
    let (status, after, errors) = watch.end();
    assert_eq!(status.exit_status(), Some(21));
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
