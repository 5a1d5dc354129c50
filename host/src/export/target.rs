//! One guest that is read: its session, and the outcome of its last read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use serde_json::Value;

use super::description::Description;
use super::metrics::MetricSet;
use super::sums::accumulate;
use super::values::Values;
use crate::client::{PollClient, decode};
use crate::endpoint::Connect;
use crate::io::Deadline;
use crate::io::poll::PollSet;
use crate::stats::{SchedStatsError, StatsRequest};

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
}

/// The request in flight, and when the read began.
#[derive(Clone, Copy, Debug)]
enum State {
    Idle,
    ReadingMeta(Instant),
    ReadingStats(Instant),
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
            (None, State::Idle) => None,
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
                (Poll::Ready(Err(error)), _) => self.fail(&error, since, now),
                (Poll::Ready(Ok(_)) | Poll::Pending, _) => {}
            }
        }
        if let State::ReadingStats(since) = self.state {
            match self.client.on_ready(now, decode::resp::<Value>) {
                Poll::Ready(Ok(stats)) => self.succeed(&stats, since, now),
                Poll::Ready(Err(error)) => self.fail(&error, since, now),
                Poll::Pending => {}
            }
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

    fn fail(&mut self, error: &SchedStatsError, since: Instant, now: Instant) {
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
