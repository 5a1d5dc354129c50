//! The session machine without the Linux loop, for guests that are not Linux: whatever moves bytes can drive it.
//!
//! Here a host and a scheduler that live in memory talk through it; a unikernel would put its own vsock and its own
//! scheduler in their place.
//!
//! ```text
//! cargo run -p scx-vsock-agent --example any_kernel
//! ```
#![allow(clippy::print_stdout, reason = "an example shows what happens")]

use std::collections::VecDeque;
use std::error::Error;

use scx_vsock_agent::session::{Action, KernelReport, Outcome, Peer, Session};
use scx_vsock_wire::envelope::saturate;
use scx_vsock_wire::{SchedExtLine, Text, emit};

/// The cap of a line; that of the program for Linux is 256 KiB.
const MAX: usize = 1024;

/// The platform's two streams: bytes towards the agent, and bytes that the agent wrote.
#[derive(Default)]
struct Streams {
    from_host: VecDeque<u8>,
    to_host: Vec<u8>,
    from_scheduler: VecDeque<u8>,
}

impl Streams {
    /// The scheduler answers every request at once.
    fn ask_scheduler(&mut self, request: &[u8]) {
        println!("the scheduler is asked: {}", String::from_utf8_lossy(request).trim_end());
        self.from_scheduler.extend(b"{\"errno\":0,\"args\":{\"resp\":{\"nr_switches\":42}}}\n");
    }
}

/// Does the session's actions until it has to wait for the host.
fn drive(session: &mut Session<MAX>, streams: &mut Streams) {
    loop {
        match session.action(!streams.from_scheduler.is_empty()) {
            Action::Read(Peer::Host, _) if streams.from_host.is_empty() => return,
            Action::Read(Peer::Host, buffer) => {
                let count = take(&mut streams.from_host, buffer);
                session.done(Outcome::done(saturate(count)));
            }
            Action::Write(Peer::Host, pieces) => {
                let bytes = pieces.concat();
                streams.to_host.extend_from_slice(&bytes);
                session.done(Outcome::done(saturate(bytes.len())));
            }
            Action::Connect { .. } => session.done(Outcome::done(0)),
            Action::Check if streams.from_scheduler.is_empty() => session.checked(Outcome::BLOCKED),
            Action::Check => session.checked(Outcome::done(1)),
            Action::Write(Peer::Scheduler, pieces) => {
                let request = pieces.concat();
                streams.ask_scheduler(&request);
                session.done(Outcome::done(saturate(request.len())));
            }
            Action::Read(Peer::Scheduler, buffer) => {
                let count = take(&mut streams.from_scheduler, buffer);
                session.done(Outcome::done(saturate(count)));
            }
            Action::Report(report, buffer) => {
                let length = report_of_a_kernel_without_sched_ext(report, buffer);
                session.done(Outcome::done(saturate(length)));
            }
            Action::Close => return,
        }
    }
}

fn report_of_a_kernel_without_sched_ext(report: KernelReport, out: &mut [u8]) -> usize {
    let nothing = Text::EMPTY;
    match report {
        KernelReport::SchedExt => {
            let mut line = SchedExtLine::begin(out);
            line.uptime(0);
            line.end(None)
        }
        KernelReport::NoScheduler { errno } => emit::no_scheduler(out, errno, nothing, nothing, nothing),
        KernelReport::SchedulerGone { errno } => emit::scheduler_gone(out, errno, nothing),
    }
}

fn take(from: &mut VecDeque<u8>, buffer: &mut [u8]) -> usize {
    let count = from.len().min(buffer.len());
    buffer.iter_mut().zip(from.drain(..count)).for_each(|(to, byte)| *to = byte);
    count
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut session = Box::new(Session::<MAX>::new());
    let mut streams = Streams::default();

    session.open(Text::first_line(env!("CARGO_PKG_VERSION").as_bytes()), Text::EMPTY);
    streams.from_host.extend(b"{\"req\":\"stats\"}\n");
    drive(&mut session, &mut streams);

    let text = String::from_utf8(streams.to_host)?;
    let mut lines = text.lines();
    println!("the host reads: {}", lines.next().ok_or("no hello")?);
    let answer = lines.next().ok_or("no answer")?;
    println!("the host reads: {answer}");
    if answer != r#"{"stats":{"errno":0,"args":{"resp":{"nr_switches":42}}}}"# {
        return Err("that is not the scheduler's answer".into());
    }
    Ok(())
}
