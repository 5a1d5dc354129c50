//! The command line itself: help, completions, man pages and usage errors.
#![allow(clippy::panic, clippy::unwrap_used, reason = "tests")]

use std::fs::{self, File};
use std::io::Write;
use std::process::{Command, Output, Stdio};

use scx_vsock::endpoint::FORMS;

fn scx_vsock(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_scx-vsock")).args(arguments).output().unwrap()
}

fn printed(arguments: &[&str]) -> String {
    let output = scx_vsock(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The verbs that the help lists.
fn verbs() -> Vec<String> {
    let help = printed(&["--help"]);
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    list.map(|line| line.split_whitespace().next().unwrap().to_owned()).filter(|verb| verb != "help").collect()
}

#[test]
fn usage_errors_are_one_line_with_the_help() {
    for (arguments, message) in [
        (
            &["bot"][..],
            "unrecognized subcommand 'bot'; tip: a similar subcommand exists: 'boot'; try 'scx-vsock --help'",
        ),
        (
            &["man", "--foler"],
            "unexpected argument '--foler' found; tip: a similar argument exists: '--folder'; try 'scx-vsock man --help'",
        ),
        (
            &["stats", "vsock://3", "--deadline", "x"],
            "invalid value 'x' for '--deadline <TIME>': unknown unit \"x\"; use ms, s or m, as in 250ms; \
             try 'scx-vsock stats --help'",
        ),
        (&["stats"], "the following required arguments were not provided: <URI>; try 'scx-vsock stats --help'"),
        (
            &["image", "add", "base"],
            "the following required arguments were not provided: <OUT>; try 'scx-vsock image add --help'",
        ),
        (&["completions", "tcsh"], "invalid value 'tcsh' for '<SHELL>'; [possible values: bash, elvish, fish"),
        (&["man", "page"], "unexpected argument 'page' found; try 'scx-vsock man --help'"),
    ] {
        assert_usage_error(arguments, message);
    }
}

fn assert_usage_error(arguments: &[&str], message: &str) {
    let output = scx_vsock(arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.starts_with(&format!("scx-vsock: {message}")), "{arguments:?}: {stderr}");
    assert_eq!((stderr.lines().count(), output.status.code()), (1, Some(2)), "{arguments:?}: {stderr}");
}

#[test]
fn wrong_combinations_are_usage_errors() {
    for (arguments, message) in [
        (
            &["serve", "--socket", "a", "--socket", "b", "--cid", "3"][..],
            "--socket is given 2 times and --cid 1 times; give --cid for every guest or for none; \
             try 'scx-vsock serve --help'",
        ),
        (
            &["serve", "--socket", "a", "--hybrid", "b", "--hybrid", "c"],
            "--socket is given 1 times and --hybrid 2 times; give --hybrid for every guest or for none; \
             try 'scx-vsock serve --help'",
        ),
        (
            &["serve", "--socket", "a", "--socket", "a"],
            "a is given for two sockets; give each a path of its own; try 'scx-vsock serve --help'",
        ),
        (&["serve", "--socket", "a", "--hybrid", "a"], "a is given for two sockets; give each a path of its own"),
        (
            &["serve", "--socket", "a", "--socket", "a.hybrid", "--print-qemu-args"],
            "a.hybrid is given for two sockets; give each a path of its own",
        ),
        (
            &["export", "a=unix:/x", "a=unix:/y"],
            "two guests are named \"a\"; give each a name of its own, as in NAME=URI; try 'scx-vsock export --help'",
        ),
        (
            &["stats", "unix:/x", "--arg", "a=1", "--arg", "a=2"],
            "the argument a is given twice; a request has it once; try 'scx-vsock stats --help'",
        ),
        (&["stats", "unix:/x", "--target", "a", "--arg", "target=b"], "the argument target is given twice"),
        (
            &["boot", "--kernel", "k", "--samples", "3", "--", "true"],
            "the argument '--samples <N>' cannot be used with",
        ),
        (&["doctor", "unix:/x", "--kernel", "k"], "the argument '[URI]' cannot be used with '--kernel <FILE>'"),
        (&["meta", "unix:/x", "--fields", "--json"], "the argument '--fields' cannot be used with '--json'"),
    ] {
        assert_usage_error(arguments, message);
    }
}

#[test]
fn without_a_verb_the_help_is_printed() {
    let output = scx_vsock(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("Commands:\n"));
}

#[test]
fn help_explains_every_form_of_an_address() {
    let help = printed(&["--help"]);
    for form in FORMS.split([',', ' ']).filter(|word| word.contains(':')) {
        assert!(help.contains(&format!("\n  {form} ")), "{form}");
    }
}

#[test]
fn help_has_examples_and_exit_codes() {
    assert!(printed(&["--help"]).contains("   19  timed_out "));
    for verb in verbs() {
        let help = printed(&[&verb, "--help"]);
        let (_, examples) = help.split_once("\nExamples:\n  scx-vsock ").unwrap_or_else(|| panic!("{verb}: {help}"));
        // Each is a command line, not prose.
        let prose = |line: &&str| line.ends_with('.') || line.contains(" prints ");
        assert_eq!(examples.lines().find(prose), None, "{verb}");
    }
}

#[test]
fn completions_know_every_verb() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = printed(&["completions", shell]);
        assert!(verbs().iter().all(|verb| script.contains(verb)), "{shell}");
    }
    let mut bash = Command::new("bash").args(["-n"]).stdin(Stdio::piped()).spawn().unwrap();
    bash.stdin.take().unwrap().write_all(printed(&["completions", "bash"]).as_bytes()).unwrap();
    assert!(bash.wait().unwrap().success());
}

