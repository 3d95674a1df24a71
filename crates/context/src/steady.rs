//! A context that must not change under a build: what was hashed for a key is what is copied later.

use std::collections::HashMap;
use std::fs::File;
use std::hash::{DefaultHasher, Hasher as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use kiln_rootfs::{Meta, RootfsError, TreePath, View, Xattrs};

/// How many files are remembered, in about 20 bytes each.
const MOST: usize = 200_000;

/// A view that notices when a file is opened again that has changed since: opening fails then, and names the file.
///
/// Length and time of the last change are compared. So much is remembered of the first [`MOST`] files, and nothing of more:
/// memory is bounded.
pub struct SteadyView {
    inner: Arc<dyn View>,
    seen: Mutex<HashMap<u64, u64>>,
}

impl SteadyView {
    /// `inner`, of which nothing was opened yet.
    pub fn new(inner: Arc<dyn View>) -> Self {
        Self { inner, seen: Mutex::default() }
    }
}

impl View for SteadyView {
    fn stat(&self, path: &TreePath) -> Result<Option<Meta>, RootfsError> {
        self.inner.stat(path)
    }

    fn list(&self, path: &TreePath) -> Result<Vec<Vec<u8>>, RootfsError> {
        self.inner.list(path)
    }

    fn open(&self, path: &TreePath) -> Result<File, RootfsError> {
        let file = self.inner.open(path)?;
        // Who can't look at it can't read it, and says so.
        if let Ok(now) = file.metadata() {
            let stamp = hash(&(now.len(), now.mtime(), now.mtime_nsec()));
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let name = hash(&path.as_bytes());
            let known = if seen.len() < MOST {
                *seen.entry(name).or_insert(stamp)
            } else {
                *seen.get(&name).unwrap_or(&stamp)
            };
            if known != stamp {
                let why = "changed while the build ran: its cache key was made of what it held before; build again, \
                           from files that stay as they are"
                    .to_owned();
                return Err(RootfsError::Tree { path: path.clone(), why });
            }
        }
        Ok(file)
    }

    fn xattrs(&self, path: &TreePath) -> Result<Xattrs, RootfsError> {
        self.inner.xattrs(path)
    }

    fn real_path(&self, path: &TreePath) -> Result<Option<PathBuf>, RootfsError> {
        self.inner.real_path(path)
    }
}

fn hash(value: &impl std::hash::Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_rootfs::DirectoryView;

    #[test]
    fn a_file_that_changed_since_it_was_hashed_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("same", "x");
        write("other", "x");
        let view = SteadyView::new(Arc::new(DirectoryView::open(dir.path()).unwrap()));
        let open = |name: &str| view.open(&TreePath::new(name)).map(|_| ());
        open("same").unwrap();
        open("other").unwrap();
        write("other", "longer");
        open("same").unwrap();
        assert!(open("other").unwrap_err().to_string().contains("/other changed"));
        open("same").unwrap();
    }

    /// A tree in which every name is one and the same file.
    struct OneFile(DirectoryView);

    impl View for OneFile {
        fn stat(&self, _: &TreePath) -> Result<Option<Meta>, RootfsError> {
            self.0.stat(&"f".into())
        }

        fn list(&self, path: &TreePath) -> Result<Vec<Vec<u8>>, RootfsError> {
            self.0.list(path)
        }

        fn open(&self, _: &TreePath) -> Result<File, RootfsError> {
            self.0.open(&"f".into())
        }

        fn xattrs(&self, _: &TreePath) -> Result<Xattrs, RootfsError> {
            self.0.xattrs(&"f".into())
        }

        fn real_path(&self, path: &TreePath) -> Result<Option<PathBuf>, RootfsError> {
            self.0.real_path(path)
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), "x").unwrap();
        let view = SteadyView::new(Arc::new(OneFile(DirectoryView::open(dir.path()).unwrap())));
        for number in 0..MOST + 100 {
            view.open(&TreePath::new(number.to_string())).unwrap();
        }
        assert_eq!(view.seen.lock().unwrap().len(), MOST);
        std::fs::write(dir.path().join("f"), "longer").unwrap();
        assert!(view.open(&"0".into()).is_err());
        assert!(view.open(&TreePath::new((MOST + 99).to_string())).is_ok());
    }
}
