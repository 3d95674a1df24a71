//! Snapshotters: where the files of a stage live while it is built, and how its changes are found.
//!
//! There are three, one for each way of keeping a tree: [`OverlaySnapshotter`] stacks directories and lets overlayfs
//! merge them, [`DirectorySnapshotter`] keeps one plain tree per stage, [`HostSnapshotter`] works in the container's own
//! root. All give the same layer for the same change, to the byte.

mod ahead;
mod clock;
mod directory;
mod host;
mod log;
mod mountinfo;
mod overlay;
mod record;
mod restore;
mod save;
mod scan;
mod spool;
mod tracked;
mod unpack;
mod way;

use std::fmt;
use std::io::{self, BufRead};
use std::path::PathBuf;
use std::sync::Arc;

use kiln_oci::DiffId;

use crate::{ChangeSource, Compression, Delta, IgnorePaths, RootfsError, TreePath, View};

pub use directory::DirectorySnapshotter;
pub use host::{HOST_IGNORED, HostSnapshotter};
pub use mountinfo::mount_points;
pub use overlay::OverlaySnapshotter;
pub(crate) use scan::{LONG_AGO, is_alike, is_set_mtime};

/// How changes are found on rungs that keep plain trees. On the overlay rung all three are exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SnapshotMode {
    /// Metadata says which files may differ, content decides.
    #[default]
    Full,
    /// Metadata alone: a file rewritten in place with its size and mtime kept is missed.
    Redo,
    /// The mtime alone: changes of owner, mode or xattrs are missed as well. New and removed files are found.
    Time,
}

/// What all snapshotters want to know.
#[derive(Clone, Debug)]
pub struct SnapshotOptions {
    /// How changes are found.
    pub mode: SnapshotMode,
    /// Paths that are neither extracted from a base, nor recorded, nor deleted.
    pub ignore: IgnorePaths,
    /// Whether inode numbers stay the same from one step to the next. Under gVisor they don't.
    pub stable_inodes: bool,
    /// Whether device nodes can be made. Where not, those of a base are left out.
    pub can_mknod: bool,
    /// Whether files can be given to anybody. Where not, all of them are ours.
    pub can_chown: bool,
    /// How many layers are extracted at once where that is possible, and never less than one. One more than there are
    /// cores leaves fewer of them idle at the end; each takes its memory.
    pub threads: usize,
}

impl Default for SnapshotOptions {
    fn default() -> Self {
        Self {
            mode: SnapshotMode::Full,
            ignore: IgnorePaths::default(),
            stable_inodes: true,
            can_mknod: false,
            can_chown: true,
            threads: 3,
        }
    }
}

/// The tree that a step runs in, described for the sandbox, which enters it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tree {
    /// An overlay that has yet to be mounted, with `userxattr`, and without redirect_dir, metacopy and index.
    Overlay {
        /// The lower directories, top first. No directory is named twice.
        lowers: Vec<PathBuf>,
        /// Where changes go.
        upper: PathBuf,
        /// An empty directory beside it for overlayfs's own use.
        work: PathBuf,
    },
    /// A plain directory.
    Directory {
        /// Where it is.
        path: PathBuf,
    },
    /// The container's own root.
    Host,
}

/// Opens the compressed bytes of a layer, from the start, each time it is called. Reading them to the end fails unless
/// they fit their digest.
pub type OpenBlob = Arc<dyn Fn() -> io::Result<Box<dyn BufRead + Send>> + Send + Sync>;

/// A layer that a tree is made of.
#[derive(Clone)]
pub enum BaseLayer {
    /// Already a directory in overlayfs's format, maybe on a read-only volume. It is only ever read.
    Unpacked {
        /// The layer's name.
        diff_id: DiffId,
        /// Where it is.
        path: PathBuf,
    },
    /// A compressed tar.
    Blob {
        /// The layer's name.
        diff_id: DiffId,
        /// Gives its bytes.
        open: OpenBlob,
        /// How they are compressed; what the bytes themselves say is believed first.
        compression: Compression,
    },
}

impl BaseLayer {
    /// The layer's name.
    pub fn diff_id(&self) -> &DiffId {
        match self {
            Self::Unpacked { diff_id, .. } | Self::Blob { diff_id, .. } => diff_id,
        }
    }
}

impl fmt::Debug for BaseLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unpacked { diff_id, path } => write!(f, "Unpacked({diff_id} at {})", path.display()),
            Self::Blob { diff_id, .. } => write!(f, "Blob({diff_id})"),
        }
    }
}

/// Keeps the trees of the stages of one build.
///
/// A stage begins with [`base`](Self::base) or [`fork`](Self::fork). Each step is either a delta or a layer that is laid
/// on top, or it runs between [`begin`](Self::begin) and [`commit`](Self::commit). Between these two a step is open:
/// deltas and layers that are applied then belong to it, as do further calls of `begin`, so one layer can hold the
/// changes of many instructions.
///
/// Different stages can be worked on from different threads at the same time; one stage by one thread at a time.
pub trait Snapshotter: Send + Sync {
    /// Makes the tree of `stage` from `layers`, base first. A stage that is there already is begun anew.
    fn base(&self, stage: usize, layers: &[BaseLayer]) -> Result<(), RootfsError>;

    /// Makes the tree of `stage` a copy of what stage `from` is now, which must have no open step.
    fn fork(&self, stage: usize, from: usize) -> Result<(), RootfsError>;

    /// The tree of `stage` as it is now.
    fn view(&self, stage: usize) -> Result<Arc<dyn View>, RootfsError>;

    /// Opens a step: from now on something may write to the tree.
    fn begin(&self, stage: usize) -> Result<Tree, RootfsError>;

    /// What the open step has changed: content or visible metadata, never ctime. Nothing may write to the tree until
    /// the result is consumed (on the overlay rung: until the step is committed).
    fn changes(&self, stage: usize) -> Result<Box<dyn ChangeSource>, RootfsError>;

    /// Closes the step: what it changed is part of the stage.
    fn commit(&self, stage: usize) -> Result<(), RootfsError>;

    /// Makes `delta` part of the stage. Its directory is taken over, and gone or moved afterwards.
    fn apply(&self, stage: usize, delta: Delta) -> Result<(), RootfsError>;

    /// Makes a layer that was found in a cache part of the stage.
    fn apply_layer(&self, stage: usize, layer: BaseLayer) -> Result<(), RootfsError>;

    /// The stage is done. Of its files only `keep` is wanted from now on, by COPY --from; the root itself stands for
    /// all of them, which a later `fork` needs. Snapshotters with room for all trees keep everything.
    fn leave(&self, stage: usize, keep: &[TreePath]) -> Result<(), RootfsError>;

    /// Removes what the snapshotter keeps in its scratch directory. No stage is left.
    fn cleanup(&self) -> Result<(), RootfsError>;
}

fn no_such_stage(stage: usize) -> RootfsError {
    RootfsError::Misuse(format!(
        "stage {stage} has no tree here: begin it with its base, or keep it when it is left"
    ))
}

fn not_saved(stage: usize) -> RootfsError {
    RootfsError::Misuse(format!("stage {stage} was not kept whole, so no stage can be based on it any more"))
}

fn step_is_open() -> RootfsError {
    RootfsError::Misuse("a step is open: commit it first".to_owned())
}

fn no_step_is_open() -> RootfsError {
    RootfsError::Misuse("no step is open: begin one first".to_owned())
}
