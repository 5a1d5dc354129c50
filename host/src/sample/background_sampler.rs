//! A sampler on a thread of its own.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, getpid};

use super::sample::Sample;
use super::sampler::Sampler;
use super::schedule::{Schedule, ScheduleError};
use crate::control::{InFlightCall, RunControl};
use crate::histogram::Histogram;
use crate::io::lock::lock;
use crate::series::SampleSeries;

/// How a background sampler has kept its schedule so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SamplerStats {
    /// Samples that were taken, with stats or without.
    pub taken: u64,
    /// Samples that became due while an earlier one waited for its scheduler, and were not taken.
    pub skipped: u64,
    /// Samples that were dropped for newer ones before [`take_samples`](BackgroundSampler::take_samples) took them.
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
    buffer: VecDeque<Sample>,
    stats: SamplerStats,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Keeps a sample, and drops the oldest ones above `capacity`.
    fn push(&self, sample: Sample, capacity: usize) {
        let mut state = self.state();
        state.buffer.push_back(sample);
        while state.buffer.len() > capacity {
            state.buffer.pop_front();
            state.stats.dropped += 1;
        }
    }
}

/// A sampler on a thread of its own, which ends when this value is dropped.
///
/// The thread is not part of a process that is forked later: there, this value is a finished sampler without samples.
///
/// ```
/// use std::sync::mpsc;
/// use std::time::Duration;
/// use scx_vsock::sample::Schedule;
/// use scx_vsock::{MissingStatsReason, Sampler};
///
/// let (samples, taken) = mpsc::channel();
/// let schedule = Schedule::At(vec![Duration::from_millis(1), Duration::from_millis(5)]);
/// let mut sampler = Sampler::new(None).spawn(schedule, move |sample, late| {
///     if late > Duration::from_millis(100) {
///         eprintln!("sample {} is {late:?} late", sample.tag);
///     }
///     let _receiver_is_gone = samples.send(sample);
/// })?;
/// let first = taken.recv()?;
/// assert_eq!(first.stats, Err(MissingStatsReason::NoSchedulerBinary));
/// sampler.join();
/// let stats = sampler.stats();
/// assert_eq!(stats.taken + stats.skipped, 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct BackgroundSampler {
    stop: RunControl,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Sampler>>,
    /// The process that has the thread.
    process: Pid,
}

impl fmt::Debug for BackgroundSampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackgroundSampler").field("stop", &self.stop).finish_non_exhaustive()
    }
}

impl Sampler {
    /// Takes samples on a thread of its own, tagged by their number, and passes each to `sink` with how late it was
    /// begun. The baseline is primed first. Samples that become due while one waits for a slow scheduler are skipped and
    /// [counted](SamplerStats::skipped); their numbers are missing from the tags.
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

    /// Takes samples as [`spawn`](Self::spawn) does, and keeps the newest `capacity` of them until
    /// [`take_samples`](BackgroundSampler::take_samples) takes them. Older ones are dropped and
    /// [counted](SamplerStats::dropped).
    ///
    /// # Errors
    ///
    /// See [`ScheduleError`].
    pub fn spawn_buffered(self, schedule: Schedule, capacity: usize) -> Result<BackgroundSampler, ScheduleError> {
        let shared = Arc::<Shared>::default();
        let buffer = Arc::clone(&shared);
        self.spawn_sharing(shared, schedule, move |sample, _| buffer.push(sample, capacity))
    }

    fn spawn_sharing(
        mut self,
        shared: Arc<Shared>,
        schedule: Schedule,
        sink: impl FnMut(Sample, Duration) + Send + 'static,
    ) -> Result<BackgroundSampler, ScheduleError> {
        let schedule = schedule.validate()?;
        let stop = RunControl::new();
        self.stop = stop.clone();
        let call = stop.begin_call().map_err(io::Error::other)?;
        let of_thread = Arc::clone(&shared);
        let run = move || {
            keep_schedule(&mut self, &schedule, &call, &of_thread, sink);
            self
        };
        let thread = thread::Builder::new().name("sampler".into()).spawn(run)?;
        Ok(BackgroundSampler { stop, shared, thread: Some(thread), process: getpid() })
    }
}

/// Takes the samples of a schedule until it is over or `stop` is cancelled.
fn keep_schedule(
    sampler: &mut Sampler,
    schedule: &Schedule,
    stop: &InFlightCall,
    shared: &Shared,
    mut sink: impl FnMut(Sample, Duration),
) {
    // A failure shows in the first sample.
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
        if stop.check().is_err() {
            return;
        }
        let next = schedule.next_after(n, started.elapsed());
        let mut state = shared.state();
        state.stats.taken += 1;
        state.stats.skipped += next.saturating_sub(n.saturating_add(1));
        state.stats.late.record(late);
        drop(state);
        sink(sample, late);
        n = next;
    }
}

