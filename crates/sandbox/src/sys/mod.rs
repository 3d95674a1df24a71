//! The system calls that rustix lacks or can't offer safely. All `unsafe` of this crate is here.
//!
//! Everything marked "child" may be called between fork and exec in a process that had many threads: it neither
//! allocates nor takes a lock.
#![expect(unsafe_code, reason = "the one place for system calls that rustix does not wrap")]

mod descriptors;
mod fork;
mod network;
mod signals;

pub(crate) use descriptors::{close_all_but, close_on_exec_from, put_at};
pub(crate) use fork::{Namespaces, Strings, become_session, execve, fork, set_readonly_recursive};
pub(crate) use network::raise_loopback;
pub(crate) use signals::{BlockedSignals, child_signals, reset_signals, signal_everybody};

/// Keeps every other process, also one of the same user, from reading this one's memory and environment through
/// ptrace or /proc. A step runs as the same user as Kiln on most rungs, and Kiln's memory holds credentials.
///
/// It lasts until the next execve; [`run`](crate::run) calls it too.
pub fn hide_memory() -> std::io::Result<()> {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}
