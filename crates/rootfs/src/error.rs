//! What can go wrong with file trees and layers.

use std::io;
use std::path::Path;

use crate::TreePath;

/// Why work on a file tree failed.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// A file could not be read, written or changed.
    #[error("could not {action} {path}: {source}{}", advice(.source))]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file on disk, or the path in the tree.
        path: String,
        /// Why it failed.
        source: io::Error,
    },
    /// An archive can't be read.
    #[error("the archive is damaged: {0}")]
    Archive(String),
    /// A layer's entry would lie outside the tree, or name something there.
    #[error("the layer holds {path:?}, which {why}; the image is broken or hostile and is not unpacked")]
    Escape {
        /// The entry's name.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// What was asked makes no sense in this state: a mistake in Kiln.
    #[error("{0}; this is a mistake in Kiln")]
    Misuse(String),
    /// A path is not what it must be for what was asked.
    #[error("{path} {why}")]
    Tree {
        /// The path in the tree.
        path: TreePath,
        /// What is wrong.
        why: String,
    },
}

/// What to do about the errors that a user can mend.
fn advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(28) => "; the scratch directory is full: give it more space, or another one with --scratch-dir",
        Some(122) => "; a disk quota is used up",
        Some(24) => "; too many files are open: raise the limit nofile",
        _ => "",
    }
}

/// Adds what was tried, and on what.
pub(crate) trait Doing<T> {
    /// Says what was tried on which file.
    fn doing(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, RootfsError>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, RootfsError> {
        self.map_err(|source| RootfsError::Io {
            action,
            path: path.as_ref().display().to_string(),
            source: source.into(),
        })
    }
}
