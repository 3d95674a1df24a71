//! What can go wrong with contexts and sources.

use std::io;

use kiln_rootfs::RootfsError;

/// Why a context or a source can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// The context itself can't be had.
    #[error("could not get the build context {context}: {why}")]
    Fetch {
        /// The context as it was given.
        context: String,
        /// What went wrong and what to check.
        why: String,
    },
    /// A source word means no file.
    #[error("{word}: there is no such file in {place}{}", suggestion(.near.as_ref()))]
    Missing {
        /// The word.
        word: String,
        /// What was searched.
        place: String,
        /// A name that is near.
        near: Option<String>,
    },
    /// The directory in which a wildcard is looked for isn't there.
    #[error("{word}: there is no directory {directory} to look in")]
    NoDirectory {
        /// The word.
        word: String,
        /// The part of it before the wildcard.
        directory: String,
    },
    /// A word with `--parents` means only what `--exclude` takes out again.
    #[error("{word}: --exclude leaves nothing of it in {place}")]
    Excluded {
        /// The word.
        word: String,
        /// What was searched.
        place: String,
    },
    /// A pattern is no pattern.
    #[error("{0:?} is not a valid pattern")]
    Pattern(String),
    /// An archive can't be unpacked.
    #[error("could not unpack {name}: {why}")]
    Archive {
        /// Its name.
        name: String,
        /// Why.
        why: String,
    },
    /// A file changed while the build ran.
    #[error("{path} changed while it was read; the build needs files that stay as they are")]
    Changed {
        /// The file.
        path: String,
    },
    /// A file can't be read.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// A file can't be read or written.
    #[error("could not {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: String,
        /// Why it failed.
        source: io::Error,
    },
}

fn suggestion(name: Option<&String>) -> String {
    name.map(|name| format!("; did you mean {name}?")).unwrap_or_default()
}
