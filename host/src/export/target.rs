//! One guest that is read: its session, and the outcome of its last read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use serde_json::Value;

use super::description::Description;
use super::kernel::KernelState;
use super::metrics::MetricSet;
use super::sums::accumulate;
use super::values::Values;
use crate::client::{PollClient, decode};
use crate::endpoint::{Connect, Handshake};
use crate::io::Deadline;
use crate::io::poll::PollSet;
use crate::stats::{RequestLine, SchedExt, SchedStatsError, StatsRequest};

#[derive(Debug)]
pub(super) struct Target {
    /// The value of its label `guest`.
    pub(super) name: String,
    client: PollClient,
    state: State,
    /// The session whose description was read last, and what it is.
    described: Option<u64>,
    description: Description,
    /// Reads without stats by the reason's kind.
    pub(super) missing: BTreeMap<&'static str, u64>,
    pub(super) last: Option<Outcome>,
    /// The newest stats, whose sums go on when there are some again.
    latest: Option<Arc<TargetStats>>,
    /// When it is read next.
    due: Instant,
    /// The reads that have ended.
    pub(super) reads: u64,
    /// Whether scrapers wait for its first outcome.
    is_awaited: bool,
    asks_kernel: AsksKernel,
    /// What its kernel said.
    pub(super) kernel: KernelState,
}

/// Whether the kernel is asked after each read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AsksKernel {
    Never,
    Always,
    /// It was asked in vain, and is not until a read fails: the agent may not know the request, which ends the session.
    Refused,
}

/// The request in flight, and when the read began.
#[derive(Clone, Copy, Debug)]
enum State {
    Idle,
    ReadingMeta(Instant),
    ReadingStats(Instant),
    /// What the kernel says. The outcome is there already.
    ReadingKernel,
}

/// The outcome of a read.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub(super) duration: Duration,
    pub(super) session: u64,
    /// `None` if there are no stats.
    pub(super) stats: Option<Arc<TargetStats>>,
}

/// The stats of a target.
#[derive(Clone, Debug)]
pub(super) struct TargetStats {
    pub(super) metrics: Arc<MetricSet>,
    pub(super) values: Values,
    /// The time that deltas span; `None` in a session's first answer.
    pub(super) interval: Option<Duration>,
}

impl Target {
    /// A target that is to be read from `due` on. If it is awaited, scrapers wait for its first outcome.
    pub(super) fn new(name: String, connect: impl Connect + 'static, due: Instant, is_awaited: bool) -> Self {
        Self {
            name,
            client: PollClient::new(connect),
            state: State::Idle,
            described: None,
            description: Description::default(),
            missing: BTreeMap::new(),
            last: None,
            latest: None,
            due,
            reads: 0,
            is_awaited,
            asks_kernel: AsksKernel::Never,
            kernel: KernelState::default(),
        }
    }

    /// Asks the kernel after each read, if there is an agent that can be asked.
    pub(super) fn ask_kernel(&mut self, handshake: Handshake) {
        if handshake != Handshake::Plain {
            self.asks_kernel = AsksKernel::Always;
        }
    }

    /// Whether scrapers wait for it.
    pub(super) fn keeps_scrapers(&self) -> bool {
        self.is_awaited && self.last.is_none()
    }

    /// Returns when it is read next, unless it is being read.
    pub(super) fn next_read(&self) -> Option<Instant> {
        matches!(self.state, State::Idle).then_some(self.due)
    }

    /// Begins to read it: requests stats, and their description first if the session is new.
    pub(super) fn begin(&mut self, now: Instant, deadline: Deadline, next: Instant) {
        self.due = next;
        if let Some(session) = self.described {
            self.start(&StatsRequest::stats(&[]), State::ReadingStats(now), deadline);
            if self.client.session() == session {
                return self.progress(now);
            }
            self.described = None;
            self.client.abandon();
        }
        self.start(&StatsRequest::stats_meta(), State::ReadingMeta(now), deadline);
        self.progress(now);
    }

    /// Returns the outcome of the last read, or that of the first one so far.
    pub(super) fn outcome(&self, now: Instant) -> Option<Outcome> {
        match (&self.last, self.state) {
            (Some(last), _) => Some(last.clone()),
            (None, State::Idle | State::ReadingKernel) => None,
            (None, State::ReadingMeta(began) | State::ReadingStats(began)) => {
                let duration = now.saturating_duration_since(began);
                Some(Outcome { duration, session: self.client.session(), stats: None })
            }
        }
    }