/// Waits until then; false if it was stopped before. A time beyond the clock's range never comes.
fn sleep_until(then: Option<Instant>, stop: &InFlightCall) -> bool {
    loop {
        if stop.check().is_err() {
            return false;
        }
        let left = then.map(|then| then.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return true;
        }
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        if poll(&mut [PollFd::new(stop.signal(), PollFlags::IN)], timeout.as_ref()).is_ok_and(|ready| ready > 0) {
            stop.on_signal();
        }
    }
}

impl BackgroundSampler {
    /// Returns whether its schedule is over.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.is_inherited() || self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Whether this process was forked from the one that has the thread.
    fn is_inherited(&self) -> bool {
        getpid() != self.process
    }

    /// Returns how the schedule was kept so far.
    #[must_use]
    pub fn stats(&self) -> SamplerStats {
        if self.is_inherited() { SamplerStats::default() } else { self.shared.state().stats.clone() }
    }

    /// Takes the samples that are buffered; also after [`stop`](Self::stop). Empty if a sink has them.
    #[must_use]
    pub fn take_samples(&self) -> SampleSeries {
        // The thread may have had the lock at the time of a fork.
        if self.is_inherited() { SampleSeries::new() } else { self.shared.state().buffer.drain(..).collect() }
    }

    /// Waits until its schedule is over, and returns the sampler, whose session is still open if it is good. A schedule
    /// of an interval has no end. `None` if the sampler was returned before, or `sink` panicked.
    pub fn join(&mut self) -> Option<Sampler> {
        let thread = self.thread.take()?;
        if self.is_inherited() {
            // There is no such thread here: it can neither be joined nor detached.
            std::mem::forget(thread);
            return None;
        }
        let mut sampler = thread.join().ok()?;
        sampler.stop = RunControl::new();
        Some(sampler)
    }

    /// Ends the thread at once, and returns the sampler as [`join`](Self::join) does. A sample in flight is dropped.
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
        let sampler = Sampler::new(None)
            .spawn(Schedule::At(boundaries.clone()), move |sample, late| samples.send((sample, late)).unwrap())
            .unwrap();
        let all: Vec<_> = taken.iter().collect();
        drop(sampler);
        let numbers: Vec<usize> = all.iter().map(|(sample, _)| sample.tag.parse().unwrap()).collect();
        assert!(numbers.is_sorted() && numbers.last() == Some(&4), "{numbers:?}");
        for ((sample, late), number) in all.iter().zip(numbers) {
            assert_eq!(sample.stats, Err(MissingStatsReason::NoSchedulerBinary));
            let due = boundaries[number - 1];
            assert!(Duration::from_millis(sample.elapsed_ms) >= due && *late < Duration::from_secs(10));
        }
    }

    #[test]
    fn a_sampler_stops_however_long_its_interval() {
        for interval in [MS, Duration::from_secs(3_600), Duration::MAX] {
            let mut sampler = Sampler::new(None).spawn(Schedule::Every(interval), |_, _| ()).unwrap();
            assert!(sampler.stop().is_some() && sampler.stop().is_none());
        }
    }

    #[test]
    fn older_samples_are_dropped_and_counted() {
        let shared = Shared::default();
        for n in 0..10u64 {
            shared.push(Sample::new(n.to_string(), Err(MissingStatsReason::Cancelled)), 3);
        }
        let tags: Vec<_> = shared.state().buffer.iter().map(|sample| sample.tag.clone()).collect();
        assert_eq!((tags, shared.state().stats.dropped), (vec!["7".into(), "8".into(), "9".into()], 7));
    }

    #[test]
    fn every_due_sample_is_taken_or_skipped() {
        let boundaries: Vec<_> = (1..=20).map(|n| n * MS / 2).collect();
        let mut sampler = Sampler::new(None).spawn_buffered(Schedule::At(boundaries), 100).unwrap();
        assert!(sampler.join().is_some() && sampler.is_finished());
        let (stats, kept) = (sampler.stats(), sampler.take_samples());
        assert_eq!(stats.taken + stats.skipped, 20);
        assert_eq!((stats.taken, stats.dropped), (kept.samples().len() as u64, 0));
        assert_eq!(stats.late.count(), stats.taken);
        assert!(sampler.take_samples().samples().is_empty());
    }
}
