//! What became of the connection to a server: whether it broke, which another attempt may overcome, and in which words.
//! gix's own errors wrap what they are given many times over, and tell the two apart no more.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Shared by a transport and those who ask afterwards why it failed. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Line(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    why: Option<String>,
    broke: bool,
}

impl Line {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the connection broke, or that the server can't answer at present.
    pub(super) fn broke(&self, why: String) -> io::Error {
        *self.state() = State { why: Some(why.clone()), broke: true };
        io::Error::other(why)
    }

    /// Notes that the server says no: it will again.
    pub(super) fn refused(&self, why: String) -> io::Error {
        *self.state() = State { why: Some(why.clone()), broke: false };
        io::Error::other(why)
    }

    /// Forgets what was: another attempt begins.
    pub(super) fn reset(&self) {
        *self.state() = State::default();
    }

    /// Why it failed last, once.
    pub(super) fn take_why(&self) -> Option<String> {
        self.state().why.take()
    }

    /// Whether it broke in this attempt.
    pub(super) fn has_broken(&self) -> bool {
        self.state().broke
    }
}
