//! The agent as a static program without libc: [`runtime`] is its entry and calls `program::run`.
#![no_std]
#![no_main]

mod runtime;
