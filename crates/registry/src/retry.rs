//! Trying again: which failures are worth it, and how long to wait before.

use std::time::Duration;

use crate::options::RetryPolicy;
use crate::{Event, RegistryError};

/// A failed try: the error, and whether another try may help.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: RegistryError,
    pub(crate) again: Again,
}

/// Whether another try may help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Again {
    /// No: the answer would be the same.
    Never,
    /// At once and uncounted: a token had expired and there is a new one.
    Now,
    /// After a pause; the registry may have said how long.
    Later(Option<Duration>),
}

impl Failure {
    pub(crate) fn never(error: RegistryError) -> Self {
        Self { error, again: Again::Never }
    }

    pub(crate) fn later(error: RegistryError) -> Self {
        Self { error, again: Again::Later(None) }
    }
}

/// Counts the tries of one operation.
pub(crate) struct Tries<'a> {
    policy: &'a RetryPolicy,
    observe: &'a (dyn Fn(Event) + Send + Sync),
    allowed: u32,
    used: u32,
    refreshed: u32,
}

/// How often a token may be renewed within one operation: a large upload outlives several.
const MOST_REFRESHES: u32 = 100;

impl<'a> Tries<'a> {
    pub(crate) fn new(
        policy: &'a RetryPolicy,
        allowed: u32,
        observe: &'a (dyn Fn(Event) + Send + Sync),
    ) -> Self {
        Self { policy, observe, allowed, used: 0, refreshed: 0 }
    }

    /// Progress was made: the failures before it don't count any more.
    pub(crate) fn progressed(&mut self) {
        self.used = 0;
    }

    /// Waits before the next try, or gives the error back if there is none.
    pub(crate) async fn after(&mut self, failure: Failure) -> Result<(), RegistryError> {
        let asked = match failure.again {
            Again::Never => return Err(failure.error),
            Again::Now if self.refreshed < MOST_REFRESHES => {
                self.refreshed += 1;
                return Ok(());
            }
            Again::Now => None,
            Again::Later(asked) => asked,
        };
        if self.used >= self.allowed {
            return Err(failure.error);
        }
        let pause = self.pause(asked);
        self.used += 1;
        (self.observe)(Event::Retrying {
            what: failure
                .error
                .attempt()
                .map_or_else(String::new, |at| format!("{} {} at {}", at.action, at.subject, at.host)),
            why: failure.error.to_string(),
            attempt: self.used,
            of: self.allowed,
            after: pause,
        });
        tokio::time::sleep(pause).await;
        Ok(())
    }

    /// The registry's own wish, or else the base doubled with each try; up to a quarter is added by chance, so that many
    /// pods that failed together don't come back together.
    fn pause(&self, asked: Option<Duration>) -> Duration {
        let doubled = self.policy.base.saturating_mul(1 << self.used.min(10));
        let least = asked.unwrap_or(doubled).min(self.policy.longest);
        least + least.mul_f64(chance() / 4.0)
    }
}

/// A number from 0 up to 1, good enough to spread pauses: the standard library seeds its hashers by chance.
fn chance() -> f64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    let bits = std::collections::hash_map::RandomState::new().build_hasher().finish();
    f64::from(u32::try_from(bits >> 32).unwrap_or(0)) / f64::from(u32::MAX)
}

/// Reads `Retry-After`: seconds, or a date, which counts from the answer's own `Date` so that clocks needn't agree.
pub(crate) fn retry_after(headers: &http::HeaderMap) -> Option<Duration> {
    let text = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = |text: &str| {
        use time::format_description::well_known::Rfc2822;
        time::OffsetDateTime::parse(&text.replace("GMT", "+0000"), &Rfc2822).ok()
    };
    let now = headers.get(http::header::DATE)?.to_str().ok()?;
    (date(text)? - date(now)?).try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderMap;

    #[test]
    fn pauses_double_and_keep_to_the_longest() {
        let policy = RetryPolicy { longest: Duration::from_secs(5), ..RetryPolicy::default() };
        let silent = |_| {};
        let mut tries = Tries::new(&policy, 9, &silent);
        for (used, least, most) in [(0, 1.0, 1.25), (1, 2.0, 2.5), (2, 4.0, 5.0), (5, 5.0, 6.25)] {
            tries.used = used;
            let pause = tries.pause(None).as_secs_f64();
            assert!((least..=most).contains(&pause), "{used}: {pause}");
        }
        assert!(tries.pause(Some(Duration::from_secs(3600))).as_secs_f64() <= 6.25);
    }

    #[test]
    fn retry_after_takes_seconds_and_dates() {
        let mut headers = HeaderMap::new();
        headers.insert("retry-after", "7".parse().unwrap());
        assert_eq!(retry_after(&headers), Some(Duration::from_secs(7)));
        headers.insert("date", "Tue, 24 Nov 2026 03:00:00 GMT".parse().unwrap());
        headers.insert("retry-after", "Tue, 24 Nov 2026 03:00:09 GMT".parse().unwrap());
        assert_eq!(retry_after(&headers), Some(Duration::from_secs(9)));
        headers.insert("retry-after", "Tue, 24 Nov 2026 02:00:09 GMT".parse().unwrap());
        assert_eq!(retry_after(&headers), None);
    }
}
