//! What a step changed, as a stream in the order in which a layer is written.

use std::fs::File;

use crate::view::Xattrs;
use crate::{IgnorePaths, Meta, RootfsError, TreePath};

/// What happened to a path.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// It is gone.
    Deleted,
    /// It is a directory that hides what lies below it.
    Opaque,
    /// It is new or different now.
    Entry(Meta),
}

/// One change.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Where.
    pub path: TreePath,
    /// What.
    pub what: What,
}

/// Changes in the order of a tree walk: a directory before what is in it, names by their bytes. Memory is bounded by the
/// depth of the tree and the size of one directory, not by how much changed.
pub trait ChangeSource: Send {
    /// The next change; `None` after the last.
    fn next(&mut self) -> Result<Option<Change>, RootfsError>;

    /// Opens the content of a changed file.
    fn open(&mut self, path: &TreePath) -> Result<File, RootfsError>;

    /// The extended attributes of what changed.
    fn xattrs(&mut self, path: &TreePath) -> Result<Xattrs, RootfsError>;
}

/// The changes of another source without those of ignored paths.
pub struct Unignored<'a> {
    source: Box<dyn ChangeSource + 'a>,
    ignore: IgnorePaths,
}

impl<'a> Unignored<'a> {
    /// Leaves `ignore` out of `source`.
    pub fn new(source: Box<dyn ChangeSource + 'a>, ignore: IgnorePaths) -> Self {
        Self { source, ignore }
    }
}

impl ChangeSource for Unignored<'_> {
    fn next(&mut self) -> Result<Option<Change>, RootfsError> {
        loop {
            match self.source.next()? {
                Some(change) if self.ignore.is_ignored(&change.path) => {}
                other => return Ok(other),
            }
        }
    }

    fn open(&mut self, path: &TreePath) -> Result<File, RootfsError> {
        self.source.open(path)
    }

    fn xattrs(&mut self, path: &TreePath) -> Result<Xattrs, RootfsError> {
        self.source.xattrs(path)
    }
}
