//! One plain directory per stage: for places where a mount namespace works and overlayfs doesn't, and for chroot.
//!
//! In the scratch directory, `t/N` are the trees and `s` holds the files of scans.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{CWD, Mode, openat};

use super::tracked::Tracked;
use super::{BaseLayer, SnapshotOptions, Snapshotter, Tree, unpack};
use crate::delta::dir_stack::DIRECTORY;
use crate::delta::disk::remove_all;
use crate::delta::failed;
use crate::delta::merge::{From, Merge, Onto};
use crate::{ChangeSource, Delta, RootfsError, TreePath, View};

/// Keeps each stage in a plain directory and finds changes by scanning it.
pub struct DirectorySnapshotter {
    scratch: PathBuf,
    options: SnapshotOptions,
    /// Each with a lock of its own: stages are built side by side.
    stages: Mutex<BTreeMap<usize, Arc<Mutex<Tracked>>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DirectorySnapshotter {
    /// Keeps trees in `scratch`.
    pub fn new(scratch: PathBuf, options: SnapshotOptions) -> Self {
        Self { scratch, options, stages: Mutex::default() }
    }

    /// Makes the empty directory for the tree of `stage`, and the one for scans.
    fn fresh_tree(&self, stage: usize) -> Result<(PathBuf, PathBuf), RootfsError> {
        lock(&self.stages).remove(&stage);
        let (trees, scans) = (self.scratch.join("t"), self.scratch.join("s"));
        let tree = trees.join(stage.to_string());
        let make = || {
            std::fs::create_dir_all(&trees)?;
            std::fs::create_dir_all(&scans)?;
            remove_all(CWD, bytes(&tree))?;
            rustix::fs::mkdir(&tree, Mode::RWXU)?;
            Ok(rustix::fs::chmod(&tree, Mode::from_raw_mode(unpack::ROOT_MODE))?)
        };
        make().map_err(|error| failed("make", bytes(&tree), error))?;
        Ok((tree, scans))
    }

    fn stage(&self, stage: usize) -> Result<Arc<Mutex<Tracked>>, RootfsError> {
        lock(&self.stages).get(&stage).cloned().ok_or_else(|| super::no_such_stage(stage))
    }

    fn keep(&self, stage: usize, tracked: Tracked) {
        lock(&self.stages).insert(stage, Arc::new(Mutex::new(tracked)));
    }
}

impl Snapshotter for DirectorySnapshotter {
    fn base(&self, stage: usize, layers: &[BaseLayer]) -> Result<(), RootfsError> {
        let (tree, scans) = self.fresh_tree(stage)?;
        let mut tracked = Tracked::new(tree, scans, self.options.clone());
        for layer in layers {
            tracked.lay(layer)?;
        }
        self.keep(stage, tracked);
        Ok(())
    }

    fn fork(&self, stage: usize, from: usize) -> Result<(), RootfsError> {
        let source = self.stage(from)?;
        let mut source = lock(&source);
        let records = source.settle()?;
        if stage == from {
            return Ok(());
        }
        let (tree, scans) = self.fresh_tree(stage)?;
        let source = source.handle()?;
        copy_tree(source, &tree, &self.options)?;
        let tracked = Tracked::copied(tree, scans, self.options.clone(), records)?;
        self.keep(stage, tracked);
        Ok(())
    }

    fn view(&self, stage: usize) -> Result<Arc<dyn View>, RootfsError> {
        lock(&*self.stage(stage)?).view()
    }

    fn begin(&self, stage: usize) -> Result<Tree, RootfsError> {
        let tracked = self.stage(stage)?;
        let mut tracked = lock(&tracked);
        tracked.begin()?;
        Ok(Tree::Directory { path: tracked.tree().to_owned() })
    }

    fn changes(&self, stage: usize) -> Result<Box<dyn ChangeSource>, RootfsError> {
        lock(&*self.stage(stage)?).changes()
    }

    fn commit(&self, stage: usize) -> Result<(), RootfsError> {
        lock(&*self.stage(stage)?).commit()
    }

    fn apply(&self, stage: usize, delta: Delta) -> Result<(), RootfsError> {
        lock(&*self.stage(stage)?).apply(&delta)
    }

    fn apply_layer(&self, stage: usize, layer: BaseLayer) -> Result<(), RootfsError> {
        lock(&*self.stage(stage)?).lay(&layer).map(drop)
    }

    fn leave(&self, stage: usize, _keep: &[TreePath]) -> Result<(), RootfsError> {
        self.stage(stage).map(|_| ())
    }

    fn cleanup(&self) -> Result<(), RootfsError> {
        lock(&self.stages).clear();
        for name in ["t", "s"] {
            let path = self.scratch.join(name);
            remove_all(CWD, bytes(&path)).map_err(|error| failed("remove", bytes(&path), error))?;
        }
        Ok(())
    }
}

/// Copies the plain tree `source` into the directory `to`: blocks are shared where the file system can, never inodes.
pub(super) fn copy_tree(
    source: std::os::fd::OwnedFd,
    to: &Path,
    options: &SnapshotOptions,
) -> Result<(), RootfsError> {
    let fail = |error| failed("copy a tree to", bytes(to), error);
    let merge =
        Merge { from: From::Plain, onto: Onto::Plain, take: false, root: true, ignore: &options.ignore };
    let target = openat(CWD, to, DIRECTORY, Mode::empty()).map_err(|error| fail(error.into()))?;
    merge.run(source, target, &mut |_| Ok(())).map_err(fail)
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_encoded_bytes()
}
