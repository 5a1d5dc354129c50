//! The client for tasks of a Tokio runtime.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::{Mutex, MutexGuard};

use super::async_call::AsyncCall;
use super::client::DEFAULT_DEADLINE;
use super::decode::{self, Decoded};
use super::poll_client::{Interest, PollClient};
use super::reading::Reading;
use super::session::{Answer, Request};
use super::shared_client::SharedClient;
use super::statistics::Statistics;
use crate::control::RunControl;
use crate::endpoint::{AgentListener, Connect};
use crate::stats::{Meta, RequestLine, SchedExt, SchedStatsError, StatsRequest, StatsResponse};

/// A client of one guest's scheduler, for tasks of a Tokio runtime.
///
/// It gives what [`SchedStatsClient`](crate::SchedStatsClient) gives: clones share one session, one call at a time, first
/// come, first served; every call ends by its deadline; a request that was written is never repeated.
///
/// A call may be dropped before it is complete, as `select!` and `timeout` do: its request is abandoned and its session
/// closed, so that its answer is never another call's. Such a call is not counted in the [`Statistics`].
///
/// ```
/// use scx_vsock::{Endpoint, client::AsyncSchedStatsClient};
/// use tokio::task::JoinSet;
///
/// # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
/// # runtime.block_on(async {
/// let mut guests = JoinSet::new();
/// for number in 1..=3 {
///     let agent: Endpoint = format!("unix:/run/guest{number}/agent.sock").parse()?;
///     let client = AsyncSchedStatsClient::builder(agent).build();
///     guests.spawn(async move { client.stats(&[]).await });
/// }
/// for stats in guests.join_all().await {
///     assert_eq!(stats.unwrap_err().kind(), "agent_unreachable");
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Panics
///
/// A call panics outside of a runtime, or where the runtime has I/O or time disabled.
#[derive(Clone)]
pub struct AsyncSchedStatsClient {
    shared: Arc<SharedClient<Mutex<PollClient>>>,
    deadline: Duration,
}

/// The session, locked for one call. A request that has no outcome when this is dropped is abandoned.
struct LockedSession<'a> {
    shared: &'a SharedClient<Mutex<PollClient>>,
    poll_client: MutexGuard<'a, PollClient>,
}

impl Deref for LockedSession<'_> {
    type Target = PollClient;

    fn deref(&self) -> &PollClient {
        &self.poll_client
    }
}

impl DerefMut for LockedSession<'_> {
    fn deref_mut(&mut self) -> &mut PollClient {
        &mut self.poll_client
    }
}

impl Drop for LockedSession<'_> {
    fn drop(&mut self) {
        self.poll_client.abandon();
        self.shared.publish_end(&self.poll_client);
    }
}

impl SharedClient<Mutex<PollClient>> {
    /// Locks the session for a request.
    ///
    /// # Errors
    ///
    /// What ended the call before it was its turn.
    async fn lock(&self, call: &AsyncCall, request: &Request) -> Result<LockedSession<'_>, SchedStatsError> {
        let locked = call.first(self.poll_client.lock()).await;
        match (call.check(), locked) {
            (Ok(()), Some(poll_client)) => Ok(LockedSession { shared: self, poll_client }),
            (Err(error), _) => Err(self.before_its_turn(error, request)),
            (Ok(()), None) => Err(SchedStatsError::unreachable("the runtime ended before this call had its turn")),
        }
    }
}

impl fmt::Debug for AsyncSchedStatsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncSchedStatsClient")
            .field("session", &self.session())
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

/// Builds an [`AsyncSchedStatsClient`].
///
/// ```
/// use scx_vsock::{Endpoint, RunControl, client::AsyncSchedStatsClient};
///
/// let run = RunControl::new();
/// let builder = AsyncSchedStatsClient::builder("vsock://3".parse::<Endpoint>()?).control(&run);
/// let client = builder.deadline(std::time::Duration::from_secs(1)).build();
/// # Ok::<(), scx_vsock::endpoint::ParseEndpointError>(())
/// ```
#[derive(Debug)]
#[must_use = "a builder does nothing until it builds"]
pub struct AsyncSchedStatsClientBuilder {
    poll_client: PollClient,
    control: RunControl,
    deadline: Duration,
}

