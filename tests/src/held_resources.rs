//! What this process holds: descriptors, threads and memory.

use std::fs;

/// How many threads that were joined may still be on their way out of the kernel.
const LATE_THREADS: usize = 4;

/// How much resident memory may vary: stacks of threads and the allocator's free memory.
const RESIDENT_VARIES_KIB: u64 = 4 << 10;

/// What a process holds.
#[derive(Clone, Copy, Debug)]
pub struct HeldResources {
    /// Descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
    /// Mappings that have no file, such as a vCPU's state, but a name of the kernel's.
    pub kernel_mappings: usize,
    /// Bytes that are mapped writable: guest memory above all, which may have never been written.
    pub writable: usize,
    /// KiB that are resident.
    pub resident_kib: u64,
    /// Bytes that are allocated, as the program's allocator counts.
    pub allocated: usize,
}

impl HeldResources {
    /// Returns what this process holds now, with what its allocator has counted.
    #[must_use]
    pub fn now(allocated: usize) -> Self {
        let maps = fs::read_to_string("/proc/self/maps").expect("/proc is mounted");
        let (descriptors, threads) = descriptors_and_threads();
        Self {
            descriptors,
            threads,
            kernel_mappings: maps
                .lines()
                .filter(|line| line.contains("anon_inode:") || line.contains("memfd:"))
                .count(),
            writable: maps.lines().filter_map(writable_bytes).sum(),
            resident_kib: status_kib("self", "VmRSS:"),
            allocated,
        }
    }

    /// Checks that nothing is held that was not before guests of this much memory came and went.
    ///
    /// # Panics
    ///
    /// If there is.
    pub fn check_nothing_left(&self, before: &Self, guest_memory: usize) {
        let same = |held: &Self| (held.descriptors, held.kernel_mappings, held.allocated);
        assert_eq!(same(self), same(before), "descriptors, mappings and allocated bytes: {self:?}, before {before:?}");
        assert!(self.threads <= before.threads + LATE_THREADS, "{} threads, before {}", self.threads, before.threads);
        let mapped = self.writable.saturating_sub(before.writable);
        assert!(mapped < guest_memory, "{mapped} more bytes are mapped");
        let resident = self.resident_kib.saturating_sub(before.resident_kib);
        assert!(resident < RESIDENT_VARIES_KIB, "{resident} more KiB are resident");
    }
}

/// Counts the descriptors and the threads of this process.
///
/// # Panics
///
/// If `/proc` is not mounted.
#[must_use]
pub fn descriptors_and_threads() -> (usize, usize) {
    let count = |folder| fs::read_dir(folder).expect("/proc is mounted").count();
    // Less that of the folder itself.
    (count("/proc/self/fd") - 1, count("/proc/self/task"))
}

/// The bytes of a mapping that can be written. What threads' allocators reserve cannot.
fn writable_bytes(line: &str) -> Option<usize> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    words.next()?.starts_with("rw").then_some(number(end)? - number(start)?)
}

/// Returns the KiB that a line of a process' status has, such as `VmRSS:`.
///
/// # Panics
///
/// If there is no such process or line.
#[must_use]
pub fn status_kib(process: &str, key: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("a process");
    kib(&status, key).expect("a number of KiB")
}

/// Returns the KiB after a key at the beginning of a line, such as `Size:` of a mapping.
#[must_use]
pub fn kib(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.trim().strip_suffix(" kB")?.parse().ok())
}
