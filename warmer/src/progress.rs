//! Events from many threads to the one observer, which need not be thread-safe.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;

use kiln_oci::Descriptor;

use crate::WarmEvent;

/// Sends events to whoever called [`crate::warm`].
#[derive(Clone)]
pub(crate) struct Teller(Sender<WarmEvent>);

impl Teller {
    pub(crate) fn new(sender: Sender<WarmEvent>) -> Self {
        Self(sender)
    }

    pub(crate) fn tell(&self, event: WarmEvent) {
        // Nobody listens any more only when warming is over.
        let _ = self.0.send(event);
    }
}

/// How many bytes come between two events about one blob.
const STEP: u64 = 256 << 10;

/// Follows the download of one blob.
pub(crate) struct Transfer<'a> {
    teller: &'a Teller,
    descriptor: &'a Descriptor,
    /// What was told last, plus one; 0 before the first.
    told: AtomicU64,
}

impl<'a> Transfer<'a> {
    pub(crate) fn new(teller: &'a Teller, descriptor: &'a Descriptor) -> Self {
        Self { teller, descriptor, told: AtomicU64::new(0) }
    }

    /// Notes that `bytes` of the blob are here.
    pub(crate) fn at(&self, bytes: u64) {
        let (digest, of) = (self.descriptor.digest.clone(), self.descriptor.size);
        let told = self.told.load(Ordering::Relaxed);
        if told == 0 {
            self.teller.tell(WarmEvent::Downloading { digest, from: bytes, of });
        } else if bytes + 1 < told || bytes >= of || bytes - (told - 1) >= STEP {
            self.teller.tell(WarmEvent::Received { digest, bytes, of });
        } else {
            return;
        }
        self.told.store(bytes + 1, Ordering::Relaxed);
    }
}