impl AsyncSchedStatsClientBuilder {
    /// Sets how long each call may take in all. The default is [`DEFAULT_DEADLINE`].
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sets the run whose freezes and cancel end the client's calls. By default nothing does.
    pub fn control(mut self, control: &RunControl) -> Self {
        self.control = control.clone();
        self
    }

    /// Builds the client. Does no I/O, and needs no runtime.
    #[must_use]
    pub fn build(self) -> AsyncSchedStatsClient {
        let shared = SharedClient::new(self.poll_client, self.control, Mutex::new);
        AsyncSchedStatsClient { shared: Arc::new(shared), deadline: self.deadline }
    }
}

impl AsyncSchedStatsClient {
    /// Begins to build a client of the agent at an [`Endpoint`](crate::Endpoint) or another [`Connect`].
    pub fn builder(endpoint: impl Connect + 'static) -> AsyncSchedStatsClientBuilder {
        let poll_client = PollClient::new(endpoint);
        AsyncSchedStatsClientBuilder { poll_client, control: RunControl::new(), deadline: DEFAULT_DEADLINE }
    }

    /// Returns a clone, on the same session, whose calls may take this long.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { shared: Arc::clone(&self.shared), deadline }
    }

    /// Returns the number of the newest session, counted from 1; 0 before the first. With another session the scheduler's
    /// deltas have a new baseline.
    #[must_use]
    pub fn session(&self) -> u64 {
        self.shared.session()
    }

    /// Returns the counters of the calls of this client and its clones so far.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.shared.statistics().clone()
    }

    /// Sends one line and returns the scheduler's line without its LF, byte for byte, as
    /// [`SchedStatsClient::request_raw`](crate::SchedStatsClient::request_raw) does.
    ///
    /// # Errors
    ///
    /// [`SchedStatsError::RequestTooLarge`] and [`SchedStatsError::InvalidRequest`] before anything is sent, and
    /// whatever else prevents an answer.
    pub async fn request_raw(&self, line: impl AsRef<[u8]>) -> Result<Vec<u8>, SchedStatsError> {
        let line = RequestLine::new(line.as_ref());
        self.call(line, decode::raw).await
    }

    /// Sends a request and returns the scheduler's answer, whatever its errno. After an errno other than 0 the session is
    /// renewed.
    ///
    /// # Errors
    ///
    /// [`SchedStatsError::RequestTooLarge`] before anything is sent, and whatever else prevents an answer.
    pub async fn request(&self, request: &StatsRequest) -> Result<StatsResponse, SchedStatsError> {
        self.call(request.line(), decode::response).await
    }

    /// Returns the scheduler's stats: `args["resp"]` of its answer. Without `args` they are those of the target `top`.
    ///
    /// # Errors
    ///
    /// [`SchedStatsError::SchedulerError`] for an errno other than 0, [`SchedStatsError::MissingResp`] for an answer
    /// without `resp`, and whatever else prevents an answer.
    pub async fn stats(&self, args: &[(&str, &str)]) -> Result<Value, SchedStatsError> {
        self.stats_as(args).await
    }

    /// Returns what the scheduler says about its stats: the fields of each struct with their kinds and descriptions, by
    /// the struct's name.
    ///
    /// # Errors
    ///
    /// As for [`stats`](Self::stats).
    pub async fn stats_meta(&self) -> Result<Value, SchedStatsError> {
        self.call(StatsRequest::stats_meta().line(), decode::resp).await
    }

    /// Returns the same as [`stats_meta`](Self::stats_meta), parsed.
    ///
    /// # Errors
    ///
    /// As for [`stats`](Self::stats); [`SchedStatsError::MalformedResponse`] where `resp` is not a description.
    pub async fn meta(&self) -> Result<Meta, SchedStatsError> {
        self.call(StatsRequest::stats_meta().line(), decode::resp).await
    }

    /// Returns the scheduler's stats as a type of the caller's, decoded in one pass without a [`Value`] in between.
    ///
    /// # Errors
    ///
    /// As for [`stats`](Self::stats); [`SchedStatsError::MalformedResponse`] where `resp` is not a `T`.
    pub async fn stats_as<T: DeserializeOwned>(&self, args: &[(&str, &str)]) -> Result<T, SchedStatsError> {
        self.read(args).await.map(|reading| reading.value)
    }

    /// Returns the scheduler's stats as [`stats_as`](Self::stats_as) does, with the session that answered and the time that
    /// their deltas span.
    ///
    /// # Errors
    ///
    /// As for [`stats_as`](Self::stats_as).
    pub async fn read<T: DeserializeOwned>(&self, args: &[(&str, &str)]) -> Result<Reading<T>, SchedStatsError> {
        self.request_in(StatsRequest::stats(args).line(), decode::resp).await
    }

    /// Waits until the guest's agent answers, but no longer than `deadline` instead of the client's own, as
    /// [`SchedStatsClient::wait_for_agent`](crate::SchedStatsClient::wait_for_agent) does.
    ///
    /// # Errors
    ///
    /// [`SchedStatsError::AgentUnreachable`] if there is no agent by then, and what else ends a call.
    pub async fn wait_for_agent(&self, deadline: Duration) -> Result<(), SchedStatsError> {
        let outcome = match AsyncCall::begin(&self.shared.control, deadline) {
            Ok(call) => self.open_session_when_ready(&call).await,
            Err(error) => Err(error),
        };
        self.shared.statistics().record(&outcome, None);
        outcome
    }

    /// Returns the version of the guest's agent, or `None` at a scheduler without one. Opens a session unless one is open.
    ///
    /// # Errors
    ///
    /// Whatever prevents a session.
    pub async fn agent_version(&self) -> Result<Option<String>, SchedStatsError> {
        let outcome = match AsyncCall::begin(&self.shared.control, self.deadline) {
            Ok(call) => self.open_session(&call).await,
            Err(error) => Err(error),
        };
        self.shared.statistics().record(&outcome, None);
        outcome
    }

    /// Waits until the scheduler accepts a connection, but no longer than `deadline` instead of the client's own, as
    /// [`SchedStatsClient::wait_for_scheduler`](crate::SchedStatsClient::wait_for_scheduler) does.
    ///
    /// # Errors
    ///
    /// [`SchedStatsError::NoScheduler`] with what the agent saw last, or why there is no agent that could wait.
    pub async fn wait_for_scheduler(&self, deadline: Duration) -> Result<(), SchedStatsError> {
        self.with_deadline(deadline).call(Ok(RequestLine::wait_scheduler(deadline)), decode::ready).await
    }

    /// Returns what the guest's kernel says about sched_ext, also where no scheduler is loaded, or one that serves no stats.
    ///
    /// # Errors
    ///
    /// [`SchedStatsError::InvalidRequest`] at a scheduler's own socket, [`SchedStatsError::AgentUnreachable`] also for an
    /// agent that does not know the request, and whatever else prevents an answer.
    pub async fn sched_ext(&self) -> Result<SchedExt, SchedStatsError> {
        self.call(Ok(RequestLine::sched_ext()), decode::sched_ext).await
    }

    async fn call<T>(
        &self,
        line: Result<RequestLine, SchedStatsError>,
        decode: impl Fn(Answer<'_>) -> Result<Decoded<T>, SchedStatsError>,
    ) -> Result<T, SchedStatsError> {
        self.request_in(line, decode).await.map(|reading| reading.value)
    }

    /// Sends a request and waits for its outcome, which it counts.
    async fn request_in<T>(
        &self,
        line: Result<RequestLine, SchedStatsError>,
        decode: impl Fn(Answer<'_>) -> Result<Decoded<T>, SchedStatsError>,
    ) -> Result<Reading<T>, SchedStatsError> {
        let started = Instant::now();
        let is_for_agent = line.as_ref().is_ok_and(RequestLine::is_for_the_agent);
        let outcome = match line {
            Ok(line) => self.answer(line, decode).await,
            Err(error) => Err(error),
        };
        let latency = (!is_for_agent).then(|| started.elapsed());
        self.shared.statistics().record(&outcome, latency);
        outcome
    }

    async fn answer<T>(
        &self,
        line: RequestLine,
        decode: impl Fn(Answer<'_>) -> Result<Decoded<T>, SchedStatsError>,
    ) -> Result<Reading<T>, SchedStatsError> {
        let call = AsyncCall::begin(&self.shared.control, self.deadline)?;
        let request = Request::Line(line);
        let mut session = self.shared.lock(&call, &request).await?;
        self.shared.begin(&mut session, request, call.deadline(), || call.check_stops())?;
        let value = self.wait_for_outcome(&mut session, &call, decode).await?;
        Ok(Reading { value, session: session.session(), interval: session.interval() })
    }

    /// Opens a session unless one is open, and returns its agent's version.
    async fn open_session(&self, call: &AsyncCall) -> Result<Option<String>, SchedStatsError> {
        let mut session = self.shared.lock(call, &Request::Open).await?;
        self.shared.begin(&mut session, Request::Open, call.deadline(), || call.check_stops())?;
        self.wait_for_outcome(&mut session, call, decode::opened).await?;
        Ok(session.agent_version().map(str::to_owned))
    }

    /// Opens a session, at the latest after an agent has come up.
    async fn open_session_when_ready(&self, call: &AsyncCall) -> Result<(), SchedStatsError> {
        // Before the first session, so that an agent is heard that comes up right after it has failed.
        let listener = self.shared.endpoint.listen_for_agent();
        loop {
            let error = match self.open_session(call).await {
                Err(error @ SchedStatsError::AgentUnreachable { .. }) => error,
                outcome => return outcome.map(drop),
            };
            match &listener {
                Ok(Some(listener)) if has_come_up(listener.as_ref(), call).await? => {}
                Ok(_) => return Err(error),
                Err(problem) => return Err(error.cannot_wait_for_agent(problem)),
            }
        }
    }

    /// Drives a request that was begun until it ends.
    async fn wait_for_outcome<T>(
        &self,
        session: &mut LockedSession<'_>,
        call: &AsyncCall,
        decode: impl Fn(Answer<'_>) -> Result<Decoded<T>, SchedStatsError>,
    ) -> Result<T, SchedStatsError> {
        let mut end = call.check();
        // Nothing is written for a call that has ended already.
        let mut may_be_ready = end.is_ok();
        loop {
            if may_be_ready && let Some(outcome) = self.shared.advance(session, &decode, || call.check_stops()) {
                return outcome;
            }
            if let (Ok(()), Some(stream)) = (&end, session.fd()) {
                end = call.wait_for(stream, session.interest()).await;
            }
            if let Err(error) = end {
                return Err(session.give_up(error));
            }
            // Checked before the stream is read, which finds a complete answer that came first. A request that is still
            // to be written has no answer, and is not written any more.
            end = call.check();
            may_be_ready = call.check_stops().is_ok() || session.interest() == Interest::Read;
        }
    }
}

/// Waits until an agent comes up. Returns false if none has by the deadline.
async fn has_come_up(listener: &dyn AgentListener, call: &AsyncCall) -> Result<bool, SchedStatsError> {
    let failed = |error| SchedStatsError::unreachable(format!("cannot wait for an agent to come up: {error}"));
    loop {
        match call.check() {
            Err(SchedStatsError::TimedOut { .. }) => return Ok(false),
            checked => checked?,
        }
        if listener.accept().map_err(failed)? {
            return Ok(true);
        }
        call.wait_for(listener.as_fd(), Interest::Read).await?;
    }
}
