//! A sampler on a thread of its own.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Sample, Sampler};
use crate::control::{Entry, RunControl};
use crate::histogram::Histogram;
use crate::series::SampleSeries;

/// When samples are due, counted from the start of the spawned sampler, so that lateness never adds up.
///
/// ```
/// use std::time::Duration;
/// use scx_vsock::Sampler;
/// use scx_vsock::sample::Schedule;
///
/// let boundaries = Schedule::At(vec![Duration::from_secs(10), Duration::from_secs(25)]);
/// let spawned = Sampler::new(None).spawn_keeping(boundaries, 2)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// The n-th after n times this.
    Every(Duration),
    /// One after each of these, which must grow.
    At(Vec<Duration>),
}

/// A schedule that cannot be kept, or no thread to keep it.
///
/// ```
/// use std::time::Duration;
/// use scx_vsock::Sampler;
/// use scx_vsock::sample::Schedule;
///
/// let error = Sampler::new(None).spawn(Schedule::Every(Duration::ZERO), |_, _| ()).unwrap_err();
/// assert!(error.to_string().starts_with("an interval of 0"));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScheduleError {
    /// Samples without a time between them.
    #[error("an interval of 0 would take samples without end: give the time between two")]
    NoInterval,
    /// A boundary that is not behind the one before.
    #[error("boundary {number} is at {} ms, which is not after {} ms: give them in growing order", at.as_millis(), before.as_millis())]
    OutOfOrder {
        /// The boundary's number, counted from 1.
        number: usize,
        /// Where it is.
        at: Duration,
        /// Where the one before is.
        before: Duration,
    },
    /// The kernel has no thread or descriptor for it.
    #[error("the host's kernel refuses the sampler what it needs")]
    Host(#[from] io::Error),
}

impl Schedule {
    fn checked(self) -> Result<Self, ScheduleError> {
        match &self {
            Self::Every(Duration::ZERO) => return Err(ScheduleError::NoInterval),
            Self::Every(_) => {}
            Self::At(boundaries) => {
                let pairs = (2..).zip(boundaries.iter().zip(boundaries.iter().skip(1)));
                for (number, (&before, &at)) in pairs {
                    if at <= before {
                        return Err(ScheduleError::OutOfOrder { number, at, before });
                    }
                }
            }
        }
        Ok(self)
    }

    /// When sample `n`, counted from 1, is due; `None` behind the last.
    fn due(&self, n: u64) -> Option<Duration> {
        match self {
            Self::Every(interval) => {
                let nanoseconds = interval.as_nanos().saturating_mul(n.into());
                Some(Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX)))
            }
            Self::At(boundaries) => boundaries.get(usize::try_from(n).ok()?.checked_sub(1)?).copied(),
        }
    }

    /// How many samples are due by then.
    fn due_by(&self, elapsed: Duration) -> u64 {
        match self {
            Self::Every(interval) => u64::try_from(elapsed.as_nanos() / interval.as_nanos().max(1)).unwrap_or(u64::MAX),
            Self::At(boundaries) => boundaries.partition_point(|&due| due <= elapsed) as u64,
        }
    }

    /// The sample to take behind `n`: the next, or the newest that is due. What a slow scheduler made impossible in
    /// between is left out, so that it costs no other sample.
    fn next_behind(&self, n: u64, elapsed: Duration) -> u64 {
        self.due_by(elapsed).max(n.saturating_add(1))
    }
}

/// How a spawned sampler has kept its schedule so far.
///
/// ```
/// # use std::time::Duration;
/// # use scx_vsock::Sampler;
/// # use scx_vsock::sample::Schedule;
/// let mut spawned = Sampler::new(None).spawn_keeping(Schedule::At(vec![Duration::from_millis(1)]), 10)?;
/// spawned.join();
/// let tally = spawned.tally();
/// assert_eq!((tally.taken, tally.left_out, tally.dropped), (1, 0, 0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SamplerStats {
    /// Samples that were taken, with stats or without.
    pub taken: u64,
    /// Samples that became due while an earlier one waited for its scheduler, and were not taken.
    pub left_out: u64,
    /// Samples that had to make room for newer ones before they were [taken away](BackgroundSampler::take_kept).
    pub dropped: u64,
    /// How late samples were begun.
    pub late: Histogram,
}

