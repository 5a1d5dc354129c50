//! The poll client against an agent that sends anything: an answer is only ever the one line that its own session sent in
//! an envelope for its own request, however it was split.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::{Duration, Instant};

use scx_vsock::client::{PollClient, decode};
use scx_vsock::io::Deadline;
use scx_vsock::stats::RequestLine;
use scx_vsock::{Connect, SchedStatsError};
use scx_vsock_wire::{Envelope, MAX_RESPONSE_BYTES, STATS_PREFIX, STATS_SUFFIX, Text};

use super::{Script, send};

/// Requests of one script.
const REQUESTS: usize = 4;

/// Bytes of a script that are read: fewer than the levels that a line may nest.
const MAX_SCRIPT: usize = 127;

/// Connects socket pairs, and keeps the agents' ends.
#[derive(Clone, Default)]
struct Agents(Arc<Mutex<VecDeque<UnixStream>>>);

impl fmt::Display for Agents {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the scripted agent")
    }
}

impl Connect for Agents {
    fn connect(&self) -> io::Result<OwnedFd> {
        let (host, agent) = UnixStream::pair()?;
        agent.set_nonblocking(true)?;
        self.0.lock().expect("one thread").push_back(agent);
        Ok(host.into())
    }
}

/// One session as the agent knows it: what it sent since the last answer, and whether it has closed.
struct Session {
    stream: Option<UnixStream>,
    sent: Vec<u8>,
    sent_hello: bool,
}

/// Runs a script.
pub fn check(input: &[u8]) {
    let mut script = Script::new(&input[..input.len().min(MAX_SCRIPT)]);
    let agents = Agents::default();
    let mut client = PollClient::new(agents.clone());
    let mut session: Option<Session> = None;
    for _ in 0..REQUESTS {
        let begun = Instant::now();
        let deadline = Deadline::after(begun, Duration::from_secs(3600));
        let before = client.session();
        client.start(RequestLine::new(b"{}").expect("a line"), deadline).expect("a socket pair");
        let is_new = client.session() > before;
        if is_new {
            let stream = agents.0.lock().expect("one thread").pop_back();
            session = Some(Session { stream, sent: Vec::new(), sent_hello: false });
        }
        let Some(session) = session.as_mut() else { unreachable!("a request has a session") };
        assert!(is_new || session.sent.is_empty(), "a session with unsolicited data is reused");
        assert!(is_new || session.stream.is_some(), "a session that the agent has closed is reused");
        request(&mut script, &mut client, session, begun);
    }
}

/// Drives one request to its outcome, which is that of the model.
fn request(script: &mut Script<'_>, client: &mut PollClient, session: &mut Session, now: Instant) {
    assert!(on_ready(client, now).is_pending(), "nothing was sent yet");
    loop {
        let is_over = session.act(script);
        let outcome = on_ready(client, now);
        match session.expected() {
            Expected::Pending => assert!(outcome.is_pending(), "{outcome:?}"),
            Expected::Answer(answer) => {
                assert_eq!(outcome, Poll::Ready(Ok(answer)));
                return;
            }
            Expected::Error => {
                assert!(matches!(outcome, Poll::Ready(Err(_))), "{outcome:?}");
                return;
            }
        }
        if is_over {
            let later = now + Duration::from_secs(3601);
            let kind = if session.sent_hello { "timed_out" } else { "agent_unreachable" };
            assert!(matches!(on_ready(client, later), Poll::Ready(Err(error)) if error.kind() == kind));
            return;
        }
    }
}

fn on_ready(client: &mut PollClient, now: Instant) -> Poll<Result<Vec<u8>, SchedStatsError>> {
    client.on_ready(now, decode::raw)
}

enum Expected {
    Pending,
    Answer(Vec<u8>),
    Error,
}

impl Session {
    /// Lets the agent do one step of the script; returns whether the script is over.
    fn act(&mut self, script: &mut Script<'_>) -> bool {
        let step = script.byte();
        let bytes = match step % 8 {
            0 => Envelope::hello(Text::first_line(b"0.1.0"), Text::EMPTY, MAX_RESPONSE_BYTES).emit().to_vec(),
            1 => [STATS_PREFIX, br#"{"errno":0,"args":{"resp":1}}"#, STATS_SUFFIX, b"\n"].concat(),
            2 => [STATS_PREFIX, script.bytes(usize::from(step >> 3)), STATS_SUFFIX, b"\n"].concat(),
            3 => b"\n".to_vec(),
            4 if step >> 3 == 0 => b"{\"agent\":{\"scheduler_ready\":{}}}\n".to_vec(),
            // An answer, followed by unsolicited data in the same piece.
            4 => [STATS_PREFIX, b"{}", STATS_SUFFIX, b"\n", script.bytes(usize::from(step >> 3))].concat(),
            5 if !script.is_over() => {
                self.stream = None;
                Vec::new()
            }
            _ => script.bytes(usize::from(step >> 3)).to_vec(),
        };
        if let Some(stream) = &self.stream {
            assert_eq!(send(stream, &bytes), Ok(bytes.len()), "the client is connected, and the bytes are few");
            self.sent.extend(bytes);
        }
        script.is_over()
    }

    /// Returns what the request's outcome must be by now, and removes the lines that the client has read.
    fn expected(&mut self) -> Expected {
        loop {
            let Some(end) = self.sent.iter().position(|&byte| byte == b'\n') else {
                let is_over = self.stream.is_none() || (!self.sent_hello && self.sent.len() >= 4096);
                return if is_over { Expected::Error } else { Expected::Pending };
            };
            let line: Vec<u8> = self.sent.drain(..=end).collect();
            let line = &line[..end];
            if self.sent_hello {
                return strip_envelope(line).map_or(Expected::Error, Expected::Answer);
            }
            self.sent_hello = matches!(
                serde_json::from_slice::<Envelope<String>>(line),
                Ok(Envelope::Hello(hello)) if hello.min_protocol <= 1 && hello.protocol >= 1
            );
            if !self.sent_hello {
                return Expected::Error;
            }
        }
    }
}

/// Returns the scheduler's line inside its envelope, if it is one JSON object with a valid errno.
fn strip_envelope(line: &[u8]) -> Option<Vec<u8>> {
    #[derive(serde::Deserialize)]
    struct Errno {
        #[serde(default, rename = "errno")]
        _errno: i32,
    }
    let inner = line.strip_prefix(STATS_PREFIX)?.strip_suffix(STATS_SUFFIX)?;
    let text = std::str::from_utf8(inner).ok()?;
    let _errno: Errno = serde_json::from_str(text).ok()?;
    text.trim_ascii_start().starts_with('{').then(|| inner.to_vec())
}
