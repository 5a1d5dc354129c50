//! Which processor a thread runs on: where the kernel's scheduler decides it, a row measures its decisions.

use std::sync::LazyLock;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Who runs on a processor.
#[derive(Clone, Copy, Debug)]
pub enum Side {
    /// The thread or process that is measured, or the one in its place.
    Device,
    /// Guests, and the host's programs.
    Others,
}

/// Runs `work` with this thread, and those threads and processes that it starts, on the processor of `side`; afterwards
/// the thread has its processors back. Where there is one processor only, both sides share it.
pub fn on<T>(side: Side, work: impl FnOnce() -> T) -> T {
    static ALL: LazyLock<CpuSet> = LazyLock::new(|| sched_getaffinity(None).unwrap());
    let mut usable = (0..CpuSet::MAX_CPU).filter(|&processor| ALL.is_set(processor));
    let first = usable.next().unwrap();
    let mut processors = CpuSet::new();
    processors.set(match side {
        Side::Device => first,
        Side::Others => usable.next().unwrap_or(first),
    });
    let before = sched_getaffinity(None).unwrap();
    sched_setaffinity(None, &processors).unwrap();
    let done = work();
    sched_setaffinity(None, &before).unwrap();
    done
}