/// What the thread and its owner share.
#[derive(Default)]
struct Shared {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    kept: VecDeque<Sample>,
    tally: SamplerStats,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Whole at every point where a thread could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a sample, and no more than this many.
    fn keep(&self, sample: Sample, most: usize) {
        let mut state = self.state();
        state.kept.push_back(sample);
        while state.kept.len() > most {
            state.kept.pop_front();
            state.tally.dropped += 1;
        }
    }
}

/// A sampler on a thread of its own. The thread ends with this value.
///
/// ```no_run
/// use std::sync::mpsc;
/// use std::time::Duration;
/// use scx_vsock::sample::Schedule;
/// use scx_vsock::{Endpoint, Sampler, SchedStatsClient};
///
/// let client = SchedStatsClient::builder("vsock://3".parse::<Endpoint>()?).build();
/// let (samples, taken) = mpsc::channel();
/// let spawned = Sampler::new(Some(client)).spawn(Schedule::Every(Duration::from_secs(1)), move |sample, late| {
///     if late > Duration::from_millis(100) {
///         eprintln!("{} is {late:?} late", sample.tag);
///     }
///     let _listens = samples.send(sample);
/// })?;
/// let first = taken.recv()?;
/// drop(spawned);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct BackgroundSampler {
    stop: RunControl,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Sampler>>,
}

impl fmt::Debug for BackgroundSampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackgroundSampler")
            .field("stop", &self.stop)
            .field("tally", &self.tally())
            .finish_non_exhaustive()
    }
}

impl Sampler {
    /// Takes samples on a thread of its own, tagged by their number, and hands each to `sink` with how late it was
    /// begun. The baseline is primed first. While one sample waits for a slow scheduler, those that become due are
    /// left out and [counted](SamplerStats::left_out); their numbers are missing from the tags.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use scx_vsock::Sampler;
    /// # use scx_vsock::sample::Schedule;
    /// let (samples, taken) = std::sync::mpsc::channel();
    /// let schedule = Schedule::At(vec![Duration::from_millis(1)]);
    /// let spawned = Sampler::new(None).spawn(schedule, move |sample, _late| samples.send(sample).unwrap())?;
    /// assert_eq!(taken.recv()?.tag, "1");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`ScheduleError`].
    pub fn spawn(
        self,
        schedule: Schedule,
        sink: impl FnMut(Sample, Duration) + Send + 'static,
    ) -> Result<BackgroundSampler, ScheduleError> {
        self.spawn_sharing(Arc::default(), schedule, sink)
    }

    /// As [`spawn`](Self::spawn), and keeps the samples until they are [taken away](BackgroundSampler::take_kept): the
    /// newest, at most `most` of them. Older ones are dropped and [counted](SamplerStats::dropped).
    ///
    /// ```
    /// use std::time::Duration;
    /// use scx_vsock::Sampler;
    /// use scx_vsock::sample::Schedule;
    ///
    /// let at = (1..=5).map(Duration::from_millis).collect();
    /// let mut spawned = Sampler::new(None).spawn_keeping(Schedule::At(at), 2)?;
    /// spawned.join();
    /// let newest = spawned.take_kept();
    /// assert!(newest.samples().len() <= 2 && newest.samples().last().unwrap().tag == "5");
    /// let tally = spawned.tally();
    /// assert_eq!(tally.taken + tally.left_out, 5);
    /// # Ok::<(), scx_vsock::sample::ScheduleError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`ScheduleError`].
    pub fn spawn_keeping(self, schedule: Schedule, most: usize) -> Result<BackgroundSampler, ScheduleError> {
        let shared = Arc::<Shared>::default();
        let keeps = Arc::clone(&shared);
        self.spawn_sharing(shared, schedule, move |sample, _| keeps.keep(sample, most))
    }

    fn spawn_sharing(
        mut self,
        shared: Arc<Shared>,
        schedule: Schedule,
        sink: impl FnMut(Sample, Duration) + Send + 'static,
    ) -> Result<BackgroundSampler, ScheduleError> {
        let schedule = schedule.checked()?;
        let stop = RunControl::new();
        self.stop = stop.clone();
        let entry = stop.enter().map_err(io::Error::other)?;
        let tallies = Arc::clone(&shared);
        let run = move || {
            take_samples(&mut self, &schedule, &entry, &tallies, sink);
            self
        };
        let thread = thread::Builder::new().name("sampler".into()).spawn(run)?;
        Ok(BackgroundSampler { stop, shared, thread: Some(thread) })
    }
}

