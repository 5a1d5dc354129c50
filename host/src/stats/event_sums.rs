//! The events of a guest's kernel, as sums.

use std::collections::BTreeMap;

use super::SchedExt;

/// Events that are kept, as many as an agent sends. A kernel has fewer.
pub(crate) const MAX_EVENTS: usize = 64;

/// Characters of a name that are kept, as many as an agent sends.
pub(crate) const MAX_NAME_CHARS: usize = 128;

/// Counters that never go backwards: the kernel's own begin anew with each scheduler that is enabled, and with each boot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct EventSums {
    /// The number of the newest scheduler that was enabled.
    enable_seq: Option<u64>,
    counters: BTreeMap<String, KernelCounter>,
}

/// A counter of the kernel's, and what it adds up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct KernelCounter {
    newest: u64,
    sum: u64,
}

impl KernelCounter {
    /// Adds what came since the newest number; all of it if the counter began anew.
    pub(crate) fn add(&mut self, number: u64, began_anew: bool) {
        let before = if began_anew || number < self.newest { 0 } else { self.newest };
        self.sum = self.sum.wrapping_add(number.saturating_sub(before));
        self.newest = number;
    }

    /// Returns what it adds up to.
    pub(crate) fn sum(self) -> u64 {
        self.sum
    }
}

impl EventSums {
    /// Returns the events by their names.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, u64)> {
        self.counters.iter().map(|(name, counter)| (name, counter.sum()))
    }

    /// Takes what the kernel says now.
    pub(crate) fn update(&mut self, said: &SchedExt) {
        let enable_seq = said.enable_seq.as_deref().and_then(|number| number.parse().ok());
        let began_anew = enable_seq.is_some() && enable_seq != self.enable_seq;
        self.enable_seq = enable_seq.or(self.enable_seq);
        for (name, number) in said.events.iter().flatten() {
            let Ok(number) = number.parse() else { continue };
            let name = truncated(name);
            if self.counters.len() < MAX_EVENTS || self.counters.contains_key(&name) {
                self.counters.entry(name).or_default().add(number, began_anew);
            }
        }
        if began_anew {
            // An event that is absent now has begun anew all the same.
            let absent = |name: &String| !said.events.as_ref().is_some_and(|events| events.contains_key(name));
            self.counters.iter_mut().filter(|(name, _)| absent(name)).for_each(|(_, counter)| counter.newest = 0);
        }
    }
}

/// Returns a name's beginning.
pub(crate) fn truncated(name: &str) -> String {
    name.chars().take(MAX_NAME_CHARS).collect()
}
