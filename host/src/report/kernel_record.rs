//! What a guest's kernel said over a recording.

use std::collections::{BTreeMap, BTreeSet};

use crate::stats::SchedExt;
use crate::stats::event_sums::EventSums;

/// The most messages that are kept: the newest.
const MAX_MESSAGES: usize = 64;

/// What the kernel said about sched_ext, over all samples.
#[derive(Debug, Default)]
pub struct KernelRecord {
    /// Its newest state.
    pub state: Option<String>,
    /// The scheduler that it named last.
    pub ops: Option<String>,
    /// How often the samples saw another scheduler enabled than before, the first one counted.
    pub enables: usize,
    enable_seq: Option<String>,
    events: EventSums,
    /// When each was logged, in microseconds of the guest, and its text.
    pub messages: BTreeSet<(Option<u64>, String)>,
    /// Whether there were older messages.
    pub is_truncated: bool,
}

impl KernelRecord {
    /// Takes what one sample has.
    pub fn take(&mut self, said: &SchedExt) {
        self.state.clone_from(&said.state);
        if said.ops.as_deref().is_some_and(|ops| !ops.is_empty()) {
            self.ops.clone_from(&said.ops);
        }
        if said.enable_seq.is_some() && said.enable_seq != self.enable_seq {
            self.enable_seq.clone_from(&said.enable_seq);
            self.enables += usize::from(said.enable_seq.as_deref() != Some("0"));
        }
        self.events.update(said);
        self.messages.extend(said.log.iter().flatten().map(|message| (message.time_us, message.text.clone())));
        while self.messages.len() > MAX_MESSAGES {
            self.messages.pop_first();
            self.is_truncated = true;
        }
    }

    /// The counters over all schedulers of the recording.
    pub fn totals(&self) -> BTreeMap<String, u64> {
        self.events.iter().map(|(name, sum)| (name.clone(), sum)).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::stats::event_sums::MAX_EVENTS;

    fn said(seq: u32, count: u64) -> SchedExt {
        let said = json!({
            "state": "enabled", "ops": "simple", "enable_seq": seq.to_string(), "uptime_us": 1,
            "events": { "SCX_EV_A": count.to_string(), "SCX_EV_B": "no number" },
            "log": [{ "time_us": 7, "text": "sched_ext: on" }, { "time_us": seq, "text": "sched_ext: off" }],
        });
        serde_json::from_value(said).unwrap()
    }

    #[test]
    fn counters_add_up_over_schedulers() {
        let mut record = KernelRecord::default();
        [(1, 5), (1, 8), (2, 1), (2, 4)].iter().for_each(|(seq, count)| record.take(&said(*seq, *count)));
        assert_eq!(record.totals(), BTreeMap::from([("SCX_EV_A".to_owned(), 12)]));
        assert_eq!((record.enables, record.messages.len()), (2, 3));
    }

    #[test]
    fn names_and_messages_are_bounded() {
        let mut record = KernelRecord::default();
        for seq in 0..1_000 {
            let mut said = said(seq, 1);
            said.events = Some(BTreeMap::from([(format!("E{seq}"), "1".to_owned())]));
            record.take(&said);
        }
        assert!(record.totals().len() <= MAX_EVENTS && record.messages.len() <= MAX_MESSAGES && record.is_truncated);
    }
}
