//! The one list of reasons why stats are missing.
//!
//! [`MissingStatsReason`](super::MissingStatsReason) and [`SchedStatsError`](super::SchedStatsError) are declared from
//! it, each in its own file. A new reason is an entry here, and nothing else:
//!
//! ```text
//! /// When it happens.
//! Name {
//!     /// A fact.
//!     fact: Type,                           `= default` where JSON may be without it
//!     + source                              optional: errors have a field with what a system call failed with
//! } => {
//!     text: ("{fact} is wrong"),            Display, as the arguments of write!
//!     kind: "name",                         the variant in snake case, for labels
//!     exit_code: 99, "what it means",       the command's, and its line in the command's help
//!     errno: Errno::IO, session: Renewed,   errors only: the proxy's reply; whether the session lives on
//! },
//! ```

/// Calls the macro `$declare` with the list: reasons that no request can fail with, then those that it can.
macro_rules! reason_list {
    ($declare:ident) => {
        $declare! {
            reasons_only: [
                /// The run was configured without a scheduler, so no client was ever made.
                NoSchedulerBinary => {
                    text: ("the run was configured without a scheduler, so there was none to ask"),
                    kind: "no_scheduler_binary",
                    exit_code: 10, "the guest was configured without a scheduler",
                },
            ]
            errors: [
                /// The agent could not reach the scheduler's socket: the guest has no sched_ext, no scheduler is
                /// loaded, the one that is loaded serves no stats, or the socket refused. As a reason it is also what
                /// an error of no known kind becomes, with its text.
                NoScheduler {
                    /// Which of these, with the guest's own facts.
                    reason: String,
                } => {
                    text: ("no scheduler to ask: {}", PeerText::whole(reason)),
                    kind: "no_scheduler",
                    exit_code: 11, "the guest has no scheduler that serves stats",
                    errno: Errno::NOENT, session: Kept,
                },
                /// The run was marked freezing while the request was in flight or about to start.
                DuringFreeze => {
                    text: ("the guest was being frozen, and a frozen guest cannot answer"),
                    kind: "during_freeze",
                    exit_code: 12, "the guest was frozen during the request",
                    errno: Errno::AGAIN, session: Renewed,
                },
                /// The run was cancelled, by its watchdog or at shutdown, while the request was in flight or about to
                /// start.
                Cancelled => {
                    text: ("the run was cancelled (by its watchdog or at shutdown)"),
                    kind: "cancelled",
                    exit_code: 13, "the request was cancelled",
                    errno: Errno::CANCELED, session: Renewed,
                },
                /// The scheduler answered with an errno other than 0. The session is not used again, since some
                /// schedulers invalidate a connection for good with it.
                SchedulerError {
                    /// The scheduler's errno.
                    errno: i32,
                    /// Its `args`; by custom `args["resp"]` is a text that says more.
                    args: Value,
                } => {
                    text: ("the scheduler answered with errno {errno}: {}", ErrorArgs(args)),
                    kind: "scheduler_error",
                    exit_code: 14, "the scheduler answered with an error",
                    errno: Errno::PROTO, session: Renewed,
                },
                /// The scheduler answered, but its `args` have no `resp`.
                MissingResp {
                    /// The `args` that there were.
                    args: Value,
                } => {
                    text: (
                        "the scheduler answered without args.resp, only {}; is it an scx_stats server?",
                        PeerText::line(args)
                    ),
                    kind: "missing_resp",
                    exit_code: 15, "the scheduler's answer has no stats",
                    errno: Errno::PROTO, session: Kept,
                },
                /// The request line is over the cap. It was refused before anything was sent, unless an agent with a
                /// smaller cap refused it.
                RequestTooLarge {
                    /// Bytes of the line, its LF counted.
                    size: usize,
                    /// The most that it may have.
                    max: usize,
                } => {
                    text: ("the request line has {size} bytes, more than the {max} that an agent takes; nothing was sent"),
                    kind: "request_too_large",
                    exit_code: 16, "the request is too long",
                    errno: Errno::MSGSIZE, session: Kept,
                },
                /// The answer grew past the cap without a newline.
                ResponseTooLarge {
                    /// Bytes that had arrived when the answer was given up.
                    size: usize,
                    /// The most that it may have, its LF counted.
                    max: usize,
                } => {
                    text: ("the answer passed {max} bytes without an end ({size} so far); ask for a narrower target"),
                    kind: "response_too_large",
                    exit_code: 17, "the answer is too long",
                    errno: Errno::OVERFLOW, session: Renewed,
                },
                /// A thread panicked while it held the client's session.
                MutexPoisoned => {
                    text: ("a thread panicked while it held this client's session; build a new client"),
                    kind: "mutex_poisoned",
                    exit_code: 18, "a thread of this program panicked",
                    errno: Errno::OWNERDEAD, session: Renewed,
                },
                /// The deadline passed, and the agent was there. (Without the agent's hello that is `AgentUnreachable`;
                /// without a scheduler to wait for, `NoScheduler`.)
                TimedOut {
                    /// Milliseconds that the call was allowed.
                    after_ms: u64,
                } => {
                    text: (
                        "no answer within {after_ms} ms over an open session: the scheduler does not answer, or the \
                         guest is paused or overloaded"
                    ),
                    kind: "timed_out",
                    exit_code: 19, "the agent is there, but no answer came within the deadline",
                    errno: Errno::TIMEDOUT, session: Renewed,
                },
                /// The scheduler closed its connection, or the connection failed, during the answer.
                SchedulerGone {
                    /// What the agent's connection failed with; 0 for an orderly end.
                    errno: i32,
                    /// Why, as the guest's kernel has it; empty where it does not say.
                    cause: String = default,
                } => {
                    text: ("{}", Ending { errno: *errno, cause }),
                    kind: "scheduler_gone",
                    exit_code: 20, "the scheduler closed its connection before its answer was complete",
                    errno: Errno::CONNRESET, session: Renewed,
                },
                /// Nothing spoke the protocol where the agent should be: the guest is booting, has no agent, was
                /// reset, or its agent speaks other versions.
                AgentUnreachable {
                    /// Where, and what happened there.
                    reason: String,
                    + source
                } => {
                    text: ("no agent to talk to: {}", PeerText::whole(reason)),
                    kind: "agent_unreachable",
                    exit_code: 21, "the guest's agent cannot be reached",
                    errno: Errno::HOSTUNREACH, session: Renewed,
                },
                /// Every session of the agent is taken.
                AgentBusy {
                    /// How many sessions the agent has.
                    sessions: usize,
                } => {
                    text: (
                        "all {sessions} sessions of the guest's agent are taken; share a client by cloning it, or drop one"
                    ),
                    kind: "agent_busy",
                    exit_code: 22, "all sessions of the agent are in use",
                    errno: Errno::BUSY, session: Renewed,
                },
                /// The answer is not the envelope that it must be.
                MalformedResponse {
                    /// What is wrong with it.
                    reason: String,
                } => {
                    text: ("the answer is not what the protocol allows: {}", PeerText::whole(reason)),
                    kind: "malformed_response",
                    exit_code: 23, "the answer violates the protocol",
                    errno: Errno::PROTO, session: Renewed,
                },
                /// The line cannot be a request: it is empty, is several lines, or is for the agent. Nothing was sent.
                InvalidRequest {
                    /// What is wrong with it.
                    reason: String,
                } => {
                    text: ("not a request line: {}; nothing was sent", PeerText::whole(reason)),
                    kind: "invalid_request",
                    exit_code: 24, "the request is invalid",
                    // As scx_stats servers answer what they do not understand.
                    errno: Errno::INVAL, session: Renewed,
                },
            ]
        }
    };
}

pub(super) use reason_list;
