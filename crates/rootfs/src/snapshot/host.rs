//! The container's own root as the tree of one stage after another, as kaniko does it, for places where nothing can be
//! mounted.
//!
//! The tree holds things that belong to the pod: they are ignored, which means neither extracted, nor recorded, nor
//! deleted. There is one tree, so a stage that is left behind survives only as far as it was saved: in the scratch
//! directory, `k/N` holds what COPY --from or FROM wants of stage N, `p` what `--preserve-context` restores, and `s` the
//! files of scans.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{CWD, Mode, openat};

use super::directory::copy_tree;
use super::record::RecordReader;
use super::restore::restore;
use super::tracked::Tracked;
use super::way::{self, Moved};
use super::{BaseLayer, SnapshotOptions, Snapshotter, Tree, save, unpack};
use crate::delta::dir_stack::DIRECTORY;
use crate::delta::disk::remove_all;
use crate::delta::failed;
use crate::extract::InTheWay;
use crate::{
    ChangeSource, Delta, DirectoryView, HidingView, IgnorePaths, Root, RootfsError, TreePath, View, remove,
};

/// What is never part of an image on this rung, besides mounts and Kiln's own directories. Components may be globs.
pub const HOST_IGNORED: [&str; 5] = ["/proc", "/dev", "/sys", "/etc/mtab", "/tmp/apt-key-gpghome*"];

/// What is left of a stage that no longer has the tree.
struct Saved {
    path: PathBuf,
    /// If it was saved whole: the records of the tree that it is a copy of, as that was last.
    records: Option<File>,
    /// What was ignored, and what had made way.
    ignore: IgnorePaths,
    moved: Vec<Moved>,
}

/// Builds one stage after another in the same root. One thread at a time: there is one tree.
pub struct HostSnapshotter {
    host: Mutex<Host>,
}

struct Host {
    root: PathBuf,
    scratch: PathBuf,
    options: SnapshotOptions,
    /// What is ignored whatever the image.
    ignore: IgnorePaths,
    /// What makes way for links of the image in the tree.
    moved: Vec<Moved>,
    current: Option<(usize, Tracked)>,
    saved: BTreeMap<usize, Saved>,
}

impl HostSnapshotter {
    /// Works in `root`, which is `/` but in tests, and keeps its files in `scratch`. `options.ignore` must hold what
    /// belongs to the pod: [`HOST_IGNORED`], the [`mount_points`](super::mount_points), Kiln's directory and `scratch`
    /// itself, if these lie in `root`.
    pub fn new(root: PathBuf, scratch: PathBuf, options: SnapshotOptions) -> Self {
        let (ignore, moved) = (options.ignore.clone(), Vec::new());
        let host = Host { root, scratch, options, ignore, moved, current: None, saved: BTreeMap::new() };
        Self { host: Mutex::new(host) }
    }

    fn host(&self) -> MutexGuard<'_, Host> {
        self.host.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Saves the tree as it is, for [`restore`](Self::restore). To be called before the first stage begins.
    pub fn preserve(&self) -> Result<(), RootfsError> {
        let host = self.host();
        let to = host.fresh_dir("p", "tree")?;
        copy_tree(handle(&host.root)?, &to, &host.options)
    }

    /// Replaces the tree by the one that was preserved. No stage has the tree then.
    pub fn restore(&self) -> Result<(), RootfsError> {
        let mut host = self.host();
        let from = handle(&host.scratch.join("p").join("tree"))?;
        host.empty()?;
        copy_tree(from, &host.root, &host.options)
    }

    /// The tree of `stage` as it is now, without what `ignore` matches. A stage that was left is saved without it anyway.
    pub fn view_without(&self, stage: usize, ignore: &IgnorePaths) -> Result<Arc<dyn View>, RootfsError> {
        let host = self.host();
        let view = host.view(stage)?;
        let is_there = host.current.as_ref().is_some_and(|(current, _)| *current == stage);
        Ok(if is_there { Arc::new(HidingView::new(view, ignore.clone())) } else { view })
    }

    /// Removes everything in the tree that is not ignored. No stage has the tree then.
    pub fn empty(&self) -> Result<(), RootfsError> {
        self.host().empty()
    }
}