    /// Adds the descriptor that it waits for, if it is being read.
    pub(super) fn register<'a>(&'a self, set: &mut PollSet<'a>) {
        self.client.wait_in(set);
    }

    /// Makes progress if its descriptor, the next one of `events`, is ready or its deadline has passed.
    pub(super) fn on_events(&mut self, events: &mut impl Iterator<Item = PollFlags>, now: Instant) {
        if self.client.fd().is_none() {
            return;
        }
        let is_ready = events.next().is_some_and(|event| !event.is_empty());
        if is_ready || self.client.deadline().is_some_and(|deadline| deadline.has_passed(now)) {
            self.progress(now);
        }
    }

    fn start(&mut self, request: &StatsRequest, state: State, deadline: Deadline) {
        self.state = state;
        let started = request.line().and_then(|line| self.client.start(line, deadline));
        if let (Err(error), State::ReadingMeta(since) | State::ReadingStats(since)) = (started, state) {
            self.fail(&error, since, since);
        }
    }

    /// Does what can be done without waiting.
    fn progress(&mut self, now: Instant) {
        if let State::ReadingMeta(since) = self.state {
            let deadline = self.client.deadline();
            let read = self.client.on_ready(now, |answer| self.description.read(answer));
            match (read, deadline) {
                (Poll::Ready(Ok(description)), Some(deadline)) => {
                    self.description = description;
                    self.described = Some(self.client.session());
                    self.start(&StatsRequest::stats(&[]), State::ReadingStats(since), deadline);
                }
                (Poll::Ready(Err(error)), _) => self.fail_but_for_kernel(&error, since, now, deadline),
                (Poll::Ready(Ok(_)) | Poll::Pending, _) => {}
            }
        }
        if let State::ReadingStats(since) = self.state {
            let deadline = self.client.deadline();
            match self.client.on_ready(now, decode::resp::<Value>) {
                Poll::Ready(Ok(stats)) => {
                    self.succeed(&stats, since, now);
                    self.start_kernel(deadline);
                }
                Poll::Ready(Err(error)) => self.fail_but_for_kernel(&error, since, now, deadline),
                Poll::Pending => {}
            }
        }
        if let State::ReadingKernel = self.state
            && let Poll::Ready(said) = self.client.on_ready(now, decode::sched_ext)
        {
            self.end_kernel(said.ok().as_ref());
        }
    }

    fn succeed(&mut self, stats: &Value, since: Instant, now: Instant) {
        let interval = self.client.interval();
        let metrics = self.description.metrics_of(stats);
        let mut values = Values::read(&metrics, stats);
        let previous = self.latest.as_deref().map(|latest| (&latest.values, &*latest.metrics));
        accumulate(&mut values, &metrics, previous, interval.is_none());
        let stats = Arc::new(TargetStats { metrics, values, interval });
        self.latest = Some(Arc::clone(&stats));
        self.finish(since, now, Some(stats));
    }

    /// Fails a read, and asks the kernel all the same where the agent is there.
    fn fail_but_for_kernel(
        &mut self,
        error: &SchedStatsError,
        since: Instant,
        now: Instant,
        deadline: Option<Deadline>,
    ) {
        self.fail(error, since, now);
        if matches!(error, SchedStatsError::NoScheduler { .. } | SchedStatsError::SchedulerGone { .. }) {
            self.start_kernel(deadline);
        } else {
            self.kernel.update(None);
        }
    }

    fn start_kernel(&mut self, deadline: Option<Deadline>) {
        let Some(deadline) = deadline.filter(|_| self.asks_kernel == AsksKernel::Always) else { return };
        self.state = State::ReadingKernel;
        if self.client.start(RequestLine::sched_ext(), deadline).is_err() {
            self.end_kernel(None);
        }
    }

    fn end_kernel(&mut self, said: Option<&SchedExt>) {
        self.state = State::Idle;
        self.reads = self.reads.wrapping_add(1);
        self.kernel.update(said);
        if said.is_none() {
            self.asks_kernel = AsksKernel::Refused;
            self.described = None;
        }
    }

    fn fail(&mut self, error: &SchedStatsError, since: Instant, now: Instant) {
        if self.asks_kernel == AsksKernel::Refused {
            self.asks_kernel = AsksKernel::Always;
        }
        let count = self.missing.entry(error.kind()).or_default();
        *count = count.saturating_add(1);
        self.finish(since, now, None);
    }

    fn finish(&mut self, since: Instant, now: Instant, stats: Option<Arc<TargetStats>>) {
        self.state = State::Idle;
        self.reads = self.reads.wrapping_add(1);
        let duration = now.saturating_duration_since(since);
        self.last = Some(Outcome { duration, session: self.client.session(), stats });
    }
}
