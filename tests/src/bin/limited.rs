//! Runs a program with a seccomp filter under which chosen system calls fail, as they do on a kernel without memory.
//!
//! ```text
//! limited CALL[:FIRST]=ERRNO[,...] PROGRAM [ARGUMENT]...
//! ```
//!
//! With FIRST, only calls with this first argument fail: `socket:40=1` is what containers do to AF_VSOCK.
#![allow(clippy::print_stderr, reason = "a program's messages")]

use std::collections::BTreeMap;
use std::error::Error;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
    apply_filter,
};

fn main() -> ExitCode {
    match run() {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("limited: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<std::convert::Infallible, Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let limits = arguments.next().ok_or("usage: limited CALL[:FIRST]=ERRNO[,...] PROGRAM [ARGUMENT]...")?;
    let program = arguments.next().ok_or("a program must follow")?;
    for limit in limits.to_str().ok_or("not text")?.split(',') {
        let (call, errno) = limit.split_once('=').ok_or("CALL=ERRNO")?;
        match call.split_once(':') {
            Some((call, first)) => forbid(number(call)?, vec![with_first(first.parse()?)?], errno.parse()?)?,
            None => forbid(number(call)?, vec![], errno.parse()?)?,
        }
    }
    Err(Command::new(program).args(arguments).exec().into())
}

/// Returns the number of a system call on x86_64, where these tests run.
fn number(call: &str) -> Result<i64, Box<dyn Error>> {
    Ok(match call {
        "socket" => 41,
        "connect" => 42,
        "epoll_ctl" => 233,
        "unshare" => 272,
        "accept4" => 288,
        _ => return Err(format!("{call:?} is not in this program's list").into()),
    })
}

/// Returns the rule that matches calls with this first argument.
fn with_first(argument: u64) -> Result<SeccompRule, Box<dyn Error>> {
    let is = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, argument)?;
    Ok(SeccompRule::new(vec![is])?)
}

/// Makes a system call fail with this errno from now on: always, or where one of the rules matches.
fn forbid(call: i64, rules: Vec<SeccompRule>, errno: u32) -> Result<(), Box<dyn Error>> {
    let fails = SeccompAction::Errno(errno);
    let filter = SeccompFilter::new(BTreeMap::from([(call, rules)]), SeccompAction::Allow, fails, TargetArch::x86_64)?;
    let program: seccompiler::BpfProgram = filter.try_into()?;
    apply_filter(&program)?;
    Ok(())
}
