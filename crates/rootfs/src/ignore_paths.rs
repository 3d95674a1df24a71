//! Paths that are no part of an image: `--ignore-path` and what a rung adds to it.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use crate::view::Xattrs;
use crate::{Meta, RootfsError, TreePath, View};

/// Patterns over paths. A component may be a glob (`*`, `?`); what lies below a match is ignored as well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IgnorePaths {
    patterns: Vec<TreePath>,
}

impl IgnorePaths {
    /// Ignores what these paths match.
    pub fn new<P: AsRef<[u8]>>(paths: impl IntoIterator<Item = P>) -> Self {
        let patterns = paths.into_iter().map(TreePath::new).filter(|path| !path.is_root()).collect();
        Self { patterns }
    }

    /// Whether nothing is ignored.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Adds a path.
    pub fn add(&mut self, path: TreePath) {
        if !path.is_root() && !self.patterns.contains(&path) {
            self.patterns.push(path);
        }
    }

    /// The patterns.
    pub fn paths(&self) -> &[TreePath] {
        &self.patterns
    }

    /// Whether `path` or a directory above it matches.
    pub fn is_ignored(&self, path: &TreePath) -> bool {
        self.patterns.iter().any(|pattern| covers(pattern, path))
    }

    /// Whether something below `path` may be ignored: it can't be removed or copied in one piece.
    pub fn reaches_below(&self, path: &TreePath) -> bool {
        self.patterns.iter().any(|pattern| {
            let mut names = pattern.components();
            path.components().all(|name| names.next().is_some_and(|part| glob(part, name)))
                && names.next().is_some()
        })
    }
}

/// A tree without what is ignored in it.
pub(crate) struct HidingView {
    inner: Arc<dyn View>,
    ignore: IgnorePaths,
}

impl HidingView {
    /// Hides what `ignore` matches in `inner`.
    pub(crate) fn new(inner: Arc<dyn View>, ignore: IgnorePaths) -> Self {
        Self { inner, ignore }
    }

    fn hidden(&self, path: &TreePath) -> Result<(), RootfsError> {
        if self.ignore.is_ignored(path) {
            return Err(RootfsError::Tree { path: path.clone(), why: "is no part of the image".to_owned() });
        }
        Ok(())
    }
}

impl View for HidingView {
    fn stat(&self, path: &TreePath) -> Result<Option<Meta>, RootfsError> {
        if self.ignore.is_ignored(path) { Ok(None) } else { self.inner.stat(path) }
    }

    fn list(&self, path: &TreePath) -> Result<Vec<Vec<u8>>, RootfsError> {
        self.hidden(path)?;
        let mut names = self.inner.list(path)?;
        if self.ignore.reaches_below(path) {
            names.retain(|name| !self.ignore.is_ignored(&path.join(name)));
        }
        Ok(names)
    }

    fn open(&self, path: &TreePath) -> Result<File, RootfsError> {
        self.hidden(path)?;
        self.inner.open(path)
    }

    fn xattrs(&self, path: &TreePath) -> Result<Xattrs, RootfsError> {
        self.hidden(path)?;
        self.inner.xattrs(path)
    }

    fn real_path(&self, path: &TreePath) -> Result<Option<PathBuf>, RootfsError> {
        let whole = !self.ignore.is_ignored(path) && !self.ignore.reaches_below(path);
        if whole { self.inner.real_path(path) } else { Ok(None) }
    }
}

fn covers(pattern: &TreePath, path: &TreePath) -> bool {
    let mut names = path.components();
    pattern.components().all(|part| names.next().is_some_and(|name| glob(part, name)))
}

fn glob(pattern: &[u8], name: &[u8]) -> bool {
    match pattern.first() {
        None => name.is_empty(),
        Some(b'*') => (0..=name.len()).any(|taken| glob(&pattern[1..], &name[taken..])),
        Some(b'?') => !name.is_empty() && glob(&pattern[1..], &name[1..]),
        Some(byte) => name.first() == Some(byte) && glob(&pattern[1..], &name[1..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_component_may_be_a_glob_and_what_is_below_is_ignored() {
        let ignored = IgnorePaths::new(["/var/run", "/tmp/apt-key-gpghome*"]);
        for (path, expected) in [
            ("var/run", true),
            ("var/run/x/y", true),
            ("var/running", false),
            ("var", false),
            ("tmp/apt-key-gpghome.X1/f", true),
            ("tmp/x", false),
        ] {
            assert_eq!(ignored.is_ignored(&path.into()), expected, "{path}");
        }
        assert!(ignored.reaches_below(&"var".into()));
        assert!(!ignored.reaches_below(&"var/run".into()));
        assert!(!ignored.reaches_below(&"usr".into()));
    }

    #[test]
    fn what_is_ignored_is_not_in_a_hiding_view() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("var/run/secrets")).unwrap();
        std::fs::create_dir_all(dir.path().join("var/lib")).unwrap();
        std::fs::write(dir.path().join("var/run/secrets/token"), "secret").unwrap();
        std::fs::write(dir.path().join("var/lib/f"), "").unwrap();
        let inner = Arc::new(crate::DirectoryView::open(dir.path()).unwrap());
        let view = HidingView::new(inner, IgnorePaths::new(["/var/run"]));
        assert_eq!(view.list(&"var".into()).unwrap(), [b"lib"]);
        assert!(view.stat(&"var/run".into()).unwrap().is_none());
        assert!(view.stat(&"var/run/secrets/token".into()).unwrap().is_none());
        assert!(view.open(&"var/run/secrets/token".into()).is_err());
        assert!(view.open(&"var/lib/f".into()).is_ok());
        // A directory that something is hidden in can't be handed over whole.
        assert!(view.real_path(&"var".into()).unwrap().is_none());
        assert!(view.real_path(&"var/lib".into()).unwrap().is_some());
    }
}