fn take_samples(
    sampler: &mut Sampler,
    schedule: &Schedule,
    stop: &Entry,
    shared: &Shared,
    mut sink: impl FnMut(Sample, Duration),
) {
    // Why there is none is what the samples say.
    let _reason = sampler.prime();
    let started = Instant::now();
    sampler.started = started;
    let mut n = 1;
    while let Some(due) = schedule.due(n) {
        if !sleep_until(started.checked_add(due), stop) {
            return;
        }
        let late = started.elapsed().saturating_sub(due);
        let sample = sampler.sample(n.to_string());
        if stop.stopped().is_err() {
            return;
        }
        let next = schedule.next_behind(n, started.elapsed());
        let mut state = shared.state();
        state.tally.taken += 1;
        state.tally.left_out += next - n - 1;
        state.tally.late.record(late);
        drop(state);
        sink(sample, late);
        n = next;
    }
}

/// Waits until then; false if it was stopped before. A time beyond the clock's range never comes.
fn sleep_until(then: Option<Instant>, stop: &Entry) -> bool {
    loop {
        if stop.stopped().is_err() {
            return false;
        }
        let left = then.map(|then| then.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return true;
        }
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        if poll(&mut [PollFd::new(stop.wake(), PollFlags::IN)], timeout.as_ref()).is_ok_and(|ready| ready > 0) {
            stop.woken();
        }
    }
}

impl BackgroundSampler {
    /// Whether its schedule is over.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use scx_vsock::Sampler;
    /// # use scx_vsock::sample::Schedule;
    /// let mut spawned = Sampler::new(None).spawn_keeping(Schedule::At(vec![Duration::from_millis(1)]), 10)?;
    /// spawned.join();
    /// assert!(spawned.is_finished());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// How the schedule was kept so far.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use scx_vsock::Sampler;
    /// # use scx_vsock::sample::Schedule;
    /// let mut spawned = Sampler::new(None).spawn_keeping(Schedule::At(vec![Duration::from_millis(1)]), 10)?;
    /// spawned.join();
    /// assert_eq!(spawned.tally().late.count(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn tally(&self) -> SamplerStats {
        self.shared.state().tally.clone()
    }

    /// Takes away the samples that are kept so far; also after [`stop`](Self::stop). Empty where a sink gets them.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use scx_vsock::Sampler;
    /// # use scx_vsock::sample::Schedule;
    /// let mut spawned = Sampler::new(None).spawn_keeping(Schedule::At(vec![Duration::from_millis(1)]), 10)?;
    /// spawned.join();
    /// assert_eq!(spawned.take_kept().samples().len(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn take_kept(&self) -> SampleSeries {
        self.shared.state().kept.drain(..).collect()
    }

    /// Waits for its schedule to be over, and gives the sampler back, whose session is still open if it is good. A
    /// schedule of an interval has no end. `None` if it was given back before, or `sink` panicked.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use scx_vsock::Sampler;
    /// # use scx_vsock::sample::Schedule;
    /// let schedule = Schedule::At(vec![Duration::from_millis(1)]);
    /// let mut spawned = Sampler::new(None).spawn_keeping(schedule, 10)?;
    /// let sampler = spawned.join().expect("the sampler, for more");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn join(&mut self) -> Option<Sampler> {
        let mut sampler = self.thread.take()?.join().ok()?;
        sampler.stop = RunControl::new();
        Some(sampler)
    }

    /// Ends the thread at once, in the midst of a sample too, which is dropped then; and gives the sampler back as
    /// [`join`](Self::join) does.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use scx_vsock::Sampler;
    /// # use scx_vsock::sample::Schedule;
    /// let mut spawned = Sampler::new(None).spawn_keeping(Schedule::Every(Duration::from_secs(3_600)), 10)?;
    /// let sampler = spawned.stop().expect("the sampler, for more");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn stop(&mut self) -> Option<Sampler> {
        self.stop.cancel();
        self.join()
    }
}

