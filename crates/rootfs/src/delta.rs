//! What one step changed, as a directory in the format of an overlayfs upper directory.
//!
//! A file or directory in it replaces or adds, a character device 0/0 says that a name is gone, and a directory with
//! the xattr `user.overlay.opaque` hides what lies below it. So a delta can be stacked by overlayfs as it is, laid over a
//! plain tree ([`merge`]), or compared with what lies below and written as a layer ([`Delta::changes`]).

mod builder;
pub(crate) mod changes;
pub(crate) mod copy;
pub(crate) mod dir_stack;
pub(crate) mod disk;
pub(crate) mod loans;
pub(crate) mod merge;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::snapshot::LONG_AGO;
use crate::{ChangeSource, IgnorePaths, OverlayView, RootfsError, TreePath, View};

pub use builder::DeltaBuilder;
pub(crate) use builder::open_parent;
pub(crate) use changes::UpperChanges;
use loans::{LoanedView, Loans};

/// A directory that holds what one step changed. Whoever holds the value decides when the directory goes.
#[derive(Debug, Clone)]
pub struct Delta {
    path: PathBuf,
    loans: Arc<Loans>,
}

impl Delta {
    /// Takes a directory for a delta. It must be in overlayfs's upper format, as [`DeltaBuilder`] makes it.
    pub fn new(path: PathBuf) -> Self {
        Self { path, loans: Arc::default() }
    }

    /// Where the directory is. It is all there is of the delta, unless files were [lent](DeltaBuilder::lend_file).
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `deltas` (topmost first) on top of `below`, to look at. They must not change meanwhile.
    pub fn stacked(deltas: &[Self], below: Arc<dyn View>) -> Result<Arc<dyn View>, RootfsError> {
        let paths: Vec<PathBuf> = deltas.iter().map(|delta| delta.path.clone()).collect();
        let inner: Arc<dyn View> = Arc::new(OverlayView::on(&paths, Some(below))?);
        let loans = deltas.iter().map(|delta| Arc::clone(&delta.loans)).collect();
        Ok(Arc::new(LoanedView { inner, loans }))
    }

    /// What the delta changes of `below`, for a layer: entries whose content and visible metadata are those of `below`
    /// are left out, and so is the removal of what isn't there. A directory that differs in its mtime alone is left out as
    /// well. The result stays valid when the directory is moved, and
    /// reads the files of the delta while it is consumed.
    pub fn changes(&self, below: Arc<dyn View>) -> Result<Box<dyn ChangeSource>, RootfsError> {
        let changes = UpperChanges::new(&self.path, below, IgnorePaths::default(), LONG_AGO)?;
        Ok(Box::new(changes.with_loans(Arc::clone(&self.loans))))
    }
}

pub(crate) fn failed(action: &'static str, path: &[u8], source: io::Error) -> RootfsError {
    RootfsError::Io { action, path: String::from_utf8_lossy(path).into_owned(), source }
}

fn not_there(path: &TreePath) -> RootfsError {
    failed("find", path.as_bytes(), io::ErrorKind::NotFound.into())
}

fn not_a_directory(path: &TreePath) -> RootfsError {
    failed("enter", path.as_bytes(), io::ErrorKind::NotADirectory.into())
}
