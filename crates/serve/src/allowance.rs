use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const MINUTE: f64 = 60.0;

/// What a key may use in a minute; more is refused. Unused, it grows back evenly, up to a minute's
/// worth.
pub(crate) struct Allowance {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
}

struct Bucket {
    per_minute: f64,
    level: Mutex<Level>,
}

struct Level {
    left: f64,
    at: Instant,
}

/// What is used up, and when there is some again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct UsedUp {
    pub(crate) what: &'static str,
    pub(crate) per_minute: f64,
    pub(crate) wait: Duration,
}

impl Allowance {
    pub(crate) fn new(requests: Option<u32>, tokens: Option<u32>, now: Instant) -> Self {
        let bucket = |limit: u32| {
            let per_minute = f64::from(limit);
            Bucket { per_minute, level: Mutex::new(Level { left: per_minute, at: now }) }
        };
        Allowance { requests: requests.map(bucket), tokens: tokens.map(bucket) }
    }

    /// Takes one request. Tokens must be left, however few: an answer's length is not known before.
    pub(crate) fn take_request(&self, now: Instant) -> Result<(), UsedUp> {
        if let Some(tokens) = &self.tokens {
            tokens
                .take(0.0, f64::MIN_POSITIVE, now)
                .map_err(|wait| tokens.used_up("tokens", wait))?;
        }
        if let Some(requests) = &self.requests {
            requests.take(1.0, 1.0, now).map_err(|wait| requests.used_up("requests", wait))?;
        }
        Ok(())
    }

    /// Takes tokens that were used, also where fewer are left.
    pub(crate) fn take_tokens(&self, tokens: usize, now: Instant) {
        if let Some(bucket) = &self.tokens {
            let taken = bucket.take(tokens as f64, f64::NEG_INFINITY, now);
            debug_assert!(taken.is_ok(), "nothing is needed");
        }
    }
}

impl Bucket {
    /// Takes an amount where at least `needed` is left; otherwise says how long to wait for it.
    fn take(&self, amount: f64, needed: f64, now: Instant) -> Result<(), Duration> {
        let mut level = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        let grown =
            now.saturating_duration_since(level.at).as_secs_f64() * self.per_minute / MINUTE;
        level.left = (level.left + grown).min(self.per_minute);
        level.at = level.at.max(now);
        if level.left < needed {
            let seconds = (needed - level.left) / self.per_minute.max(f64::MIN_POSITIVE) * MINUTE;
            return Err(Duration::from_secs_f64(seconds.min(3600.0)));
        }
        level.left -= amount;
        Ok(())
    }

    fn used_up(&self, what: &'static str, wait: Duration) -> UsedUp {
        UsedUp { what, per_minute: self.per_minute, wait }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_grow_back_evenly_up_to_a_minutes_worth() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let allowance = Allowance::new(Some(2), None, start);
        assert_eq!(allowance.take_request(start), Ok(()));
        assert_eq!(allowance.take_request(start), Ok(()));
        let wait = Duration::from_secs(30);
        let used_up = UsedUp { what: "requests", per_minute: 2.0, wait };
        assert_eq!(allowance.take_request(start), Err(used_up));
        assert_eq!(allowance.take_request(after(30)), Ok(()));
        assert!(allowance.take_request(after(31)).is_err());
        // An hour later there are two again, not a hundred.
        assert_eq!(allowance.take_request(after(3600)), Ok(()));
        assert_eq!(allowance.take_request(after(3600)), Ok(()));
        assert!(allowance.take_request(after(3600)).is_err());
    }

    #[test]
    fn tokens_may_be_overdrawn_and_must_then_grow_back() {
        let start = Instant::now();
        let allowance = Allowance::new(None, Some(600), start);
        assert_eq!(allowance.take_request(start), Ok(()));
        allowance.take_tokens(900, start);
        let refused = allowance.take_request(start).unwrap_err();
        assert_eq!((refused.what, refused.wait), ("tokens", Duration::from_secs(30)));
        assert!(allowance.take_request(start + Duration::from_secs(29)).is_err());
        assert!(allowance.take_request(start + Duration::from_secs(31)).is_ok());
    }
}
