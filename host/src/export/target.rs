//! One guest that is scraped: its session, and the outcome of its last scrape.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use serde_json::Value;

use super::clock::{MIN_INTERVAL, after};
use super::metrics::MetricSet;
use super::values::Values;
use crate::client::decode::Decoded;
use crate::client::{Answer, PollClient, decode};
use crate::endpoint::Connect;
use crate::io::Deadline;
use crate::io::poll::PollSet;
use crate::stats::meta::Meta;
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
    /// Scrapes without stats by the reason's kind.
    pub(super) missing: BTreeMap<&'static str, u64>,
    pub(super) last: Option<Outcome>,
    /// When the last read began and ended, and how many have ended.
    began: Option<Instant>,
    ended: Option<Instant>,
    pub(super) reads: u64,
}

/// The metrics of a description, with a hash of its line: one that did not change is not parsed again.
#[derive(Clone, Debug, Default)]
struct Description {
    hash: Option<u64>,
    /// Secret, so that no guest knows two lines of one hash.
    hasher: RandomState,
    metrics: Arc<MetricSet>,
}

impl Description {
    /// Reads an answer to `stats_meta`.
    fn read(&self, answer: Answer<'_>) -> Result<Decoded<Self>, SchedStatsError> {
        let hash = match answer {
            Answer::Scheduler(line) => Some(self.hasher.hash_one(line)),
            _ => None,
        };
        if hash.is_some() && hash == self.hash {
            return Ok(Decoded { value: self.clone(), errno: 0 });
        }
        let Decoded { value: meta, errno } = decode::resp::<Meta>(answer)?;
        let metrics = Arc::new(MetricSet::new(&meta));
        Ok(Decoded { value: Self { hash, hasher: self.hasher.clone(), metrics }, errno })
    }
}

/// The request in flight, and when the scrape began.
#[derive(Clone, Copy, Debug)]
enum State {
    Idle,
    ReadingMeta(Instant),
    ReadingStats(Instant),
}

/// The outcome of a scrape.
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
    pub(super) fn new(name: String, connect: impl Connect + 'static) -> Self {
        Self {
            name,
            client: PollClient::new(connect),
            state: State::Idle,
            described: None,
            description: Description::default(),
            missing: BTreeMap::new(),
            last: None,
            began: None,
            ended: None,
            reads: 0,
        }
    }

    /// Whether it was never read.
    pub(super) fn is_new(&self) -> bool {
        self.began.is_none()
    }

    /// Returns when the last read ended.
    pub(super) fn ended(&self) -> Option<Instant> {
        self.ended
    }

    /// Returns when it may be read again, unless it is being read, or was read since `wanted`.
    pub(super) fn next_read(&self, wanted: Instant) -> Option<Instant> {
        let is_idle = matches!(self.state, State::Idle);
        (is_idle && self.ended < Some(wanted)).then(|| self.began.map_or(wanted, |began| after(began, MIN_INTERVAL)))
    }

    /// Begins to read it: requests stats, and their description first if the session is new.
    pub(super) fn begin(&mut self, now: Instant, deadline: Deadline) {
        self.began = Some(now);
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

    /// Returns the outcome of the last read; while it is being read, and has no outcome since `since`, that of this read so
    /// far.
    pub(super) fn outcome(&self, since: Instant, now: Instant) -> Option<Outcome> {
        match self.state {
            State::Idle => self.last.clone(),
            _ if self.ended >= Some(since) => self.last.clone(),
            State::ReadingMeta(began) | State::ReadingStats(began) => {
                let duration = now.saturating_duration_since(began);
                Some(Outcome { duration, session: self.client.session(), stats: None })
            }
        }
    }

    /// Adds the descriptor that it waits for, if a scrape is pending.
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
        let metrics = Arc::clone(&self.description.metrics);
        let values = Values::read(&metrics, stats);
        self.finish(since, now, Some(Arc::new(TargetStats { metrics, values, interval })));
    }

    fn fail(&mut self, error: &SchedStatsError, since: Instant, now: Instant) {
        let count = self.missing.entry(error.kind()).or_default();
        *count = count.saturating_add(1);
        self.finish(since, now, None);
    }

    fn finish(&mut self, since: Instant, now: Instant, stats: Option<Arc<TargetStats>>) {
        self.state = State::Idle;
        self.ended = Some(now);
        self.reads = self.reads.wrapping_add(1);
        let duration = now.saturating_duration_since(since);
        self.last = Some(Outcome { duration, session: self.client.session(), stats });
    }
}
