//! The blocking client.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::blocking_call::BlockingCall;
use super::client_builder::ClientBuilder;
use super::decode::{self, Decoded};
use super::fair_mutex::{Block, FairMutex, FairMutexGuard};
use super::poll_client::{Interest, PollClient};
use super::reading::Reading;
use super::session::{Answer, Request};
use super::shared_client::SharedClient;
use super::statistics::Statistics;
use crate::control::RunControl;
use crate::endpoint::{AgentListener, Connect};
use crate::stats::{Meta, RequestLine, SchedExt, SchedStatsError, StatsRequest, StatsResponse};

/// A client of one guest's scheduler. Its methods block.
///
/// Clones are cheap and share one session with the agent, one call at a time, first come, first served. Clients that were
/// built separately have sessions of their own, and so delta baselines of their own. The session is opened by the first
/// call, and renewed by the next call after it ended.
///
/// Every call ends by its deadline, which covers waiting for the session, connecting, the agent's hello, writing and
/// reading. The error says how far it came by then: [`SchedStatsError::AgentUnreachable`] without the agent's hello,
/// [`SchedStatsError::TimedOut`] without an answer. A call whose request was written is never repeated: reading stats moves a baseline.
///
/// A process that was forked does not use the sessions that it inherited: its first call opens a new one. (A fork while
/// another thread is in a call leaves the client locked in the new process, where calls then end by their deadlines.)
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
    shared: Arc<SharedClient<FairMutex<PollClient>>>,
    deadline: Duration,
}

impl SharedClient<FairMutex<PollClient>> {
    /// Locks the session for a request.
    ///
    /// # Errors
    ///
    /// What ended the call before it was its turn.
    fn lock(&self, call: &BlockingCall, request: &Request) -> Result<FairMutexGuard<'_, PollClient>, SchedStatsError> {
        let locked = self.poll_client.lock(call).and_then(|guard| call.check().map(|()| guard));
        locked.map_err(|error| self.before_its_turn(error, request))
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

/// Builds a [`SchedStatsClient`].
///
/// ```
/// use scx_vsock::{Endpoint, RunControl, SchedStatsClient};
///
/// let run = RunControl::new();
/// let builder = SchedStatsClient::builder("vsock://3".parse::<Endpoint>()?).control(&run);
/// let client = builder.deadline(std::time::Duration::from_secs(1)).build();
/// # Ok::<(), scx_vsock::endpoint::ParseEndpointError>(())
/// ```
pub type SchedStatsClientBuilder = ClientBuilder<SchedStatsClient>;

impl SchedStatsClientBuilder {
    /// Builds the client. Does no I/O.
    #[must_use]
    pub fn build(self) -> SchedStatsClient {
        let shared = SharedClient::new(self.poll_client, self.control, FairMutex::new);
        SchedStatsClient { shared: Arc::new(shared), deadline: self.deadline }
    }
}

impl SchedStatsClient {
    /// Begins to build a client of the agent at an [`Endpoint`](crate::Endpoint) or another [`Connect`].
    pub fn builder(endpoint: impl Connect + 'static) -> SchedStatsClientBuilder {
        ClientBuilder::new(endpoint)
    }

    /// Returns a clone, on the same session, whose calls may take this long.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { shared: Arc::clone(&self.shared), deadline }
    }

