//! Asking a guest's scheduler for its stats.
//!
//! [`SchedStatsClient`] is the client that blocks. Under it is a machine that never waits, for whoever serves many
//! guests on one thread: [`PollClient`] renews sessions and keeps deadlines, on top of one session's states and
//! events; [`decode`] decodes.

mod agent_message;
pub mod decode;
pub(crate) mod fair_mutex;
mod poll_client;
mod session;
mod statistics;
mod wait;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde_json::Value;

pub use poll_client::{Interest, PollClient, Traffic};
pub use session::Answer;
pub use statistics::Statistics;
pub use wait::Deadline;

use crate::control::RunControl;
use crate::endpoint::Connect;
use crate::stats::SchedStatsError;
use crate::stats::meta::Meta;
use crate::stats::{RequestLine, StatsRequest, StatsResponse};
use decode::Decoded;
use fair_mutex::{FairMutex, Waiting};
use wait::Wait;

/// How long a call may take where nothing else is said.
///
/// ```
/// assert_eq!(scx_vsock::client::DEFAULT_DEADLINE.as_secs(), 5);
/// ```
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(5);

/// A client of one guest's scheduler.
///
/// Clones are cheap and share one session with the agent: their calls take turns, first come first served. Clients that
/// were built apart have sessions of their own, and so delta baselines of their own. The session is opened by the first
/// call, and renewed by the next one after it ended.
///
/// Every call ends by its deadline, which covers waiting for the turn, connecting, the agent's hello, writing and
/// reading. A call whose request was written is never repeated on its own: reading stats moves a baseline.
///
/// ```no_run
/// use std::time::Duration;
/// use scx_vsock::{Endpoint, SchedStatsClient};
///
/// let agent: Endpoint = "unix:/run/guest1/agent.sock".parse()?;
/// let client = SchedStatsClient::builder(agent).deadline(Duration::from_secs(2)).build();
/// client.wait_for_scheduler(Duration::from_secs(30))?;
/// println!("{:#}", client.stats(&[("target", "top")])?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct SchedStatsClient {
    shared: Arc<Shared>,
    deadline: Duration,
}

struct Shared {
    control: RunControl,
    turns: FairMutex<PollClient>,
    /// The number of the newest session, to be read without waiting for the turn.
    session: AtomicU64,
    statistics: Mutex<Statistics>,
}

impl Shared {
    fn statistics(&self) -> MutexGuard<'_, Statistics> {
        // Whole at every point where a thread could panic.
        self.statistics.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SchedStatsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SchedStatsClient")
            .field("session", &self.session())
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

/// Makes a [`SchedStatsClient`].
///
/// ```
/// use scx_vsock::{Endpoint, RunControl, SchedStatsClient};
///
/// let run = RunControl::new();
/// let builder = SchedStatsClient::builder("vsock://3".parse::<Endpoint>()?).control(&run);
/// let client = builder.deadline(std::time::Duration::from_secs(1)).build();
/// # Ok::<(), scx_vsock::endpoint::ParseEndpointError>(())
/// ```
#[derive(Debug)]
#[must_use = "a builder does nothing until it builds"]
pub struct SchedStatsClientBuilder {
    conversation: PollClient,
    control: RunControl,
    deadline: Duration,
}

impl SchedStatsClientBuilder {
    /// How long each call may take, all in all; [`DEFAULT_DEADLINE`] where this is left out.
    ///
    /// ```
    /// # use scx_vsock::{Endpoint, RunControl, SchedStatsClient, SchedStatsError};
    /// # let agent: Endpoint = "unix:/run/no-agent.sock".parse()?;
    /// let client = SchedStatsClient::builder(agent).deadline(std::time::Duration::ZERO).build();
    /// assert_eq!(client.stats(&[]), Err(SchedStatsError::TimedOut { after_ms: 0 }));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The run whose freezes and cancel end the client's calls; one that always goes on where this is left out.
    ///
    /// ```
    /// # use scx_vsock::{Endpoint, RunControl, SchedStatsClient, SchedStatsError};
    /// # let agent: Endpoint = "unix:/run/no-agent.sock".parse()?;
    /// let run = RunControl::new();
    /// let client = SchedStatsClient::builder(agent).control(&run).build();
    /// run.cancel();
    /// assert_eq!(client.stats(&[]), Err(SchedStatsError::Cancelled));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn control(mut self, control: &RunControl) -> Self {
        self.control = control.clone();
        self
    }

