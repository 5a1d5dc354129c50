//! Samples of a scheduler's stats: one moment each, with stats or the reason why there are none.
//!
//! A [`Sampler`] takes them on demand. [`Sampler::spawn`] gives it a thread and a [`Schedule`], and
//! [`BackgroundSampler`] stops it.

mod background_sampler;
#[allow(clippy::module_inception, reason = "the file is named after the noun that it defines")]
mod sample;
mod sampler;
mod schedule;

pub use background_sampler::{BackgroundSampler, SamplerStats};
pub use sample::Sample;
pub use sampler::Sampler;
pub use schedule::{Schedule, ScheduleError};
