//! Layers as directories that overlayfs stacks. Nothing is copied and nothing is scanned: what a step changed is what is
//! in its upper directory, once entries that equal what lies below are left out.
//!
//! In the scratch directory, `l/N` are layers (or links to layers elsewhere), which never change once they are in a
//! stack; `u/N` and `w/N` are the upper and work directories of open steps. The names are short because the kernel
//! takes one page of mount options.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kiln_oci::DiffId;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

use super::unpack::Upper;
use super::{BaseLayer, SnapshotOptions, Snapshotter, Tree, clock, unpack};
use crate::delta::changes::UpperChanges;
use crate::delta::dir_stack::DIRECTORY;
use crate::delta::disk::{look_here, names, remove_all, set_meta, xattrs};
use crate::delta::failed;
use crate::delta::merge::{From, Merge, Onto};
use crate::{ChangeSource, Delta, Kind, Meta, OverlayView, RootfsError, Timestamp, TreePath, View, Xattrs};

/// A layer in `l/`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Layer {
    number: usize,
    /// Whether it says what the root of a tree looks like.
    root: bool,
}

#[derive(Clone, Default)]
struct Stage {
    /// Base first.
    layers: Vec<Layer>,
    /// The open step.
    step: Option<Step>,
}

#[derive(Clone, Copy)]
struct Step {
    number: usize,
    began: Timestamp,
}

/// A layer of a base or a cache. Whoever holds the lock is extracting it; others wait, or find it done.
type Slot = Arc<Mutex<Option<Layer>>>;

