//! How a place does: one that failed several times running is left in peace, and one that failed is complained of once.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// After so many failures without an answer in between, a place is not asked any more in this build. Each of them has
/// had its retries.
const STRIKES: u32 = 3;

#[derive(Debug, Default)]
pub(super) struct Health {
    unanswered: AtomicU32,
    read_complaint: AtomicBool,
    unwritten: AtomicU32,
    write_complaint: AtomicBool,
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
