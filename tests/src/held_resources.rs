//! What this process holds: descriptors, threads and memory.

use std::fs;

/// How many threads that were joined may still be on their way out of the kernel.
const LATE_THREADS: usize = 4;

/// How much resident memory may vary: stacks of threads and the allocator's free memory.
const RESIDENT_VARIES: usize = 4 << 20;

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
    /// Bytes that are resident.
    pub resident: usize,
    /// Bytes that are allocated, as the program's allocator counts.
    pub allocated: usize,
}

impl HeldResources {
    /// Returns what this process holds now, with what its allocator has counted.
    #[must_use]
    pub fn now(allocated: usize) -> Self {
        let maps = fs::read_to_string("/proc/self/maps").expect("/proc is mounted");
        Self {
            // Less that of the folder itself.
            descriptors: count("/proc/self/fd") - 1,
            threads: count("/proc/self/task"),
            kernel_mappings: maps
                .lines()
                .filter(|line| line.contains("anon_inode:") || line.contains("memfd:"))
                .count(),
            writable: maps.lines().filter_map(writable_bytes).sum(),
            resident: resident_bytes(),
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
        let resident = self.resident.saturating_sub(before.resident);
        assert!(resident < RESIDENT_VARIES, "{resident} more bytes are resident");
    }
}

fn count(folder: &str) -> usize {
    fs::read_dir(folder).expect("/proc is mounted").count()
}

/// The bytes of a mapping that can be written. What threads' allocators reserve cannot.
fn writable_bytes(line: &str) -> Option<usize> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    words.next()?.starts_with("rw").then_some(number(end)? - number(start)?)
}

fn resident_bytes() -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.parse::<usize>().ok()).expect("a number of KiB") << 10
}
