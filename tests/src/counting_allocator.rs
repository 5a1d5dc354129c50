//! An allocator that knows how many bytes are allocated.
#![allow(unsafe_code, reason = "an allocator has no safe form")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The system's allocator, which counts. A program has it by `#[global_allocator]`.
#[derive(Debug)]
pub struct CountingAllocator {
    allocated: AtomicUsize,
}

impl CountingAllocator {
    /// Returns one that has allocated nothing.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "a default is no constant")]
    pub const fn new() -> Self {
        Self { allocated: AtomicUsize::new(0) }
    }

    /// Returns how many bytes are allocated.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.allocated.load(Ordering::Relaxed)
    }
}

// SAFETY: the system's allocator does the work, with the layouts that it is called with.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.allocated.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the same contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        self.allocated.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the pointer comes from the system's allocator, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}
