//! `scx-vsock stats`, `meta` and `watch` as processes, against scripted agents and schedulers.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};
use std::{io, iter};

use rustix::process::{Pid, Signal, kill_process};
use scx_vsock_tests::fake_agent::FakeAgent;
use scx_vsock_tests::program;
use scx_vsock_tests::scripted_scheduler::{Event, Script};
use scx_vsock_wire::RelayError;
use serde_json::{Value, json};

const OK: &str = r#"{"errno":0,"args":{"resp":{"nr":7,"cpus":{"0":{"util":1.5}}}}}"#;

fn scx_vsock(arguments: &[&str]) -> Command {
    let mut command = program::with_all_signals(env!("CARGO_BIN_EXE_scx-vsock"));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs a verb against an agent that plays these scripts.
fn run(verb: &str, options: &[&str], scripts: impl IntoIterator<Item = Script>) -> Output {
    let agent = FakeAgent::start(scripts.into_iter().collect::<Vec<_>>());
    let uri = format!("unix:{}", agent.path().display());
    scx_vsock(&[verb, &uri]).args(options).output().unwrap()
}

fn printed(output: &Output) -> &str {
    assert!(output.status.success(), "{}", message(output));
    std::str::from_utf8(&output.stdout).unwrap()
}

fn message(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

fn answering() -> Script {
    Script::agent().and(answering_line())
}

fn answering_line() -> Script {
    Script::new().line().stats(OK)
}

#[test]
fn stats_are_text_or_json() {
    let output = run("stats", &[], [answering()]);
    assert_eq!(printed(&output), "  nr                          7\n  cpus.0.util               1.5\n");
    let output = run("stats", &["--json"], [answering()]);
    let stats: Value = serde_json::from_str(printed(&output)).unwrap();
    assert_eq!(stats, json!({ "nr": 7, "cpus": { "0": { "util": 1.5 } } }));
}

#[test]
fn target_and_time_are_options() {
    let request = Script::new().expect(r#"{"req":"stats","args":{"target":"cpu"}}"#);
    let once = request.clone().stats(OK);
    run("stats", &["--target", "cpu"], [Script::agent().and(once.clone())]);
    let twice = Script::agent().and(once).and(request).stats(r#"{"args":{"resp":2}}"#);
    assert_eq!(printed(&run("stats", &["--target", "cpu", "--over", "1ms", "--json"], [twice])), "2\n");
}

#[test]
fn arguments_are_sent_with_the_request() {
    let request = Script::agent().expect(r#"{"req":"stats","args":{"nr_samples":"5","target":"top","text":"a=b"}}"#);
    let options = ["--arg", "nr_samples=5", "--target", "top", "--arg", "text=a=b"];
    printed(&run("stats", &options, [request.stats(OK)]));
    let output = scx_vsock(&["stats", "vsock://3", "--arg", "nr_samples"]).output().unwrap();
    let expected = "invalid value 'nr_samples' for '--arg <KEY=VALUE>': expected KEY=VALUE, as in nr_samples=5";
    assert!(message(&output).contains(expected), "{output:?}");
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn kernel_adds_what_the_kernel_says() {
    let said = json!({ "state": "disabled", "uptime_us": 9, "log": [{ "text": "sched_ext: off" }] });
    let output = run("stats", &["--kernel"], [Script::agent().line().stats(OK).sched_ext(&said)]);
    let text = printed(&output);
    assert!(text.contains("\nsched_ext\n  state              disabled\n"), "{text}");
    assert!(text.ends_with("  sched_ext: off\n"), "{text}");
    let without = RelayError::NoScheduler { errno: 2, sched_ext: "disabled", ops: "", cause: "" };
    let script = Script::agent().line().relay_error(without).sched_ext(&said);
    let output = run("stats", &["--kernel", "--json"], [script]);
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value, json!({ "stats": null, "kernel": said }));
    assert_eq!(output.status.code(), Some(11), "{}", message(&output));
    let older = Script::agent().line().stats(OK).line().relay_error(RelayError::UnknownVerb {});
    let output = run("stats", &["--kernel"], [older]);
    assert!(message(&output).contains("update the agent"), "{}", message(&output));
}

#[test]
fn wait_waits_for_the_scheduler() {
    let waited = Script::agent().wait_scheduler().ready().line().stats(OK);
    printed(&run("stats", &["--wait", "5"], [waited]));
}

#[test]
fn every_scheme_is_accepted() {
    let hybrid = FakeAgent::start([Script::new().expect("CONNECT 5").send("OK 1\n").and(answering())]);
    let plain = FakeAgent::start([Script::new().line().send(format!("{OK}\n"))]);
    for uri in [format!("hybrid:{}?port=5", hybrid.path().display()), format!("scx:{}", plain.path().display())] {
        printed(&scx_vsock(&["stats", &uri]).output().unwrap());
    }
}

#[test]
fn a_reason_is_one_line_and_an_exit_code() {
    let line = || Script::agent().line();
    let no_scheduler = RelayError::NoScheduler { errno: 2, sched_ext: "disabled", ops: "", cause: "" };
    let too_large = RelayError::ResponseTooLarge { size: 262_145, max: 262_144 };
    let cases = [
        (
            11,
            "no scheduler to ask: the stats socket does not exist; no scheduler is loaded",
            line().relay_error(no_scheduler),
        ),
        (14, "the scheduler answered with errno 22: no", line().stats(r#"{"errno":22,"args":{"resp":"no"}}"#)),
        (15, "the scheduler answered without args.resp", line().stats("{}")),
        (17, "the answer passed 262144 bytes", line().relay_error(too_large)),
        (19, "no answer within 500 ms", line()),
        (
            20,
            "the scheduler closed its connection",
            line().relay_error(RelayError::SchedulerGone { errno: 0, cause: "" }),
        ),
        (21, "no agent to talk to: unix:", Script::new().close()),
        (21, "no agent to talk to: unix:", Script::new()),
        (22, "all 8 sessions", Script::new().relay_error(RelayError::Busy { sessions: 8 })),
        (23, "the answer is not what the protocol allows", line().stats("no json")),
    ];
    for (code, expected, script) in cases {
        let output = run("stats", &["--deadline", "500ms"], [script]);
        let line = message(&output);
        assert!(line.starts_with(&format!("scx-vsock: {expected}")), "{line}");
        assert_eq!((output.status.code(), line.lines().count()), (Some(code), 1), "{line}");
        assert!(output.stdout.is_empty());
    }
    let long = "x".repeat(100_000);
    let output = run("stats", &["--target", &long, "--deadline", "5"], [answering()]);
    assert_eq!(output.status.code(), Some(0), "under the cap");
}

#[test]
fn a_wrong_uri_lists_the_forms() {
    let output = scx_vsock(&["stats", "/run/v.sock"]).output().unwrap();
    assert_eq!(
        message(&output),
        "scx-vsock: invalid value '/run/v.sock' for '<URI>': \"/run/v.sock\" is not the URI of an agent: it has no scheme; \
         write vsock://CID[:PORT], hybrid:PATH[?port=N], unix:PATH or scx:PATH; try 'scx-vsock stats --help'\n"
    );
    assert_eq!(output.status.code(), Some(2));
    let long = format!("unix:/{}", "x".repeat(107));
    let output = scx_vsock(&["stats", &long]).output().unwrap();
    assert!(message(&output).contains("the path has 108 bytes and a Unix socket's at most 107; choose a shorter one"));
    assert_eq!(output.status.code(), Some(21));
    let output = scx_vsock(&["stats", "scx:/nowhere/stats"]).output().unwrap();
    assert_eq!(
        message(&output),
        "scx-vsock: no scheduler to ask: scx:/nowhere/stats: the stats socket does not exist\n"
    );
    assert_eq!(output.status.code(), Some(11));
}

#[test]
fn styles_need_a_terminal_without_no_color() {
    // A terminal of its own, from util-linux.
    let on_a_terminal = |no_color: &str| {
        let agent = FakeAgent::start([answering()]);
        let line = format!("{} stats unix:{}", env!("CARGO_BIN_EXE_scx-vsock"), agent.path().display());
        let mut command = Command::new("script");
        command.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm").env("NO_COLOR", no_color).stdin(Stdio::null());
        let output = command.output().unwrap();
        printed(&output).contains('\u{1b}')
    };
    assert!(on_a_terminal(""));
    assert!(!on_a_terminal("1"));
    assert!(!printed(&run("stats", &[], [answering()])).contains('\u{1b}'));
}

#[test]
fn an_interrupt_ends_it_silently() {
    let agent = FakeAgent::start([Script::agent().line().stall()]);
    let uri = format!("unix:{}", agent.path().display());
    let mut command = scx_vsock(&["stats", &uri, "--deadline", "60"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    agent.wait_for(&Event::Stalled(0));
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.signal(), Some(2));
    assert!(output.stdout.is_empty() && output.stderr.is_empty());
    agent.release();
}

fn description() -> String {
    json!({ "errno": 0, "args": { "resp": {
        "Top": { "name": "Top", "desc": "the top", "top": "true", "fields": {
            "nr": { "datum": "u64", "desc": "a number" },
            "cpus": { "dict": { "key": "string", "datum": { "struct": "Cpu" } }, "desc": "each" } } },
        "Cpu": { "name": "Cpu", "fields": { "util": { "datum": "float", "desc": "in percent" } } },
    } } })
    .to_string()
}

#[test]
fn meta_is_a_tree_lines_or_json() {
    let describing = || [Script::agent().expect(r#"{"req":"stats_meta","args":{}}"#).stats(description())];
    let tree = "Top  the top\n  cpus    {string:Cpu}  each\n    util  float         in percent\n  nr      u64           a number\n";
    assert_eq!(printed(&run("meta", &[], describing())), tree);
    let lines = "cpus.*.util\tfloat\tin percent\nnr\tu64\ta number\n";
    assert_eq!(printed(&run("meta", &["--fields"], describing())), lines);
    let output = run("meta", &["--json"], describing());
    let json: Value = serde_json::from_str(printed(&output)).unwrap();
    assert_eq!(json["Cpu"]["fields"]["util"]["datum"], "float");
}

#[test]
fn a_malformed_meta_is_reported() {
    let output = run("meta", &[], [answering()]);
    assert!(message(&output).contains("stats_meta does not describe structs: invalid type"), "{output:?}");
    assert_eq!(output.status.code(), Some(23));
}

#[test]
fn watch_prints_json_lines_without_a_terminal() {
    let counting = || Script::agent().forever(Script::new().line().stats_number());
    let (first, second) = (FakeAgent::start([counting()]), FakeAgent::start([Script::new().close(), counting()]));
    let uris = [&first, &second].map(|agent| format!("unix:{}", agent.path().display()));
    let options = ["watch", &uris[0], &uris[1], "--interval", "500ms", "--samples", "3"];
    let output = scx_vsock(&options).output().unwrap();
    let samples = scx_vsock::SampleSeries::from_json_lines(printed(&output)).unwrap();
    for uri in &uris {
        let of = samples.samples().iter().filter(|sample| sample.tag == *uri);
        let numbers: Vec<u64> = of.filter_map(|sample| sample.stats.as_ref().ok()?.as_u64()).collect();
        assert!(numbers.len() >= 2 && numbers.windows(2).all(|pair| pair[0] < pair[1]), "{numbers:?}");
    }
    assert_eq!(samples.samples().len(), 6);
}

#[test]
fn watch_prints_the_named_fields_only() {
    let agent = FakeAgent::start([Script::agent().forever(answering_line())]);
    let uri = format!("unix:{}", agent.path().display());
    let fields = ["--field", "cpus.0.util", "--field", "nowhere"];
    let output = scx_vsock(&["watch", &uri, "--interval", "500ms", "--samples", "2"]).args(fields).output().unwrap();
    let samples = scx_vsock::SampleSeries::from_json_lines(printed(&output)).unwrap();
    assert_eq!(samples.samples().len(), 2);
    for sample in samples.samples() {
        assert_eq!(sample.stats.as_ref().unwrap(), &json!({ "cpus": { "0": { "util": 1.5 } } }));
    }
}

#[test]
fn watch_without_any_stats_is_an_error() {
    let options = ["watch", "unix:/nowhere", "--interval", "10ms", "--samples", "2"];
    let output = scx_vsock(&options).output().unwrap();
    assert_eq!(output.stdout.iter().filter(|byte| **byte == b'\n').count(), 2);
    assert!(message(&output).starts_with("scx-vsock: no sample had stats: no agent to talk to: unix:/nowhere"));
    assert_eq!(output.status.code(), Some(21));
    // One sample with stats is enough.
    let ends_at_once = Script::agent().and(answering_line()).line().close();
    let agent =
        FakeAgent::start(iter::once(ends_at_once).chain(iter::repeat(Script::agent().forever(answering_line()))));
    let uri = format!("unix:{}", agent.path().display());
    let output = scx_vsock(&["watch", &uri, "--interval", "500ms", "--samples", "2"]).output().unwrap();
    assert!(printed(&output).contains("\"Ok\""), "{output:?}");
}

/// Runs each verb that prints, with this stdout.
fn with_stdout(stdout: impl Fn() -> Stdio, check: impl Fn(&str, &Output)) {
    let agent = FakeAgent::start(iter::repeat(Script::agent().forever(Script::new().line().stats(description()))));
    let uri = format!("unix:{}", agent.path().display());
    for line in [
        "stats URI",
        "stats URI --json",
        "meta URI",
        "meta URI --fields",
        "meta URI --json",
        "watch URI --interval 500ms",
        "doctor URI",
        "doctor URI --json",
        "doctor --qemu /bin/true",
        "serve --socket /tmp/never-made --print-qemu-args",
    ] {
        let arguments: Vec<&str> = line.split(' ').map(|word| if word == "URI" { &uri } else { word }).collect();
        check(line, &scx_vsock(&arguments).stdout(stdout()).stderr(Stdio::piped()).output().unwrap());
    }
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let full = || File::options().write(true).open("/dev/full").unwrap().into();
    with_stdout(full, |line, output| {
        let expected = "scx-vsock: cannot write to stdout: No space left on device (os error 28)\n";
        assert_eq!((message(output), output.status.code()), (expected, Some(1)), "{line}");
    });
}

#[test]
fn a_reader_that_is_gone_ends_it_quietly() {
    let closed = || io::pipe().unwrap().1.into();
    with_stdout(closed, |line, output| {
        assert_eq!((message(output), output.status.code()), ("", Some(0)), "{line}");
    });
}

#[test]
fn the_path_of_a_uri_need_not_be_text() {
    let uri = |start: &str| OsString::from_vec([start.as_bytes(), b"/caf\xe9"].concat());
    for (arguments, start) in [
        (&["stats"][..], "unix:"),
        (&["meta"], "scx:"),
        (&["watch", "--samples", "1"], "unix:"),
        (&["doctor"], "hybrid:"),
        // No host has this address, so that export does not serve.
        (&["export", "--listen", "192.0.2.1:1"], "unix:"),
        (&["export", "--listen", "192.0.2.1:1"], "name=hybrid:"),
    ] {
        let output = scx_vsock(arguments).arg(uri(start)).output().unwrap();
        assert_ne!(output.status.code(), Some(2), "{arguments:?} {start}: {}", message(&output));
    }
}
