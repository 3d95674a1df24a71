//! Files of a delta whose bytes stay where they were copied from: a delta that only becomes a layer needs no copy of them.
//!
//! In the delta's directory each has a stand-in, a file of the same length that is one hole. It is known by its inode, so
//! that hard links, and other entries in its place, need no thought.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::failed;
use crate::view::Xattrs;
use crate::{Meta, RootfsError, TreePath, View};

/// Shorter files are copied: a copy costs little more than a stand-in.
pub(super) const SHORTEST: u64 = 256 << 10;

/// More files than this are copied: loans are kept in memory.
const MOST: usize = 4096;

/// Where the bytes of stand-ins are.
#[derive(Default, Clone)]
pub(crate) struct Loans {
    by_inode: HashMap<(u64, u64), (Arc<dyn View>, TreePath)>,
}

impl std::fmt::Debug for Loans {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} files on loan", self.by_inode.len())
    }
}

impl Loans {
    /// Whether one more file of `size` bytes is lent instead of copied.
    pub(super) fn take(&self, size: u64) -> bool {
        size >= SHORTEST && self.by_inode.len() < MOST
    }

    /// Notes that `stand_in` stands for the file at `path` of `view`.
    pub(super) fn note(
        &mut self,
        stand_in: &File,
        view: &Arc<dyn View>,
        path: &TreePath,
    ) -> std::io::Result<()> {
        let meta = stand_in.metadata()?;
        self.by_inode.insert((meta.dev(), meta.ino()), (Arc::clone(view), path.clone()));
        Ok(())
    }

    /// Notes that `file`, which was just made, stands for nothing: it may have the inode of a stand-in that is gone.
    pub(super) fn forget(&mut self, file: &File) -> std::io::Result<()> {
        if !self.by_inode.is_empty() {
            let meta = file.metadata()?;
            self.by_inode.remove(&(meta.dev(), meta.ino()));
        }
        Ok(())
    }

    /// What `file`, found at `path`, stands for; itself if it is no stand-in.
    pub(crate) fn open(&self, file: File, path: &TreePath) -> Result<File, RootfsError> {
        if self.by_inode.is_empty() {
            return Ok(file);
        }
        let meta = file.metadata().map_err(|error| failed("look at", path.as_bytes(), error))?;
        match self.by_inode.get(&(meta.dev(), meta.ino())) {
            Some((view, source)) => view.open(source),
            None => Ok(file),
        }
    }
}

/// A view of directories of which some hold stand-ins: what is opened is what they stand for.
pub(super) struct LoanedView {
    pub(super) inner: Arc<dyn View>,
    pub(super) loans: Vec<Arc<Loans>>,
}

impl View for LoanedView {
    fn stat(&self, path: &TreePath) -> Result<Option<Meta>, RootfsError> {
        self.inner.stat(path)
    }

    fn list(&self, path: &TreePath) -> Result<Vec<Vec<u8>>, RootfsError> {
        self.inner.list(path)
    }

    fn open(&self, path: &TreePath) -> Result<File, RootfsError> {
        let file = self.inner.open(path)?;
        self.loans.iter().try_fold(file, |file, loans| loans.open(file, path))
    }

    fn xattrs(&self, path: &TreePath) -> Result<Xattrs, RootfsError> {
        self.inner.xattrs(path)
    }

    fn real_path(&self, path: &TreePath) -> Result<Option<PathBuf>, RootfsError> {
        self.inner.real_path(path)
    }
}
