//! How many messages about one guest are printed: a guest can cause them as fast as it can reset its device.

use std::time::{Duration, Instant};

/// Messages within one [`WINDOW`].
const MAX_MESSAGES: u32 = 40;

const WINDOW: Duration = Duration::from_secs(60);

/// Counts messages.
#[derive(Debug, Default)]
pub struct MessageLimit {
    window: Option<Window>,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    start: Instant,
    messages: u32,
}

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is printed. So many were skipped before it.
    Print {
        /// The number of messages.
        skipped: u32,
    },
    /// It is the last one for a while.
    PrintLast,
    /// It is skipped.
    Skip,
}

impl MessageLimit {
    /// Counts a message at this moment.
    pub fn count(&mut self, now: Instant) -> Verdict {
        let window = self.window.filter(|window| now.saturating_duration_since(window.start) < WINDOW);
        let skipped = match (window, self.window) {
            (None, Some(before)) => before.messages.saturating_sub(MAX_MESSAGES),
            _ => 0,
        };
        let window = window.unwrap_or(Window { start: now, messages: 0 });
        let messages = window.messages.saturating_add(1);
        self.window = Some(Window { messages, ..window });
        match messages {
            ..MAX_MESSAGES => Verdict::Print { skipped },
            MAX_MESSAGES => Verdict::PrintLast,
            _ => Verdict::Skip,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_skipped_and_counted() {
        let mut limit = MessageLimit::default();
        let start = Instant::now();
        for _ in 1..MAX_MESSAGES {
            assert_eq!(limit.count(start), Verdict::Print { skipped: 0 });
        }
        assert_eq!(limit.count(start), Verdict::PrintLast);
        for _ in 0..1_000_000 {
            assert_eq!(limit.count(start + WINDOW / 2), Verdict::Skip);
        }
        assert_eq!(limit.count(start + WINDOW), Verdict::Print { skipped: 1_000_000 });
        assert_eq!(limit.count(start + WINDOW), Verdict::Print { skipped: 0 });
    }

    #[test]
    fn rare_messages_are_all_printed() {
        let mut limit = MessageLimit::default();
        let start = Instant::now();
        for minute in 0..1_000 {
            assert_eq!(limit.count(start + minute * WINDOW), Verdict::Print { skipped: 0 });
        }
    }
}