impl Host {
    fn empty(&mut self) -> Result<(), RootfsError> {
        self.current = None;
        let fail = |error| failed("empty", bytes(&self.root), error);
        remove::empty(handle(&self.root)?, &self.options.ignore).map_err(fail)?;
        self.options.ignore.clone_from(&self.ignore);
        let moved = std::mem::take(&mut self.moved);
        if moved.is_empty() {
            return Ok(());
        }
        way::put_back(&Root::open(&self.root)?, &moved)?;
        // What led to their other places.
        remove::empty(handle(&self.root)?, &self.options.ignore).map_err(fail)
    }

    /// Lays a layer over the tree of `stage`. What of the pod's is in the way of a link makes way for it; where that can't be,
    /// that place is ignored, since the tree has something else there than the image.
    fn lay(&mut self, stage: usize, layer: &BaseLayer) -> Result<(), RootfsError> {
        let in_the_way = self.current(stage)?.lay(layer)?;
        if in_the_way.is_empty() {
            return Ok(());
        }
        self.make_way(in_the_way)?;
        let ignore = self.options.ignore.clone();
        self.current(stage)?.ignore(ignore);
        Ok(())
    }

    fn make_way(&mut self, in_the_way: Vec<InTheWay>) -> Result<(), RootfsError> {
        let root = Root::open(&self.root)?;
        for entry in in_the_way {
            match way::make_way(&root, &entry)? {
                Some(moved) => {
                    way::follow(&mut self.options.ignore, &moved);
                    self.moved.extend(moved);
                }
                None => self.options.ignore.add(entry.path),
            }
        }
        Ok(())
    }

    fn fresh_dir(&self, above: &str, name: &str) -> Result<PathBuf, RootfsError> {
        let path = self.scratch.join(above).join(name);
        let make = || {
            remove_all(CWD, bytes(&path))?;
            std::fs::create_dir_all(&path)
        };
        make().map_err(|error| failed("make", bytes(&path), error))?;
        Ok(path)
    }

    /// The directory for the files of scans.
    fn scans(&self) -> Result<PathBuf, RootfsError> {
        let path = self.scratch.join("s");
        std::fs::create_dir_all(&path).map_err(|error| failed("make", bytes(&path), error))?;
        Ok(path)
    }

    fn current(&mut self, stage: usize) -> Result<&mut Tracked, RootfsError> {
        match &mut self.current {
            Some((current, tracked)) if *current == stage => Ok(tracked),
            _ => Err(super::no_such_stage(stage)),
        }
    }
}

impl Host {
    fn base(&mut self, stage: usize, layers: &[BaseLayer]) -> Result<(), RootfsError> {
        self.empty()?;
        self.saved.remove(&stage);
        rustix::fs::chmod(&self.root, Mode::from_raw_mode(unpack::ROOT_MODE))
            .map_err(|error| failed("set the mode of", bytes(&self.root), error.into()))?;
        let tracked = Tracked::new(self.root.clone(), self.scans()?, self.options.clone());
        self.current = Some((stage, tracked));
        layers.iter().try_for_each(|layer| self.lay(stage, layer))
    }

    fn fork(&mut self, stage: usize, from: usize) -> Result<(), RootfsError> {
        if let Some((current, tracked)) = &mut self.current
            && *current == from
        {
            if tracked.is_open() {
                return Err(super::step_is_open());
            }
            *current = stage;
            return Ok(());
        }
        let saved = self.saved.get(&from).ok_or_else(|| super::no_such_stage(from))?;
        let records = saved.records.as_ref().ok_or_else(|| super::not_saved(from))?;
        let fail = |error| failed("read the records of", bytes(&saved.path), error);
        let clone = || records.try_clone().map_err(fail);
        let (path, before, records) = (saved.path.clone(), clone()?, clone()?);
        let same_places = self.moved == saved.moved && self.options.ignore == saved.ignore;
        if same_places && self.options.stable_inodes {
            self.current = None;
            let before = RecordReader::new(before).map_err(fail)?;
            restore(handle(&self.root)?, handle(&path)?, before, &self.options.ignore)
                .map_err(|error| failed("restore from what was saved", bytes(&path), error))?;
        } else {
            self.empty()?;
            copy_tree(handle(&path)?, &self.root, &self.options)?;
            let in_the_way = way::in_the_way(&Root::open(&path)?, &Root::open(&self.root)?, &self.ignore)?;
            self.make_way(in_the_way)?;
        }
        let mut tracked = Tracked::copied(self.root.clone(), self.scans()?, self.options.clone(), records)?;
        // The next stage that begins there may find most of it untouched.
        let records = tracked.settle()?;
        tracked.pass_the_moment()?;
        if let Some(saved) = self.saved.get_mut(&from) {
            saved.records = Some(records);
            (saved.ignore, saved.moved) = (self.options.ignore.clone(), self.moved.clone());
        }
        self.current = Some((stage, tracked));
        Ok(())
    }

