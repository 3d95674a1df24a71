//! News while a context is fetched.

use std::time::Duration;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A source is being read.
    Begins {
        /// As a person would write it, without a login.
        source: String,
    },
    /// Bytes came.
    Received {
        /// The source.
        source: String,
        /// So far.
        bytes: u64,
        /// In all, where that is known.
        of: Option<u64>,
    },
    /// A transfer broke and goes on where it was.
    Resuming {
        /// The source.
        source: String,
        /// Where it goes on, in bytes.
        at: u64,
        /// Why it broke.
        why: String,
        /// After this time.
        after: Duration,
    },
    /// A transfer broke and begins again: its protocol knows no way to go on in the middle.
    Restarting {
        /// The source.
        source: String,
        /// Why it broke.
        why: String,
        /// After this time.
        after: Duration,
    },
    /// A source was fetched whole.
    Done {
        /// The source.
        source: String,
        /// What was received, in bytes.
        bytes: u64,
    },
    /// A revision of a repository is this commit.
    Commit {
        /// The repository.
        source: String,
        /// The commit.
        commit: String,
    },
    /// Something is odd, and the build goes on.
    Warning(String),
}
