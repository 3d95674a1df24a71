//! Signals: keeping Kiln's handlers out of its children, and hearing of children's ends.

use std::mem::{self, MaybeUninit};
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;

use rustix::io::Errno;
use rustix::process::Signal;

use super::fork::last_error;

/// While this lives, the thread takes no signal; a child forked meanwhile starts with all of them blocked.
pub(crate) struct BlockedSignals {
    before: libc::sigset_t,
}

impl BlockedSignals {
    pub(crate) fn new() -> Self {
        let mut before = empty_set();
        let all = full_set();
        // SAFETY: both sets are initialised and live; SIG_BLOCK is a valid operation, so the call can't fail.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, &raw mut before) };
        Self { before }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: `before` was filled in by the call in `new`.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, ptr::null_mut()) };
    }
}

fn empty_set() -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: sigemptyset initialises the set that it is given, and a zeroed set is a valid one.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    }
}

fn full_set() -> libc::sigset_t {
    let mut set = empty_set();
    // SAFETY: the set is live and initialised.
    unsafe { libc::sigfillset(&raw mut set) };
    set
}

/// Child: every signal does what it does by default; `blocked` says whether all or none of them are held back.
pub(crate) fn reset_signals(blocked: bool) {
    // SAFETY: an all-zero sigaction is SIG_DFL without flags and with an empty mask.
    let action: libc::sigaction = unsafe { mem::zeroed() };
    for signal in 1..=64 {
        // SAFETY: the action is live. The call fails for numbers that have no settable action, which is no matter.
        unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) };
    }
    let set = if blocked { full_set() } else { empty_set() };
    // SAFETY: the set is live and initialised.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const set, ptr::null_mut()) };
}

/// Child: a descriptor that is readable when a child of this process has ended. SIGCHLD must be blocked.
pub(crate) fn child_signals() -> Result<OwnedFd, Errno> {
    let mut set = empty_set();
    // SAFETY: the set is live; SIGCHLD is a valid signal.
    unsafe { libc::sigaddset(&raw mut set, libc::SIGCHLD) };
    // SAFETY: the set is live and initialised; -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(last_error());
    }
    // SAFETY: the descriptor is new, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Child, and only as process 1 of its own PID namespace: sends a signal to all others in it.
pub(crate) fn signal_everybody(signal: Signal) {
    // SAFETY: kill touches no memory. -1 reaches the caller's PID namespace only.
    unsafe { libc::kill(-1, signal.as_raw()) };
}
