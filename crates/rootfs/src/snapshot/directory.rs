//! One plain directory per stage: for places where a mount namespace works and overlayfs doesn't, and for chroot.
//!
//! In the scratch directory, `t/N` are the trees and `s` holds the files of scans.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
    stages: BTreeMap<usize, Tracked>,
}

impl DirectorySnapshotter {
    /// Keeps trees in `scratch`.
    pub fn new(scratch: PathBuf, options: SnapshotOptions) -> Self {
        Self { scratch, options, stages: BTreeMap::new() }
    }

    /// Makes the empty directory for the tree of `stage`, and the one for scans.
    fn fresh_tree(&mut self, stage: usize) -> Result<(PathBuf, PathBuf), RootfsError> {
        self.stages.remove(&stage);
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

    fn stage_mut(&mut self, stage: usize) -> Result<&mut Tracked, RootfsError> {
        self.stages.get_mut(&stage).ok_or_else(|| super::no_such_stage(stage))
    }
}

impl Snapshotter for DirectorySnapshotter {
    fn base(&mut self, stage: usize, layers: &[BaseLayer]) -> Result<(), RootfsError> {
        let (tree, scans) = self.fresh_tree(stage)?;
        let mut tracked = Tracked::new(tree, scans, self.options.clone());
        for layer in layers {
            tracked.lay(layer)?;
        }
        self.stages.insert(stage, tracked);
        Ok(())
    }

    fn fork(&mut self, stage: usize, from: usize) -> Result<(), RootfsError> {
        let records = self.stage_mut(from)?.settle()?;
        if stage == from {
            return Ok(());
        }
        let (tree, scans) = self.fresh_tree(stage)?;
        let source = self.stage_mut(from)?.handle()?;
        copy_tree(source, &tree, &self.options)?;
        let tracked = Tracked::copied(tree, scans, self.options.clone(), records)?;
        self.stages.insert(stage, tracked);
        Ok(())
    }

    fn view(&self, stage: usize) -> Result<Arc<dyn View>, RootfsError> {
        self.stages.get(&stage).ok_or_else(|| super::no_such_stage(stage))?.view()
    }

    fn begin(&mut self, stage: usize) -> Result<Tree, RootfsError> {
        let tracked = self.stage_mut(stage)?;
        tracked.begin()?;
        Ok(Tree::Directory { path: tracked.tree().to_owned() })
    }

    fn changes(&mut self, stage: usize) -> Result<Box<dyn ChangeSource>, RootfsError> {
        self.stage_mut(stage)?.changes()
    }

    fn commit(&mut self, stage: usize) -> Result<(), RootfsError> {
        self.stage_mut(stage)?.commit()
    }

    fn apply(&mut self, stage: usize, delta: Delta) -> Result<(), RootfsError> {
        self.stage_mut(stage)?.apply(&delta)
    }

    fn apply_layer(&mut self, stage: usize, layer: BaseLayer) -> Result<(), RootfsError> {
        self.stage_mut(stage)?.lay(&layer)
    }

    fn leave(&mut self, stage: usize, _keep: &[TreePath]) -> Result<(), RootfsError> {
        self.stage_mut(stage).map(|_| ())
    }

    fn cleanup(&mut self) -> Result<(), RootfsError> {
        self.stages.clear();
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
