//! A context as COPY sees it: without what .dockerignore names, owned by root, and without extended attributes: those of a
//! checkout belong to the machine that it lies on (labels, ACLs, notes of a file manager), and BuildKit carries none over.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use kiln_dockerfile::Ignore;
use kiln_rootfs::{Meta, RootfsError, TreePath, View, Xattrs};

/// A view that hides what is ignored. A directory that is ignored shows if something in it isn't.
pub struct ContextView {
    inner: Arc<dyn View>,
    ignore: Ignore,
}

impl ContextView {
    /// `inner` less what `ignore` names.
    pub fn new(inner: Arc<dyn View>, ignore: Ignore) -> Self {
        Self { inner, ignore }
    }

    fn shows(&self, path: &TreePath, meta: &Meta) -> Result<bool, RootfsError> {
        if path.is_root() || self.ignore.is_empty() {
            return Ok(true);
        }
        let text = String::from_utf8_lossy(path.as_bytes());
        if !self.ignore.is_ignored(&text, meta.is_dir()) {
            return Ok(true);
        }
        if !meta.is_dir() || self.ignore.can_skip_dir(&text) {
            return Ok(false);
        }
        for name in self.inner.list(path)? {
            let child = path.join(&name);
            if let Some(meta) = self.inner.stat(&child)?
                && self.shows(&child, &meta)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl ContextView {
    /// Whether root owns what is at `path` and all below it on disk, as the view says.
    fn is_roots(&self, path: &TreePath) -> Result<bool, RootfsError> {
        let Some(meta) = self.inner.stat(path)? else { return Ok(true) };
        if (meta.uid, meta.gid) != (0, 0) {
            return Ok(false);
        }
        if meta.is_dir() {
            for name in self.inner.list(path)? {
                if !self.is_roots(&path.join(&name))? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

impl View for ContextView {
    fn stat(&self, path: &TreePath) -> Result<Option<Meta>, RootfsError> {
        let Some(mut meta) = self.inner.stat(path)? else { return Ok(None) };
        (meta.uid, meta.gid) = (0, 0);
        Ok(if self.shows(path, &meta)? { Some(meta) } else { None })
    }

    fn list(&self, path: &TreePath) -> Result<Vec<Vec<u8>>, RootfsError> {
        let mut names = Vec::new();
        for name in self.inner.list(path)? {
            if self.stat(&path.join(&name))?.is_some() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn open(&self, path: &TreePath) -> Result<File, RootfsError> {
        self.inner.open(path)
    }

    fn xattrs(&self, _: &TreePath) -> Result<Xattrs, RootfsError> {
        Ok(Xattrs::new())
    }

    fn real_path(&self, path: &TreePath) -> Result<Option<PathBuf>, RootfsError> {
        if self.ignore.is_empty() && self.is_roots(path)? { self.inner.real_path(path) } else { Ok(None) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_rootfs::DirectoryView;

    #[test]
    fn an_ignored_directory_shows_only_for_what_is_taken_back_in_it() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a/keep", "a/drop", "b/drop", "c/x"] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let view = |ignore: &str| {
            ContextView::new(
                Arc::new(DirectoryView::open(dir.path()).unwrap()),
                Ignore::parse(ignore).unwrap(),
            )
        };
        let names = |view: &ContextView, path: &str| {
            let names = view.list(&path.into()).unwrap();
            names.into_iter().map(|name| String::from_utf8(name).unwrap()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(names(&view("*\n!a/keep"), ""), "a");
        assert_eq!(names(&view("*\n!a/keep"), "a"), "keep");
        assert_eq!(names(&view("*\n!**/keep"), ""), "a");
        assert_eq!(names(&view("b"), ""), "a c");
        assert!(view("b").stat(&"b/drop".into()).unwrap().is_none());
    }
}
