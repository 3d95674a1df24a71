//! Layers as directories that overlayfs stacks. Nothing is copied and nothing is scanned: what a step changed is what is
//! in its upper directory, once entries that equal what lies below are left out.
//!
//! In the scratch directory, `l/N` are layers (or links to layers elsewhere), which never change once they are in a
//! stack; `u/N` and `w/N` are the upper and work directories of open steps. The names are short because the kernel
//! takes one page of mount options.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

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

#[derive(Default)]
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

/// Keeps each layer in a directory of its own and describes their stack for an overlay mount.
pub struct OverlaySnapshotter {
    scratch: PathBuf,
    options: SnapshotOptions,
    known: HashMap<DiffId, Layer>,
    /// Hard links of layers to files in layers below, until they are in a stack.
    dangling: HashMap<usize, Vec<(TreePath, TreePath)>>,
    stages: BTreeMap<usize, Stage>,
    next: usize,
    /// What an earlier build left in the scratch directory is gone.
    swept: bool,
}

impl OverlaySnapshotter {
    /// Keeps layers in `scratch`, which must not lie on an overlayfs itself if anything is to be mounted.
    pub fn new(scratch: PathBuf, options: SnapshotOptions) -> Self {
        Self {
            scratch,
            options,
            known: HashMap::new(),
            dangling: HashMap::new(),
            stages: BTreeMap::new(),
            next: 0,
            swept: false,
        }
    }

