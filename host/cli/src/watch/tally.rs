//! How many samples of each guest were taken, and whether any had stats.

use anyhow::{Context, Result};
use scx_vsock::{MissingStatsReason, Sample};

/// Counts the samples of each guest up to a limit.
pub struct Tally {
    limit: u64,
    counts: Vec<u64>,
    outcome: Outcome,
}

enum Outcome {
    NoSample,
    /// No sample had stats; why the latest had none.
    NoStats(MissingStatsReason),
    Stats,
}

impl Tally {
    /// A tally of this many guests, each with at most `limit` samples.
    pub fn new(guests: usize, limit: Option<u64>) -> Self {
        Self { limit: limit.unwrap_or(u64::MAX), counts: vec![0; guests], outcome: Outcome::NoSample }
    }

    /// Counts a sample of the guest with this index; false if the guest has had its last one.
    pub fn admits(&mut self, guest: usize, sample: &Sample) -> bool {
        let Some(count) = self.counts.get_mut(guest).filter(|count| **count < self.limit) else { return false };
        *count += 1;
        self.outcome = match (&sample.stats, &self.outcome) {
            (Ok(_), _) | (Err(_), Outcome::Stats) => Outcome::Stats,
            (Err(reason), _) => Outcome::NoStats(reason.clone()),
        };
        true
    }

    /// Whether every guest has had its last sample.
    pub fn is_complete(&self) -> bool {
        self.counts.iter().all(|count| *count == self.limit)
    }

    /// Judges the samples.
    ///
    /// # Errors
    ///
    /// The latest reason if there were samples, and none had stats.
    pub fn verdict(self) -> Result<()> {
        match self.outcome {
            Outcome::NoStats(reason) => Err(reason).context("no sample had stats"),
            Outcome::NoSample | Outcome::Stats => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn sample(stats: Result<Value, MissingStatsReason>) -> Sample {
        let sample = json!({ "tag": "t", "elapsed_ms": 1, "session": 1, "interval_ms": null, "stats": stats });
        serde_json::from_value(sample).unwrap()
    }

    #[test]
    fn each_guest_has_its_limit() {
        let mut tally = Tally::new(2, Some(2));
        let any = sample(Ok(json!(1)));
        assert_eq!([0, 0, 0, 1].map(|guest| tally.admits(guest, &any)), [true, true, false, true]);
        assert!(!tally.is_complete() && tally.admits(1, &any) && tally.is_complete());
        assert!(!tally.admits(2, &any), "there is no such guest");
        assert!(!Tally::new(1, None).is_complete());
    }

    #[test]
    fn one_sample_with_stats_is_enough() {
        let (some, none) = (sample(Ok(json!(1))), sample(Err(MissingStatsReason::Cancelled)));
        let verdict = |samples: &[&Sample]| {
            let mut tally = Tally::new(1, None);
            samples.iter().for_each(|sample| assert!(tally.admits(0, sample)));
            tally.verdict()
        };
        assert!(verdict(&[]).is_ok() && verdict(&[&none, &some, &none]).is_ok());
        let error = verdict(&[&none, &none]).unwrap_err();
        assert_eq!(MissingStatsReason::find(&error), Some(MissingStatsReason::Cancelled));
    }
}
