//! A real sched_ext scheduler in a guest.
