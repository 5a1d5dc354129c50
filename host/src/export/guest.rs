//! One guest of an exporter: its session, and what the last round found.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use serde_json::Value;

use super::metrics::Plan;
use super::values::Values;
use crate::client::{Deadline, PollClient, decode};
use crate::endpoint::Connect;
use crate::io::poll::PollSet;
use crate::stats::SchedStatsError;
use crate::stats::meta::Meta;
use crate::stats::{RequestLine, StatsRequest};

#[derive(Debug)]
pub(super) struct Guest {
    pub(super) name: String,
    conversation: PollClient,
    asked: Asked,
    /// What the session's stats become.
    plan: Option<Arc<Plan>>,
    /// The session that the plan is of.
    planned: u64,
    /// When the session's stats were last read.
    read: Option<(u64, Instant)>,
    /// How often each reason was found.
    pub(super) missing: BTreeMap<&'static str, u64>,
    pub(super) last: Option<Outcome>,
}

/// What the guest is asked, and since when.
#[derive(Clone, Copy, Debug)]
enum Asked {
    Nothing,
    Meta(Instant),
    Stats(Instant),
}

/// What a round found.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub(super) took: Duration,
    pub(super) session: u64,
    /// The numbers; none where there are no stats.
    pub(super) found: Option<Arc<Found>>,
}

/// The numbers that a round found.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) plan: Arc<Plan>,
    pub(super) values: Values,
    /// The time that deltas span; none in a session's first answer.
    pub(super) span: Option<Duration>,
}

impl Guest {
    pub(super) fn new(name: String, connect: impl Connect + 'static) -> Self {
        Self {
            name,
            conversation: PollClient::new(connect),
            asked: Asked::Nothing,
            plan: None,
            planned: 0,
            read: None,
            missing: BTreeMap::new(),
            last: None,
        }
    }

    pub(super) fn is_asked(&self) -> bool {
        !matches!(self.asked, Asked::Nothing)
    }

    /// Begins a round: asks for stats, and first for what they mean where the session is new.
    pub(super) fn begin(&mut self, now: Instant, deadline: Deadline) {
        if self.plan.is_some() {
            self.ask(&StatsRequest::stats(&[]), Asked::Stats(now), deadline);
            if self.conversation.session() == self.planned {
                return self.go_on(now);
            }
            self.plan = None;
            self.conversation.abandon();
        }
        self.ask(&StatsRequest::stats_meta(), Asked::Meta(now), deadline);
        self.go_on(now);
    }

    /// What the last round found; while the guest is being asked, that there is nothing yet.
    pub(super) fn outcome(&self, now: Instant) -> Option<Outcome> {
        match self.asked {
            Asked::Nothing => self.last.clone(),
            Asked::Meta(since) | Asked::Stats(since) => {
                let took = now.saturating_duration_since(since);
                Some(Outcome { took, session: self.conversation.session(), found: None })
            }
        }
    }

    pub(super) fn wait_in<'a>(&'a self, set: &mut PollSet<'a>) {
        self.conversation.wait_in(set);
    }

    /// Goes on where something happened on the descriptor that it waited for, or its time is over.
    pub(super) fn turn(&mut self, events: &mut impl Iterator<Item = PollFlags>, now: Instant) {
        if self.conversation.fd().is_none() {
            return;
        }
        let happened = events.next().is_some_and(|event| !event.is_empty());
        if happened || self.conversation.deadline().is_some_and(|deadline| deadline.has_passed(now)) {
            self.go_on(now);
        }
    }

    fn ask(&mut self, request: &StatsRequest, asked: Asked, deadline: Deadline) {
        self.asked = asked;
        let started = request.line().and_then(|line: RequestLine| self.conversation.start(line, deadline));
        if let (Err(error), Asked::Meta(since) | Asked::Stats(since)) = (started, asked) {
            self.failed(&error, since, since);
        }
    }

    /// Does what can be done without waiting.
    fn go_on(&mut self, now: Instant) {
        if let Asked::Meta(since) = self.asked {
            let deadline = self.conversation.deadline();
            match (self.conversation.on_ready(now, decode::resp::<Meta>), deadline) {
                (Poll::Ready(Ok(meta)), Some(deadline)) => {
                    self.plan = Some(Arc::new(Plan::new(&meta)));
                    self.planned = self.conversation.session();
                    self.ask(&StatsRequest::stats(&[]), Asked::Stats(since), deadline);
                }
                (Poll::Ready(Err(error)), _) => self.failed(&error, since, now),
                (Poll::Ready(Ok(_)) | Poll::Pending, _) => {}
            }
        }
        if let Asked::Stats(since) = self.asked {
            match self.conversation.on_ready(now, decode::resp::<Value>) {
                Poll::Ready(Ok(stats)) => self.found(&stats, since, now),
                Poll::Ready(Err(error)) => self.failed(&error, since, now),
                Poll::Pending => {}
            }
        }
    }

    fn found(&mut self, stats: &Value, since: Instant, now: Instant) {
        let session = self.conversation.session();
        let before = self.read.replace((session, now)).filter(|(before, _)| *before == session);
        let span = before.map(|(_, then)| now.saturating_duration_since(then));
        let plan = self.plan.clone().unwrap_or_default();
        let values = Values::read(&plan, stats);
        self.rest(since, now, Some(Arc::new(Found { plan, values, span })));
    }

    fn failed(&mut self, error: &SchedStatsError, since: Instant, now: Instant) {
        *self.missing.entry(error.kind()).or_default() += 1;
        self.rest(since, now, None);
    }

    fn rest(&mut self, since: Instant, now: Instant, found: Option<Arc<Found>>) {
        self.asked = Asked::Nothing;
        let took = now.saturating_duration_since(since);
        self.last = Some(Outcome { took, session: self.conversation.session(), found });
    }
}