    fn view(&self, stage: usize) -> Result<Arc<dyn View>, RootfsError> {
        match (&self.current, self.saved.get(&stage)) {
            (Some((current, tracked)), _) if *current == stage => tracked.view(),
            (_, Some(saved)) => Ok(Arc::new(DirectoryView::open(&saved.path)?)),
            _ => Err(super::no_such_stage(stage)),
        }
    }

    fn leave(&mut self, stage: usize, keep: &[TreePath]) -> Result<(), RootfsError> {
        let whole = keep.iter().any(TreePath::is_root);
        let tracked = self.current(stage)?;
        let mut records = None;
        if whole {
            records = Some(tracked.settle()?);
            tracked.pass_the_moment()?;
        }
        let from = tracked.handle()?;
        if keep.is_empty() {
            return Ok(());
        }
        let path = self.fresh_dir("k", &stage.to_string())?;
        if whole {
            copy_tree(from, &path, &self.options)?;
        } else {
            save::save(&from, &handle(&path)?, keep, &self.options.ignore)
                .map_err(|error| failed("save what later stages want in", bytes(&path), error))?;
        }
        let (ignore, moved) = (self.options.ignore.clone(), self.moved.clone());
        self.saved.insert(stage, Saved { path, records, ignore, moved });
        Ok(())
    }

    fn cleanup(&mut self) -> Result<(), RootfsError> {
        self.current = None;
        self.saved.clear();
        for name in ["k", "p", "s"] {
            let path = self.scratch.join(name);
            remove_all(CWD, bytes(&path)).map_err(|error| failed("remove", bytes(&path), error))?;
        }
        Ok(())
    }
}

impl Snapshotter for HostSnapshotter {
    fn base(&self, stage: usize, layers: &[BaseLayer]) -> Result<(), RootfsError> {
        self.host().base(stage, layers)
    }

    fn fork(&self, stage: usize, from: usize) -> Result<(), RootfsError> {
        self.host().fork(stage, from)
    }

    fn view(&self, stage: usize) -> Result<Arc<dyn View>, RootfsError> {
        self.host().view(stage)
    }

    fn begin(&self, stage: usize) -> Result<Tree, RootfsError> {
        self.host().current(stage)?.begin()?;
        Ok(Tree::Host)
    }

    fn changes(&self, stage: usize) -> Result<Box<dyn ChangeSource>, RootfsError> {
        self.host().current(stage)?.changes()
    }

    fn commit(&self, stage: usize) -> Result<(), RootfsError> {
        self.host().current(stage)?.commit()
    }

    fn apply(&self, stage: usize, delta: Delta) -> Result<(), RootfsError> {
        self.host().current(stage)?.apply(&delta)
    }

    fn apply_layer(&self, stage: usize, layer: BaseLayer) -> Result<(), RootfsError> {
        self.host().lay(stage, &layer)
    }

    fn leave(&self, stage: usize, keep: &[TreePath]) -> Result<(), RootfsError> {
        self.host().leave(stage, keep)
    }

    fn cleanup(&self) -> Result<(), RootfsError> {
        self.host().cleanup()
    }
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_encoded_bytes()
}

fn handle(path: &Path) -> Result<OwnedFd, RootfsError> {
    openat(CWD, path, DIRECTORY, Mode::empty()).map_err(|error| failed("open", bytes(path), error.into()))
}
