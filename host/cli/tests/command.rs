//! The command's frame: help, completions, man pages, and what is said about wrong words.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};

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
fn wrong_words_are_told_in_one_line_with_the_help_that_mends_it() {
    for (arguments, said) in [
        (&["bot"][..], "unrecognized subcommand 'bot'; tip: a similar subcommand exists: 'boot'; see scx-vsock --help"),
        (
            &["man", "--foler"],
            "unexpected argument '--foler' found; tip: a similar argument exists: '--folder'; see scx-vsock man --help",
        ),
        (&["completions", "tcsh"], "invalid value 'tcsh' for '<SHELL>'; [possible values: bash, elvish, fish"),
        (&["man", "page"], "unexpected argument 'page' found; see scx-vsock man --help"),
    ] {
        let output = scx_vsock(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.starts_with(&format!("scx-vsock: {said}")), "{arguments:?}: {stderr}");
        assert_eq!((stderr.lines().count(), output.status.code()), (1, Some(2)), "{arguments:?}: {stderr}");
    }
}

#[test]
fn without_a_verb_the_help_is_printed() {
    let output = scx_vsock(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("Commands:\n"));
}

#[test]
fn every_verb_has_examples_and_the_help_has_the_exit_codes() {
    assert!(printed(&["--help"]).contains("   19  timed_out "));
    for verb in verbs() {
        assert!(printed(&[&verb, "--help"]).contains("Examples:\n  scx-vsock "), "{verb}");
    }
}

#[test]
fn completions_are_scripts_that_know_every_verb() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = printed(&["completions", shell]);
        assert!(verbs().iter().all(|verb| script.contains(verb)), "{shell}");
    }
    let mut bash = Command::new("bash").args(["-n"]).stdin(Stdio::piped()).spawn().unwrap();
    bash.stdin.take().unwrap().write_all(printed(&["completions", "bash"]).as_bytes()).unwrap();
    assert!(bash.wait().unwrap().success());
}

#[test]
fn each_verb_has_a_man_page_and_all_say_what_exit_codes_mean() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(printed(&["man", "--folder", folder.path().to_str().unwrap()]), "");
    let page = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    assert_eq!(page("scx-vsock.1"), printed(&["man"]));
    let others = ["scx-vsock.1", "scx-vsock-image-add.1"].map(str::to_owned);
    for name in verbs().iter().map(|verb| format!("scx-vsock-{verb}.1")).chain(others) {
        let page = page(&name);
        assert!(page.contains(".SH \"EXIT STATUS\"\n.TP\n\\fB0 (success)\\fR"), "{name}");
        assert_eq!(page.matches("timed_out").count(), 1, "{name}");
    }
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let output = scx_vsock(&["man", "--folder", "/nowhere"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        stderr,
        "scx-vsock: cannot write /nowhere/scx-vsock.1 (name a folder that is there): No such file or directory (os error 2)\n"
    );
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
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
