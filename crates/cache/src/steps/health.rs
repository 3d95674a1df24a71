//! How a place does: one that failed several times running is left in peace, and one that failed is complained of once.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// After so many failures without an answer in between, a place is not asked any more in this build. Each of them has
/// had its retries.
const STRIKES: u32 = 3;

#[derive(Debug, Default)]
pub(super) struct Health {
    unanswered: AtomicU32,
    read_complaint: AtomicBool,
    unwritten: AtomicU32,
    write_complaint: AtomicBool,
    /// Bytes a second, where a download was too slow to wait for; 0 where none was.
    speed: AtomicU64,
}

impl Health {
    /// The place gave an answer.
    pub(super) fn answered(&self) {
        self.unanswered.store(0, Ordering::Relaxed);
    }

    /// The place gave none; whether that is to be said.
    pub(super) fn unanswered(&self) -> bool {
        self.unanswered.fetch_add(1, Ordering::Relaxed);
        !self.read_complaint.swap(true, Ordering::Relaxed)
    }

    /// Whether asking is in vain.
    pub(super) fn is_deaf(&self) -> bool {
        self.unanswered.load(Ordering::Relaxed) >= STRIKES
    }

    /// A download was too slow to wait for: so many bytes came in so many seconds.
    pub(super) fn was_slow(&self, bytes: u64, seconds: u64) {
        self.speed.store((bytes / seconds.max(1)).max(1), Ordering::Relaxed);
    }

    /// Whether so many bytes would take longer than `limit`, by what is known: then it needn't be found out again.
    pub(super) fn is_too_slow(&self, bytes: u64, limit: Duration) -> bool {
        let speed = self.speed.load(Ordering::Relaxed);
        speed > 0 && bytes / speed > limit.as_secs()
    }

    /// The place took something.
    pub(super) fn written(&self) {
        self.unwritten.store(0, Ordering::Relaxed);
    }

    /// The place took nothing, and won't later where that is `final`; whether that is to be said.
    pub(super) fn unwritten(&self, for_good: bool) -> bool {
        self.unwritten.fetch_add(if for_good { STRIKES } else { 1 }, Ordering::Relaxed);
        !self.write_complaint.swap(true, Ordering::Relaxed)
    }

    /// Whether writing is in vain.
    pub(super) fn is_closed(&self) -> bool {
        self.unwritten.load(Ordering::Relaxed) >= STRIKES
    }
}
