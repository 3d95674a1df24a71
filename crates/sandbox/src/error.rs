//! What can go wrong before a step's program runs, or in undoing what was done for it.
//!
//! A program that runs and fails is no error here: it is an [`Exit`](crate::Exit).

use std::fmt;
use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

/// Why a rung can't be used here: the call that failed, with what, and what would allow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The failing call with what it was tried on, such as `mount(overlay)`; or the condition that isn't met.
    pub call: String,
    /// The error number, where a call failed.
    pub errno: Option<i32>,
    /// What in the pod spec (or on the node) would allow it.
    pub advice: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.call)?;
        if let Some(errno) = self.errno {
            write!(f, " failed: {}", errno_text(errno))?;
        }
        write!(f, "; {}", self.advice)
    }
}

impl std::error::Error for Refusal {}

/// `EPERM (Operation not permitted)`, or the number if it has no well-known name.
pub(crate) fn errno_text(errno: i32) -> String {
    let text = io::Error::from_raw_os_error(errno).to_string();
    let text = text.split(" (os error").next().unwrap_or_default().to_owned();
    let name = match Errno::from_raw_os_error(errno) {
        Errno::PERM => "EPERM",
        Errno::NOENT => "ENOENT",
        Errno::IO => "EIO",
        Errno::AGAIN => "EAGAIN",
        Errno::NOMEM => "ENOMEM",
        Errno::ACCESS => "EACCES",
        Errno::BUSY => "EBUSY",
        Errno::EXIST => "EEXIST",
        Errno::NODEV => "ENODEV",
        Errno::NOTDIR => "ENOTDIR",
        Errno::ISDIR => "EISDIR",
        Errno::INVAL => "EINVAL",
        Errno::MFILE => "EMFILE",
        Errno::NOSPC => "ENOSPC",
        Errno::ROFS => "EROFS",
        Errno::NOSYS => "ENOSYS",
        Errno::LOOP => "ELOOP",
        Errno::NAMETOOLONG => "ENAMETOOLONG",
        Errno::NOEXEC => "ENOEXEC",
        Errno::OPNOTSUPP => "EOPNOTSUPP",
        Errno::USERS => "EUSERS",
        Errno::STALE => "ESTALE",
        _ => return format!("error {errno} ({text})"),
    };
    format!("{name} ({text})")
}

/// Why a step could not be run to its end.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The request can't be carried out as it stands.
    #[error("{0}")]
    Request(String),
    /// The kernel refused to make the step's namespaces or one of its mounts.
    #[error("the step's surroundings could not be made: {0}")]
    Refused(Refusal),
    /// The step's program could not be started.
    #[error("{program} could not be started: {}", errno_text(*errno))]
    Program {
        /// As the step named it.
        program: String,
        /// What execve said; ENOENT also where a script's interpreter is missing.
        errno: i32,
    },
    /// Something of Kiln's own around the step failed.
    #[error("{doing} failed: {source}")]
    Io {
        /// What was being done, and on what.
        doing: String,
        /// How it failed.
        source: io::Error,
    },
    /// What stood in for a mount could not be undone; the tree is not as the step should have left it.
    #[error("after the step, {path} could not be {doing}: {source}; the tree can't be used any more")]
    Restore {
        /// The path inside the tree.
        path: PathBuf,
        /// What was to be done with it: `put back`, `removed`.
        doing: &'static str,
        /// How it failed.
        source: io::Error,
    },
    /// The process that looks after the step was killed, by the step or for want of memory.
    #[error("the step's supervisor was ended by {0} before the step was done")]
    Supervisor(String),
    /// The step was stopped by [`Cancel`](crate::Cancel).
    #[error("the step was cancelled")]
    Cancelled,
}

impl SandboxError {
    pub(crate) fn io(doing: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io { doing: doing.into(), source: source.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_call_errno_and_remedy() {
        let refusal = Refusal { call: "mount(overlay)".into(), errno: Some(22), advice: "do this".into() };
        assert_eq!(refusal.to_string(), "mount(overlay) failed: EINVAL (Invalid argument); do this");
    }
}