#[test]
fn every_verb_has_a_man_page() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(printed(&["man", "--folder", folder.path().to_str().unwrap()]), "");
    let page = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    assert_eq!(page("scx-vsock.1"), printed(&["man"]));
    let others = ["scx-vsock.1", "scx-vsock-image-add.1"].map(str::to_owned);
    for name in verbs().iter().map(|verb| format!("scx-vsock-{verb}.1")).chain(others) {
        let page = page(&name);
        assert!(page.contains(".SH \"EXIT STATUS\"\n.TP\n\\fB0 (success)\\fR"), "{name}");
        assert_eq!(page.matches("timed_out").count(), 1, "{name}");
        let footer = format!("\"scx-vsock {}\"", env!("CARGO_PKG_VERSION"));
        let title = page.lines().find(|line| line.starts_with(".TH ")).unwrap();
        assert!(title.replace("\\-", "-").contains(&footer), "{title}");
        assert!(!page.contains(".SH EXTRA"), "{name}");
        assert!(page.contains("\n.SH EXAMPLES\n.nf\n") || name == "scx-vsock.1", "{name}");
        for other in referenced(&page) {
            assert!(folder.path().join(format!("{other}.1")).exists(), "{name} references {other}(1)");
        }
    }
    for name in ["scx-vsock.1", "scx-vsock-boot.1", "scx-vsock-image-add.1"] {
        assert!(page(name).contains("\n.SH ENVIRONMENT\n.nf\nSCX_VSOCK_AGENT "), "{name}");
    }
    assert!(!page("scx-vsock-proxy.1").contains("ENVIRONMENT"));
    for (name, synopsis) in [
        (
            "scx-vsock-proxy.1",
            "scx-vsock proxy [OPTIONS] <URI> --socket <PATH>\n.br\nscx-vsock proxy [OPTIONS] <URI> -- <CMD>...",
        ),
        (
            "scx-vsock-boot.1",
            "scx-vsock boot [OPTIONS] --kernel <FILE>... [-- <CMD>...]\n.br\nscx-vsock boot [OPTIONS] --suite <FILE> [-- <CMD>...]",
        ),
    ] {
        let page = page(name).replace("\\-", "-");
        assert!(page.contains(&format!(".SH SYNOPSIS\n{synopsis}\n")), "{page}");
    }
    assert_eq!(referenced(&page("scx-vsock-image-add.1")), ["scx-vsock-image"]);
}

/// The pages of section 1 that a page references.
fn referenced(page: &str) -> Vec<String> {
    let page = page.replace("\\-", "-");
    let words = page.split(|character: char| character.is_whitespace() || character == ',');
    words.filter_map(|word| word.strip_suffix("(1)")).map(str::to_owned).collect()
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    for arguments in [&["--help"][..], &["--version"], &["stats", "--help"], &["man"], &["completions", "bash"]] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_scx-vsock")).args(arguments).stdout(full).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(
            output.status.code() == Some(1) && stderr.contains("No space left on device"),
            "{arguments:?}: {stderr}"
        );
    }
}

#[test]
fn messages_that_nobody_can_read_change_no_exit_code() {
    for (arguments, code) in [(&["bot"][..], 2), (&["stats", "unix:/nowhere"], 21)] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let status = Command::new(env!("CARGO_BIN_EXE_scx-vsock")).args(arguments).stderr(full).status().unwrap();
        assert_eq!(status.code(), Some(code), "{arguments:?}");
    }
}

#[test]
fn a_missing_folder_is_named() {
    let output = scx_vsock(&["man", "--folder", "/nowhere"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr, "scx-vsock: cannot write /nowhere/scx-vsock.1: No such file or directory (os error 2)\n");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_closed_pipe_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_scx-vsock"))
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}
