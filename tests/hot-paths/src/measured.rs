//! What is counted of a path.

use std::hint::black_box;

/// A path that is counted.
pub struct HotPath {
    /// Its name in the file of counts.
    pub name: &'static str,
    /// How many operations are counted, of which the median is taken: a clock that goes on while the program does not run
    /// sends a few of them another way.
    pub times: usize,
    /// Does so many operations with [`repeat`], the counted part of each of them in [`measured`].
    pub run: fn(usize) -> anyhow::Result<()>,
}

/// A part of the symbol of [`measured`], whichever way the compiler mangles names. callgrind counts from its call to its
/// return.
pub const MEASURED: &str = "9hot_paths8measured8measured";

/// A part of the symbol of [`one_operation`], after whose return callgrind writes what it has counted.
pub const ONE_OPERATION: &str = "9hot_paths8measured13one_operation";

/// Does some work, which is counted.
#[inline(never)]
pub fn measured(work: &mut dyn FnMut()) {
    work();
    // A call that comes last would be a jump, after which the function has no return of its own.
    black_box(());
}

#[inline(never)]
fn one_operation(work: &mut dyn FnMut()) {
    work();
    black_box(());
}

/// Does an operation so many times, each of which is counted by itself.
pub fn repeat(times: usize, mut operation: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
    for _ in 0..times {
        let mut done = Ok(());
        one_operation(&mut || done = operation());
        done?;
    }
    Ok(())
}