    /// The client. Does no I/O.
    ///
    /// ```
    /// # use scx_vsock::{Endpoint, RunControl, SchedStatsClient, SchedStatsError};
    /// # let agent: Endpoint = "unix:/run/no-agent.sock".parse()?;
    /// let client = SchedStatsClient::builder(agent).build();
    /// assert_eq!(client.session(), 0, "no session is opened before the first call");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn build(self) -> SchedStatsClient {
        let shared = Shared {
            control: self.control,
            turns: FairMutex::new(self.conversation),
            session: AtomicU64::new(0),
            statistics: Mutex::default(),
        };
        SchedStatsClient { shared: Arc::new(shared), deadline: self.deadline }
    }
}

impl SchedStatsClient {
    /// Begins to make a client of the agent that `connect` leads to.
    ///
    /// ```
    /// use scx_vsock::{Endpoint, SchedStatsClient};
    ///
    /// let client = SchedStatsClient::builder(Endpoint::Vsock { cid: 3, port: 729 }).build();
    /// ```
    pub fn builder(connect: impl Connect + 'static) -> SchedStatsClientBuilder {
        let conversation = PollClient::new(connect);
        SchedStatsClientBuilder { conversation, control: RunControl::new(), deadline: DEFAULT_DEADLINE }
    }

