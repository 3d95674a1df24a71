//! Looking at a file tree without changing it, however it is kept.

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};

use crate::{Kind, Meta, Root, RootfsError, TreePath};

/// The extended attributes of an entry: names and values.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// A read-only look at a file tree. Paths are not followed: a link is a link. [`resolve`] follows.
pub trait View: Send + Sync {
    /// What is at `path`; `None` if nothing is.
    fn stat(&self, path: &TreePath) -> Result<Option<Meta>, RootfsError>;

    /// The names in a directory, sorted by their bytes.
    fn list(&self, path: &TreePath) -> Result<Vec<Vec<u8>>, RootfsError>;

    /// Opens a regular file.
    fn open(&self, path: &TreePath) -> Result<File, RootfsError>;

    /// The extended attributes of what is at `path`.
    fn xattrs(&self, path: &TreePath) -> Result<Xattrs, RootfsError>;

    /// Where on disk this very entry lies, with all that is below it; `None` if it is spread over several places.
    fn real_path(&self, path: &TreePath) -> Result<Option<PathBuf>, RootfsError>;
}

/// Links followed for one path before it is taken for a loop.
const MAX_LINKS: usize = 40;

/// The path that `path` means once every link on the way and at the end is followed inside the tree. What isn't there
/// is kept as written.
pub fn resolve(view: &dyn View, path: &TreePath) -> Result<TreePath, RootfsError> {
    resolve_by(|path| view.stat(path), path)
}

/// The same, where `stat` tells what is at a path, not followed.
pub(crate) fn resolve_by(
    stat: impl Fn(&TreePath) -> Result<Option<Meta>, RootfsError>,
    path: &TreePath,
) -> Result<TreePath, RootfsError> {
    let mut todo: VecDeque<Vec<u8>> = path.components().map(<[u8]>::to_vec).collect();
    let mut here = TreePath::root();
    let mut links = 0;
    while let Some(part) = todo.pop_front() {
        match part.as_slice() {
            b"" | b"." => continue,
            b".." => {
                here = here.parent().unwrap_or_default();
                continue;
            }
            _ => {}
        }
        let next = here.join(&part);
        let target = stat(&next)?.filter(|meta| meta.kind == Kind::Symlink).and_then(|meta| meta.link);
        let Some(target) = target else {
            here = next;
            continue;
        };
        links += 1;
        if links > MAX_LINKS {
            return Err(RootfsError::Tree { path: path.clone(), why: "is a loop of links".to_owned() });
        }
        if target.starts_with(b"/") {
            here = TreePath::root();
        }
        for part in target.split(|byte| *byte == b'/').rev() {
            todo.push_front(part.to_vec());
        }
    }
    Ok(here)
}

/// The same, but the last component is left as it is.
pub fn resolve_parent(view: &dyn View, path: &TreePath) -> Result<TreePath, RootfsError> {
    match path.parent() {
        None => Ok(path.clone()),
        Some(parent) => Ok(resolve(view, &parent)?.join(path.name())),
    }
}

/// A tree without anything in it but its root.
#[derive(Clone, Copy, Debug, Default)]
pub struct EmptyView;

impl View for EmptyView {
    fn stat(&self, path: &TreePath) -> Result<Option<Meta>, RootfsError> {
        Ok(path.is_root().then(|| Meta::new(Kind::Directory, 0o755)))
    }

    fn list(&self, _: &TreePath) -> Result<Vec<Vec<u8>>, RootfsError> {
        Ok(Vec::new())
    }

    fn open(&self, path: &TreePath) -> Result<File, RootfsError> {
        Err(RootfsError::Tree { path: path.clone(), why: "is not there: the tree is empty".to_owned() })
    }

    fn xattrs(&self, _: &TreePath) -> Result<Xattrs, RootfsError> {
        Ok(Vec::new())
    }

    fn real_path(&self, _: &TreePath) -> Result<Option<PathBuf>, RootfsError> {
        Ok(None)
    }
}

/// A tree in one plain directory.
#[derive(Debug)]
pub struct DirectoryView {
    root: Root,
}

impl DirectoryView {
    /// The tree at `path` on disk.
    pub fn open(path: &Path) -> Result<Self, RootfsError> {
        Ok(Self { root: Root::open(path)? })
    }
}

impl View for DirectoryView {
    fn stat(&self, path: &TreePath) -> Result<Option<Meta>, RootfsError> {
        self.root.stat(path)
    }

    fn list(&self, path: &TreePath) -> Result<Vec<Vec<u8>>, RootfsError> {
        self.root.list(path)
    }

    fn open(&self, path: &TreePath) -> Result<File, RootfsError> {
        self.root.file(path)
    }

    fn xattrs(&self, path: &TreePath) -> Result<Xattrs, RootfsError> {
        self.root.xattrs(path)
    }

    fn real_path(&self, path: &TreePath) -> Result<Option<PathBuf>, RootfsError> {
        Ok(Some(self.root.on_disk(path)))
    }
}