/// Keeps each layer in a directory of its own and describes their stack for an overlay mount.
pub struct OverlaySnapshotter {
    scratch: PathBuf,
    options: SnapshotOptions,
    known: Mutex<HashMap<DiffId, Slot>>,
    /// Hard links of layers to files in layers below, until they are in a stack.
    dangling: Mutex<HashMap<usize, Vec<(TreePath, TreePath)>>>,
    stages: Mutex<BTreeMap<usize, Stage>>,
    next: AtomicUsize,
    /// What an earlier build left in the scratch directory is gone.
    swept: Mutex<bool>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl OverlaySnapshotter {
    /// Keeps layers in `scratch`, which must not lie on an overlayfs itself if anything is to be mounted.
    pub fn new(scratch: PathBuf, options: SnapshotOptions) -> Self {
        Self {
            scratch,
            options,
            known: Mutex::default(),
            dangling: Mutex::default(),
            stages: Mutex::default(),
            next: AtomicUsize::new(0),
            swept: Mutex::new(false),
        }
    }

    fn number(&self) -> usize {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn layer_path(&self, number: usize) -> PathBuf {
        self.scratch.join("l").join(number.to_string())
    }

    fn upper_path(&self, number: usize) -> PathBuf {
        self.scratch.join("u").join(number.to_string())
    }

    fn work_path(&self, number: usize) -> PathBuf {
        self.scratch.join("w").join(number.to_string())
    }

    fn make_dirs(&self) -> Result<(), RootfsError> {
        for name in ["l", "u", "w"] {
            let path = self.scratch.join(name);
            std::fs::create_dir_all(&path).map_err(|error| failed("make", bytes(&path), error))?;
        }
        Ok(())
    }

    /// Removes what an earlier build left behind that was killed.
    fn sweep(&self) -> Result<(), RootfsError> {
        let mut swept = lock(&self.swept);
        if !std::mem::replace(&mut *swept, true) {
            self.remove_dirs()?;
        }
        Ok(())
    }

    fn remove_dirs(&self) -> Result<(), RootfsError> {
        for name in ["l", "u", "w"] {
            let path = self.scratch.join(name);
            remove_all(CWD, bytes(&path)).map_err(|error| failed("remove", bytes(&path), error))?;
        }
        Ok(())
    }

    fn stage(&self, stage: usize) -> Result<Stage, RootfsError> {
        lock(&self.stages).get(&stage).cloned().ok_or_else(|| super::no_such_stage(stage))
    }

    fn change<T>(&self, stage: usize, change: impl FnOnce(&mut Stage) -> T) -> Result<T, RootfsError> {
        lock(&self.stages).get_mut(&stage).map(change).ok_or_else(|| super::no_such_stage(stage))
    }

    /// The directories of a stack, top first. overlayfs refuses a directory that is named twice; of a layer that occurs
    /// twice the lower one can go, since the upper one says all that it says.
    fn lowers(&self, layers: &[Layer]) -> Vec<PathBuf> {
        let mut seen = std::collections::HashSet::new();
        let top_first = layers.iter().rev().filter(|layer| seen.insert(layer.number));
        top_first.map(|layer| self.layer_path(layer.number)).collect()
    }

    fn view_below(&self, stage: &Stage) -> Result<Arc<dyn View>, RootfsError> {
        Ok(Arc::new(OverlayView::new(&self.lowers(&stage.layers))?))
    }

    /// Makes sure that each of `layers` is a directory in `l/`, several at a time. Stages that want the same layer at the
    /// same time share the work.
    fn fetch(&self, layers: &[BaseLayer]) -> Result<Vec<Layer>, RootfsError> {
        self.sweep()?;
        self.make_dirs()?;
        let slots: Vec<(&BaseLayer, Slot)> = {
            let mut known = lock(&self.known);
            layers.iter().map(|layer| (layer, known.entry(*layer.diff_id()).or_default().clone())).collect()
        };
        let (queue, failure) = (Mutex::new(slots.iter()), Mutex::new(None));
        let worker = || {
            loop {
                let Some((layer, slot)) = lock(&queue).next() else { return };
                if let Err(error) = self.fetch_one(layer, &mut lock(slot)) {
                    _ = lock(&failure).get_or_insert(error);
                    return;
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.options.threads.clamp(1, layers.len().max(1)) {
                scope.spawn(worker);
            }
            worker();
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(slots.iter().filter_map(|(_, slot)| *lock(slot)).collect()),
        }
    }

    /// Makes `layer` a directory, unless it is one.
    fn fetch_one(&self, layer: &BaseLayer, slot: &mut Option<Layer>) -> Result<(), RootfsError> {
        if slot.is_none() {
            let number = self.number();
            let Upper { says_root, dangling } = self.extract(number, layer)?;
            if !dangling.is_empty() {
                lock(&self.dangling).insert(number, dangling);
            }
            *slot = Some(Layer { number, root: says_root });
        }
        Ok(())
    }

    /// Makes `layer` the directory `number`.
    fn extract(&self, number: usize, layer: &BaseLayer) -> Result<Upper, RootfsError> {
        let dir = self.layer_path(number);
        match layer {
            BaseLayer::Blob { open, compression, .. } => {
                let extract = || {
                    unpack::into_upper(layer, open, *compression, &dir, &self.options).inspect_err(|_| {
                        // The error is about the layer; what is left of it is removed as far as that goes.
                        drop(remove_all(CWD, bytes(&dir)));
                    })
                };
                // Bytes can be given before they are known to be sound: those that are wrong are asked for again.
                extract().or_else(|_| extract())
            }
            BaseLayer::Unpacked { path, .. } => {
                let fail = |error| failed("use the unpacked layer", bytes(path), error);
                let says_root = unpack::says_root(path).map_err(fail)?;
                std::os::unix::fs::symlink(path, &dir).map_err(fail)?;
                Ok(Upper { says_root, dangling: Vec::new() })
            }
        }
    }

    /// Makes the hard links of layers in the stack to files of layers below them.
    fn mend(&self, layers: &[Layer]) -> Result<(), RootfsError> {
        for (place, layer) in layers.iter().enumerate() {
            // The lock is held meanwhile: another stage with the same layer must find the links made.
            let mut waiting = lock(&self.dangling);
            if let Some(dangling) = waiting.remove(&layer.number) {
                let below = OverlayView::new(&self.lowers(&layers[..place]))?;
                unpack::mend(&self.layer_path(layer.number), &dangling, &below)?;
            }
        }
        Ok(())
    }

    /// What the root of the stack `layers` looks like: as its topmost layer says that says anything of it.
    fn root_of(&self, layers: &[Layer]) -> Result<(Meta, Xattrs), RootfsError> {
        match layers.iter().rev().find(|layer| layer.root) {
            Some(layer) => self.root_of_layer(*layer),
            None => Ok((plain_root(), Vec::new())),
        }
    }

    fn root_of_layer(&self, layer: Layer) -> Result<(Meta, Xattrs), RootfsError> {
        let path = self.layer_path(layer.number);
        let look = || {
            let flags = DIRECTORY.difference(OFlags::NOFOLLOW);
            let dir = openat(CWD, &path, flags, Mode::empty())?;
            Ok((look_here(&dir)?, xattrs(&dir, b"")?))
        };
        look().map_err(|error| failed("look at the layer", bytes(&path), error))
    }

    /// overlayfs takes the root's metadata from the topmost directory, whatever the layer says of it. Where that is not
    /// what the stack says, or there is no directory yet, an empty one goes on top.
    fn cap(&self, mut layers: Vec<Layer>) -> Result<Vec<Layer>, RootfsError> {
        let (wanted, wanted_xattrs) = self.root_of(&layers)?;
        if let Some(top) = layers.last() {
            let (meta, xattrs) = self.root_of_layer(*top)?;
            if super::is_alike(&meta, &wanted) && xattrs == wanted_xattrs {
                return Ok(layers);
            }
        }
        let number = self.number();
        let path = self.layer_path(number);
        self.make_root(&path, &wanted, &wanted_xattrs)?;
        layers.push(Layer { number, root: true });
        Ok(layers)
    }

    fn make_root(&self, path: &Path, meta: &Meta, xattrs: &Xattrs) -> Result<(), RootfsError> {
        self.make_dirs()?;
        let make = || {
            rustix::fs::mkdir(path, Mode::RWXU)?;
            set_meta(openat(CWD, path, DIRECTORY, Mode::empty())?, b"", meta, xattrs)
        };
        make().map_err(|error| failed("make", bytes(path), error))
    }

    /// Puts the directory `from` on top of a stack as a layer that says what its root looks like.
    fn push(&self, stage: usize, from: &Path) -> Result<(), RootfsError> {
        let number = self.number();
        let to = self.layer_path(number);
        let fail = |error| failed("keep the layer", bytes(from), error);
        match rustix::fs::rename(from, &to) {
            Ok(()) => {}
            Err(Errno::XDEV) => {
                self.make_root(&to, &plain_root(), &Vec::new())?;
                self.merge(from, &to, true)?;
                remove_all(CWD, bytes(from)).map_err(fail)?;
            }
            Err(error) => return Err(fail(error.into())),
        }
        self.change(stage, |stage| stage.layers.push(Layer { number, root: true }))
    }

    /// Whether the upper directory `upper` holds nothing and its root looks as that of the stack below.
    fn adds_nothing(&self, stage: usize, upper: &Path) -> Result<bool, RootfsError> {
        let look = || {
            let dir = openat(CWD, upper, DIRECTORY, Mode::empty())?;
            let meta = look_here(&dir)?;
            let attributes = xattrs(&dir, b"")?;
            Ok((names(dir)?, meta, attributes))
        };
        let (names, meta, attributes) = look().map_err(|error| failed("look at", bytes(upper), error))?;
        let (below, attributes_below) = self.root_of(&self.stage(stage)?.layers)?;
        let alike = super::is_alike(&meta, &below) && meta.mtime == below.mtime;
        Ok(names.is_empty() && alike && attributes == attributes_below)
    }

    /// The time as a file made now in the scratch directory gets it.
    fn now(&self) -> Result<Timestamp, RootfsError> {
        let now = || clock::now(openat(CWD, &self.scratch, DIRECTORY, Mode::empty())?, &self.scratch);
        now().map_err(|error| failed("ask for the time of", bytes(&self.scratch), error))
    }

    /// Lays the delta or layer `from` over the upper directory `to`.
    fn merge(&self, from: &Path, to: &Path, root: bool) -> Result<(), RootfsError> {
        let fail = |error| failed("merge the layer", bytes(from), error);
        let merge =
            Merge { from: From::Delta, onto: Onto::Upper, take: false, root, ignore: &self.options.ignore };
        let open = |path, flags| openat(CWD, path, flags, Mode::empty()).map_err(|error| fail(error.into()));
        let source = open(from, DIRECTORY.difference(OFlags::NOFOLLOW))?;
        merge.run(source, open(to, DIRECTORY)?, &mut |_| Ok(())).map_err(fail)
    }
}

impl Snapshotter for OverlaySnapshotter {
    fn base(&self, stage: usize, layers: &[BaseLayer]) -> Result<(), RootfsError> {
        let layers = self.fetch(layers)?;
        self.mend(&layers)?;
        let layers = self.cap(layers)?;
        lock(&self.stages).insert(stage, Stage { layers, step: None });
        Ok(())
    }

    fn fork(&self, stage: usize, from: usize) -> Result<(), RootfsError> {
        let from = self.stage(from)?;
        if from.step.is_some() {
            return Err(super::step_is_open());
        }
        let layers = from.layers.clone();
        lock(&self.stages).insert(stage, Stage { layers, step: None });
        Ok(())
    }

    fn view(&self, stage: usize) -> Result<Arc<dyn View>, RootfsError> {
        let stage = self.stage(stage)?;
        let Some(step) = stage.step else { return self.view_below(&stage) };
        let mut stack = vec![self.upper_path(step.number)];
        stack.extend(self.lowers(&stage.layers));
        Ok(Arc::new(OverlayView::changing(&stack)?))
    }

    fn begin(&self, stage: usize) -> Result<Tree, RootfsError> {
        let here = self.stage(stage)?;
        let lowers = self.lowers(&here.layers);
        let number = if let Some(step) = here.step {
            step.number
        } else {
            // The stack is capped: its topmost directory says what the root looks like, to the mtime.
            let top = here.layers.last().copied().ok_or_else(|| super::no_such_stage(stage))?;
            let (meta, xattrs) = self.root_of_layer(top)?;
            let number = self.number();
            self.make_root(&self.upper_path(number), &meta, &xattrs)?;
            let began = self.now()?;
            self.change(stage, |stage| stage.step = Some(Step { number, began }))?;
            number
        };
        let (upper, work) = (self.upper_path(number), self.work_path(number));
        let renew = || {
            remove_all(CWD, bytes(&work))?;
            Ok(rustix::fs::mkdir(&work, Mode::RWXU)?)
        };
        renew().map_err(|error| failed("make", bytes(&work), error))?;
        Ok(Tree::Overlay { lowers, upper, work })
    }

    fn changes(&self, stage: usize) -> Result<Box<dyn ChangeSource>, RootfsError> {
        let here = self.stage(stage)?;
        let step = here.step.ok_or_else(super::no_step_is_open)?;
        let below = self.view_below(&here)?;
        Ok(Box::new(UpperChanges::new(
            &self.upper_path(step.number),
            below,
            self.options.ignore.clone(),
            step.began,
        )?))
    }

    fn commit(&self, stage: usize) -> Result<(), RootfsError> {
        let step = self.change(stage, |stage| stage.step.take())?.ok_or_else(super::no_step_is_open)?;
        let (work, upper) = (self.work_path(step.number), self.upper_path(step.number));
        remove_all(CWD, bytes(&work)).map_err(|error| failed("remove", bytes(&work), error))?;
        // Stacks have a limit: a step that wrote nothing adds nothing.
        if self.adds_nothing(stage, &upper)? {
            return remove_all(CWD, bytes(&upper)).map_err(|error| failed("remove", bytes(&upper), error));
        }
        self.push(stage, &upper)
    }

    fn apply(&self, stage: usize, delta: Delta) -> Result<(), RootfsError> {
        self.make_dirs()?;
        let Some(step) = self.stage(stage)?.step else { return self.push(stage, delta.path()) };
        self.merge(delta.path(), &self.upper_path(step.number), true)?;
        remove_all(CWD, bytes(delta.path())).map_err(|error| failed("remove", bytes(delta.path()), error))
    }

    fn apply_layer(&self, stage: usize, layer: BaseLayer) -> Result<(), RootfsError> {
        let step = self.stage(stage)?.step;
        for layer in self.fetch(&[layer])? {
            let mut stack = self.stage(stage)?.layers;
            stack.push(layer);
            self.mend(&stack)?;
            if let Some(step) = step {
                self.merge(&self.layer_path(layer.number), &self.upper_path(step.number), layer.root)?;
            } else {
                let layers = self.cap(stack)?;
                self.change(stage, |stage| stage.layers = layers)?;
            }
        }
        Ok(())
    }

    fn leave(&self, stage: usize, _keep: &[TreePath]) -> Result<(), RootfsError> {
        self.stage(stage).map(|_| ())
    }

    fn cleanup(&self) -> Result<(), RootfsError> {
        lock(&self.stages).clear();
        lock(&self.known).clear();
        lock(&self.dangling).clear();
        self.remove_dirs()
    }
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_encoded_bytes()
}

/// The root of a tree of which no layer says anything.
fn plain_root() -> Meta {
    Meta {
        kind: Kind::Directory,
        mode: unpack::ROOT_MODE,
        uid: 0,
        gid: 0,
        mtime: Timestamp { secs: 0, nanos: 0 },
        size: 0,
        rdev: None,
        link: None,
        inode: (0, 0),
        nlink: 1,
        ctime: Timestamp { secs: 0, nanos: 0 },
    }
}
