//! What a step changed, as a stream in the order in which a layer is written.

use std::fs::File;

use crate::view::Xattrs;
use crate::{Meta, RootfsError, TreePath};

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
