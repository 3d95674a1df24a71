//! Telling running steps to stop, from any thread.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};

/// A switch that stops every step which was started with it, now or later. Clones are the same switch.
#[derive(Debug, Clone)]
pub struct Cancel(Arc<Switch>);

#[derive(Debug)]
struct Switch {
    cancelled: AtomicBool,
    /// Readable from the moment of cancelling on: what the steps' threads poll.
    wake: OwnedFd,
}

impl Cancel {
    /// A switch that is off. Fails only if no file descriptor is to be had.
    pub fn new() -> std::io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(Switch { cancelled: AtomicBool::new(false), wake })))
    }

    /// Stops the steps: SIGTERM at once, SIGKILL soon after. Can't be undone; calling it twice is harmless.
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::SeqCst);
        // An eventfd refuses a write only when its counter is full, and then it is readable already.
        let _ = rustix::io::write(&self.0.wake, &1u64.to_ne_bytes());
    }

    /// Whether [`Cancel::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::SeqCst)
    }

    pub(crate) fn wake(&self) -> BorrowedFd<'_> {
        self.0.wake.as_fd()
    }
}
