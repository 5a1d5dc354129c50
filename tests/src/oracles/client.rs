//! The client's machine against an agent that says anything: an answer is only ever the one line that its own session
//! framed for its own request, whatever the pieces.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::{Duration, Instant};

use scx_vsock::client::{Deadline, PollClient, decode};
use scx_vsock::stats::RequestLine;
use scx_vsock::{Connect, SchedStatsError};
use scx_vsock_wire::{Envelope, MAX_RESPONSE_BYTES, STATS_PREFIX, STATS_SUFFIX, Text};

use super::{Script, send};

/// Requests of one script.
const REQUESTS: usize = 4;

/// Bytes of a script that are read: fewer than a line may have brackets within each other.
const MAX_SCRIPT: usize = 127;

/// Makes socket pairs, and keeps the agent's end of the newest.
#[derive(Clone, Default)]
struct Agents(Arc<Mutex<VecDeque<UnixStream>>>);

impl fmt::Display for Agents {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the model")
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

/// One session as the agent knows it: what it said since the last answer, and whether it has closed.
struct Session {
    stream: Option<UnixStream>,
    said: Vec<u8>,
    greeted: bool,
}

/// Runs a script.
pub fn check(input: &[u8]) {
    let mut script = Script::new(&input[..input.len().min(MAX_SCRIPT)]);
    let agents = Agents::default();
    let mut conversation = PollClient::new(agents.clone());
    let mut session: Option<Session> = None;
    for _ in 0..REQUESTS {
        let begun = Instant::now();
        let deadline = Deadline::after(begun, Duration::from_secs(3600));
        let before = conversation.session();
        conversation.start(RequestLine::new(b"{}").expect("a line"), deadline).expect("a socket pair");
        let is_new = conversation.session() > before;
        if is_new {
            let stream = agents.0.lock().expect("one thread").pop_back();
            session = Some(Session { stream, said: Vec::new(), greeted: false });
        }
        let Some(session) = session.as_mut() else { unreachable!("a request has a session") };
        assert!(is_new || session.said.is_empty(), "a session on which the agent has spoken is used again");
        assert!(is_new || session.stream.is_some(), "a session that the agent has closed is used again");
        ask(&mut script, &mut conversation, session, begun);
    }
}

/// Drives one request to its outcome, which is that of the model.
fn ask(script: &mut Script<'_>, conversation: &mut PollClient, session: &mut Session, now: Instant) {
    assert!(turn(conversation, now).is_pending(), "nothing was said yet");
    loop {
        let over = session.speak(script);
        let outcome = turn(conversation, now);
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
        if over {
            let later = now + Duration::from_secs(3601);
            assert!(matches!(turn(conversation, later), Poll::Ready(Err(SchedStatsError::TimedOut { .. }))));
            return;
        }
    }
}

fn turn(conversation: &mut PollClient, now: Instant) -> Poll<Result<Vec<u8>, SchedStatsError>> {
    conversation.on_ready(now, decode::raw)
}

enum Expected {
    Pending,
    Answer(Vec<u8>),
    Error,
}

impl Session {
    /// The agent does something; gives whether the script is over.
    fn speak(&mut self, script: &mut Script<'_>) -> bool {
        let step = script.byte();
        let said = match step % 8 {
            0 => Envelope::hello(Text::first_line(b"0.1.0"), Text::EMPTY, MAX_RESPONSE_BYTES).emit().to_vec(),
            1 => [STATS_PREFIX, br#"{"errno":0,"args":{"resp":1}}"#, STATS_SUFFIX, b"\n"].concat(),
            2 => [STATS_PREFIX, script.bytes(usize::from(step >> 3)), STATS_SUFFIX, b"\n"].concat(),
            3 => b"\n".to_vec(),
            4 if step >> 3 == 0 => b"{\"agent\":{\"scheduler_ready\":{}}}\n".to_vec(),
            // An answer, and behind it in the same piece what nobody asked for.
            4 => [STATS_PREFIX, b"{}", STATS_SUFFIX, b"\n", script.bytes(usize::from(step >> 3))].concat(),
            5 if !script.is_over() => {
                self.stream = None;
                Vec::new()
            }
            _ => script.bytes(usize::from(step >> 3)).to_vec(),
        };
        if let Some(stream) = &self.stream {
            assert_eq!(send(stream, &said), Ok(said.len()), "a client that asks is there, and what is said is short");
            self.said.extend(said);
        }
        script.is_over()
    }

    /// What the request's outcome must be by now. Takes the lines off that the client has read.
    fn expected(&mut self) -> Expected {
        loop {
            let Some(end) = self.said.iter().position(|&byte| byte == b'\n') else {
                let over = self.stream.is_none() || (!self.greeted && self.said.len() >= 4096);
                return if over { Expected::Error } else { Expected::Pending };
            };
            let line: Vec<u8> = self.said.drain(..=end).collect();
            let line = &line[..end];
            if self.greeted {
                return framed(line).map_or(Expected::Error, Expected::Answer);
            }
            self.greeted = matches!(
                serde_json::from_slice::<Envelope<String>>(line),
                Ok(Envelope::Hello(hello)) if hello.min_protocol <= 1 && hello.protocol >= 1
            );
            if !self.greeted {
                return Expected::Error;
            }
        }
    }
}

/// The scheduler's line inside its frame, if it is one JSON object with a sound errno.
fn framed(line: &[u8]) -> Option<Vec<u8>> {
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
