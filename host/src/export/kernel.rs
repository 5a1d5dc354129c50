//! What a target's kernel says about sched_ext, and its counters over all reads.

use crate::stats::SchedExt;
use crate::stats::event_sums::{EventSums, KernelCounter, truncated};

/// What a target's kernel said, with counters that never go backwards: the kernel's own begin anew with each scheduler
/// that is enabled, and with each boot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct KernelState {
    /// The state and the scheduler's name, if the newest read has them.
    pub(super) newest: Option<(String, Option<String>)>,
    /// Schedulers that were enabled, once the kernel has said it.
    enables: Option<KernelCounter>,
    events: EventSums,
}

impl KernelState {
    /// Returns how many schedulers were enabled, if the kernel has said it.
    pub(super) fn enables(&self) -> Option<u64> {
        self.enables.map(KernelCounter::sum)
    }

    /// Returns the events by their names.
    pub(super) fn events(&self) -> impl Iterator<Item = (&String, u64)> {
        self.events.iter()
    }

    /// Takes what the kernel says now, or that it was not asked.
    pub(super) fn update(&mut self, said: Option<&SchedExt>) {
        self.newest = said.and_then(|said| {
            let ops = said.ops.as_deref().filter(|ops| !ops.is_empty()).map(truncated);
            Some((truncated(said.state.as_deref()?), ops))
        });
        let Some(said) = said else { return };
        if let Some(enables) = said.enable_seq.as_deref().and_then(|number| number.parse().ok()) {
            self.enables.get_or_insert_default().add(enables, false);
        }
        self.events.update(said);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::stats::event_sums::{MAX_EVENTS, MAX_NAME_CHARS};

    fn said(enable_seq: u64, events: &[(&str, u64)]) -> SchedExt {
        let events: BTreeMap<_, _> = events.iter().map(|(name, number)| (*name, number.to_string())).collect();
        let said = json!({ "state": "enabled", "ops": "a", "enable_seq": enable_seq.to_string(), "uptime_us": 1, "events": events });
        serde_json::from_value(said).unwrap()
    }

    /// What the counters are after each report.
    fn sums(reports: &[SchedExt]) -> Vec<(u64, u64)> {
        let mut state = KernelState::default();
        let sum = |said: &SchedExt| {
            state.update(Some(said));
            (state.enables().unwrap(), state.events().find(|(name, _)| *name == "E").map_or(0, |(_, sum)| sum))
        };
        reports.iter().map(sum).collect()
    }

    #[test]
    fn counters_go_on_across_schedulers_and_boots() {
        let reports = [
            said(1, &[("E", 5)]),
            said(1, &[("E", 7)]),
            // Another scheduler, whose number is higher than the last one's.
            said(2, &[("E", 9)]),
            // None is loaded.
            said(2, &[]),
            said(3, &[("E", 1)]),
            // The guest was booted again.
            said(1, &[("E", 2)]),
            said(1, &[("E", 2)]),
        ];
        assert_eq!(sums(&reports), [(1, 5), (1, 7), (2, 16), (2, 16), (3, 17), (4, 19), (4, 19)]);
    }

    #[test]
    fn a_scheduler_without_events_in_between_is_no_reason_to_forget_one() {
        let reports = [said(1, &[("E", 5)]), said(2, &[]), said(2, &[("E", 6)]), said(2, &[("E", 8)])];
        assert_eq!(sums(&reports), [(1, 5), (2, 5), (2, 11), (2, 13)]);
    }

    #[test]
    fn what_a_guest_can_make_it_keep_is_bounded() {
        let mut state = KernelState::default();
        for round in 0..10_u64 {
            let names: Vec<String> = (0..100).map(|n| format!("{round}{n}{}", "x".repeat(1_000))).collect();
            let events: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), 1)).collect();
            state.update(Some(&said(round, &events)));
        }
        assert_eq!(state.events().count(), MAX_EVENTS);
        assert!(state.events().all(|(name, _)| name.len() == MAX_NAME_CHARS));
        state.update(None);
        assert_eq!((state.newest.as_ref(), state.events().count()), (None, MAX_EVENTS));
    }

    #[test]
    fn what_is_no_number_is_skipped() {
        let odd = json!({ "uptime_us": 1, "enable_seq": "-1", "events": { "E": "1e3", "F": "18446744073709551615" } });
        let mut state = KernelState::default();
        state.update(Some(&serde_json::from_value(odd).unwrap()));
        assert_eq!((state.newest.as_ref(), state.enables, state.events().count()), (None, None, 1));
    }
}