impl Drop for BackgroundSampler {
    fn drop(&mut self) {
        drop(self.stop());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::stats::MissingStatsReason;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn samples_come_in_order_and_none_is_early() {
        let (samples, taken) = mpsc::channel();
        let boundaries = vec![MS, 2 * MS, 5 * MS, 9 * MS];
        let spawned = Sampler::new(None)
            .spawn(Schedule::At(boundaries.clone()), move |sample, late| samples.send((sample, late)).unwrap())
            .unwrap();
        let all: Vec<_> = taken.iter().collect();
        drop(spawned);
        let numbers: Vec<usize> = all.iter().map(|(sample, _)| sample.tag.parse().unwrap()).collect();
        assert!(numbers.is_sorted() && numbers.last() == Some(&4), "{numbers:?}");
        for ((sample, late), number) in all.iter().zip(numbers) {
            assert_eq!(sample.stats, Err(MissingStatsReason::NoSchedulerBinary));
            let due = boundaries[number - 1];
            assert!(Duration::from_millis(sample.elapsed_ms) >= due && *late < Duration::from_secs(10));
        }
    }

    #[test]
    fn a_spawned_sampler_ends_when_it_is_dropped_however_long_its_interval() {
        for interval in [MS, Duration::from_secs(3_600), Duration::MAX] {
            let mut spawned = Sampler::new(None).spawn(Schedule::Every(interval), |_, _| ()).unwrap();
            assert!(spawned.stop().is_some() && spawned.stop().is_none());
        }
    }

    #[test]
    fn the_newest_samples_are_kept_and_the_others_counted() {
        let shared = Shared::default();
        for n in 0..10u64 {
            let stats = Err(MissingStatsReason::Cancelled);
            let sample = Sample { tag: n.to_string(), elapsed_ms: n, session: 0, interval_ms: None, stats };
            shared.keep(sample, 3);
        }
        let tags: Vec<_> = shared.state().kept.iter().map(|sample| sample.tag.clone()).collect();
        assert_eq!((tags, shared.state().tally.dropped), (vec!["7".into(), "8".into(), "9".into()], 7));
    }

    #[test]
    fn every_due_sample_is_taken_or_counted_as_left_out() {
        let boundaries: Vec<_> = (1..=20).map(|n| n * MS / 2).collect();
        let mut spawned = Sampler::new(None).spawn_keeping(Schedule::At(boundaries), 100).unwrap();
        assert!(spawned.join().is_some() && spawned.is_finished());
        let (tally, kept) = (spawned.tally(), spawned.take_kept());
        assert_eq!(tally.taken + tally.left_out, 20);
        assert_eq!((tally.taken, tally.dropped), (kept.samples().len() as u64, 0));
        assert_eq!(tally.late.count(), tally.taken);
        assert!(spawned.take_kept().samples().is_empty());
    }

    #[test]
    fn schedules_that_cannot_be_kept_are_refused_with_the_place() {
        let error = |schedule: Schedule| schedule.checked().unwrap_err().to_string();
        assert!(error(Schedule::Every(Duration::ZERO)).starts_with("an interval of 0"));
        let expected = "boundary 3 is at 5 ms, which is not after 7 ms: give them in growing order";
        assert_eq!(error(Schedule::At(vec![MS, 7 * MS, 5 * MS])), expected);
        assert!(error(Schedule::At(vec![MS, MS])).starts_with("boundary 2 is at 1 ms"));
    }

    #[test]
    fn what_a_slow_sample_made_impossible_is_left_out() {
        let every = Schedule::Every(10 * MS);
        assert_eq!(every.next_behind(1, 15 * MS), 2);
        assert_eq!(every.next_behind(1, 47 * MS), 4, "the newest that is due, late, and not those before");
        assert_eq!(every.due(4), Some(40 * MS));
        let at = Schedule::At(vec![MS, 2 * MS, 30 * MS]);
        assert_eq!(at.next_behind(1, 5 * MS), 2);
        assert_eq!(at.next_behind(1, 31 * MS), 3);
        assert_eq!(at.due(at.next_behind(3, 40 * MS)), None);
        let tiny = Schedule::Every(Duration::from_nanos(1));
        assert_eq!(tiny.next_behind(1, Duration::from_secs(60)), 60_000_000_000);
    }
}
