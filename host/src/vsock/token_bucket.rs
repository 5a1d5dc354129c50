//! How often something may happen.

use std::time::Instant;

/// Tokens that come in with time, up to a number, and go out one by one. It is full at first.
#[derive(Debug, Default)]
pub struct TokenBucket {
    tokens: f64,
    filled_at: Option<Instant>,
}

impl TokenBucket {
    /// Adds what has come in since the last time, at `per_second`; it holds `most`.
    pub fn refill(&mut self, per_second: u32, most: u32, now: Instant) {
        let most = f64::from(most);
        self.tokens = self.filled_at.map_or(most, |before| {
            let gained = now.saturating_duration_since(before).as_secs_f64() * f64::from(per_second);
            (self.tokens + gained).min(most)
        });
        self.filled_at = Some(now);
    }

    /// Whether there is a token.
    pub fn has_one(&self) -> bool {
        self.tokens >= 1.0
    }

    /// Takes a token. Returns false if there is none.
    pub fn take(&mut self) -> bool {
        let taken = self.has_one();
        if taken {
            self.tokens -= 1.0;
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn tokens_come_in_at_the_rate_up_to_the_most() {
        let start = Instant::now();
        let mut bucket = TokenBucket::default();
        let mut taken_at = |millis| {
            bucket.refill(1000, 3, start + Duration::from_millis(millis));
            std::iter::from_fn(|| bucket.take().then_some(())).count()
        };
        assert_eq!([0, 1, 3, 100].map(&mut taken_at), [3, 1, 2, 3]);
    }

    #[test]
    fn a_clock_that_goes_back_adds_nothing() {
        let start = Instant::now();
        let mut bucket = TokenBucket::default();
        bucket.refill(1, 1, start + Duration::from_secs(5));
        assert!(bucket.take());
        bucket.refill(1, 1, start);
        assert!(!bucket.take());
    }
}