    /// A clone, on the same session, whose calls may take up to `deadline`.
    ///
    /// ```no_run
    /// # use scx_vsock::{Endpoint, SchedStatsClient};
    /// # let client = SchedStatsClient::builder("unix:/run/guest1/agent.sock".parse::<Endpoint>()?).build();
    /// let hurried = client.with_deadline(std::time::Duration::from_millis(20));
    /// let stats = hurried.stats(&[])?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { shared: Arc::clone(&self.shared), deadline }
    }

    /// The number of the newest session, counted from 1; 0 before the first. When it is another than before, the
    /// scheduler's deltas have a new baseline.
    ///
    /// ```no_run
    /// # use scx_vsock::{Endpoint, SchedStatsClient};
    /// # let client = SchedStatsClient::builder("unix:/run/guest1/agent.sock".parse::<Endpoint>()?).build();
    /// let before = client.session();
    /// let stats = client.stats(&[])?;
    /// if client.session() != before {
    ///     // The deltas in `stats` count from a new baseline.
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn session(&self) -> u64 {
        self.shared.session.load(Ordering::Relaxed)
    }

    /// Sends one line and returns the scheduler's line without its LF, byte for byte. The LF of `line` may be left out.
    ///
    /// The answer is one JSON object; its errno is not judged, but after another errno than 0 the session is renewed.
    ///
    /// ```no_run
    /// # use scx_vsock::{Endpoint, SchedStatsClient};
    /// # let client = SchedStatsClient::builder("unix:/run/guest1/agent.sock".parse::<Endpoint>()?).build();
    /// let answer = client.request_raw(r#"{"req":"stats","args":{"target":"top"}}"#)?;
    /// println!("{}", String::from_utf8_lossy(&answer));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`SchedStatsError::RequestTooLarge`] and [`SchedStatsError::InvalidRequest`] before anything is sent, and
    /// whatever else prevents an answer.
    pub fn request_raw(&self, line: impl AsRef<[u8]>) -> Result<Vec<u8>, SchedStatsError> {
        self.ask(RequestLine::new(line.as_ref()), decode::raw)
    }

    /// Sends a request and returns the scheduler's answer, whatever its errno. After another errno than 0 the session
    /// is renewed.
    ///
    /// ```no_run
    /// # use scx_vsock::{Endpoint, SchedStatsClient};
    /// # let client = SchedStatsClient::builder("unix:/run/guest1/agent.sock".parse::<Endpoint>()?).build();
    /// let answer = client.request(&scx_vsock::StatsRequest::stats_meta())?;
    /// assert_eq!(answer.errno, 0, "{:#}", answer.args);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`SchedStatsError::RequestTooLarge`] before anything is sent, and whatever else prevents an answer.
    pub fn request(&self, request: &StatsRequest) -> Result<StatsResponse, SchedStatsError> {
        self.ask(request.line(), decode::response)
    }

    /// The scheduler's stats: `args["resp"]` of its answer. With no `args` they are those of the target `top`.
    ///
    /// ```no_run
    /// # use scx_vsock::{Endpoint, SchedStatsClient};
    /// # let client = SchedStatsClient::builder("unix:/run/guest1/agent.sock".parse::<Endpoint>()?).build();
    /// let stats = client.stats(&[("target", "top")])?;
    /// println!("{}", stats["nr_running"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`SchedStatsError::SchedulerError`] for another errno than 0, [`SchedStatsError::MissingResp`] for an answer
    /// without `resp`, and whatever else prevents an answer.
    pub fn stats(&self, args: &[(&str, &str)]) -> Result<Value, SchedStatsError> {
        self.stats_as(args)
    }

    /// What the scheduler's stats mean: each struct's fields with their kinds and descriptions, by the struct's name.
    ///
    /// ```no_run
    /// # use scx_vsock::{Endpoint, SchedStatsClient};
    /// # let client = SchedStatsClient::builder("unix:/run/guest1/agent.sock".parse::<Endpoint>()?).build();
    /// for (name, meta) in client.stats_meta()?.as_object().into_iter().flatten() {
    ///     println!("{name}: {}", meta["desc"]);
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`stats`](Self::stats).
    pub fn stats_meta(&self) -> Result<Value, SchedStatsError> {
        self.ask(StatsRequest::stats_meta().line(), decode::resp)
    }

    /// The same, parsed.
    ///
    /// ```no_run
    /// # use scx_vsock::{Endpoint, SchedStatsClient};
    /// # let client = SchedStatsClient::builder("unix:/run/guest1/agent.sock".parse::<Endpoint>()?).build();
    /// let meta = client.meta()?;
    /// for top in meta.tops() {
    ///     for leaf in meta.leaves(top) {
    ///         println!("{leaf}: {}", leaf.field.desc.as_deref().unwrap_or("?"));
    ///     }
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`stats`](Self::stats); [`SchedStatsError::MalformedResponse`] where `resp` describes nothing.
    pub fn meta(&self) -> Result<Meta, SchedStatsError> {
        self.ask(StatsRequest::stats_meta().line(), decode::resp)
    }

    /// The scheduler's stats as a type of the caller's, decoded in one pass without a [`Value`] in between.
    ///
    /// ```no_run
    /// # fn main() -> anyhow::Result<()> {
    /// # let client = scx_vsock::SchedStatsClient::builder("unix:/agent".parse::<scx_vsock::Endpoint>()?).build();
    /// #[derive(serde::Deserialize)]
    /// struct Bpfland {
    ///     nr_running: u64,
    /// }
    /// let stats: Bpfland = client.stats_as(&[])?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`stats`](Self::stats); [`SchedStatsError::MalformedResponse`] where `resp` is no `T`.
    pub fn stats_as<T: DeserializeOwned>(&self, args: &[(&str, &str)]) -> Result<T, SchedStatsError> {
        self.ask(StatsRequest::stats(args).line(), decode::resp)
    }

    /// Waits until the scheduler accepts a connection, but no longer than `deadline` instead of the client's own.
    ///
    /// It is the agent that waits: this is one request and one answer, without polling. At a scheduler without an agent
    /// ([`Greeting::Plain`](crate::endpoint::Greeting)) there is nobody to wait, so it does not: a scheduler that
    /// accepts a connection is ready, and anything else is [`SchedStatsError::NoScheduler`] at once.
    ///
    /// ```no_run
    /// # use scx_vsock::{Endpoint, SchedStatsClient};
    /// # let client = SchedStatsClient::builder("unix:/run/guest1/agent.sock".parse::<Endpoint>()?).build();
    /// client.wait_for_scheduler(std::time::Duration::from_secs(60))?;
    /// let first = client.stats(&[])?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`SchedStatsError::NoScheduler`] with what the agent saw last, or that there is no agent to wait.
    pub fn wait_for_scheduler(&self, deadline: Duration) -> Result<(), SchedStatsError> {
        self.with_deadline(deadline).ask(Ok(RequestLine::wait_scheduler(deadline)), decode::ready)
    }

    /// The scheduler's stats, unless `stop` is cancelled before they are there.
    pub(crate) fn stats_until(&self, stop: &RunControl) -> Result<Value, SchedStatsError> {
        self.ask_until(Some(stop), StatsRequest::stats(&[]).line(), decode::resp)
    }

    /// What the calls of this client and its clones came to so far.
    ///
    /// ```no_run
    /// # use scx_vsock::{Endpoint, SchedStatsClient};
    /// # let client = SchedStatsClient::builder("unix:/run/guest1/agent.sock".parse::<Endpoint>()?).build();
    /// let statistics = client.statistics();
    /// println!("{} of {} calls answered, half of them within {:?}", statistics.answers, statistics.requests, statistics.latency.quantile(0.5));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.shared.statistics().clone()
    }

    fn ask<T>(
        &self,
        line: Result<RequestLine, SchedStatsError>,
        decode: impl Fn(Answer<'_>) -> Result<Decoded<T>, SchedStatsError>,
    ) -> Result<T, SchedStatsError> {
        self.ask_until(None, line, decode)
    }

    /// Asks, and takes note of what that came to.
    fn ask_until<T>(
        &self,
        stop: Option<&RunControl>,
        line: Result<RequestLine, SchedStatsError>,
        decode: impl Fn(Answer<'_>) -> Result<Decoded<T>, SchedStatsError>,
    ) -> Result<T, SchedStatsError> {
        let started = Instant::now();
        let is_for_agent = line.as_ref().is_ok_and(RequestLine::is_for_the_agent);
        let outcome = line.and_then(|line| {
            let wait = Wait::new(&self.shared.control, self.deadline)?.or_by(stop)?;
            let mut conversation = self.shared.turns.take(&wait)?;
            let outcome = self.converse(&mut conversation, &wait, line, decode);
            self.shared.statistics().note_traffic(conversation.traffic());
            outcome
        });
        let latency = (!is_for_agent).then(|| started.elapsed());
        self.shared.statistics().note(&outcome, latency);
        outcome
    }

    /// Asks in the turn, and waits for the outcome.
    fn converse<T>(
        &self,
        conversation: &mut PollClient,
        wait: &Wait,
        line: RequestLine,
        decode: impl Fn(Answer<'_>) -> Result<Decoded<T>, SchedStatsError>,
    ) -> Result<T, SchedStatsError> {
        wait.interrupted()?;
        let started = conversation.start(line, wait.deadline());
        self.shared.session.store(conversation.session(), Ordering::Relaxed);
        started.map_err(|error| wait.stopped().err().unwrap_or(error))?;
        let mut end = wait.interrupted();
        // For a call that has ended before, nothing is written.
        let mut looks = end.is_ok();
        loop {
            if looks {
                match conversation.on_ready(Instant::now(), &decode) {
                    Poll::Ready(Err(error)) if conversation.yields_to_stops(&error) => {
                        return wait.stopped().and(Err(error));
                    }
                    Poll::Ready(outcome) => return outcome,
                    Poll::Pending => {}
                }
            }
            let stream = conversation.fd().map(|fd| (fd, conversation.interest()));
            match end.and_then(|()| wait.sleep_beside(stream)) {
                Ok(may_be_ready) => looks = may_be_ready,
                Err(error) => {
                    conversation.abandon();
                    return Err(error);
                }
            }
            // Before the look, which so finds a complete answer that was there first. A request that is still to be
            // written has none, and is not written any more.
            end = wait.interrupted();
            looks &= wait.stopped().is_ok() || conversation.interest() == Interest::Read;
        }
    }
}