    /// Returns the number of the newest session, counted from 1; 0 before the first. With another session the scheduler's
    /// deltas have a new baseline.
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
        self.shared.session()
    }

    /// Sends one line and returns the scheduler's line without its LF, byte for byte. The LF of `line` is optional.
    ///
    /// The answer is one JSON object, whatever its errno; after an errno other than 0 the session is renewed.
    ///
    /// # Errors
    ///
    /// [`SchedStatsError::RequestTooLarge`] and [`SchedStatsError::InvalidRequest`] before anything is sent, and
    /// whatever else prevents an answer.
    pub fn request_raw(&self, line: impl AsRef<[u8]>) -> Result<Vec<u8>, SchedStatsError> {
        self.call(RequestLine::new(line.as_ref()), decode::raw)
    }

    /// Sends a request and returns the scheduler's answer, whatever its errno. After an errno other than 0 the session is
    /// renewed.
    ///
    /// # Errors
    ///
    /// [`SchedStatsError::RequestTooLarge`] before anything is sent, and whatever else prevents an answer.
    pub fn request(&self, request: &StatsRequest) -> Result<StatsResponse, SchedStatsError> {
        self.call(request.line(), decode::response)
    }

    /// Returns the scheduler's stats: `args["resp"]` of its answer. Without `args` they are those of the target `top`.
    ///
    /// # Errors
    ///
    /// [`SchedStatsError::SchedulerError`] for an errno other than 0, [`SchedStatsError::MissingResp`] for an answer
    /// without `resp`, and whatever else prevents an answer.
    pub fn stats(&self, args: &[(&str, &str)]) -> Result<Value, SchedStatsError> {
        self.stats_as(args)
    }

    /// Returns what the scheduler says about its stats: the fields of each struct with their kinds and descriptions, by
    /// the struct's name.
    ///
    /// # Errors
    ///
    /// As for [`stats`](Self::stats).
    pub fn stats_meta(&self) -> Result<Value, SchedStatsError> {
        self.call(StatsRequest::stats_meta().line(), decode::resp)
    }

    /// Returns the same as [`stats_meta`](Self::stats_meta), parsed.
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
    /// As for [`stats`](Self::stats); [`SchedStatsError::MalformedResponse`] where `resp` is not a description.
    pub fn meta(&self) -> Result<Meta, SchedStatsError> {
        self.call(StatsRequest::stats_meta().line(), decode::resp)
    }

    /// Returns the scheduler's stats as a type of the caller's, decoded in one pass without a [`Value`] in between.
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
    /// As for [`stats`](Self::stats); [`SchedStatsError::MalformedResponse`] where `resp` is not a `T`.
    pub fn stats_as<T: DeserializeOwned>(&self, args: &[(&str, &str)]) -> Result<T, SchedStatsError> {
        self.read(args).map(|reading| reading.value)
    }

    /// Returns the scheduler's stats as [`stats_as`](Self::stats_as) does, with the session that answered and the time that
    /// their deltas span.
    ///
    /// # Errors
    ///
    /// As for [`stats_as`](Self::stats_as).
    pub fn read<T: DeserializeOwned>(&self, args: &[(&str, &str)]) -> Result<Reading<T>, SchedStatsError> {
        self.request_in(None, StatsRequest::stats(args).line(), decode::resp).1
    }

    /// Waits until the guest's agent answers, but no longer than `deadline` instead of the client's own.
    ///
    /// Where an agent can be heard that comes up ([`Connect::listen_for_agent`]), as behind a hybrid socket, this waits for
    /// it; the VMM need not be started yet. Otherwise an agent that cannot be connected is an error at once. Where there is
    /// none ([`Handshake::Plain`](crate::endpoint::Handshake)), the scheduler takes its place: this succeeds once it accepts
    /// a connection.
    ///
    /// # Errors
    ///
    /// [`SchedStatsError::AgentUnreachable`] if there is no agent by then, and what else ends a call.
    pub fn wait_for_agent(&self, deadline: Duration) -> Result<(), SchedStatsError> {
        let outcome =
            BlockingCall::begin(&self.shared.control, deadline).and_then(|call| self.open_session_when_ready(&call));
        self.shared.statistics().record(&outcome, None);
        outcome
    }

    /// Returns the version of the guest's agent, or `None` at a scheduler without one. Opens a session unless one is open.
    ///
    /// # Errors
    ///
    /// Whatever prevents a session.
    pub fn agent_version(&self) -> Result<Option<String>, SchedStatsError> {
        let outcome =
            BlockingCall::begin(&self.shared.control, self.deadline).and_then(|call| self.open_session(&call));
        self.shared.statistics().record(&outcome, None);
        outcome
    }

    /// Waits until the scheduler accepts a connection, but no longer than `deadline` instead of the client's own.
    ///
    /// The agent waits and answers once, without polling. At a scheduler without an agent
    /// ([`Handshake::Plain`](crate::endpoint::Handshake)) this does not wait: a scheduler that accepts a connection is
    /// ready, and anything else is [`SchedStatsError::NoScheduler`] at once.
    ///
    /// # Errors
    ///
    /// [`SchedStatsError::NoScheduler`] with what the agent saw last, or why there is no agent that could wait.
    pub fn wait_for_scheduler(&self, deadline: Duration) -> Result<(), SchedStatsError> {
        self.with_deadline(deadline).call(Ok(RequestLine::wait_scheduler(deadline)), decode::ready)
    }

    /// Returns what the guest's kernel says about sched_ext, also where no scheduler is loaded, or one that serves no stats.
    ///
    /// The agent answers at once, whatever the scheduler does.
    ///
    /// ```no_run
    /// # use scx_vsock::{Endpoint, SchedStatsClient};
    /// # let client = SchedStatsClient::builder("unix:/run/guest1/agent.sock".parse::<Endpoint>()?).build();
    /// let kernel = client.sched_ext()?;
    /// println!("sched_ext is {}", kernel.state.as_deref().unwrap_or("not there"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`SchedStatsError::InvalidRequest`] at a scheduler's own socket, [`SchedStatsError::AgentUnreachable`] also for an
    /// agent that does not know the request, and whatever else prevents an answer.
    pub fn sched_ext(&self) -> Result<SchedExt, SchedStatsError> {
        self.call(Ok(RequestLine::sched_ext()), decode::sched_ext)
    }

    /// Returns the scheduler's stats, unless `run` is frozen or cancelled before they are there; and the number of the
    /// session that the request was begun on, 0 if it was begun on none.
    pub(crate) fn read_until(&self, run: &RunControl) -> (u64, Result<Reading<Value>, SchedStatsError>) {
        self.request_in(Some(run), StatsRequest::stats(&[]).line(), decode::resp)
    }

    /// Returns what the guest's kernel says, unless `run` is frozen or cancelled before.
    pub(crate) fn sched_ext_until(&self, run: &RunControl) -> Result<SchedExt, SchedStatsError> {
        let reading = self.request_in(Some(run), Ok(RequestLine::sched_ext()), decode::sched_ext).1;
        reading.map(|reading| reading.value)
    }

    /// Returns the counters of the calls of this client and its clones so far.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.shared.statistics().clone()
    }

    fn call<T>(
        &self,
        line: Result<RequestLine, SchedStatsError>,
        decode: impl Fn(Answer<'_>) -> Result<Decoded<T>, SchedStatsError>,
    ) -> Result<T, SchedStatsError> {
        self.request_in(None, line, decode).1.map(|reading| reading.value)
    }

    /// Sends a request and waits for its outcome, which it counts. Also returns the number of the session that it was begun
    /// on, 0 for none.
    fn request_in<T>(
        &self,
        run: Option<&RunControl>,
        line: Result<RequestLine, SchedStatsError>,
        decode: impl Fn(Answer<'_>) -> Result<Decoded<T>, SchedStatsError>,
    ) -> (u64, Result<Reading<T>, SchedStatsError>) {
        let started = Instant::now();
        let is_for_agent = line.as_ref().is_ok_and(RequestLine::is_for_the_agent);
        let mut session = 0;
        let outcome = line.and_then(|line| {
            let call = BlockingCall::begin(&self.shared.control, self.deadline)?.also_in(run)?;
            let request = Request::Line(line);
            let mut poll_client = self.shared.lock(&call, &request)?;
            self.begin(&mut poll_client, &call, request)?;
            session = poll_client.session();
            let value = self.finish(&mut poll_client, &call, decode)?;
            Ok(Reading { value, session, interval: poll_client.interval() })
        });
        let latency = (!is_for_agent).then(|| started.elapsed());
        self.shared.statistics().record(&outcome, latency);
        (session, outcome)
    }

    /// Opens a session unless one is open, and returns its agent's version.
    fn open_session(&self, call: &BlockingCall) -> Result<Option<String>, SchedStatsError> {
        let mut poll_client = self.shared.lock(call, &Request::Open)?;
        self.begin(&mut poll_client, call, Request::Open)?;
        self.finish(&mut poll_client, call, decode::opened)?;
        Ok(poll_client.agent_version().map(str::to_owned))
    }

    /// Opens a session, at the latest after an agent has come up.
    fn open_session_when_ready(&self, call: &BlockingCall) -> Result<(), SchedStatsError> {
        // Before the first session, so that an agent is heard that comes up right after it has failed.
        let listener = self.shared.endpoint.listen_for_agent();
        loop {
            let error = match self.open_session(call) {
                Err(error @ SchedStatsError::AgentUnreachable { .. }) => error,
                outcome => return outcome.map(drop),
            };
            match &listener {
                Ok(Some(listener)) if has_come_up(listener.as_ref(), call)? => {}
                Ok(_) => return Err(error),
                Err(problem) => return Err(error.cannot_wait_for_agent(problem)),
            }
        }
    }

    /// Begins a request on the locked session.
    fn begin(
        &self,
        poll_client: &mut PollClient,
        call: &BlockingCall,
        request: Request,
    ) -> Result<(), SchedStatsError> {
        self.shared.begin(poll_client, request, call.deadline(), || call.check_stops())
    }

    /// Waits for the outcome of a request that was begun.
    fn finish<T>(
        &self,
        poll_client: &mut PollClient,
        call: &BlockingCall,
        decode: impl Fn(Answer<'_>) -> Result<Decoded<T>, SchedStatsError>,
    ) -> Result<T, SchedStatsError> {
        let outcome = self.wait_for_outcome(poll_client, call, decode);
        self.shared.publish_end(poll_client);
        outcome
    }

    /// Drives a request that was begun until it ends.
    fn wait_for_outcome<T>(
        &self,
        poll_client: &mut PollClient,
        call: &BlockingCall,
        decode: impl Fn(Answer<'_>) -> Result<Decoded<T>, SchedStatsError>,
    ) -> Result<T, SchedStatsError> {
        let mut end = call.check();
        // Nothing is written for a call that has ended already.
        let mut may_be_ready = end.is_ok();
        loop {
            if may_be_ready && let Some(outcome) = self.shared.advance(poll_client, &decode, || call.check_stops()) {
                return outcome;
            }
            let stream = poll_client.fd().map(|fd| (fd, poll_client.interest().flags()));
            match end.and_then(|()| call.wait_for(stream)) {
                Ok(ready) => may_be_ready = ready,
                Err(error) => return Err(poll_client.give_up(error)),
            }
            // Checked before the stream is read, which finds a complete answer that came first. A request that is still
            // to be written has no answer, and is not written any more.
            end = call.check();
            may_be_ready &= call.check_stops().is_ok() || poll_client.interest() == Interest::Read;
        }
    }
}

/// Waits until an agent comes up. Returns false if none has by the deadline.
fn has_come_up(listener: &dyn AgentListener, call: &BlockingCall) -> Result<bool, SchedStatsError> {
    let failed = |error| SchedStatsError::unreachable(format!("cannot wait for an agent to come up: {error}"));
    loop {
        match call.check() {
            Err(SchedStatsError::TimedOut { .. }) => return Ok(false),
            checked => checked?,
        }
        if listener.accept().map_err(failed)? {
            return Ok(true);
        }
        call.wait_for(Some((listener.as_fd(), Interest::Read.flags())))?;
    }
}