    fn number(&mut self) -> usize {
        self.next += 1;
        self.next - 1
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
    fn sweep(&mut self) -> Result<(), RootfsError> {
        if !std::mem::replace(&mut self.swept, true) {
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

    fn stage(&self, stage: usize) -> Result<&Stage, RootfsError> {
        self.stages.get(&stage).ok_or_else(|| super::no_such_stage(stage))
    }

    fn stage_mut(&mut self, stage: usize) -> Result<&mut Stage, RootfsError> {
        self.stages.get_mut(&stage).ok_or_else(|| super::no_such_stage(stage))
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

    /// Makes sure that each of `layers` is a directory in `l/`, several at a time.
    fn fetch(&mut self, layers: &[BaseLayer]) -> Result<Vec<Layer>, RootfsError> {
        self.sweep()?;
        self.make_dirs()?;
        let mut missing: Vec<(usize, &BaseLayer)> = Vec::new();
        let mut numbers: HashMap<DiffId, usize> = HashMap::new();
        for layer in layers {
            let id = *layer.diff_id();
            if !self.known.contains_key(&id) && !numbers.contains_key(&id) {
                let number = self.number();
                numbers.insert(id, number);
                missing.push((number, layer));
            }
        }
        let threads = self.options.threads.clamp(1, missing.len().max(1));
        let (queue, done) = (Mutex::new(missing.into_iter()), Mutex::new(Vec::new()));
        let worker = || {
            loop {
                let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((number, layer)) = next else { return };
                let upper = self.fetch_one(number, layer);
                done.lock().unwrap_or_else(PoisonError::into_inner).push((*layer.diff_id(), number, upper));
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(worker);
            }
            worker();
        });
        let mut failure = None;
        for (id, number, upper) in done.into_inner().unwrap_or_else(PoisonError::into_inner) {
            match upper {
                Ok(Upper { says_root, dangling }) => {
                    self.known.insert(id, Layer { number, root: says_root });
                    self.dangling.insert(number, dangling);
                }
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        match failure {
            Some(error) => Err(error),
            None => Ok(layers.iter().filter_map(|layer| self.known.get(layer.diff_id()).copied()).collect()),
        }
    }

    /// Makes `layer` the directory `number`.
    fn fetch_one(&self, number: usize, layer: &BaseLayer) -> Result<Upper, RootfsError> {
        let dir = self.layer_path(number);
        match layer {
            BaseLayer::Blob { open, compression, .. } => {
                unpack::into_upper(layer, open, *compression, &dir, &self.options).inspect_err(|_| {
                    // The error is about the layer; what is left of it is removed as far as that goes.
                    drop(remove_all(CWD, bytes(&dir)));
                })
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
    fn mend(&mut self, layers: &[Layer]) -> Result<(), RootfsError> {
        for (place, layer) in layers.iter().enumerate() {
            let dangling = self.dangling.remove(&layer.number).unwrap_or_default();
            if !dangling.is_empty() {
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
    fn cap(&mut self, mut layers: Vec<Layer>) -> Result<Vec<Layer>, RootfsError> {
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
    fn push(&mut self, stage: usize, from: &Path) -> Result<(), RootfsError> {
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
        self.stage_mut(stage)?.layers.push(Layer { number, root: true });
        Ok(())
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
    fn base(&mut self, stage: usize, layers: &[BaseLayer]) -> Result<(), RootfsError> {
        let layers = self.fetch(layers)?;
        self.mend(&layers)?;
        let layers = self.cap(layers)?;
        self.stages.insert(stage, Stage { layers, step: None });
        Ok(())
    }

    fn fork(&mut self, stage: usize, from: usize) -> Result<(), RootfsError> {
        let from = self.stage(from)?;
        if from.step.is_some() {
            return Err(super::step_is_open());
        }
        let layers = from.layers.clone();
        self.stages.insert(stage, Stage { layers, step: None });
        Ok(())
    }

    fn view(&self, stage: usize) -> Result<Arc<dyn View>, RootfsError> {
        let stage = self.stage(stage)?;
        let mut stack: Vec<PathBuf> = stage.step.iter().map(|step| self.upper_path(step.number)).collect();
        stack.extend(self.lowers(&stage.layers));
        Ok(Arc::new(OverlayView::new(&stack)?))
    }

    fn begin(&mut self, stage: usize) -> Result<Tree, RootfsError> {
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
            self.stage_mut(stage)?.step = Some(Step { number, began });
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

    fn changes(&mut self, stage: usize) -> Result<Box<dyn ChangeSource>, RootfsError> {
        let here = self.stage(stage)?;
        let step = here.step.ok_or_else(super::no_step_is_open)?;
        let below = self.view_below(here)?;
        Ok(Box::new(UpperChanges::new(
            &self.upper_path(step.number),
            below,
            self.options.ignore.clone(),
            step.began,
        )?))
    }

    fn commit(&mut self, stage: usize) -> Result<(), RootfsError> {
        let step = self.stage_mut(stage)?.step.take().ok_or_else(super::no_step_is_open)?;
        let (work, upper) = (self.work_path(step.number), self.upper_path(step.number));
        remove_all(CWD, bytes(&work)).map_err(|error| failed("remove", bytes(&work), error))?;
        // Stacks have a limit: a step that wrote nothing adds nothing.
        if self.adds_nothing(stage, &upper)? {
            return remove_all(CWD, bytes(&upper)).map_err(|error| failed("remove", bytes(&upper), error));
        }
        self.push(stage, &upper)
    }

    fn apply(&mut self, stage: usize, delta: Delta) -> Result<(), RootfsError> {
        self.make_dirs()?;
        let Some(step) = self.stage(stage)?.step else { return self.push(stage, delta.path()) };
        self.merge(delta.path(), &self.upper_path(step.number), true)?;
        remove_all(CWD, bytes(delta.path())).map_err(|error| failed("remove", bytes(delta.path()), error))
    }

    fn apply_layer(&mut self, stage: usize, layer: BaseLayer) -> Result<(), RootfsError> {
        let step = self.stage(stage)?.step;
        for layer in self.fetch(&[layer])? {
            let mut stack = self.stage(stage)?.layers.clone();
            stack.push(layer);
            self.mend(&stack)?;
            if let Some(step) = step {
                self.merge(&self.layer_path(layer.number), &self.upper_path(step.number), layer.root)?;
            } else {
                self.stage_mut(stage)?.layers = self.cap(stack)?;
            }
        }
        Ok(())
    }

    fn leave(&mut self, stage: usize, _keep: &[TreePath]) -> Result<(), RootfsError> {
        self.stage(stage).map(|_| ())
    }

    fn cleanup(&mut self) -> Result<(), RootfsError> {
        self.stages.clear();
        self.known.clear();
        self.dangling.clear();
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
